// The gateways that share a store: each says that it is there, and answers the challenges of all, since the CA may ask any of them.
// Where nothing is shared, there is one gateway and it answers its own.
import { randomUUID } from 'node:crypto'
import {
  FLEET_CHALLENGES_MAX,
  FLEET_CHALLENGE_MS,
  FLEET_LOOK_MS,
  FLEET_PRESENCE_MS,
  FLEET_READY_MS,
  STORE_PAUSE_MS,
} from '../base/limits.ts'
import type { StoreLog } from './store-kept.ts'
import type { Store } from './store.ts'
import type { Challenge } from './types.ts'

export interface FleetOptions {
  store: Store
  /** Of this gateway alone: lower-case letters and digits. */
  id: string
  /** Resolves when exactly these are answered here. */
  apply(challenges: Challenge[]): Promise<void>
  log: StoreLog
  readyMs?: number
}

export class Fleet {
  #own = new Map<string, Challenge>()
  /** Those of the others, as they were read last. */
  #others = new Map<string, Challenge>()
  #applied: Promise<void> = Promise.resolve()
  #reading: Promise<void> | undefined
  #readAgain = false
  #unwatch: (() => void) | undefined
  #timer: Timer | undefined
  #again: Timer | undefined
  #stopped = false

  constructor(private readonly options: FleetOptions) {
    const { store } = options
    if (!store.shared) return
    this.#unwatch = store.watch('challenges/', (key) => {
      if (!key.includes('/ready/')) this.#read()
    })
    this.#timer = setInterval(() => this.#announce(), FLEET_PRESENCE_MS / 3)
    this.#announce()
  }

  /** Resolves when every gateway answers the challenge, or those that do not have had their time. Rejects when it cannot be told to
   *  them, or cannot be answered here. What it resolves to takes the challenge away, and never rejects. */
  async place(challenge: Challenge): Promise<() => Promise<void>> {
    if (this.#stopped) throw new Error(`Cannot answer a challenge for ${challenge.name}: the gateway stops`)
    // Of this time only: who answered the same one before need not do so now.
    const id = randomUUID()
    const take = () => this.#takeAway(id, challenge)
    this.#own.set(id, challenge)
    try {
      await this.#apply()
      if (this.options.store.shared) await this.#share(id, challenge)
      return take
    } catch (error) {
      await take()
      throw error
    }
  }

  async stop(): Promise<void> {
    if (this.#stopped) return
    this.#stopped = true
    clearInterval(this.#timer)
    this.#unwatch?.()
    await this.#reading
    clearTimeout(this.#again)
    await Promise.all([...this.#own].map(([id, challenge]) => this.#takeAway(id, challenge)))
    // The others need not wait for it.
    if (this.options.store.shared) await this.options.store.delete(`gateways/${this.options.id}`).catch(() => {})
  }

  #announce() {
    const { store, id } = this.options
    // A store that is away says so itself; it is tried again in a moment.
    store.put(`gateways/${id}`, new Date().toISOString(), { ttlMs: FLEET_PRESENCE_MS }).catch(() => {})
    // Challenges end by themselves too, and nobody tells.
    this.#read()
  }

  async #share(id: string, challenge: Challenge): Promise<void> {
    const { store, log, readyMs = FLEET_READY_MS } = this.options
    await store.put(`challenges/${id}`, JSON.stringify(challenge), { ttlMs: FLEET_CHALLENGE_MS })
    const deadline = performance.now() + readyMs
    for (;;) {
      const late = performance.now() > deadline
      // A store that hesitates is no reason to give up a challenge that it has.
      const waiting = await this.#waitingFor(id).catch((error: Error) => {
        if (late) throw error
      })
      if (waiting?.length === 0) return
      if (this.#stopped) throw new Error(`Cannot answer a challenge for ${challenge.name}: the gateway stops`)
      if (late && waiting) {
        const gateways = waiting.join(', ')
        log('warn', `Not every gateway that shares the store answers the challenge for ${challenge.name} yet`, {
          gateways,
        })
        return
      }
      await Bun.sleep(FLEET_LOOK_MS)
    }
  }

  async #waitingFor(id: string): Promise<string[]> {
    const { store, id: own } = this.options
    const ready = new Set((await store.list(`challenges/${id}/ready/`)).map(lastWord))
    return (await store.list('gateways/')).map(lastWord).filter((gateway) => gateway !== own && !ready.has(gateway))
  }

  async #takeAway(id: string, challenge: Challenge): Promise<void> {
    const { store, log } = this.options
    if (!this.#own.delete(id)) return
    await this.#apply().catch((error: Error) =>
      log('warn', `A challenge for ${challenge.name} is still answered: ${error.message}`),
    )
    if (!store.shared) return
    try {
      await store.delete(`challenges/${id}`)
      await Promise.all((await store.list(`challenges/${id}/ready/`)).map((key) => store.delete(key)))
    } catch {
      // It ends by itself.
    }
  }

  /** Reads the challenges of the others, answers them, and says so. One at a time; what changes meanwhile is another round. */
  #read() {
    this.#readAgain = true
    this.#reading ??= (async () => {
      while (this.#readAgain && !this.#stopped) {
        this.#readAgain = false
        await this.#readOnce()
      }
    })()
      // What was read last stays good meanwhile.
      .catch(() => {
        clearTimeout(this.#again)
        if (!this.#stopped) this.#again = setTimeout(() => this.#read(), STORE_PAUSE_MS)
      })
      .finally(() => (this.#reading = undefined))
  }

  async #readOnce(): Promise<void> {
    const { store, id: own } = this.options
    const before = this.#others
    const others = new Map<string, Challenge>()
    const ids = (await store.list('challenges/')).map((key) => key.slice('challenges/'.length))
    for (const id of ids.filter((id) => !id.includes('/') && !this.#own.has(id)).slice(0, FLEET_CHALLENGES_MAX)) {
      const challenge = before.get(id) ?? parse(await store.get(`challenges/${id}`))
      if (challenge) others.set(id, challenge)
    }
    if (this.#stopped) return
    this.#others = others
    const fresh = [...others.keys()].filter((id) => !before.has(id))
    if (fresh.length === 0 && before.size === others.size) return
    try {
      await this.#apply()
      const ready = (id: string) => store.put(`challenges/${id}/ready/${own}`, '', { ttlMs: FLEET_CHALLENGE_MS })
      await Promise.all(fresh.map(ready))
    } catch (error) {
      // Read as new again, and tried again.
      this.#others = before
      throw error
    }
  }

  /** One after the other, each with what is wanted when its turn comes. */
  #apply(): Promise<void> {
    const applied = this.#applied
      .catch(() => {})
      .then(() => this.options.apply([...new Map([...this.#others, ...this.#own]).values()]))
    this.#applied = applied
    applied.catch(() => {})
    return applied
  }
}

const lastWord = (key: string) => key.slice(key.lastIndexOf('/') + 1)

/** Another gateway wrote it, perhaps of another version: what is not understood is not answered. */
function parse(text: string | undefined): Challenge | undefined {
  try {
    const value = JSON.parse(text ?? 'null')
    const strings = (...names: string[]) => names.every((name) => typeof value?.[name] === 'string')
    if (value?.type === 'http-01' && strings('name', 'token', 'keyAuthorization')) return value
    if (value?.type === 'tls-alpn-01' && strings('name', 'cert', 'key')) return value
  } catch {
    // no challenge
  }
  return undefined
}
