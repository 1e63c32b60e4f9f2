// Reads PEM text from files that people and other programs wrote, with errors that name the file.
import { constants, open } from 'node:fs/promises'
import { CERTIFICATE_FILE_BYTES_MAX } from '../base/limits.ts'

export async function readText(what: string, path: string): Promise<string> {
  const fail = (why: string, cause?: unknown) => new Error(`Cannot read ${what} ${path}: ${why}`, { cause })
  // Without O_NONBLOCK the open of a named pipe waits for a writer, for ever.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch((cause) => {
    throw fail(sentences[cause.code] ?? cause.message, cause)
  })
  try {
    const stat = await file.stat()
    if (!stat.isFile()) throw fail('not a regular file')
    if (stat.size > CERTIFICATE_FILE_BYTES_MAX) throw fail(`larger than ${CERTIFICATE_FILE_BYTES_MAX / 1024} KiB`)
    return await file.readFile('utf8')
  } finally {
    await file.close()
  }
}

const sentences: Record<string, string> = {
  ENOENT: 'no such file',
  ENOTDIR: 'no such file',
  EACCES: 'permission denied',
  EISDIR: 'is a directory',
  ELOOP: 'too many symbolic links',
}

/** The blocks whose label matches, each with its own BEGIN and END lines and nothing around them. */
export function pemBlocks(text: string, label: RegExp): string[] {
  const blocks: string[] = []
  for (const [block, name] of text.matchAll(/-----BEGIN ([A-Z0-9 ]+)-----\r?\n(?:(?!-----)[^])*-----END \1-----/g)) {
    if (label.test(name!)) blocks.push(block + '\n')
  }
  return blocks
}
