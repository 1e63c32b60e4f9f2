// Tells when one of some files has become another: written again, renamed over, or reached by another link. What is watched
// are the directories, since a watch of the file itself stays with the old one; and since a watch can miss things, or not be
// had at all, the files are looked at from time to time as well.
import { watch, type FSWatcher } from 'node:fs'
import { readlink, stat } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import { FILE_CHANGE_MS, WATCHED_DIRECTORIES_MAX } from '../base/limits.ts'

/** As the kernel counts on one way (ELOOP). */
const LINKS_MAX = 40

interface Watched {
  /** Of the directory: one that was removed and made again under its name is another. */
  id: string
  watcher: FSWatcher
  listeners: Set<() => void>
}

/** The watches of all files: those of one directory share one. */
export class Directories {
  readonly #watched = new Map<string, Watched>()

  /** What cannot be watched is not: there is no such directory, or the limit is reached (ours, or that of inotify). */
  async add(directory: string, listener: () => void): Promise<void> {
    const id = await idOf(directory)
    const known = this.#watched.get(directory)
    if (known && known.id === id) return void known.listeners.add(listener)
    known?.watcher.close()
    this.#watched.delete(directory)
    if (id === undefined || this.#watched.size >= WATCHED_DIRECTORIES_MAX) return
    const listeners = new Set(known?.listeners).add(listener)
    const tell = () => {
      for (const told of listeners) told()
    }
    try {
      const watcher = watch(directory, { persistent: false }, tell)
      watcher.on('error', tell)
      this.#watched.set(directory, { id, watcher, listeners })
    } catch {
      // Looking finds the change, later.
    }
  }

  delete(directory: string, listener: () => void) {
    const watched = this.#watched.get(directory)
    if (!watched) return
    watched.listeners.delete(listener)
    if (watched.listeners.size > 0) return
    watched.watcher.close()
    this.#watched.delete(directory)
  }
}

export class FileWatch {
  #directories = new Set<string>()
  #seen: string | undefined
  #timer: ReturnType<typeof setTimeout> | undefined
  #looking: Promise<void> | undefined
  #again = false
  #stopped = false
  readonly #heard = () => {
    // Not put off by what comes next: a directory in which something happens all the time would never be looked at.
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      void this.look()
    }, FILE_CHANGE_MS)
  }

  /** @param changed is called after a change, not for what is there at the start. */
  constructor(
    private readonly files: readonly string[],
    private readonly shared: Directories,
    private readonly changed: () => void,
  ) {}

  /** Takes what the files are now for known. Before they are read: a change during the reading is one. */
  async remember() {
    this.#seen = await this.#signature()
  }

  /** Looks whether they are others now, and watches from then on. One look at a time; one that is asked for meanwhile comes
   *  after it. */
  look(): Promise<void> {
    this.#again = true
    return (this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined
    }))
  }

  async #look() {
    while (this.#again && !this.#stopped) {
      this.#again = false
      // First: a change after it is heard.
      await this.#watchDirectories()
      const now = await this.#signature()
      if (this.#stopped || now === this.#seen) continue
      this.#seen = now
      this.changed()
    }
  }

  async #watchDirectories() {
    const wanted = new Set<string>()
    for (const file of this.files) for (const directory of await directoriesOf(file)) wanted.add(directory)
    if (this.#stopped) return
    for (const directory of this.#directories) if (!wanted.has(directory)) this.shared.delete(directory, this.#heard)
    this.#directories = wanted
    for (const directory of wanted) await this.shared.add(directory, this.#heard)
    if (this.#stopped) this.#unwatch()
  }

  async #signature(): Promise<string> {
    const parts = await Promise.all(
      this.files.map((file) =>
        stat(file).then(
          ({ dev, ino, size, mtimeMs, ctimeMs }) => [dev, ino, size, mtimeMs, ctimeMs].join(),
          (error: NodeJS.ErrnoException) => error.code ?? 'unknown',
        ),
      ),
    )
    return parts.join(' ')
  }

  stop() {
    this.#stopped = true
    clearTimeout(this.#timer)
    this.#unwatch()
  }

  #unwatch() {
    for (const directory of this.#directories) this.shared.delete(directory, this.#heard)
  }
}

const idOf = (directory: string) =>
  stat(directory).then(
    ({ dev, ino, birthtimeMs }) => [dev, ino, birthtimeMs].join(),
    () => undefined,
  )

/** Where a change can make `path` another file: its directory, and that of every link on the way. */
async function directoriesOf(path: string): Promise<Set<string>> {
  const found = new Set<string>()
  const rest = path.split('/').filter(Boolean)
  let at = '/'
  let links = 0
  while (rest.length > 0) {
    const step = rest.shift()!
    if (step === '..' || step === '.') {
      at = step === '.' ? at : dirname(at)
      continue
    }
    const next = join(at, step)
    const target = links < LINKS_MAX ? await readlink(next).catch(() => undefined) : undefined
    if (target !== undefined) {
      links++
      found.add(at)
      rest.unshift(...target.split('/').filter(Boolean))
      if (isAbsolute(target)) at = '/'
    } else if (rest.length === 0) found.add(at)
    else at = next
  }
  return found
}
