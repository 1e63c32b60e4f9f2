// Automatic certificates in control: the store they are kept in, the gateways that share it, ACME on top of both, and what has to be
// true of ports and rules before a CA is told to look. Opened when the first name needs it.
import { readFile } from 'node:fs/promises'
import { STORE_RETRY_MS } from '../base/limits.ts'
import { Acme } from '../certificates/acme/index.ts'
import { Fleet } from '../certificates/fleet.ts'
import type { AcmeHooks, Automatic } from '../certificates/index.ts'
import { openStore } from '../certificates/open-store.ts'
import type { Store } from '../certificates/store.ts'
import type { CertificateStatus, Challenge, ChallengeType, StoredCertificate } from '../certificates/types.ts'
import type { PlacedChallenges } from '../channel/messages.ts'
import type { Config } from '../config/schema.ts'
import type { Log } from '../observe/log.ts'
import { ChallengePort } from './challenge-port.ts'

/** Where no other directory is named. */
const LETS_ENCRYPT = 'https://acme-v02.api.letsencrypt.org/directory'
const RENEW_BEFORE_DAYS = 30

export interface AcmeNeeds {
  log: Log
  stateDir: string
  config(): Config
  offers(name: string): ChallengeType[] | Promise<ChallengeType[]>
  /** Resolves when what comes to the challenge port is read for challenges (true), or goes its usual way again. */
  read(challenging: boolean): Promise<void>
  /** Resolves when the worker answers these and no others; false: it does not. */
  answer(challenges: PlacedChallenges): Promise<boolean>
  // For tests.
  retryMs?: number
}

interface Opened {
  store: Store
  fleet: Fleet
  acme: Acme
}

export class AcmeService implements Automatic {
  #opened: Promise<Opened | null> | undefined
  #acme: Acme | undefined
  #names: string[] = []
  #error: string | undefined
  #retry: ReturnType<typeof setTimeout> | undefined
  #stopped = false
  readonly #port: ChallengePort

  constructor(
    private readonly needs: AcmeNeeds,
    private readonly hooks: AcmeHooks,
  ) {
    this.#port = new ChallengePort(
      (challenging) => needs.read(challenging),
      (error) => needs.log('error', `The challenge port is still read: ${error.message}`),
    )
  }

  /** Not before the configuration that counts has the settings: one that is only being looked at may be refused. What is in the way
   *  may go away: a file that is not there yet, a disk that is full. */
  #open(): Promise<Opened | null> {
    return (this.#opened ??= this.#start().catch((error: Error) => {
      // Said once, however often it is tried.
      if (this.#error !== error.message)
        this.needs.log('error', `Automatic certificates cannot be had: ${error.message}`)
      this.#error = error.message
      this.#opened = undefined
      clearTimeout(this.#retry)
      if (!this.#stopped) this.#retry = setTimeout(() => void this.#open(), this.needs.retryMs ?? STORE_RETRY_MS)
      return null
    }))
  }

  async #start(): Promise<Opened> {
    const { needs, hooks } = this
    const { log, stateDir } = needs
    const { acme: settings, store: address = 'file' } = needs.config()
    if (!settings) throw new Error('the configuration has no acme section')
    const ca = settings.ca === undefined ? null : await readFile(settings.ca, 'utf8')
    const store = await openStore(address, stateDir, log)
    const id = crypto.randomUUID().replaceAll('-', '')
    const fleet = new Fleet({ store, id, log, apply: (challenges) => this.#apply(challenges) })
    const acme = new Acme({
      settings: {
        email: settings.email,
        directory: settings.directory ?? LETS_ENCRYPT,
        ca,
        eab: settings.eab ?? null,
        renewBeforeDays: settings.renewBeforeDays ?? RENEW_BEFORE_DAYS,
      },
      store,
      log,
      offers: needs.offers,
      place: (challenge) => fleet.place(challenge),
      changed: (name) => hooks.changed(name),
      event: (event) => hooks.event(event),
    })
    this.#acme = acme
    this.#error = undefined
    acme.follow(this.#names)
    return { store, fleet, acme }
  }

  // ---- challenges ----

  /** Everything that this gateway has to answer now, its own and those of others that share its store. One call at a time. */
  async #apply(challenges: Challenge[]) {
    const http = challenges.filter((one) => one.type === 'http-01')
    const tls = challenges.filter((one) => one.type === 'tls-alpn-01')
    // The way there first: a CA looks once, at once.
    if (http.length > 0) await this.#port.read()
    const answered = await this.needs.answer({
      http: Object.fromEntries(http.map(({ token, keyAuthorization }) => [token, keyAuthorization])),
      tls: Object.fromEntries(tls.map(({ name, cert, key }) => [name, { cert, key }])),
    })
    if (http.length === 0) this.#port.leave()
    if (!answered) throw new Error('the worker does not answer')
  }

  // ---- what the certificates ask ----

  /** A gateway that starts again serves what it had from its first connection on. */
  async load(name: string): Promise<void> {
    if (!this.needs.config().acme) return
    const opened = await this.#open()
    await opened?.acme.load([name])
  }

  follow(names: string[]) {
    this.#names = names
    void this.#open()
    this.#acme?.follow(names)
  }

  get(name: string): StoredCertificate | undefined {
    return this.#acme?.get(name)
  }

  status(name: string): CertificateStatus | undefined {
    if (this.#acme) return this.#acme.status(name)
    return this.#error === undefined
      ? { state: 'pending', failures: 0 }
      : { state: 'failed', failures: 1, lastError: this.#error }
  }

  async renew(name: string): Promise<unknown> {
    const opened = await this.#open()
    if (!opened) throw new Error(this.#error)
    return opened.acme.renew(name)
  }

  /** An order that is on its way is taken up by the next start. */
  async stop(): Promise<void> {
    this.#stopped = true
    const opened = await this.#opened
    clearTimeout(this.#retry)
    await opened?.acme.stop()
    await opened?.fleet.stop()
    this.#port.stop()
    await opened?.store.close()
  }
}
