// The one table of connections, whichever plane carries them, and the totals per route. Planes report; observers
// (log, metrics, admin) listen. Each connection is opened once and settled once here, or it is a bug that is counted.
import { ROUTE_TOTALS_MAX, SHARED_TEXTS_MAX, TARGET_TOTALS_MAX } from '../base/limits.ts'
import type { ConnectionEvents, ConnectionRecord } from './record.ts'
import type { RefusalReason } from './reasons.ts'
import {
  accountAdopted,
  accountCarried,
  accountClosed,
  accountMoved,
  accountOpened,
  emptyAccount,
  NOTHING_CARRIED,
  restoreAccount,
  restoreCounts,
  storeAccount,
  type Account,
  type Carried,
  type RouteTotals,
  type StoredAccount,
  type TargetTotals,
} from './totals.ts'

export type { Carried, RouteTotals, TargetTotals }

export interface ConnectionObserver {
  opened?(record: ConnectionRecord): void
  /** Of a proxied connection: its state, its target, what was learned of it. */
  changed?(record: ConnectionRecord): void
  settled?(record: ConnectionRecord): void
  refused?(route: string, reason: RefusalReason, count: number, observed: boolean): void
}

/** Totals as they are stored. */
export interface TotalsSnapshot {
  /** When it was made: live flows that opened before are in it. */
  at: number
  routes: Record<string, StoredRoute>
}

interface StoredRoute extends StoredAccount {
  refused: RouteTotals['refused']
  observed: RouteTotals['observed']
  targets: Record<string, StoredAccount>
}

interface RouteAccount {
  all: Account
  targets: Map<string, Account>
  /** What totals() answers: the accounts' own objects, so brought up to date by all that happens. */
  shown: RouteTotals & { targets: Map<string, TargetTotals> }
}

type Count = Pick<ConnectionRecord, 'id' | 'bytesIn' | 'bytesOut'> & Partial<Pick<ConnectionRecord, 'state'>>

export class ConnectionTable {
  readonly #proxied = new Map<string, ConnectionRecord>()
  readonly #routes = new Map<string, RouteAccount>()
  readonly #observers = new Set<ConnectionObserver>()
  readonly #texts = new Map<string, string>()
  /** Flows that opened before this are in the restored totals, until adopted() says that all of them were seen. */
  #restoredAt = -Infinity
  /** Settled twice or never opened: should stay 0; a metric, so that somebody notices. */
  anomalies = 0

  observe(observer: ConnectionObserver) {
    this.#observers.add(observer)
  }

  // ---- proxied connections, in a worker's batches ----

  ingest(events: ConnectionEvents) {
    for (const record of events.opened) {
      if (this.#proxied.has(record.id)) this.anomalies++
      this.#proxied.set(record.id, this.#sharing(record))
      this.#opened(record)
    }
    for (const change of events.changed) {
      const record = this.#proxied.get(change.id)
      if (!record) continue
      this.#change(record, this.#sharing(change))
      for (const observer of this.#observers) observer.changed?.(record)
    }
    for (const record of events.settled) {
      // One that opened and settled within a batch comes here only.
      const known = this.#proxied.get(record.id)
      if (known) this.#change(known, record)
      else this.#opened(record)
      this.#proxied.delete(record.id)
      this.#closed(record)
    }
    for (const { route, reason, count, observed = false } of events.refused) {
      const totals = this.totals(route)
      const counts = observed ? totals.observed : totals.refused
      counts[reason] = (counts[reason] ?? 0) + count
      for (const observer of this.#observers) observer.refused?.(route, reason, count, observed)
    }
  }

  /** Connections that an earlier life has opened, and another program carries still: counted by then, but for what comes. */
  takeOver(records: readonly ConnectionRecord[]) {
    for (const record of records) {
      this.#proxied.set(record.id, this.#sharing(record))
      for (const account of this.#accounts(record.route, record.target)) account.shown.now++
    }
  }

  /** What ten thousand live records say alike is kept once: each message brings strings of its own. */
  #sharing<T extends Partial<ConnectionRecord>>(record: T): T {
    for (const key of SHARED) {
      const text = record[key]
      if (typeof text === 'string') record[key] = this.#shared(text)
    }
    return record
  }

  #shared(text: string): string {
    const known = this.#texts.get(text)
    if (known !== undefined) return known
    if (this.#texts.size === SHARED_TEXTS_MAX) this.#texts.clear()
    this.#texts.set(text, text)
    return text
  }

  /** Counts of live connections, as a worker has them now. */
  sampled(counts: Count[]) {
    for (const count of counts) {
      const record = this.#proxied.get(count.id)
      if (record) this.#change(record, count)
    }
  }

  /** The worker whose ids begin with `prefix` is gone: its connections ended with it. */
  workerDied(prefix: string, nowMs: number) {
    for (const record of [...this.#proxied.values()]) {
      if (!record.id.startsWith(prefix)) continue
      this.#proxied.delete(record.id)
      this.#closed({ ...record, state: 'closed', closedAt: new Date(nowMs).toISOString(), reason: 'worker_died' })
    }
  }

  #opened(record: ConnectionRecord) {
    for (const account of this.#accounts(record.route, record.target)) {
      accountOpened(account, false, false)
      accountCarried(account, carriedBy(record), false, false)
    }
    for (const observer of this.#observers) observer.opened?.(record)
  }

  #change(record: ConnectionRecord, change: Partial<ConnectionRecord>) {
    const { route, target, bytesIn, bytesOut } = record
    const before = this.#accounts(route, target)
    Object.assign(record, change)
    const after = this.#accounts(record.route, record.target)
    const carried = carriedBy({ bytesIn, bytesOut })
    if (before[0] !== after[0]) accountMoved(before[0]!, after[0]!, carried)
    if (before[1] !== after[1]) accountMoved(before[1] ?? emptyAccount(), after[1] ?? emptyAccount(), carried)
    if (record.bytesIn === bytesIn && record.bytesOut === bytesOut) return
    const more = carriedBy({ bytesIn: record.bytesIn - bytesIn, bytesOut: record.bytesOut - bytesOut })
    for (const account of after) accountCarried(account, more, false, false)
  }

  #closed(record: ConnectionRecord) {
    this.#accountClosed(record, null)
    for (const observer of this.#observers) observer.settled?.(record)
  }

  // ---- kernel flows: counted without making their records ----

  flowOpened(route: string, target: string, openedMs: number) {
    const counted = openedMs <= this.#restoredAt
    for (const account of this.#accounts(route, target)) accountOpened(account, true, counted)
  }

  /** What a flow has carried beyond what was said before. */
  flowCarried(route: string, target: string, openedMs: number, more: Carried) {
    const counted = openedMs <= this.#restoredAt
    for (const account of this.#accounts(route, target)) accountCarried(account, more, true, counted)
  }

  /** Over. All that it carried has been told by flowCarried; `carried` is the sum of that. `written`: observers of an earlier
   *  life were told, its totals were not stored. */
  flowSettled(record: ConnectionRecord, carried: Carried, written = false) {
    this.#accountClosed(record, carried)
    if (written) return
    for (const observer of this.#observers) observer.settled?.(record)
  }

  #accountClosed(record: ConnectionRecord, flow: Carried | null) {
    for (const account of this.#accounts(record.route, record.target)) accountClosed(account, record.reason!, flow)
    if (this.totals(record.route).now < 0) this.anomalies++
  }

  // ---- totals ----

  totals(route: string): RouteTotals {
    return this.#route(route).shown
  }

  /** Of every route that has any, by name. */
  *allTotals(): Generator<[string, RouteTotals]> {
    for (const [name, { shown }] of this.#routes) yield [name, shown]
  }

  #route(name: string): RouteAccount {
    const known = this.#routes.get(name)
    if (known) return known
    const idle =
      this.#routes.size < ROUTE_TOTALS_MAX
        ? undefined
        : firstIdle([...this.#routes].map(([route, { shown }]) => [route, shown]))
    if (idle !== undefined) this.#routes.delete(idle)
    return this.#add(name, emptyAccount(), new Map())
  }

  #add(name: string, all: Account, targets: Map<string, Account>): RouteAccount {
    const ofTargets = new Map([...targets].map(([target, account]) => [target, account.shown]))
    const account = { all, targets, shown: Object.assign(all.shown, { refused: {}, observed: {}, targets: ofTargets }) }
    this.#routes.set(name, account)
    return account
  }

  /** Of the route, and of its target when it has one. */
  #accounts(route: string, target: string | null): Account[] {
    const { all, targets, shown } = this.#route(route)
    if (target === null) return [all]
    let account = targets.get(target)
    if (!account) {
      const idle = targets.size < TARGET_TOTALS_MAX ? undefined : firstIdle(shown.targets)
      if (idle !== undefined) {
        targets.delete(idle)
        shown.targets.delete(idle)
      }
      targets.set(target, (account = emptyAccount()))
      shown.targets.set(target, account.shown)
    }
    return [all, account]
  }

  /** For a file: everything that restore() takes. */
  snapshot(nowMs: number): TotalsSnapshot {
    const stored = ({ all, targets, shown }: RouteAccount): StoredRoute => ({
      ...storeAccount(all),
      refused: { ...shown.refused },
      observed: { ...shown.observed },
      targets: Object.fromEntries([...targets].map(([target, account]) => [target, storeAccount(account)])),
    })
    return {
      // Until every flow was seen, those that ended since the last snapshot are still to come.
      at: this.#restoredAt === -Infinity ? nowMs : this.#restoredAt,
      routes: Object.fromEntries([...this.#routes].map(([name, account]) => [name, stored(account)])),
    }
  }

  /** Call before anything is counted. Connections that user space carried are over since; kernel flows live on and are counted
   *  from their first byte when they are adopted, of which the totals have a part already. */
  restore(snapshot: TotalsSnapshot) {
    this.#restoredAt = snapshot.at
    for (const [name, stored] of Object.entries(snapshot.routes).slice(-ROUTE_TOTALS_MAX)) {
      const targets = Object.entries(stored.targets ?? {}).slice(-TARGET_TOTALS_MAX)
      const { shown } = this.#add(
        name,
        restoreAccount(stored),
        new Map(targets.map(([target, account]) => [target, restoreAccount(account)])),
      )
      shown.refused = restoreCounts(stored.refused)
      shown.observed = restoreCounts(stored.observed)
    }
  }

  /** Every flow that outlived the last run has been seen. */
  adopted() {
    this.#restoredAt = -Infinity
    for (const { all, targets } of this.#routes.values())
      for (const account of [all, ...targets.values()]) accountAdopted(account)
  }

  // ---- looking ----

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

const SHARED = ['route', 'listener', 'target', 'serverName'] as const

const carriedBy = ({ bytesIn, bytesOut }: Pick<ConnectionRecord, 'bytesIn' | 'bytesOut'>): Carried => ({
  ...NOTHING_CARRIED,
  bytesIn,
  bytesOut,
})

/** The name that came first of those without a connection. */
function firstIdle(totals: Iterable<[string, TargetTotals]>): string | undefined {
  for (const [name, { now }] of totals) if (now === 0) return name
  return undefined
}
