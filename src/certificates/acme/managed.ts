// One name's certificate for as long as a route wants it: loaded, issued, renewed in time, and tried again after failures. All
// of it is one task at a time, woken by a timer, the store or a person.
import { setTimeout as pause } from 'node:timers/promises'
import { ISSUE_LOOK_MS, ORDER_MS_MAX, RENEWAL_LOOK_MS } from '../../base/limits.ts'
import type { Lock, Store } from '../store.ts'
import type { CertificateEvent, CertificateStatus, Challenge, ChallengeType, StoredCertificate } from '../types.ts'
import { attempt } from './attempt.ts'
import type { Authority } from './authority.ts'
import { retryDelay } from './backoff.ts'
import { AcmeError, presentable } from './problem.ts'
import { Records, type Attempts } from './records.ts'
import type { RenewalWindow } from './renewal.ts'
import { isDue, isExpiring, nextStep, statusOf, type Known } from './schedule.ts'

export interface ManagedOptions {
  authority: Authority
  store: Store
  renewBeforeDays: number
  offers(name: string): ChallengeType[] | Promise<ChallengeType[]>
  place(challenge: Challenge): Promise<() => Promise<void>>
  changed(name: string, issued: StoredCertificate): void
  event(event: CertificateEvent): void
  log(level: 'debug' | 'info' | 'warn', message: string, fields?: Record<string, unknown>): void
  now(): number
  random(): number
  /** Calls once after that time; returns how not to. */
  timer(ms: number, wake: () => void): () => void
  orderMs?: number | undefined
}

interface Waiter {
  resolve(issued: StoredCertificate): void
  reject(cause: unknown): void
}

export class ManagedCertificate {
  #held: StoredCertificate | undefined
  #attempts: Attempts = { failures: 0 }
  /** The CA's wish, and when it is asked for it again. */
  #window: RenewalWindow | undefined
  #lookAt = 0
  #toldExpiring = false
  /** The store was away: what is held may be newer than what it has. */
  #unsaved = false
  /** Or cannot be written to, as a full disk: a failure must be remembered all the same, or it is repeated at once. */
  #attemptsUnsaved = false
  /** Why it was away when it was asked last. */
  #storeError: string | undefined
  #followed = false
  #running: Promise<void> | undefined
  #again = false
  #cancel = () => {}
  /** Ends the wait for another gateway. */
  #nudge = () => {}
  #ended = new AbortController()
  #waiters: Waiter[] = []
  #records: Records

  constructor(
    readonly name: string,
    private readonly options: ManagedOptions,
  ) {
    this.#records = new Records(options.store, options.authority.id, name)
  }

  get held(): StoredCertificate | undefined {
    return this.#held
  }

  /** What the store has of it, before anything may be asked of the CA. A store that is away is met again by the first step. */
  async load(): Promise<void> {
    await this.#load().catch((cause: Error) => {
      this.options.log(this.#storeLevel, `Cannot load the certificate of ${this.name}: ${presentable(cause.message)}`)
    })
  }

  /** A shared store says itself, and once, that it is away. */
  get #storeLevel() {
    return this.options.store.shared ? 'debug' : 'warn'
  }

  /** From here on it is looked after. */
  follow(): void {
    if (this.#followed) return
    this.#followed = true
    this.wake()
  }

  /** Something may have to be done now. */
  wake(): void {
    if (this.#ended.signal.aborted || !this.#followed) return
    if (this.#running) {
      this.#again = true
      this.#nudge()
      return
    }
    this.#cancel()
    this.#running = this.#steps().finally(() => {
      this.#running = undefined
      this.#schedule()
    })
  }

  /** Asks for a new certificate now, or joins the one that is being asked for. */
  renew(): Promise<StoredCertificate> {
    if (this.#ended.signal.aborted || !this.#followed)
      return Promise.reject(new Error(`No certificate is kept for ${this.name} yet`))
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject })
      this.wake()
    })
  }

  status(): CertificateStatus {
    return statusOf(this.#known(), this.options.now())
  }

  /** Safe at any moment; what was begun at the CA is taken up by the next one for this name. */
  async end(): Promise<void> {
    this.#ended.abort(new Error(`The certificate of ${this.name} is not wanted any more`))
    this.#cancel()
    this.#answer(({ reject }) => reject(this.#ended.signal.reason))
    await this.#running
  }

  async #steps(): Promise<void> {
    do {
      this.#again = false
      try {
        await this.#step()
        this.#storeError = undefined
      } catch (cause) {
        if (this.#ended.signal.aborted) return
        // What the CA says is dealt with where it was asked: this is the store, or a lock that was lost.
        const message = presentable((cause as Error).message)
        // Once: it is tried again every half a minute, for every name.
        const level = this.#storeError === undefined ? this.#storeLevel : 'debug'
        this.options.log(level, `Cannot look after the certificate of ${this.name}: ${message}`)
        this.#storeError = message
        this.#answer(({ reject }) => reject(cause))
      }
    } while (this.#again)
  }

  async #step(): Promise<void> {
    await this.#load()
    await this.#save()
    await this.#look()
    this.#tellExpiring()
    if (this.#waiters.length || this.#isDue()) await this.#issue()
  }

  async #load(): Promise<void> {
    const stored = await this.#records.certificate()
    if (stored && (!this.#held || stored.issuedAt > this.#held.issuedAt)) {
      const replaced = this.#held !== undefined
      this.#unsaved = false
      this.#take(stored)
      if (replaced) this.#tell({ what: 'replaced', notAfter: stored.notAfter })
    }
    // Second: a shared store that is away still has the certificates, and they are served.
    if (!this.#attemptsUnsaved) this.#attempts = await this.#records.attempts()
  }

  async #save(): Promise<void> {
    if (this.#unsaved && this.#held) await this.#records.putCertificate(this.#held)
    this.#unsaved = false
    if (this.#attemptsUnsaved) await this.#records.putAttempts(this.#attempts)
    this.#attemptsUnsaved = false
  }

  #take(issued: StoredCertificate): void {
    this.#held = issued
    this.#window = undefined
    this.#lookAt = 0
    this.#toldExpiring = false
    this.options.changed(this.name, issued)
  }

  /** What the CA wishes, when it is time to ask. It may be away: that is no failure. */
  async #look(): Promise<void> {
    const { authority, now, log } = this.options
    if (!this.#held || now() < this.#lookAt) return
    this.#lookAt = now() + RENEWAL_LOOK_MS
    const leave = await authority.slots.enter(this.#ended.signal)
    try {
      const { window, lookAgainMs } = await authority.renewalInfo(this.#held.cert, this.#ended.signal)
      this.#window = window
      this.#lookAt = now() + lookAgainMs
    } catch (cause) {
      this.#ended.signal.throwIfAborted()
      log('debug', `No renewal information for ${this.name}: ${presentable((cause as Error).message)}`)
    } finally {
      leave()
    }
  }

  #tellExpiring(): void {
    const { held } = this
    if (!held || !isExpiring(this.#known(), this.options.now())) return
    this.#toldExpiring = true
    const { lastError, nextAttemptAt } = this.#attempts
    this.#tell({
      what: 'expiring',
      notAfter: held.notAfter,
      ...(lastError === undefined ? {} : { error: lastError }),
      ...(nextAttemptAt === undefined ? {} : { nextAttemptAt }),
    })
  }

  #isDue(): boolean {
    return isDue(this.#known(), this.options.now())
  }

  #known(): Known {
    return {
      ...{ held: this.#held, attempts: this.#attempts, window: this.#window, lookAt: this.#lookAt },
      ...{ told: this.#toldExpiring, renewBeforeDays: this.options.renewBeforeDays },
      storeError: this.#storeError,
      unsaved: this.#unsaved,
    }
  }

  /** Asks the CA, or waits for the gateway that does. */
  async #issue(): Promise<void> {
    const { authority } = this.options
    const { signal } = this.#ended
    const before = this.#held?.issuedAt
    const giveUp = performance.now() + 2 * ORDER_MS_MAX
    for (;;) {
      const leave = await authority.slots.enter(signal)
      try {
        const lock = await this.#records.lock()
        if (lock) {
          await this.#issueLocked(lock, before).finally(() => lock.release().catch(() => {}))
          return
        }
      } finally {
        leave()
      }
      if (performance.now() > giveUp) throw new Error('another gateway has been asking for it for too long')
      await this.#otherGateway()
      await this.#load()
      if (this.#isSettled(before)) return
    }
  }

  /** Until something has changed in the store, or it is time to look without being told. */
  async #otherGateway(): Promise<void> {
    const nudged = new AbortController()
    this.#nudge = () => nudged.abort()
    await pause(ISSUE_LOOK_MS, undefined, { signal: AbortSignal.any([nudged.signal, this.#ended.signal]) }).catch(
      () => {},
    )
    this.#ended.signal.throwIfAborted()
  }

  /** Another gateway has got it, or has failed just now. */
  #isSettled(before: string | undefined): boolean {
    if (this.#held && this.#held.issuedAt !== before) {
      this.#answerHeld()
      return true
    }
    return this.#waiters.length === 0 && !this.#isDue()
  }

  async #issueLocked(lock: Lock, before: string | undefined): Promise<void> {
    await this.#load()
    if (this.#isSettled(before)) return
    try {
      const issued = await attempt({
        ...{ ...this.options, name: this.name, storeKey: this.#records.orderKey },
        ...{ failures: this.#attempts.failures, held: this.#held },
        signal: AbortSignal.any([this.#ended.signal, lock.lost]),
      })
      this.#attempts = { failures: 0 }
      this.#attemptsUnsaved = false
      this.#take(issued)
      this.#unsaved = true
      this.#tell({ what: before === undefined ? 'issued' : 'renewed', notAfter: issued.notAfter })
      this.#answerHeld()
    } catch (cause) {
      this.#ended.signal.throwIfAborted()
      lock.lost.throwIfAborted()
      await this.#fail(cause)
      return
    }
    await this.#save()
  }

  async #fail(cause: unknown): Promise<void> {
    const { now, random } = this.options
    const error = presentable((cause as Error).message)
    const failures = this.#attempts.failures + 1
    const retryAfterMs = cause instanceof AcmeError ? cause.retryAfterMs : undefined
    const nextAttemptAt = iso(now() + retryDelay(failures, random(), retryAfterMs))
    this.#attempts = { failures, lastError: error, nextAttemptAt }
    this.#tell({ what: 'failed', error, nextAttemptAt, ...(this.#held ? { notAfter: this.#held.notAfter } : {}) })
    this.#answer(({ reject }) => reject(cause))
    this.#attemptsUnsaved = true
    await this.#save()
  }

  #schedule(): void {
    const { now, timer } = this.options
    if (this.#ended.signal.aborted) return
    this.#cancel = timer(nextStep(this.#known(), now()), () => this.wake())
  }

  #answer(act: (waiter: Waiter) => void): void {
    for (const waiter of this.#waiters.splice(0)) act(waiter)
  }

  #answerHeld(): void {
    const { held } = this
    if (held) this.#answer(({ resolve }) => resolve(held))
  }

  #tell(event: Omit<CertificateEvent, 'name' | 'source'>): void {
    this.options.event({ name: this.name, source: 'auto', ...event })
  }
}

const iso = (ms: number): string => new Date(ms).toISOString()
