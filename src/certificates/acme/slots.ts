// So many at a time; the others wait for their turn, in the order in which they came.

export class Slots {
  #free: number
  #waiting = new Set<() => void>()

  constructor(count: number) {
    this.#free = count
  }

  /** Returns how to leave, which may be called once. Rejects when the signal ends the wait. */
  async enter(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    if (this.#free > 0) this.#free--
    else await this.#turn(signal)
    return () => this.#leave()
  }

  #turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const go = () => {
        signal.removeEventListener('abort', end)
        resolve()
      }
      const end = () => {
        this.#waiting.delete(go)
        reject(signal.reason)
      }
      this.#waiting.add(go)
      signal.addEventListener('abort', end, { once: true })
    })
  }

  #leave(): void {
    const [next] = this.#waiting
    if (!next) this.#free++
    else {
      this.#waiting.delete(next)
      next()
    }
  }
}
