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

  /** Not during what has changed the key: what a watcher does or fails to do is no part of that. */
  tell(key: string) {
    for (const watcher of this.#watchers) {
      if (!key.startsWith(watcher.prefix)) continue
      queueMicrotask(() => {
        if (this.#watchers.has(watcher)) watcher.changed(key)
      })
    }
  }

  clear() {
    this.#watchers.clear()
  }
}
