// Those who want to hear of changed keys, by the beginning of the key.

export class Watchers {
  #watchers = new Set<{ prefix: string; changed: (key: string) => void }>()

  get size() {
    return this.#watchers.size
  }

  add(prefix: string, changed: (key: string) => void): () => void {
    const watcher = { prefix, changed }
    this.#watchers.add(watcher)
    return () => void this.#watchers.delete(watcher)
  }

  tell(key: string) {
    for (const { prefix, changed } of [...this.#watchers]) if (key.startsWith(prefix)) changed(key)
  }

  clear() {
    this.#watchers.clear()
  }
}
