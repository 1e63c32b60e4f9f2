// What is said of certificates: in the log, as events, and counted. Of what goes on for weeks it is said once.
import { endOf } from './pair.ts'
import type { Source } from './source.ts'
import { isAutomatic } from './specs.ts'
import { concernOf } from './status.ts'
import type { CertificateEvent } from './types.ts'

export interface Listener {
  log(level: 'info' | 'warn' | 'error', message: string, fields?: Record<string, unknown>): void
  event(event: CertificateEvent): void
}

export type EventCounts = Record<CertificateEvent['what'], number>

export class Teller {
  readonly counts: EventCounts = { issued: 0, renewed: 0, failed: 0, expiring: 0, replaced: 0 }
  readonly #said = new WeakMap<Source, string>()
  readonly #warned = new WeakMap<Source, string | undefined>()

  constructor(
    private readonly listener: Listener,
    private readonly now: () => number,
  ) {}

  event(event: CertificateEvent) {
    const { name, source, what, error, notAfter, nextAttemptAt } = event
    const words = `Certificate ${name} (${source}): ${what}${error === undefined ? '' : `: ${error}`}`
    this.listener.log(what === 'failed' ? 'error' : what === 'expiring' ? 'warn' : 'info', words, {
      ...(notAfter ? { notAfter } : {}),
      ...(nextAttemptAt ? { nextAttemptAt } : {}),
    })
    this.#publish(event)
  }

  /** Of one that is odd, running out, or over. */
  concern(source: Source) {
    this.#warn(source)
    const concern = concernOf(source, this.now())
    // ACME knows best when it should have been renewed, and tells it.
    if (!concern || (concern.level === 'warn' && isAutomatic(source))) return
    const said = `${concern.level} ${source.pairs.map(({ serialNumber }) => serialNumber).join()}`
    if (this.#said.get(source) === said) return
    this.#said.set(source, said)
    const { name, kind } = source
    const notAfter = new Date(endOf(source.pairs)).toISOString()
    this.listener.log(concern.level, `Certificate ${name} (${kind}): ${concern.words}`)
    this.#publish({ name, source: kind, what: 'expiring', notAfter, error: concern.words })
  }

  #warn(source: Source) {
    const warnings = source.warnings?.join('; ')
    if (warnings && this.#warned.get(source) !== warnings)
      this.listener.log('warn', `Certificate ${source.name} (${source.kind}): ${warnings}`)
    this.#warned.set(source, warnings)
  }

  #publish(event: CertificateEvent) {
    this.counts[event.what]++
    this.listener.event(event)
  }
}
