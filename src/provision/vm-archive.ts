// Writes the archive a Linux kernel unpacks as its first root file system: cpio in its "newc" form, uncompressed.

export interface Entry {
  /** Relative, without a leading slash. Its folder has to be an entry before it. */
  path: string
  /** undefined makes a folder. */
  content?: Uint8Array | string
  executable?: boolean
}

const FOLDER = 0o040755
const FILE = 0o100644
const PROGRAM = 0o100755
const END = 'TRAILER!!!'

export function cpio(entries: Entry[]): Buffer {
  const members = entries.map(({ path, content, executable }, index) =>
    member(index + 1, path, content === undefined ? FOLDER : executable ? PROGRAM : FILE, Buffer.from(content ?? '')),
  )
  return Buffer.concat([...members, member(0, END, 0, Buffer.alloc(0))])
}

function member(inode: number, path: string, mode: number, content: Buffer): Buffer {
  const name = Buffer.from(`${path}\0`)
  // inode, mode, owner, group, links, time, size, device (2), device of a special file (2), length of the name, checksum
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0]
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`
  return Buffer.concat([padded(Buffer.concat([Buffer.from(header), name])), padded(content)])
}

/** Header with name, and content, each end at a multiple of four. */
const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)])
