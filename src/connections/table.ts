// The one table of connections, whichever plane carries them, and the totals per route. Planes report; observers
// (log, metrics, admin) listen. Each connection is opened once and settled once here, or it is a bug that is counted.
import type { ConnectionEvents, ConnectionRecord } from './record.ts'
import type { CloseReason, RefusalReason } from './reasons.ts'

export interface RouteTotals {
  now: number
  total: number
  bytesIn: number
  bytesOut: number
  reasons: Partial<Record<CloseReason, number>>
  refused: Partial<Record<RefusalReason, number>>
}

export interface ConnectionObserver {
  opened?(record: ConnectionRecord): void
  settled?(record: ConnectionRecord): void
  refused?(route: string, reason: RefusalReason, count: number): void
}

export class ConnectionTable {
  readonly #proxied = new Map<string, ConnectionRecord>()
  readonly #totals = new Map<string, RouteTotals>()
  readonly #observers = new Set<ConnectionObserver>()
  /** Settled twice or never opened: should stay 0; a metric, so that somebody notices. */
  anomalies = 0

  observe(observer: ConnectionObserver) {
    this.#observers.add(observer)
  }

  // ---- proxied connections, in a worker's batches ----

  ingest(events: ConnectionEvents) {
    for (const record of events.opened) {
      if (this.#proxied.has(record.id)) this.anomalies++
      this.#proxied.set(record.id, record)
      this.#opened(record)
    }
    for (const change of events.changed) {
      const record = this.#proxied.get(change.id)
      if (!record) continue
      if (change.route !== undefined && change.route !== record.route) this.#moveRoute(record, change.route)
      Object.assign(record, change)
    }
    for (const record of events.settled) {
      // One that opened and settled within a batch comes here only.
      const known = this.#proxied.get(record.id)
      if (!known) this.#opened(record)
      else if (known.route !== record.route) this.#moveRoute(known, record.route)
      this.#proxied.delete(record.id)
      this.settled(record)
    }
    for (const { route, reason, count } of events.refused) {
      const totals = this.totals(route)
      totals.refused[reason] = (totals.refused[reason] ?? 0) + count
      for (const observer of this.#observers) observer.refused?.(route, reason, count)
    }
  }

  /** The worker whose ids begin with `prefix` is gone: its connections ended with it. */
  workerDied(prefix: string, nowMs: number) {
    for (const record of [...this.#proxied.values()]) {
      if (!record.id.startsWith(prefix)) continue
      this.#proxied.delete(record.id)
      this.settled({ ...record, state: 'closed', closedAt: new Date(nowMs).toISOString(), reason: 'worker_died' })
    }
  }

  // ---- both planes ----

  #opened(record: ConnectionRecord) {
    const totals = this.totals(record.route)
    totals.now++
    totals.total++
    for (const observer of this.#observers) observer.opened?.(record)
  }

  /** A kernel flow opened: counted without making its record. */
  flowOpened(route: string) {
    const totals = this.totals(route)
    totals.now++
    totals.total++
  }

  settled(record: ConnectionRecord) {
    const totals = this.totals(record.route)
    totals.now--
    totals.bytesIn += record.bytesIn
    totals.bytesOut += record.bytesOut
    totals.reasons[record.reason!] = (totals.reasons[record.reason!] ?? 0) + 1
    for (const observer of this.#observers) observer.settled?.(record)
  }

  #moveRoute(record: ConnectionRecord, route: string) {
    const [from, to] = [this.totals(record.route), this.totals(route)]
    from.now--
    from.total--
    to.now++
    to.total++
    record.route = route
  }

  totals(route: string): RouteTotals {
    let totals = this.#totals.get(route)
    if (!totals)
      this.#totals.set(route, (totals = { now: 0, total: 0, bytesIn: 0, bytesOut: 0, reasons: {}, refused: {} }))
    return totals
  }

  get size() {
    return this.#proxied.size
  }

  records(): IterableIterator<ConnectionRecord> {
    return this.#proxied.values()
  }

  get(id: string) {
    return this.#proxied.get(id)
  }
}
