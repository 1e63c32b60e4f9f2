// What control remembers over a restart in files of its state directory. A file that is damaged is put aside, and said:
// it must not keep a gateway from starting.
import { mkdir, open, readFile, rename, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Log } from '../observe/log.ts'

/** 65,536 routes with a few targets each. A larger file is none that we wrote. */
const FILE_BYTES_MAX = 256 * 1024 * 1024

/** null: there is nothing (any more). `parse` throws at what it cannot use. */
export async function recall<T>(path: string, parse: (found: unknown) => T, log: Log): Promise<T | null> {
  try {
    const { size } = await stat(path)
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes`)
    return parse(JSON.parse(await readFile(path, 'utf8')))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    const aside = `${path}.bad`
    const moved = await rename(path, aside).then(
      () => `it is put aside as ${aside}`,
      (cause: Error) => cause.message,
    )
    log('error', `Cannot use ${path}: ${(error as Error).message}; ${moved}`)
    return null
  }
}

/** Replaces the file: whoever reads it, and whenever we crash, finds the old text or the new one. */
export async function remember(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  // Always the same name: what a crash leaves of it is overwritten by the next one.
  const temporary = `${path}.new`
  const file = await open(temporary, 'w', 0o600)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(temporary, path)
}

export function object(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error(`${what} is no object`)
  return value as Record<string, unknown>
}
