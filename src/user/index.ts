// The user plane of one worker: what listens, which routes there are, and every connection it carries. The front door of this
// room; worker.ts gives it plans and descriptors and hears what became of each connection.
import type { Socket } from 'bun'
import { native } from '../base/native.ts'
import { ACCEPT_LOOK_MS } from '../base/limits.ts'
import { own } from '../base/own.ts'
import type {
  CheckResult,
  DialReport,
  HealthCheck,
  PlacedChallenges,
  ToControl,
  WorkerPlan,
} from '../channel/messages.ts'
import type { ConnectionEvents } from '../connections/record.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { PlannedListener, UserRoute } from '../plan/types.ts'
import { Challenges } from './challenges.ts'
import { Connection, type Services } from './connection.ts'
import { countsOf } from './counts.ts'
import { Accepting } from './descriptors.ts'
import { Dial } from './dial.ts'
import { Dials } from './dials.ts'
import type { End } from './end.ts'
import { HealthChecks } from './health.ts'
import { Hold } from './hold.ts'
import { bound, RelayAcceptor } from './accept.ts'
import { Listener, plainIp, type Listening, type Reads } from './listen.ts'
import { Listeners, type Problem } from './listeners.ts'
import { opening } from './opening.ts'
import { chooseUnread, peek, readProxyHeader } from './peek.ts'
import { leaveRelay, parts, relayRuns, useRelay } from './relay-thread.ts'
import { OwnAddresses } from './reach.ts'
import { Reporter } from './report.ts'
import { LiveRoute } from './route.ts'
import { Counters, Everyone } from './security.ts'
import { Sweep } from './sweep.ts'
import { Timed, Timers } from './timers.ts'

export type Log = (
  level: 'debug' | 'info' | 'warn' | 'error',
  message: string,
  fields?: Record<string, unknown>,
) => void
export type { Problem } from './listeners.ts'
type AcceptState = Omit<ToControl & { type: 'accepting' }, 'type'>
type Sample = (ToControl & { type: 'sampled' })['counts'][number]

/** Its two sockets. The relay does without a pipe when there is none to be had. */
const DESCRIPTORS_EACH = 2

export class UserPlane implements Services {
  readonly timers: Timers
  readonly table = new Map<string, Connection>()
  /** What live connections have carried, as far as it was not told before. */
  readonly tellCounts = countsOf(this.table)
  readonly reporter: Reporter
  readonly dials: Dials
  readonly everyone = new Everyone()
  readonly challenges = new Challenges()
  readonly log: Log
  spliced = 0
  opened = 0
  readonly #relay: boolean
  readonly #idPrefix: string
  readonly #configFile: string | undefined
  readonly #listeners = new Listeners(
    (planned, reads, fd) => this.#make(planned, reads, fd),
    () => this.left(),
  )
  readonly #deadlines = new Set<Drain>()
  readonly #checks: HealthChecks
  readonly #accepting: Accepting
  /** Of the whole gateway, in either plane. */
  #listens: WorkerPlan['listens'] = []
  readonly #ownAddresses = new OwnAddresses()
  readonly sweep: Sweep
  #acceptLook: Timer | undefined
  #plan: WorkerPlan | undefined
  #routes = new Map<string, LiveRoute>()
  /** By name, and kept while a removed route still carries something: it may come back. */
  readonly #counters = new Map<string, Counters>()
  #ids = 0
  #applying: Promise<unknown> = Promise.resolve()
  #stopped: PromiseWithResolvers<void> | undefined
  #over = false

  constructor(
    out: {
      report(events: ConnectionEvents): void
      dialed?(dials: DialReport[]): void
      checked?(results: CheckResult[]): void
      accepting?(state: AcceptState): void
      swept?(count: number): void
      log: Log
    },
    options: {
      idPrefix: string
      configFile?: string
      timers?: Timers
      /** false: carry everything in TypeScript, as on a machine where the relay thread does not start. */
      relay?: boolean
    },
  ) {
    this.#relay = options.relay ?? true
    this.timers = options.timers ?? new Timers()
    this.reporter = new Reporter((events) => out.report(events))
    this.dials = new Dials((dials) => out.dialed?.(dials))
    this.#checks = new HealthChecks({
      timers: this.timers,
      checked: (results) => out.checked?.(results),
      crashed: (error) =>
        this.log('error', 'A health check ended by a mistake in the gateway', { error: String(error) }),
    })
    this.log = (level, message, fields) => out.log(level, message, fields)
    this.#accepting = new Accepting({
      promised: () => this.table.size * DESCRIPTORS_EACH + this.#otherDescriptors,
      limit: softLimit,
      free: (below, enough) => this.#freeDescriptors(below, enough),
      pause: () => {
        this.#listeners.pause()
        this.#logAccepting()
        this.#tellAccepting(out.accepting)
      },
      resume: () => {
        this.#listeners.resume()
        this.#logAccepting()
        this.#tellAccepting(out.accepting)
      },
      bound: (descriptors) => this.#bound(descriptors),
      limited: () => this.#tellAccepting(out.accepting),
      now: () => performance.now(),
    })
    this.sweep = new Sweep({ table: this.table, timers: this.timers, swept: (count) => out.swept?.(count) })
    this.#idPrefix = options.idPrefix
    this.#configFile = options.configFile
    useRelay()
  }

  get size() {
    return this.table.size
  }

  /** Health checks that run now. */
  get checking() {
    return this.#checks.running
  }

  /** Carries out the whole of a plan, one after the other. Answers what could not be carried out; the rest serves. */
  apply(plan: WorkerPlan, descriptors: Map<number, number>): Promise<Problem[]> {
    const done = this.#applying.then(() => this.#apply(plan, descriptors))
    this.#applying = done.catch(() => {})
    return done
  }

  async #apply(plan: WorkerPlan, descriptors: Map<number, number>): Promise<Problem[]> {
    const problems: Problem[] = []
    if (this.#stopped) {
      for (const fd of descriptors.values()) native().sluice_close(fd)
      return problems
    }
    const routes = new Map<string, LiveRoute>()
    await Promise.all(
      plan.routes.map(async (user) => {
        const before = this.#routes.get(user.name)
        const same = before?.retarget(user)
        const route = same ? before! : new LiveRoute(user, this.#countersOf(user.name))
        if (!same) await route.prepare(this.#configFile)
        for (const message of route.problems) problems.push({ route: user.name, message })
        for (const message of route.setCertificates(own(plan.certificates, user.name), before))
          problems.push({ route: user.name, message })
        routes.set(user.name, route)
      }),
    )
    this.#routes = routes
    this.everyone.set(plan.limits)
    this.reporter.durable = plan.durable
    this.#listens = plan.listens
    this.#plan = plan
    for (const [name, { total }] of this.#counters) if (total === 0 && !routes.has(name)) this.#counters.delete(name)
    problems.push(...this.#listeners.follow(plan, (name) => routes.get(name), descriptors))
    this.#accepting.look()
    this.sweep.start()
    this.#acceptLook ??= setInterval(() => this.#accepting.look(), ACCEPT_LOOK_MS)
    await this.#listeners.closed()
    return problems
  }

  /** Routes of the plan anew, without the rest of it. */
  updateRoutes(routes: UserRoute[]): Promise<Problem[]> {
    const done = this.#applying.then(() => this.#update(routes))
    this.#applying = done.catch(() => {})
    return done
  }

  #update(routes: UserRoute[]): Problem[] | Promise<Problem[]> {
    const other = routes.filter((user) => this.#routes.get(user.name)?.retarget(user) === false)
    const plan = this.#plan
    if (!plan) return []
    const newest = new Map(routes.map((user) => [user.name, user]))
    this.#plan = { ...plan, routes: plan.routes.map((user) => newest.get(user.name) ?? user) }
    return other.length > 0 ? this.#apply(this.#plan, new Map()) : []
  }

  /** The certificates of these routes anew; connections keep what they began with. Answers what cannot be used. */
  updateCertificates(certificates: WorkerPlan['certificates']): Promise<Problem[]> {
    const done = this.#applying.then(() => this.#certify(certificates))
    this.#applying = done.catch(() => {})
    return done
  }

  #certify(certificates: WorkerPlan['certificates']): Problem[] {
    if (!this.#plan) return []
    this.#plan = { ...this.#plan, certificates: { ...this.#plan.certificates, ...certificates } }
    return Object.entries(certificates).flatMap(([route, given]) =>
      (this.#routes.get(route)?.setCertificates(given) ?? []).map((message) => ({ route, message })),
    )
  }

  /** Every challenge to answer from now on. */
  challenge(placed: PlacedChallenges) {
    for (const message of this.challenges.set(placed)) this.log('error', message)
  }

  /** The health checks to make from now on: all of them. */
  check(checks: HealthCheck[]) {
    if (!this.#stopped) this.#checks.set(checks)
  }

  #countersOf(name: string): Counters {
    let counters = this.#counters.get(name)
    if (!counters) this.#counters.set(name, (counters = new Counters()))
    return counters
  }

  #freeDescriptors(below: number, enough: number): number {
    const { anyDescriptor } = this.#listeners
    // Without one there is nothing to pause.
    return anyDescriptor === undefined ? enough : native().sluice_descriptors_free(anyDescriptor, below, enough)
  }

  get #otherDescriptors(): number {
    return this.#listeners.descriptors + this.#checks.running + this.opened
  }

  /** What the relay thread has, or may have, beside the connections that it has nothing to do with. */
  #bound(descriptors: number) {
    const elsewhere = Math.max(0, this.table.size - parts.size)
    bound(Math.ceil((descriptors - this.#otherDescriptors) / DESCRIPTORS_EACH) - elsewhere, descriptors)
  }

  /** Once for each episode. */
  #logAccepting() {
    const { paused, limit } = this.#accepting
    const facts = { limit, connections: this.table.size, spliced: this.spliced }
    if (paused) this.log('warn', 'Accepting pauses: the descriptors of the worker are almost all in use', facts)
    else this.log('info', 'Accepting goes on: there are descriptors again', facts)
  }

  #tellAccepting(tell: ((state: AcceptState) => void) | undefined) {
    const { paused, limit } = this.#accepting
    tell?.({ paused, limit })
  }

  #make(planned: PlannedListener, reads: Reads, fd: number): Listening {
    return reads !== 'typescript' && this.relays()
      ? new RelayAcceptor(planned, this, fd, reads, (...one) => this.#choose(...one))
      : new Listener(planned, fd, (from, socket) => this.#accept(from, socket))
  }

  #accept(listener: Listener, socket: Socket<End>) {
    // One that was reset in the backlog has no address any more; its close event follows.
    const ip = plainIp(socket.remoteAddress)
    const local = listener.localEnd(socket)
    const connection = new Connection(this, ip, socket.remotePort ?? 0, local, listener.plan.port, opening)
    connection.client.socket = socket
    socket.data = connection.client
    this.#choose(listener, connection, socket.fd)
  }

  #choose(from: Listening, connection: Connection, descriptor: number) {
    // The thread accepts for a moment after its listener was replaced. Where first bytes are read now, they are read then too:
    // the first connection after a plan may be the authority's.
    const now = this.#listeners.get(from.plan.key)
    const listener = now && now.looksFor !== null ? now : from
    try {
      if (this.#accepting.isTooLate(descriptor)) {
        this.reporter.refused(listener.routes[0]?.name ?? '', 'descriptors')
        connection.discard()
      } else if (!listener.trusted.empty && listener.trusted.has(connection.clientBytes))
        readProxyHeader(connection, listener.routes, listener.looksFor)
      else if (listener.looksFor !== null) peek(connection, listener.routes, listener.looksFor)
      else chooseUnread(connection, listener.routes)
    } catch (error) {
      connection.crashed(error)
    }
    this.#accepting.accepted(descriptor)
  }

  /** The openings of these connections are on disk; ok = false: they cannot be written. */
  written(ids: string[], ok: boolean) {
    for (const id of ids) {
      const connection = this.table.get(id)
      try {
        if (connection?.attachment instanceof Hold) connection.attachment.written(ok)
      } catch (error) {
        connection!.crashed(error)
      }
    }
  }

  close(id: string, reason: CloseReason): boolean {
    const connection = this.table.get(id)
    connection?.cut(reason)
    return connection !== undefined
  }

  /** Ends the connections of a route to one endpoint, at both ends; those that are still being dialled go on to another. */
  closeTarget(route: string, endpoint: string, reason: CloseReason) {
    for (const connection of [...this.table.values()]) {
      if (connection.route?.name !== route || connection.slot?.endpoint !== endpoint) continue
      if (connection.attachment instanceof Dial) connection.attachment.skip(reason)
      else connection.cut(reason)
    }
  }

  /** Cuts the connections that the route has now: at once, or those that are left after the deadline. */
  drain(route: string, deadlineMs: number) {
    const draining = [...this.table.values()].filter((connection) => connection.route?.name === route)
    if (draining.length === 0) return
    if (deadlineMs <= 0) {
      for (const connection of draining) connection.cut('drained')
      return
    }
    for (const connection of draining) connection.setState('closing')
    this.#deadline(deadlineMs, () => {
      for (const connection of draining) connection.cut('drained')
    })
  }

  /** Counts of what is there now; what was not reported yet is reported first, so that whoever asks sees it too. */
  sample(): Sample[] {
    this.reporter.flush()
    return Array.from(this.table.values(), (connection) => ({
      id: connection.id,
      ...connection.counts(),
      state: connection.state as Sample['state'],
    }))
  }

  /** Accepts no more and lets connections finish; cuts what is left after graceMs. Resolves when nothing remains. Asked again,
   *  it cuts at the earlier of the two times. */
  stop(graceMs: number): Promise<void> {
    if (this.#stopped) {
      this.#cutAfter(graceMs)
      return this.#stopped.promise
    }
    this.#stopped = Promise.withResolvers()
    this.#listeners.stop()
    this.#checks.set([])
    clearInterval(this.#acceptLook)
    this.#cutAfter(graceMs)
    this.left()
    return this.#stopped.promise
  }

  #cutAfter(graceMs: number) {
    const cut = () => {
      for (const connection of [...this.table.values()]) connection.cut('drained')
    }
    if (this.table.size > 0 && graceMs > 0) this.#deadline(graceMs, cut)
    else cut()
  }

  #deadline(ms: number, act: () => void) {
    const drain = new Drain(() => {
      this.#deadlines.delete(drain)
      act()
    })
    this.#deadlines.add(drain)
    this.timers.arm(drain, ms)
  }

  // ---- what connections ask of the plane ----

  relays() {
    return this.#relay && relayRuns((message) => this.log('error', message))
  }

  own() {
    return { listens: this.#listens, addresses: this.#ownAddresses.get() }
  }

  nextId() {
    return this.#idPrefix + (++this.#ids).toString(36)
  }

  left() {
    this.#accepting.left()
    if (!this.#stopped || this.#over || this.table.size > 0 || !this.#listeners.areGone) return
    this.#over = true
    for (const drain of this.#deadlines) this.timers.disarm(drain)
    this.#deadlines.clear()
    this.reporter.flush()
    this.dials.flush()
    this.sweep.stop()
    leaveRelay()
    this.#stopped.resolve()
  }
}

function softLimit(): number {
  const limit = native().sluice_raise_nofile()
  return limit > 0 ? limit : Infinity
}

class Drain extends Timed {
  constructor(readonly act: () => void) {
    super()
  }
  override expired() {
    this.act()
  }
}
