// A shared store of which the certificates and accounts are kept in files too, so that a gateway starts and serves while the shared
// store is away, and gives them back to one that lost its memory.
import type { FileStore } from './store-file.ts'
import type { RedisStore } from './store-redis.ts'
import type { Lock, Store } from './store.ts'

const KEPT = ['certificates/', 'acme/']

/** The names that the log has for it (src/observe/log.ts stands above). */
export type StoreLog = (level: 'info' | 'warn', message: string, fields?: Record<string, unknown>) => void

export class KeptStore implements Store {
  readonly shared = true

  constructor(
    private readonly redis: RedisStore,
    private readonly files: FileStore,
    private readonly log: StoreLog,
  ) {}

  async get(key: string): Promise<string | undefined> {
    if (!isKept(key)) return this.redis.get(key)
    const kept = await this.files.get(key)
    let text: string | undefined
    try {
      text = await this.redis.get(key)
      if (text === undefined && kept !== undefined) return await this.#missing(key, kept)
    } catch (error) {
      if (kept !== undefined) return kept
      throw error
    }
    if (text !== kept) await this.#keep(key, text)
    return text
  }

  async put(key: string, text: string, options: { ttlMs?: number } = {}): Promise<void> {
    await this.redis.put(key, text, options)
    if (isKept(key) && options.ttlMs === undefined) await this.#keep(key, text)
  }

  async delete(key: string): Promise<void> {
    await this.redis.delete(key)
    if (isKept(key)) await this.#keep(key, undefined)
  }

  async list(prefix: string): Promise<string[]> {
    try {
      return await this.redis.list(prefix)
    } catch (error) {
      if (isKept(prefix)) return this.files.list(prefix)
      throw error
    }
  }

  lock(key: string): Promise<Lock | null> {
    return this.redis.lock(key)
  }

  watch(prefix: string, changed: (key: string) => void): () => void {
    return this.redis.watch(prefix, changed)
  }

  async close(): Promise<void> {
    await this.redis.close()
    await this.files.close()
  }

  /** Taken away by somebody, it goes here too. Else the shared store forgot it: a certificate would be asked of the CA again. */
  async #missing(key: string, kept: string): Promise<string | undefined> {
    if (await this.redis.wasDeleted(key)) {
      await this.#keep(key, undefined)
      return undefined
    }
    await this.redis.putNew(key, kept)
    this.log('warn', `The shared store had lost ${key}; it has it again from this gateway`)
    return this.redis.get(key)
  }

  /** What is in the shared store is good, whether or not it can be kept here. */
  async #keep(key: string, text: string | undefined): Promise<void> {
    try {
      await (text === undefined ? this.files.delete(key) : this.files.put(key, text))
    } catch (error) {
      this.log('warn', `Cannot keep ${key} beside the shared store: ${(error as Error).message}`)
    }
  }
}

const isKept = (key: string) => KEPT.some((prefix) => key.startsWith(prefix))
