// Whether what comes to the challenge port is read: from before a CA is told to look until a while after it, since one name often
// follows another, and the port need not change hands for each.
import { CHALLENGE_LINGER_MS } from '../base/limits.ts'

export class ChallengePort {
  /** null: the last change failed, so nobody knows. */
  #isRead: boolean | null = false
  #changes: Promise<void> = Promise.resolve()
  #linger: ReturnType<typeof setTimeout> | undefined

  /** @param change resolves when it is carried out: the port is read (true), or goes its usual way again. */
  constructor(
    private readonly change: (challenging: boolean) => Promise<void>,
    private readonly failed: (error: Error) => void,
    private readonly lingerMs = CHALLENGE_LINGER_MS,
  ) {}

  /** Resolves when it is read. */
  read(): Promise<void> {
    this.stop()
    return this.#to(true)
  }

  /** Nobody looks there any more. */
  leave() {
    if (this.#isRead === false) return
    this.#linger ??= setTimeout(() => {
      this.#linger = undefined
      this.#to(false).catch(this.failed)
    }, this.lingerMs)
  }

  stop() {
    clearTimeout(this.#linger)
    this.#linger = undefined
  }

  /** One change after the other: the last one that was asked for is what stays. */
  #to(wanted: boolean): Promise<void> {
    const changed = this.#changes.then(async () => {
      if (this.#isRead === wanted) return
      this.#isRead = null
      await this.change(wanted)
      this.#isRead = wanted
    })
    this.#changes = changed.catch(() => {})
    return changed
  }
}
