// What is kept, told and warned of while the gateway runs: totals on disk, rates, refusals and long connections in the access
// log, metrics, and the room that the conntrack table has. Control works the same without it.
import { VERSION } from '../base/about.ts'
import type { Written } from '../connections/flows.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { ConnectionTable } from '../connections/table.ts'
import { CapacityWatch, type Capacity, type KernelPlane } from '../kernel/index.ts'
import type { AccessLog } from '../observe/access-log.ts'
import type { Exposition, TargetView } from '../observe/admin.ts'
import type { Log } from '../observe/log.ts'
import { Metrics, type CertificateSource, type RouteState, type WorkerView } from '../observe/metrics.ts'
import { OpenReports } from '../observe/open.ts'
import { RefusalLog } from '../observe/refusals.ts'
import type { PlannedRoute } from '../plan/types.ts'
import type { Drains } from './drains.ts'
import { RateWatch } from './rates.ts'
import { isNamed, targetViews, type EndpointHealth } from './targets.ts'
import { TotalsFile } from './totals.ts'

/** What it looks at; all of it may be another one with each look. */
export interface Observed {
  log: Log
  table: ConnectionTable
  totalsFile: string
  accessLog: AccessLog | undefined
  routes(): readonly PlannedRoute[]
  /** What carries each of them at this moment. */
  states(): Iterable<RouteState>
  kernel(): KernelPlane | undefined
  /** Once it has taken over what an earlier life left. */
  usableKernel(): KernelPlane | undefined
  drains: Drains
  /** undefined: it is not watched. */
  health(route: string, endpoint: string): EndpointHealth | undefined
  worker(): WorkerView
  certificates: CertificateSource
  /** Counts of live connections are as new as they can be when it resolves. */
  refresh(): Promise<void>
  /** Counts of live proxied connections are in the table when it resolves; false: the worker does not answer. */
  count(): Promise<boolean>
}

export class Observation {
  readonly #capacity: CapacityWatch
  readonly #metrics: Metrics
  readonly #openReports: OpenReports | undefined
  readonly #refusals: RefusalLog | undefined

  private constructor(
    private readonly observed: Observed,
    private readonly totals: TotalsFile,
    readonly rates: RateWatch,
  ) {
    const { log, table, accessLog } = observed
    this.#capacity = new CapacityWatch(log)
    this.#metrics = new Metrics(this.#sources())
    if (!accessLog) return
    this.#refusals = new RefusalLog((line) => accessLog.line('refused', line))
    table.observe(this.#refusals)
    this.#openReports = new OpenReports({
      live: async () => {
        await observed.refresh()
        return this.#live()
      },
      write: (record) => accessLog.line('open', record),
      written: () => accessLog.flushed(),
      onError: (error) => log('warn', error.message),
    })
  }

  /** Call before anything is counted: the totals go on where they were. */
  static async begin(observed: Observed): Promise<Observation> {
    const { table, log } = observed
    const totals = await TotalsFile.load(observed.totalsFile, table, log)
    const rates = await RateWatch.begin({
      totals: () => table.allTotals(),
      proxied: () => table.size,
      count: () => observed.count(),
      kernel: () => observed.usableKernel() ?? null,
      onError: (error) => log('warn', error.message),
    })
    return new Observation(observed, totals, rates)
  }

  /** When the totals of an earlier life were stored; null: there was none. */
  get since(): number | null {
    return this.totals.since
  }

  /** The kernel flows whose end it had told around then, or later; null: nobody knows. */
  async written(): Promise<Written | null> {
    const { since, told } = this.totals
    const logged = since === null ? null : ((await this.observed.accessLog?.writtenSince(since)) ?? null)
    // A life that was killed before it stored any totals has not said what it told, but may have written it.
    return told && logged ? new Map([...told, ...logged]) : (logged ?? told)
  }

  get capacity(): Capacity | null {
    return this.#capacity.last
  }

  start() {
    this.totals.start()
    this.rates.start()
    this.#capacity.start()
    this.#openReports?.start()
  }

  /** Once every connection has settled, and before the access log is closed. */
  async stop(): Promise<void> {
    this.#capacity.stop()
    this.rates.stop()
    this.#openReports?.stop()
    this.#refusals?.flush()
    await this.totals.stop(this.observed.kernel()?.left)
  }

  /** Of one flow in eight. */
  established(route: string, latencyMs: number, clock: 'kernel' | 'receipt') {
    this.#metrics.setup(route, clock, latencyMs / 1000)
  }

  async metrics(): Promise<Exposition> {
    await this.observed.refresh()
    return this.#metrics.expose()
  }

  *targets(): Generator<TargetView> {
    const { routes, table, health, drains } = this.observed
    const { draining, drained } = drains.facts()
    const names = Object.keys(drained)
    yield* targetViews(routes(), {
      totals: (route) => table.totals(route),
      health,
      drained: (route, endpoint) => Object.hasOwn(draining, route) || names.some((name) => isNamed(endpoint, name)),
    })
  }

  *#live(): Generator<ConnectionRecord> {
    yield* this.observed.table.records()
    yield* this.observed.kernel()?.flows.records() ?? []
  }

  #sources() {
    const { table, routes, kernel, accessLog, worker, certificates } = this.observed
    return {
      version: VERSION,
      *routes() {
        for (const { name } of routes()) yield name
      },
      states: () => this.observed.states(),
      totals: (route: string) => table.totals(route),
      flows: () => {
        const plane = kernel()
        return new Map([...(plane?.flows.numbers() ?? [])].map(([number, count]) => [plane!.routeName(number), count]))
      },
      proxied: () => table.records(),
      targets: () => this.targets(),
      kernel: () => {
        const plane = kernel()
        if (!plane) return null
        const { elements, transactions, drifts } = plane.ruleset
        return { elements, transactions, drifts, eventsLost: plane.lost }
      },
      conntrack: () => this.#capacity.last,
      anomalies: () => table.anomalies,
      worker,
      accessLogDropped: () => accessLog?.dropped ?? 0,
      certificates,
    }
  }
}
