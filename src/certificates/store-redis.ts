// The store that several gateways share: a Redis, through Bun's own client. One that goes away and comes back is asked again; what is
// asked meanwhile fails.
import {
  STORE_ASK_MS,
  STORE_CHANGES_MAX,
  STORE_LOCK_MS,
  STORE_PAGE_KEYS,
  STORE_TEXT_BYTES_MAX,
} from '../base/limits.ts'
import { RedisConnection, RedisSubscription, type RedisTimes } from './redis-connection.ts'
import { RedisLock } from './redis-lock.ts'
import { DELETE, LIST, PUT } from './redis-scripts.ts'
import type { Lock, Store } from './store.ts'
import { checkKey } from './store-keys.ts'
import { Watchers } from './store-watchers.ts'

const PREFIX = 'sluice:'
// Keys have no capitals, so none of them is one of these.
const LOCKS = `${PREFIX}LOCK/`
const CHANGES = `${PREFIX}CHANGES`
const INDEX = `${PREFIX}INDEX`
/** Of the numbers of changes, which are times (redis-scripts.ts). */
const JUST_NOW_US = 2_000_000

export interface RedisStoreOptions {
  state?: (up: boolean, error?: Error) => void
  times?: RedisTimes
  lockMs?: number
  askMs?: number
}

export class RedisStore implements Store {
  readonly shared = true
  #connection: RedisConnection
  #channel: string
  #locks = new Set<RedisLock>()
  #watchers = new Watchers()
  #subscription: RedisSubscription | undefined
  #timer: Timer | undefined
  /** The number of the last change that was told. */
  #seen: string | undefined
  #asking: Promise<void> | undefined
  #askAgain = false

  constructor(
    private readonly url: string,
    private readonly options: RedisStoreOptions = {},
  ) {
    this.#connection = new RedisConnection(url, options.state, options.times)
    // Messages do not know the databases of a Redis.
    this.#channel = `${CHANGES}/${new URL(url).pathname.slice(1) || '0'}`
  }

  async get(key: string): Promise<string | undefined> {
    checkKey(key)
    return ((await this.#send('GET', [PREFIX + key])) as string | null) ?? undefined
  }

  async put(key: string, text: string, { ttlMs }: { ttlMs?: number } = {}): Promise<void> {
    await this.#put(key, text, ttlMs, 'any')
  }

  /** Leaves alone what is there. */
  async putNew(key: string, text: string): Promise<void> {
    await this.#put(key, text, undefined, 'new')
  }

  /** Somebody took it away, which is not the same as a Redis that lost its memory. */
  async wasDeleted(key: string): Promise<boolean> {
    checkKey(key)
    return (await this.#send('ZSCORE', [CHANGES, `!${key}`])) !== null
  }

  async delete(key: string): Promise<void> {
    checkKey(key)
    await this.#send('EVAL', [DELETE, '3', PREFIX + key, CHANGES, INDEX, key, `${STORE_CHANGES_MAX}`, this.#channel])
  }

  async list(prefix: string): Promise<string[]> {
    const keys: string[] = []
    // Above every character of a key.
    const last = `(${prefix}\u00ff`
    for (let first = `[${prefix}`; ;) {
      const page = ['1', INDEX, first, last, `${STORE_PAGE_KEYS}`, PREFIX]
      const [seen, found] = (await this.#send('EVAL', [LIST, ...page])) as [string, string[]]
      keys.push(...found)
      if (seen === '') return keys
      first = `(${seen}`
    }
  }

  async lock(key: string): Promise<Lock | null> {
    checkKey(key)
    const lock = await RedisLock.take(
      (command, args) => this.#send(command, args),
      LOCKS + key,
      this.options.lockMs ?? STORE_LOCK_MS,
      (ended) => this.#locks.delete(ended),
    )
    if (lock) this.#locks.add(lock)
    return lock
  }

  watch(prefix: string, changed: (key: string) => void): () => void {
    const stop = this.#watchers.add(prefix, changed)
    if (!this.#subscription) this.#listen()
    return () => {
      stop()
      if (this.#watchers.size === 0) this.#unlisten()
    }
  }

  async close(): Promise<void> {
    this.#watchers.clear()
    this.#unlisten()
    await Promise.allSettled([...this.#locks].map((lock) => lock.release()))
    this.#connection.close()
  }

  #send(command: string, args: string[]): Promise<unknown> {
    return this.#connection.send(command, args)
  }

  async #put(key: string, text: string, ttlMs: number | undefined, which: 'any' | 'new'): Promise<void> {
    checkKey(key)
    if (Buffer.byteLength(text) > STORE_TEXT_BYTES_MAX)
      throw new Error(`Cannot keep ${key}: more than ${STORE_TEXT_BYTES_MAX / 1024} KiB`)
    const life = ttlMs === undefined ? '0' : `${Math.max(1, Math.ceil(ttlMs))}`
    const keys = ['3', PREFIX + key, CHANGES, INDEX]
    await this.#send('EVAL', [PUT, ...keys, key, `${STORE_CHANGES_MAX}`, this.#channel, text, life, which])
  }

  /** A message only says that there is something to ask; asking now and then makes up for those that were lost. */
  #listen() {
    const ask = () => void this.#ask()
    this.#subscription = new RedisSubscription(this.url, this.#channel, ask, ask, this.options.times)
    this.#timer = setInterval(ask, this.options.askMs ?? STORE_ASK_MS)
    ask()
  }

  #unlisten() {
    clearInterval(this.#timer)
    this.#subscription?.close()
    this.#subscription = undefined
    this.#seen = undefined
  }

  /** One at a time; whoever asks meanwhile gets another round. */
  #ask(): Promise<void> {
    this.#askAgain = true
    return (this.#asking ??= this.#tellChanges().finally(() => (this.#asking = undefined)))
  }

  async #tellChanges(): Promise<void> {
    while (this.#askAgain && this.#subscription) {
      this.#askAgain = false
      try {
        await this.#tellNew()
      } catch {
        // What was missed is asked for with the next message, connection or turn of the clock; when it is not known what was there at the
        // beginning, all that is remembered is told.
        this.#seen ??= '0'
      }
    }
  }

  async #tellNew(): Promise<void> {
    if (this.#seen === undefined) {
      // What was there before is no change, but for the last moment: it takes a while until the Redis hears that somebody watches.
      const [last] = (await this.#send('ZRANGE', [CHANGES, '-1', '-1', 'WITHSCORES'])) as [string, number][]
      this.#seen = String(Math.max(0, (last?.[1] ?? 0) - JUST_NOW_US))
    }
    const rest = [`(${this.#seen}`, '+inf', 'WITHSCORES']
    const changes = (await this.#send('ZRANGEBYSCORE', [CHANGES, ...rest])) as [string, number][]
    for (const [key, number] of changes) {
      this.#seen = String(number)
      this.#watchers.tell(key.replace(/^!/, ''))
    }
  }
}
