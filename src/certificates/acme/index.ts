// Certificates from a CA (RFC 8555) for the names the routes want: each by itself, so that one that fails delays nobody.
import { setTimeout as pause } from 'node:timers/promises'
import { ACME_STOP_MS_MAX } from '../../base/limits.ts'
import type { Store } from '../store.ts'
import type {
  AcmeSettings,
  CertificateEvent,
  CertificateStatus,
  Challenge,
  ChallengeType,
  StoredCertificate,
} from '../types.ts'
import { Authority } from './authority.ts'
import { ManagedCertificate, type ManagedOptions } from './managed.ts'

export interface AcmeOptions {
  settings: AcmeSettings
  store: Store
  log(level: 'debug' | 'info' | 'warn', message: string, fields?: Record<string, unknown>): void
  /** In order of preference for this name; empty: none can be answered. */
  offers(name: string): ChallengeType[] | Promise<ChallengeType[]>
  /** Resolves when every gateway answers it; rejects when that cannot be. The returned function takes it away, and is called
   * whatever comes of it. */
  place(challenge: Challenge): Promise<() => Promise<void>>
  /** A certificate for the name is there, or another one; also when another gateway asked for it. */
  changed(name: string, issued: StoredCertificate): void
  event(event: CertificateEvent): void
  // For tests.
  now?(): number
  random?(): number
  timer?(ms: number, wake: () => void): () => void
  orderMs?: number
  requestMs?: number
}

export class Acme {
  #options: AcmeOptions
  #managed = new Map<string, ManagedCertificate>()
  /** Those that are not wanted any more and still end. */
  #ending = new Set<Promise<void>>()
  #stopped = new AbortController()
  #authority: Authority
  #unwatch: () => void

  constructor(options: AcmeOptions) {
    this.#options = options
    const { settings, store, now = Date.now, requestMs } = options
    this.#authority = new Authority({ settings, store, now, requestMs }, this.#stopped.signal)
    const prefix = `certificates/${this.#authority.id}/`
    this.#unwatch = store.watch(prefix, (key) => this.#managed.get(key.slice(prefix.length))?.wake())
  }

  /** Loads what the store has of these names, and asks nothing of the CA: with that a gateway that starts can serve at once. Never
   * rejects. Names that are not followed then are forgotten. */
  async load(names: string[]): Promise<void> {
    if (this.#stopped.signal.aborted) return
    const fresh = [...new Set(names)].filter((name) => !this.#managed.has(name))
    await Promise.all(fresh.map((name) => this.#manage(name).load()))
  }

  /** All names that are wanted now, each in lower case. To be called when the ports that answer challenges listen. */
  follow(names: string[]): void {
    if (this.#stopped.signal.aborted) return
    const wanted = new Set(names)
    for (const [name, managed] of this.#managed) if (!wanted.has(name)) this.#end(managed)
    for (const name of wanted) (this.#managed.get(name) ?? this.#manage(name)).follow()
  }

  /** Of a name that nothing was asked for yet: pending. */
  status(name: string): CertificateStatus {
    return this.#managed.get(name)?.status() ?? { state: 'pending', failures: 0 }
  }

  get(name: string): StoredCertificate | undefined {
    return this.#managed.get(name)?.held
  }

  /** Now, whatever the schedule. Joins one that is on its way; rejects with what the CA said. */
  renew(name: string): Promise<StoredCertificate> {
    const managed = this.#managed.get(name)
    return managed ? managed.renew() : Promise.reject(new Error(`No automatic certificate is kept for ${name}`))
  }

  /** Nothing is told any more after this; what was begun at the CA is taken up by the next start. */
  async stop(): Promise<void> {
    this.#unwatch()
    for (const managed of this.#managed.values()) this.#end(managed)
    this.#stopped.abort(new Error('The gateway stops'))
    const late = new AbortController()
    await Promise.race([
      Promise.all(this.#ending),
      pause(ACME_STOP_MS_MAX, undefined, { signal: late.signal }).catch(() => {}),
    ])
    late.abort()
  }

  #manage(name: string): ManagedCertificate {
    const managed = new ManagedCertificate(name, this.#managedOptions())
    this.#managed.set(name, managed)
    return managed
  }

  #end(managed: ManagedCertificate): void {
    this.#managed.delete(managed.name)
    const ending = managed.end().finally(() => this.#ending.delete(ending))
    this.#ending.add(ending)
  }

  #managedOptions(): ManagedOptions {
    const { settings, store, offers, place, changed, event, log, orderMs } = this.#options
    const { now = Date.now, random = Math.random, timer = after } = this.#options
    return {
      ...{ authority: this.#authority, store, renewBeforeDays: settings.renewBeforeDays },
      ...{ offers, place, changed, event, log, orderMs, now, random, timer },
    }
  }
}

function after(ms: number, wake: () => void): () => void {
  const timeout = setTimeout(wake, ms)
  return () => clearTimeout(timeout)
}
