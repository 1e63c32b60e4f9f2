// How dialling the targets goes, in batches: a dead target is noticed by what is dialled anyway. Only failures are told, and
// the first success after them.
import { DIAL_REPORTS_MAX, REPORT_INTERVAL_MS } from '../base/limits.ts'
import { isoTime } from '../base/clock.ts'
import type { DialReport } from '../channel/messages.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Slot } from './balance.ts'

interface Dialled {
  readonly route: { readonly name: string } | null
}

export class Dials {
  #reports = new Map<string, DialReport>()
  #timer: Timer | undefined

  constructor(readonly report: (dials: DialReport[]) => void) {}

  failed({ route }: Dialled, slot: Slot, startedAt: number, reason: CloseReason) {
    slot.failing = true
    const report = this.#reportOf(route!.name, slot)
    if (!report) return
    report.failures++
    report.reason = reason
    report.failedAt = later(report.failedAt, startedAt)
  }

  succeeded({ route }: Dialled, slot: Slot, startedAt: number) {
    slot.failing = false
    const report = this.#reportOf(route!.name, slot)
    if (!report) return
    report.failures = 0
    report.succeededAt = later(report.succeededAt, startedAt)
  }

  #reportOf(route: string, { target, endpoint }: Slot): DialReport | undefined {
    // A name has many addresses, of which one may be dead: it stands here only until control has resolved it.
    if (target.host.kind === 'name') return undefined
    const key = `${endpoint} ${route}`
    let report = this.#reports.get(key)
    if (report || this.#reports.size >= DIAL_REPORTS_MAX) return report
    report = { route, endpoint, failures: 0 }
    this.#reports.set(key, report)
    this.#timer ??= setTimeout(() => this.flush(), REPORT_INTERVAL_MS)
    return report
  }

  flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#reports.size === 0) return
    const reports = [...this.#reports.values()]
    this.#reports = new Map()
    this.report(reports)
  }
}

function later(known: string | undefined, ms: number): string {
  const time = isoTime(ms)
  return known === undefined || time > known ? time : known
}
