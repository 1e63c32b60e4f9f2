// A lock in a Redis: a key with a life, given to who sets it first, and renewed while it is held. Whoever cannot renew it in time
// is told, before another can have it.
import { randomUUID } from 'node:crypto'
import { RELEASE, RENEW } from './redis-scripts.ts'
import type { Lock } from './store.ts'

type Send = (command: string, args: string[]) => Promise<unknown>

/** How much earlier than the Redis its holder takes a lock for lost. */
const MARGIN = 0.1
/** After a renewal without answer the next one comes at this part of the life. */
const AGAIN = 1 / 15

export class RedisLock implements Lock {
  #lost = new AbortController()
  #token = randomUUID()
  #renewal: Timer | undefined
  #end: Timer | undefined
  #released: Promise<void> | undefined

  private constructor(
    private readonly send: Send,
    private readonly key: string,
    private readonly lifeMs: number,
    private readonly ended: (lock: RedisLock) => void,
  ) {}

  get lost() {
    return this.#lost.signal
  }

  /** null: another has it. */
  static async take(
    send: Send,
    key: string,
    lifeMs: number,
    ended: (lock: RedisLock) => void,
  ): Promise<RedisLock | null> {
    const lock = new RedisLock(send, key, lifeMs, ended)
    const asked = performance.now()
    if ((await send('SET', [key, lock.#token, 'NX', 'PX', `${lifeMs}`])) === null) return null
    lock.#holdFrom(asked)
    return lock
  }

  release(): Promise<void> {
    return (this.#released ??= (async () => {
      this.#stop()
      // Not released means that it ends by itself.
      await this.send('EVAL', [RELEASE, '1', this.key, this.#token]).catch(() => {})
    })())
  }

  /** @param asked when the Redis was asked: its own count of the life began later */
  #holdFrom(asked: number) {
    clearTimeout(this.#end)
    clearTimeout(this.#renewal)
    const left = this.lifeMs * (1 - MARGIN) - (performance.now() - asked)
    this.#end = setTimeout(() => this.#lose('its Redis did not answer in time'), Math.max(left, 0))
    this.#renewal = setTimeout(() => void this.#renew(), this.lifeMs / 3)
  }

  async #renew(): Promise<void> {
    const asked = performance.now()
    try {
      const kept = await this.send('EVAL', [RENEW, '1', this.key, this.#token, `${this.lifeMs}`])
      if (this.#released || this.#lost.signal.aborted) return
      if (kept === 1) this.#holdFrom(asked)
      else this.#lose('another may have it')
    } catch {
      if (this.#released || this.#lost.signal.aborted) return
      this.#renewal = setTimeout(() => void this.#renew(), this.lifeMs * AGAIN)
    }
  }

  #lose(why: string) {
    this.#stop()
    this.#lost.abort(new Error(`The lock ${this.key} was lost: ${why}`))
  }

  #stop() {
    clearTimeout(this.#end)
    clearTimeout(this.#renewal)
    this.ended(this)
  }
}
