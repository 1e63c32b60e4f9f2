// The store of one gateway: a file for each entry, below a directory of its own. Locks are the kernel's (flock), so they go with
// their holder, and hold between the two control processes of an upgrade too.
import { constants, type Dirent } from 'node:fs'
import { mkdir, open, readdir, rm, rmdir, stat, type FileHandle } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { STORE_LOOK_MS, STORE_TEXT_BYTES_MAX } from '../base/limits.ts'
import { native } from '../base/native.ts'
import { DirectoryWatch } from './directory-watch.ts'
import { privateDirectory, replaceFile, syncDirectory } from './durable.ts'
import { readText } from './pem.ts'
import type { Lock, Store } from './store.ts'
import { checkKey, keyToPath, pathToKey } from './store-keys.ts'
import { Watchers } from './store-watchers.ts'

/** Not a word that a key could begin with. */
const TEMPORARIES = 'TEMPORARY'
/** A file that was being written this long ago is not written any more. */
const LEFT_MS = 60_000
/** How often a write or a lock is begun again because a directory or file was taken away beneath it. */
const ATTEMPTS = 10
const EWOULDBLOCK = 11

export class FileStore implements Store {
  readonly shared = false
  #temporaries: string
  /** Writes of one key, one after the other: the last one that was asked for is what stays. */
  #writes = new Map<string, Promise<unknown>>()
  #locks = new Set<Lock>()
  #watchers = new Watchers()
  #watch: DirectoryWatch | undefined

  private constructor(
    private readonly root: string,
    private readonly lookMs: number,
  ) {
    this.#temporaries = join(root, TEMPORARIES)
  }

  static async open(root: string, lookMs: number = STORE_LOOK_MS): Promise<FileStore> {
    await privateDirectory(root)
    const store = new FileStore(root, lookMs)
    await mkdir(store.#temporaries, { recursive: true, mode: 0o700 })
    // What a crash has left. Another process may be writing: what is young is its own, and losing one only makes it begin again.
    for (const name of await readdir(store.#temporaries)) {
      const path = join(store.#temporaries, name)
      const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Infinity }))
      if (Date.now() - mtimeMs > LEFT_MS) await rm(path, { force: true })
    }
    return store
  }

  async get(key: string): Promise<string | undefined> {
    checkKey(key)
    const entry = await this.#read(key)
    if (!entry) return undefined
    if (entry.expiresAt > Date.now()) return entry.text
    await this.#expire(key)
    return undefined
  }

  async put(key: string, text: string, { ttlMs }: { ttlMs?: number } = {}): Promise<void> {
    checkKey(key)
    if (Buffer.byteLength(text) > STORE_TEXT_BYTES_MAX)
      throw new Error(`Cannot keep ${key}: more than ${STORE_TEXT_BYTES_MAX / 1024} KiB`)
    const content = compose(text, ttlMs === undefined ? Infinity : Date.now() + ttlMs)
    await this.#inTurn(key, () => this.#write(this.#path(key), content))
    this.#watchers.tell(key)
  }

  async delete(key: string): Promise<void> {
    checkKey(key)
    if (await this.#inTurn(key, () => this.#remove(key))) this.#watchers.tell(key)
  }

  async list(prefix: string): Promise<string[]> {
    const keys: string[] = []
    // Cut at the last slash, which is where a directory of the keys is one of the disk.
    const words = prefix.slice(0, prefix.lastIndexOf('/') + 1).replace(/\/$/, '')
    if (words) checkKey(words)
    const top = words ? keyToPath(words, 'ENTRY').slice(0, -'.ENTRY'.length) : ''
    for (const path of await filesBelow(join(this.root, top))) {
      const key = pathToKey(relative(this.root, path))
      if (key?.startsWith(prefix) && (await this.get(key)) !== undefined) keys.push(key)
    }
    return keys.sort()
  }

  async lock(key: string): Promise<Lock | null> {
    checkKey(key)
    const path = join(this.root, keyToPath(key, 'LOCK'))
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      const file = await this.#open(path)
      try {
        const held = native().sluice_flock(file.fd)
        if (held === -EWOULDBLOCK) return null
        if (held < 0) throw new Error(`Cannot lock ${path}: error ${-held} of flock`)
        if (await isAt(file, path)) return this.#hold(file, path)
        // Who had it before took the file away after it was opened here: a lock on it is none.
      } finally {
        await file.close()
      }
    }
    return null
  }

  watch(prefix: string, changed: (key: string) => void): () => void {
    const stop = this.#watchers.add(prefix, changed)
    // For what other processes change; what this one does is told at once.
    this.#watch ??= new DirectoryWatch(
      this.root,
      (path) => {
        const key = pathToKey(path)
        if (key !== undefined) this.#watchers.tell(key)
      },
      this.lookMs,
    )
    return () => {
      stop()
      if (this.#watchers.size > 0) return
      this.#watch?.stop()
      this.#watch = undefined
    }
  }

  async close(): Promise<void> {
    this.#watch?.stop()
    this.#watch = undefined
    this.#watchers.clear()
    await Promise.allSettled([...this.#locks].map((lock) => lock.release()))
    await Promise.allSettled(this.#writes.values())
  }

  #path(key: string) {
    return join(this.root, keyToPath(key, 'ENTRY'))
  }

  async #read(key: string): Promise<Entry | undefined> {
    const text = await readText('entry', this.#path(key)).catch((error: Error) => {
      const { code } = (error.cause ?? {}) as NodeJS.ErrnoException
      if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
      throw error
    })
    // What is damaged is as good as lost: it is made again.
    return text === undefined ? undefined : parse(text)
  }

  #expire(key: string): Promise<unknown> {
    return this.#inTurn(key, async () => {
      // It may have been put again meanwhile.
      const entry = await this.#read(key)
      if (entry && entry.expiresAt <= Date.now()) await this.#remove(key)
    })
  }

  async #write(path: string, content: string): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await replaceFile(path, content, this.#temporaries)
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code !== 'ENOENT' || attempt >= ATTEMPTS)
          throw new Error(`Cannot write ${path}: ${(cause as Error).message}`, { cause })
        await this.#makeDirectories(dirname(path))
      }
    }
  }

  /** Durably: what is in a directory is lost with it. */
  async #makeDirectories(path: string): Promise<void> {
    await mkdir(this.#temporaries, { recursive: true, mode: 0o700 })
    await mkdir(path, { recursive: true, mode: 0o700 })
    for (let at = path; at !== this.root; at = dirname(at)) await syncDirectory(dirname(at)).catch(isGone)
  }

  async #remove(key: string): Promise<boolean> {
    const path = this.#path(key)
    try {
      await rm(path)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return false
      throw new Error(`Cannot remove ${path}: ${(cause as Error).message}`, { cause })
    }
    await syncDirectory(dirname(path)).catch(isGone)
    await this.#removeEmpty(dirname(path))
    return true
  }

  async #removeEmpty(path: string): Promise<void> {
    for (let at = path; at !== this.root; at = dirname(at)) {
      const removed = await rmdir(at).then(
        () => true,
        () => false,
      )
      if (!removed) return
    }
  }

  async #open(path: string): Promise<FileHandle> {
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants
    for (let attempt = 1; ; attempt++) {
      try {
        return await open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600)
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code !== 'ENOENT' || attempt >= ATTEMPTS)
          throw new Error(`Cannot lock ${path}: ${(cause as Error).message}`, { cause })
        await this.#makeDirectories(dirname(path))
      }
    }
  }

  #hold(file: FileHandle, path: string): Lock {
    // A number, because a FileHandle must not be lost: a lock may be, when nothing needs to be told when it ends.
    const fd = native().sluice_dup(file.fd)
    if (fd < 0) throw new Error(`Cannot lock ${path}: error ${-fd} of dup`)
    let released: Promise<void> | undefined
    const lock: Lock = {
      lost: new AbortController().signal,
      release: () =>
        (released ??= (async () => {
          this.#locks.delete(lock)
          // First the name, then the lock: the other way round another's lock would lose its name.
          await rm(path, { force: true }).catch(() => {})
          await this.#removeEmpty(dirname(path))
          native().sluice_close(fd)
        })()),
    }
    this.#locks.add(lock)
    return lock
  }

  async #inTurn<T>(key: string, act: () => Promise<T>): Promise<T> {
    const before = this.#writes.get(key)
    const mine = (async () => {
      await before?.catch(() => {})
      return act()
    })()
    this.#writes.set(key, mine)
    try {
      return await mine
    } finally {
      if (this.#writes.get(key) === mine) this.#writes.delete(key)
    }
  }
}

interface Entry {
  text: string
  expiresAt: number
}

/** One line for the store, the rest is the text as it is. */
const compose = (text: string, expiresAt: number) =>
  `expires ${expiresAt === Infinity ? 'never' : new Date(expiresAt).toISOString()}\n${text}`

function parse(content: string): Entry | undefined {
  const end = content.indexOf('\n')
  const when = /^expires (never|[0-9TZ:.-]+)$/.exec(content.slice(0, Math.max(end, 0)))?.[1]
  const expiresAt = when === 'never' ? Infinity : Date.parse(when ?? '')
  return Number.isNaN(expiresAt) ? undefined : { text: content.slice(end + 1), expiresAt }
}

async function filesBelow(path: string): Promise<string[]> {
  const entries = await readdir(path, { withFileTypes: true }).catch((cause: NodeJS.ErrnoException): Dirent[] => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') return []
    throw new Error(`Cannot read directory ${path}: ${cause.message}`, { cause })
  })
  const files: string[] = []
  for (const entry of entries) {
    const at = join(path, entry.name)
    if (entry.isDirectory()) files.push(...(await filesBelow(at)))
    else if (entry.isFile()) files.push(at)
  }
  return files
}

async function isAt(file: FileHandle, path: string): Promise<boolean> {
  const [held, named] = await Promise.all([file.stat(), stat(path).catch(() => undefined)])
  return named !== undefined && held.ino === named.ino && held.dev === named.dev
}

/** For what is there to be synced: gone is as good. */
function isGone(cause: NodeJS.ErrnoException) {
  if (cause.code !== 'ENOENT') throw cause
}
