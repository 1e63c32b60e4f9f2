// A store in memory for tests that need none of a real one's durability, but may want it to be away.
import type { Lock, Store } from '../../src/certificates/store.ts'

export class MemoryStore implements Store {
  readonly shared = true
  readonly entries = new Map<string, string>()
  readonly locks = new Set<string>()
  /** Every call rejects. */
  away = false
  /** Writes of keys that begin so reject, as on a full disk. */
  full: string | undefined
  /** Aborted: every lock is lost. */
  losing = new AbortController()
  #watchers = new Set<{ prefix: string; changed(key: string): void }>()

  async get(key: string) {
    this.#answer()
    return this.entries.get(key)
  }
  async put(key: string, text: string) {
    this.#answer()
    if (this.full !== undefined && key.startsWith(this.full)) throw new Error('no space left')
    this.entries.set(key, text)
    this.#tell(key)
  }
  async delete(key: string) {
    this.#answer()
    if (this.entries.delete(key)) this.#tell(key)
  }
  async list(prefix: string) {
    this.#answer()
    return [...this.entries.keys()].filter((key) => key.startsWith(prefix)).sort()
  }
  async lock(key: string): Promise<Lock | null> {
    this.#answer()
    if (this.locks.has(key)) return null
    this.locks.add(key)
    return { lost: this.losing.signal, release: async () => void this.locks.delete(key) }
  }
  watch(prefix: string, changed: (key: string) => void) {
    const watcher = { prefix, changed }
    this.#watchers.add(watcher)
    return () => this.#watchers.delete(watcher)
  }
  async close() {}

  /** The only entry that begins so, as JSON. */
  json(prefix: string): any {
    const found = [...this.entries].filter(([key]) => key.startsWith(prefix))
    if (found.length !== 1) throw new Error(`${found.length} entries begin with ${prefix}`)
    return JSON.parse(found[0]![1])
  }

  #answer() {
    if (this.away) throw new Error('the store is away')
  }
  #tell(key: string) {
    for (const { prefix, changed } of this.#watchers) if (key.startsWith(prefix)) changed(key)
  }
}
