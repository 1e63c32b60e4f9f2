// The output gate of a handler: while a promise given to it is pending, nothing leaves for anyone the handler talks to: no SYN,
// no byte, no FIN. Whoever has something to send asks first, so there is one way out, and with nothing pending it costs no turn.

export class Gate {
  #pending = 0
  #rejected = false
  #waiting: (() => void)[] = []

  /** @param onRejected nothing of what waits may leave any more: called once, with the first rejection. */
  constructor(private readonly onRejected: (error: unknown) => void) {}

  /** What wants to leave has to wait. */
  get closed() {
    return this.#pending > 0 || this.#rejected
  }

  /** Closed until this promise, and every other one that is pending, has resolved. */
  add(promise: PromiseLike<unknown>) {
    this.#pending++
    promise.then(
      () => {
        if (--this.#pending === 0 && !this.#rejected) this.#open()
      },
      (error) => {
        if (this.#rejected) return
        this.#rejected = true
        this.#waiting = []
        this.onRejected(error)
      },
    )
  }

  /** Called once the gate opens, in the order of asking; never when it is rejected. Only for a gate that is closed. */
  wait(listener: () => void) {
    this.#waiting.push(listener)
  }

  #open() {
    const waiting = this.#waiting
    this.#waiting = []
    for (const listener of waiting) {
      // One of them may have closed it again: the others go on waiting, in their order.
      if (this.closed) this.#waiting.push(listener)
      else listener()
    }
  }
}
