// Automatic certificates in control: the store they are kept in, the gateways that share it, ACME on top of both, and what has to be
// true of ports and rules before a CA is told to look. Opened when the first name needs it.
import { readFile } from 'node:fs/promises'
import { CHALLENGE_LINGER_MS } from '../base/limits.ts'
import { Acme } from '../certificates/acme/index.ts'
import { Fleet } from '../certificates/fleet.ts'
import type { AcmeHooks, Automatic } from '../certificates/index.ts'
import { openStore } from '../certificates/open-store.ts'
import type { Store } from '../certificates/store.ts'
import type { CertificateStatus, Challenge, ChallengeType, StoredCertificate } from '../certificates/types.ts'
import type { PlacedChallenges } from '../channel/messages.ts'
import type { Config } from '../config/schema.ts'
import type { Log } from '../observe/log.ts'

/** Where no other directory is named. */
const LETS_ENCRYPT = 'https://acme-v02.api.letsencrypt.org/directory'
const RENEW_BEFORE_DAYS = 30

export interface AcmeNeeds {
  log: Log
  stateDir: string
  config(): Config
  offers(name: string): ChallengeType[]
  /** Resolves when what comes to the challenge port is read for challenges (true), or goes its usual way again. */
  read(challenging: boolean): Promise<void>
  /** Resolves when the worker answers these and no others; false: it does not. */
  answer(challenges: PlacedChallenges): Promise<boolean>
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
  #challenging = false
  #linger: ReturnType<typeof setTimeout> | undefined

  constructor(
    private readonly needs: AcmeNeeds,
    private readonly hooks: AcmeHooks,
  ) {}

  /** Once, and not before the configuration that counts has the settings: one that is only being looked at may be refused. */
  #open(): Promise<Opened | null> {
    return (this.#opened ??= this.#start().catch((error: Error) => {
      this.#error = error.message
      const remedy = 'mend it and restart'
      this.needs.log('error', `Automatic certificates cannot be had: ${error.message}`, { remedy })
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
    acme.follow(this.#names)
    return { store, fleet, acme }
  }

  // ---- challenges ----

  /** Everything that this gateway has to answer now, its own and those of others that share its store. One call at a time. */
  async #apply(challenges: Challenge[]) {
    const http = challenges.filter((one) => one.type === 'http-01')
    const tls = challenges.filter((one) => one.type === 'tls-alpn-01')
    // The way there first: a CA looks once, at once.
    if (http.length > 0) await this.#read(true)
    const answered = await this.needs.answer({
      http: Object.fromEntries(http.map(({ token, keyAuthorization }) => [token, keyAuthorization])),
      tls: Object.fromEntries(tls.map(({ name, cert, key }) => [name, { cert, key }])),
    })
    if (!answered) throw new Error('the worker does not answer')
    if (http.length === 0 && this.#challenging) this.#readNoMore()
  }

  async #read(challenging: boolean) {
    clearTimeout(this.#linger)
    this.#linger = undefined
    if (this.#challenging === challenging) return
    await this.needs.read(challenging)
    this.#challenging = challenging
  }

  /** One name often follows another: the port does not change hands for each. */
  #readNoMore() {
    this.#linger ??= setTimeout(() => {
      this.#read(false).catch((error: Error) => this.needs.log('error', error.message))
    }, CHALLENGE_LINGER_MS)
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
    const opened = await this.#opened
    clearTimeout(this.#linger)
    await opened?.acme.stop()
    await opened?.fleet.stop()
    clearTimeout(this.#linger)
    await opened?.store.close()
  }
}
