// What the admin API sees of the gateway and does to it: each part asked for what is there now.
import { VERSION } from '../base/about.ts'
import { inTurns } from '../base/turns.ts'
import type { Certificates } from '../certificates/index.ts'
import type { ToWorker } from '../channel/messages.ts'
import type { Config } from '../config/schema.ts'
import { Clients } from '../connections/clients.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { ConnectionTable } from '../connections/table.ts'
import type { Gateway } from '../observe/admin.ts'
import type { Events } from '../observe/events.ts'
import type { Facts, Plan, PlannedRoute } from '../plan/types.ts'
import type { Drains } from './drains.ts'
import { explainNow } from './explain.ts'
import type { KernelStart } from './kernel-start.ts'
import type { Observation } from './observation.ts'
import type { Reloads } from './reloads.ts'
import type { Supervisor } from './supervisor.ts'
import { carriedNow, routeView, type Carried } from './view.ts'

/** About 5 ms. */
const RECORDS_PER_TURN = 2000

/** The parts of a gateway, some of which are others from one moment to the next. */
export interface Inside {
  configFile: string | null
  startedAt: Date
  table: ConnectionTable
  events: Events
  kernel: KernelStart
  supervisor: Supervisor
  certificates: Certificates
  reloads: Reloads
  /** The first plan is there: before it there is nothing to tell. */
  planned: Promise<void>
  config(): Config
  plan(): Plan
  facts(): Facts
  /** There once the first plan is. */
  observation(): Observation | undefined
  drains(): Drains | undefined
  /** What the worker has carried out, and what it could not. */
  applied(): { generation: number; problems: ReadonlyMap<string, string> }
  command(command: ToWorker): void
  upgrade(): Promise<{ pid: number; version: string }>
  stop(): Promise<void>
}

export class Api implements Gateway {
  constructor(private readonly inside: Inside) {}

  get events() {
    return this.inside.events
  }

  async status() {
    const { kernel: start, table, supervisor, reloads, configFile, startedAt } = this.inside
    const routes = await this.routes()
    const observation = this.inside.observation()
    const name = this.inside.config().kernel?.table ?? 'sluice'
    const { plane: kernel, phase, reason } = start
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: startedAt.toISOString(),
      configFile,
      routes: { total: routes.length, active: routes.filter((route) => route.state === 'active').length },
      connections: { kernel: kernel?.flows.size ?? 0, proxied: table.size },
      worker: supervisor.view,
      kernel: {
        active: phase === 'ready' && (kernel?.ruleset.elements ?? 0) > 0,
        phase,
        reason: reason ?? kernel?.ruleset.error ?? null,
        tables: kernel ? [name, `${name}_anchor`] : [],
        elements: kernel?.ruleset.elements ?? 0,
        transactions: kernel?.ruleset.transactions ?? 0,
        drifts: kernel?.ruleset.drifts ?? 0,
        eventsLost: kernel?.lost ?? 0,
      },
      conntrack: observation?.capacity ?? null,
      drains: this.inside.drains()?.size ?? 0,
      unconfirmedUntil: reloads.unconfirmedUntil,
      anomalies: table.anomalies,
      rates: observation?.rates.rates(null) ?? null,
      history: observation?.rates.history(null) ?? [],
    }
  }

  // ---- routes and their targets ----

  async routes() {
    await this.inside.planned
    const rates = this.inside.observation()?.rates
    await rates?.refresh()
    return this.inside
      .plan()
      .routes.map((route) =>
        routeView(route, this.carried(route), this.inside.table.totals(route.name), rates?.rates(route.name) ?? null),
      )
  }

  *routesNow() {
    for (const route of this.inside.plan().routes) yield { name: route.name, ...this.carried(route) }
  }

  carried(route: PlannedRoute): Carried {
    const { phase, reason, usable } = this.inside.kernel
    const { generation, problems } = this.inside.applied()
    return carriedNow(route, {
      problem: problems.get(route.name) ?? this.inside.certificates.missing(route.name),
      workerReady: generation > 0,
      phase,
      unusable: reason,
      // Before it has taken over what an earlier life left, the numbers mean nothing.
      inKernel: usable?.isActive(route.number, route.name) ?? false,
      error: usable?.ruleset.error ?? null,
    })
  }

  async targets() {
    await this.inside.planned
    return [...this.inside.observation()!.targets()]
  }

  async history(route: string) {
    await this.inside.planned
    if (!this.inside.plan().routes.some(({ name }) => name === route)) return null
    const rates = this.inside.observation()?.rates
    await rates?.refresh()
    return rates?.history(route) ?? []
  }

  async explain(client: string, listener: string, serverName: string | null) {
    await this.inside.planned
    const { kernel } = this.inside
    return explainNow(client, listener, serverName, {
      plan: this.inside.plan(),
      facts: this.inside.facts(),
      kernel: kernel.usable?.ruleset.state ?? null,
      kernelReason: kernel.reason,
      problems: Object.fromEntries(this.inside.applied().problems),
      table: this.inside.config().kernel?.table ?? 'sluice',
      connections: () => this.connections(),
    })
  }

  // ---- connections ----

  /** Counts of live connections as both planes have them now. */
  async refresh(): Promise<void> {
    const [counts] = await Promise.all([this.inside.supervisor.sample(), this.inside.kernel.plane?.fresh()])
    this.inside.table.sampled(counts)
  }

  async connections(): Promise<ConnectionRecord[]> {
    const records: ConnectionRecord[] = []
    await this.#each((record) => records.push(record))
    return records
  }

  async clients(limit: number) {
    const clients = new Clients()
    await this.#each((record) => clients.add(record))
    return { clients: clients.busiest(limit), total: clients.size }
  }

  /** Of both planes, bit by bit. */
  async #each(act: (record: ConnectionRecord) => void) {
    await this.refresh()
    await inTurns(this.inside.table.records(), RECORDS_PER_TURN, act)
    await inTurns(this.inside.kernel.plane?.flows.records() ?? [], RECORDS_PER_TURN, act)
  }

  async close(id: string): Promise<boolean> {
    if (this.inside.kernel.plane?.close(id, 'killed')) return true
    if (!this.inside.table.get(id)) return false
    this.inside.command({ type: 'close', id, reason: 'killed' })
    return true
  }

  // ---- drains, certificates, metrics ----

  async drain(request: unknown) {
    await this.inside.planned
    return this.inside.drains()!.request(request)
  }

  async drains() {
    await this.inside.planned
    return this.inside.drains()!.views()
  }

  async certificates() {
    await this.inside.planned
    return this.inside.certificates.views()
  }

  async authority() {
    await this.inside.planned
    return this.inside.certificates.authorityView()
  }

  async renewCertificate(name: string) {
    await this.inside.planned
    return this.inside.certificates.renew(name)
  }

  async metrics() {
    await this.inside.planned
    return this.inside.observation()!.metrics()
  }

  // ---- changes ----

  reload(confirm?: unknown) {
    return this.inside.reloads.reload(confirm)
  }

  confirm() {
    return this.inside.reloads.confirm()
  }

  async preview(config: unknown) {
    await this.inside.planned
    return this.inside.reloads.preview(config)
  }

  setRoutes(routes: unknown) {
    return this.inside.reloads.setRoutes(routes)
  }

  setRoute(name: string, route: unknown) {
    return this.inside.reloads.setRoute(name, route)
  }

  removeRoute(name: string) {
    return this.inside.reloads.removeRoute(name)
  }

  upgrade() {
    return this.inside.upgrade()
  }

  stop() {
    void this.inside.stop()
  }
}
