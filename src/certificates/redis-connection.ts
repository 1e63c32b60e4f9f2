// One connection to a Redis, made when it is needed and again after it was lost; every command has a deadline. Bun's client stays
// with one connection here: what it does by itself to get another one cannot be told how long it may take.
import { RedisClient } from 'bun'
import { STORE_ANSWER_MS_MAX, STORE_PAUSE_MS, STORE_SILENCE_MS } from '../base/limits.ts'

export interface RedisTimes {
  answerMs: number
  pauseMs: number
}

const TIMES: RedisTimes = { answerMs: STORE_ANSWER_MS_MAX, pauseMs: STORE_PAUSE_MS }

export class RedisConnection {
  #client: RedisClient | undefined
  #opening: Promise<RedisClient> | undefined
  #failed: { at: number; error: Error } | undefined
  #closed = false

  /** @param state told of each change: whether it answers, and if not, why */
  constructor(
    private readonly url: string,
    private readonly state: (up: boolean, error?: Error) => void = () => {},
    private readonly times: RedisTimes = TIMES,
  ) {}

  async send(command: string, args: string[]): Promise<unknown> {
    const client = await this.#open()
    try {
      return await inTime(client.send(command, args), this.times.answerMs)
    } catch (cause) {
      const error = cause as Error & { code?: string }
      // It answered: with no.
      if (error.code === 'ERR_REDIS_SERVER_ERROR')
        throw new Error(`${nameOf(this.url)} refuses: ${error.message}`, { cause })
      throw this.#fail(client, error)
    }
  }

  close() {
    this.#closed = true
    this.#client?.close()
    this.#client = undefined
  }

  /** Callers share one attempt, and after a failure one pause: a thousand names do not wait one deadline each. */
  async #open(): Promise<RedisClient> {
    if (this.#closed) throw new Error(`Cannot ask ${nameOf(this.url)}: closed`)
    if (this.#client) return this.#client
    if (this.#failed && performance.now() - this.#failed.at < this.times.pauseMs) throw this.#failed.error
    return (this.#opening ??= this.#connect().finally(() => (this.#opening = undefined)))
  }

  async #connect(): Promise<RedisClient> {
    const client = new RedisClient(this.url, { autoReconnect: false, connectionTimeout: this.times.answerMs })
    client.onclose = () => {
      if (this.#client === client) this.#client = undefined
    }
    try {
      await inTime(client.connect(), this.times.answerMs)
    } catch (cause) {
      throw this.#fail(client, cause as Error)
    }
    if (this.#closed) {
      client.close()
      throw new Error(`Cannot ask ${nameOf(this.url)}: closed`)
    }
    this.#client = client
    if (this.#failed) this.state(true)
    this.#failed = undefined
    return client
  }

  #fail(client: RedisClient, cause: Error): Error {
    if (this.#client === client) this.#client = undefined
    client.close()
    // The client says "Connection closed" for all of it.
    const error = new Error(
      `${nameOf(this.url)} does not answer: ${cause.message} (it is down or unreachable, or does not take the password or TLS)`,
      { cause },
    )
    if (!this.#closed) {
      if (!this.#failed) this.state(false, error)
      this.#failed = { at: performance.now(), error }
    }
    return error
  }
}

/** Hears the messages of a channel, whatever becomes of the connection. Those sent while there is none are lost: `connected` is told
 *  when there is one again, and is the time to ask what was missed. */
export class RedisSubscription {
  #client: RedisClient | undefined
  #timer: Timer | undefined
  #closed = false

  constructor(
    private readonly url: string,
    private readonly channel: string,
    private readonly heard: (message: string) => void,
    private readonly connected: () => void,
    private readonly times: RedisTimes = TIMES,
  ) {
    void this.#connect()
  }

  close() {
    this.#closed = true
    clearTimeout(this.#timer)
    this.#client?.close()
  }

  async #connect(): Promise<void> {
    const client = new RedisClient(this.url, {
      autoReconnect: false,
      connectionTimeout: this.times.answerMs,
      idleTimeout: STORE_SILENCE_MS,
    })
    this.#client = client
    const lost = Promise.withResolvers<void>()
    client.onclose = () => lost.resolve()
    try {
      await inTime(client.connect(), this.times.answerMs)
      await inTime(
        client.subscribe(this.channel, (message) => this.heard(message)),
        this.times.answerMs,
      )
      this.connected()
      await lost.promise
    } catch {
      // RedisConnection says so; this one only makes things faster.
    }
    client.close()
    if (!this.#closed) this.#timer = setTimeout(() => void this.#connect(), this.times.pauseMs)
  }
}

/** Without what is secret in it. */
export function nameOf(url: string): string {
  try {
    const { protocol, host, pathname } = new URL(url)
    return `${protocol}//${host}${pathname.replace(/\/$/, '')}`
  } catch {
    return 'the Redis'
  }
}

async function inTime<T>(answer: Promise<T>, ms: number): Promise<T> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new Error(`no answer within ${ms} ms`)), ms)
  try {
    return await Promise.race([answer, late.promise])
  } finally {
    clearTimeout(timer)
  }
}
