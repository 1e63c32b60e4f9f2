// One CA as its certificates use it: its account, who may ask it at the moment, and what it says about renewals.
import { createHash } from 'node:crypto'
import { ACME_RETRY_MS_MIN, ORDERS_MAX, RENEWAL_LOOK_MS } from '../../base/limits.ts'
import type { Store } from '../store.ts'
import type { AcmeSettings } from '../types.ts'
import { forgetAccount, openAccount, type Account, type AccountOptions } from './account.ts'
import { connect, type Client } from './client.ts'
import { nextLook, renewalId, renewalWindow, type RenewalWindow } from './renewal.ts'
import { Slots } from './slots.ts'
import { Transport } from './transport.ts'

export interface AuthorityOptions {
  settings: AcmeSettings
  store: Store
  now(): number
  requestMs?: number | undefined
}

export interface Session {
  client: Client
  account: Account
  transport: Transport
}

export class Authority {
  /** Under which the store keeps what belongs to this directory. */
  readonly id: string
  readonly slots = new Slots(ORDERS_MAX)
  #account: Promise<Account> | undefined
  #accountError: { cause: unknown; until: number } | undefined
  #renewalInfo: { url: Promise<string | undefined>; until: number } | undefined

  /** @param signal ends everything. */
  constructor(
    private readonly options: AuthorityOptions,
    private readonly signal: AbortSignal,
  ) {
    this.id = createHash('sha256').update(options.settings.directory).digest('hex').slice(0, 16)
  }

  /** For one order, which `signal` ends. */
  async session(signal: AbortSignal): Promise<Session> {
    const account = await this.#open()
    const transport = this.#transport(signal)
    return { account, transport, client: await connect(this.options.settings, account, transport) }
  }

  async forget(account: Account): Promise<void> {
    if (this.#account && (await this.#account.catch(() => undefined)) === account) this.#account = undefined
    await forgetAccount(this.#accountOptions(), account)
  }

  /** `window` is undefined when the CA has none for it. Rejects when it does not say. */
  async renewalInfo(
    cert: string,
    signal: AbortSignal,
  ): Promise<{ window: RenewalWindow | undefined; lookAgainMs: number }> {
    const transport = this.#transport(signal)
    const url = await this.#renewalInfoUrl()
    const id = renewalId(cert)
    if (url === undefined || id === undefined) return { window: undefined, lookAgainMs: nextLook(undefined) }
    const { data } = await transport.request(`${url.replace(/\/$/, '')}/${id}`, 'get')
    const retryAfterMs = typeof data === 'object' && data !== null ? transport.retryAfter.get(data) : undefined
    return { window: renewalWindow(data), lookAgainMs: nextLook(retryAfterMs) }
  }

  /** The name under which an order says that it replaces this certificate; undefined where the CA does not want to know. */
  async replacing(cert: string, signal: AbortSignal): Promise<string | undefined> {
    // When it cannot be asked, the order will say so.
    const url = await this.#renewalInfoUrl().catch(() => undefined)
    signal.throwIfAborted()
    return url === undefined ? undefined : renewalId(cert)
  }

  /** One question for all, and one silence: a CA that is away must not keep the orders' places busy for each certificate. */
  #renewalInfoUrl(): Promise<string | undefined> {
    const { settings, now } = this.options
    if (this.#renewalInfo && isSoon(this.#renewalInfo.until, now(), RENEWAL_LOOK_MS)) return this.#renewalInfo.url
    const url = this.#transport(this.signal)
      .request(settings.directory, 'get')
      .then(({ data }) => (typeof data?.renewalInfo === 'string' ? data.renewalInfo : undefined))
    const asked = { url, until: now() + RENEWAL_LOOK_MS }
    this.#renewalInfo = asked
    url.catch(() => (asked.until = now() + ACME_RETRY_MS_MIN))
    return url
  }

  #transport(signal: AbortSignal): Transport {
    const { settings, now, requestMs } = this.options
    const secure = settings.directory.startsWith('https:')
    return new Transport({ ca: settings.ca, secure, signal, now, ...(requestMs === undefined ? {} : { requestMs }) })
  }

  /** All orders share one attempt, and for a while its failure: a hundred names without account are not a hundred attempts. */
  #open(): Promise<Account> {
    const failed = this.#accountError
    if (failed && isSoon(failed.until, this.options.now(), ACME_RETRY_MS_MIN)) return Promise.reject(failed.cause)
    return (this.#account ??= openAccount(this.#accountOptions()).catch((cause) => {
      this.#account = undefined
      this.#accountError = { cause, until: this.options.now() + ACME_RETRY_MS_MIN / 2 }
      throw cause
    }))
  }

  #accountOptions(): AccountOptions {
    const { settings, store } = this.options
    return { settings, store, directoryId: this.id, transport: this.#transport(this.signal), signal: this.signal }
  }
}

/** Not when the clock was set back meanwhile. */
const isSoon = (until: number, now: number, withinMs: number) => until > now && until <= now + withinMs
