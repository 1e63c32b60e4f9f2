// Sees which files below a directory were put, replaced or taken away by anybody, by looking: inotify would need a watch for
// each directory, and loses what happens in a new one before its watch is there.
import type { BigIntStats } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

/** A directory that changed this recently is read again: within one tick of the file system's clock it may change twice. */
const YOUNG_MS = 2000

interface Known {
  changed: bigint
  /** By name: a replaced file has another number or another time. */
  files: Map<string, string>
  directories: string[]
}

export class DirectoryWatch {
  #known = new Map<string, Known>()
  #timer: Timer | undefined
  #stopped = false
  #started = Date.now()

  /** Files that were there before are not told, but for those of the last moment: who watches and then reads misses nothing.
   *  @param changed paths from `root` */
  constructor(
    private readonly root: string,
    private readonly changed: (path: string) => void,
    private readonly intervalMs: number,
  ) {
    void this.#look()
  }

  stop() {
    this.#stopped = true
    clearTimeout(this.#timer)
  }

  async #look(): Promise<void> {
    // What cannot be read now is read with the next look.
    await this.#visit('').catch(() => {})
    if (!this.#stopped) this.#timer = setTimeout(() => void this.#look(), this.intervalMs)
  }

  async #visit(path: string): Promise<void> {
    if (this.#stopped) return
    const now = await statOf(join(this.root, path))
    const before = this.#known.get(path)
    if (!now?.isDirectory()) return this.#forget(path)
    const young = Date.now() - Number(now.mtimeMs) < YOUNG_MS
    const known = before && !young && before.changed === now.mtimeNs ? before : await this.#read(path, now, before)
    for (const directory of known.directories) await this.#visit(directory)
  }

  async #read(path: string, { mtimeNs }: BigIntStats, before: Known | undefined): Promise<Known> {
    const known: Known = { changed: mtimeNs, files: new Map(), directories: [] }
    for (const entry of await readdir(join(this.root, path), { withFileTypes: true })) {
      const at = join(path, entry.name)
      if (entry.isDirectory()) known.directories.push(at)
      if (!entry.isFile()) continue
      const file = await statOf(join(this.root, at))
      if (!file) continue
      const stamp = `${file.ino} ${file.mtimeNs} ${file.size}`
      known.files.set(at, stamp)
      if (before?.files.get(at) === stamp) continue
      if (before || Number(file.mtimeMs) > this.#started - YOUNG_MS) this.#tell(at)
    }
    for (const at of before?.files.keys() ?? []) if (!known.files.has(at)) this.#tell(at)
    for (const at of before?.directories ?? []) if (!known.directories.includes(at)) this.#forget(at)
    this.#known.set(path, known)
    return known
  }

  #forget(path: string) {
    const known = this.#known.get(path)
    this.#known.delete(path)
    for (const at of known?.files.keys() ?? []) this.#tell(at)
    for (const at of known?.directories ?? []) this.#forget(at)
  }

  #tell(path: string) {
    if (!this.#stopped) this.changed(path)
  }
}

const statOf = (path: string) => stat(path, { bigint: true }).catch(() => undefined)
