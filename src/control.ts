// The control process: the wiring of the whole gateway. It turns a configuration into a plan, owns every listening socket,
// and carries the plan out in both planes; it never touches a byte of a client. Changes are made one at a time.
import { mkdir } from 'node:fs/promises'
import { isAbsolute, join, resolve } from 'node:path'
import { DEFAULT_STATE_DIR, VERSION } from './base/about.ts'
import { HANDOVER_DRAIN_MS_MAX, HANDOVER_SAMPLE_MS, LEFT_BEHIND_MS_MAX, PROVIDERS_AHEAD_MS } from './base/limits.ts'
import { native } from './base/native.ts'
import { turn } from './base/turns.ts'
import { parseDuration, TIMER_MS_MAX } from './base/units.ts'
import { Certificates } from './certificates/index.ts'
import type { ToControl, ToWorker, WorkerPlan } from './channel/messages.ts'
import type { Config } from './config/schema.ts'
import type { ConnectionRecord } from './connections/record.ts'
import type { HealthChange } from './connections/health.ts'
import { ConnectionTable } from './connections/table.ts'
import { AcmeService } from './control/acme.ts'
import { Api } from './control/api.ts'
import { Authorities } from './control/authorities.ts'
import { GatewayError } from './control/changes.ts'
import { KernelStart } from './control/kernel-start.ts'
import { LeastConnections } from './control/least-connections.ts'
import { Cutting } from './control/cutting.ts'
import {
  certificateSpecs,
  prepareAtStart,
  prepareCertificates,
  readCertificatesAgain,
  withFiles,
  workerCertificates,
} from './control/certificates.ts'
import { DescriptorStore, keptSockets } from './control/descriptor-store.ts'
import { Drains, type What } from './control/drains.ts'
import { Successor, type Predecessor } from './control/handover.ts'
import { TargetHealth } from './control/health.ts'
import { Listeners } from './control/listeners.ts'
import { resolveNames } from './control/names.ts'
import { provide } from './control/provide.ts'
import { Observation } from './control/observation.ts'
import { Reloads } from './control/reloads.ts'
import type { ServiceManager } from './control/service-manager.ts'
import { Supervisor } from './control/supervisor.ts'
import { connectionsOf, connectionsTo, isNamed } from './control/targets.ts'
import { programVersion } from './kernel/index.ts'
import { AccessLog } from './observe/access-log.ts'
import { Admin } from './observe/admin.ts'
import { Events } from './observe/events.ts'
import { makeLog, type Log } from './observe/log.ts'
import { challengesFor, type ChallengeType } from './plan/challenge.ts'
import { configuredRoutes } from './plan/default.ts'
import { emptyState, isEmpty } from './plan/kernel-state.ts'
import { DEFAULT_MARK_BASE, noFacts, plan as makePlan, retarget } from './plan/plan.ts'
import type { Endpoint, Facts, Plan, PlannedRoute } from './plan/types.ts'

const RESOLVE_EVERY_MS = 30_000
/** A dead machine can be the target of a thousand routes. */
const HEALTH_LINES_MAX = 10
/** Only a change that needs a port again waits for it. */
const WORKER_APPLIES_MS_MAX = 2000
const WORKER_STARTS_MS_MAX = 20_000

export interface ControlOptions {
  /** Read again by reload; also where inline handlers are found. */
  configFile?: string
  log?: Log
  /** Who started us and wants to know. */
  manager?: ServiceManager | null
  /** It hands its sockets over, and lets go of everything else when this one is ready. */
  predecessor?: Predecessor | null
}

export class Control {
  readonly log: Log
  readonly table = new ConnectionTable()
  readonly events: Events = new Events({ routes: () => this.api.routesNow() })
  readonly #supervisor: Supervisor
  readonly #kernel: KernelStart
  readonly #cutting: Cutting
  /** Changes of the configuration, from wherever. */
  readonly reloads: Reloads
  /** What the admin API sees and does. */
  readonly api: Api
  #config: Config
  #plan: Plan = { routes: [], listeners: [], limits: null, reservations: [], kernel: emptyState() }
  #facts: Facts
  readonly #listeners = new Listeners(
    () => this.#workerHasApplied(),
    (message) => this.log('warn', `${message}; certificate authorities that look there find it (HTTP-01 will fail)`),
  )
  readonly #leastConnections = new LeastConnections(
    ({ number, name }) => ({
      active: this.#kernel.plane?.flows.countByTarget(number) ?? new Map(),
      total: this.table.totals(name).total,
    }),
    (shares) => {
      Object.assign(this.#facts.shares, shares)
      this.#retarget(new Set(Object.keys(shares))).catch((error: Error) => this.log('error', error.message))
    },
  )
  readonly #health = new TargetHealth({
    onChange: (changes) => void this.#onHealth(changes).catch((error: Error) => this.log('error', error.message)),
    check: (checks) => this.#supervisor.updateChecks(checks),
  })
  #generation = 0
  #applied = { generation: 0, problems: new Map<string, string>() }
  #changing: Promise<unknown> = Promise.resolve()
  /** Where news of connections goes instead, once another program is the gateway. */
  #passOn: ((message: ToControl) => void) | null = null
  /** What was handed to the kernel last is there when it resolves. */
  #inKernel: Promise<void> | undefined
  /** The port of HTTP-01, where another program had it: once for all names that need it at a moment. */
  #takingPort: Promise<void> | undefined
  #resolveTimer: ReturnType<typeof setInterval> | undefined
  /** No number up to this one is given to a new route: flows of a route that has gone may carry it still. */
  #highestNumber = 0
  #admin: Admin | undefined
  #accessLog: AccessLog | undefined
  /** By operators, beside those that a change makes (#cutting). */
  #operatorDrains: Drains | undefined
  #observation: Observation | undefined
  #descriptorStore: DescriptorStore | null = null
  #certificates: Certificates
  readonly #authorities: Authorities
  #stopping: Promise<void> | null = null
  #done = Promise.withResolvers<void>()
  #workerApplied = Promise.withResolvers<boolean>()
  #workerReady = Promise.withResolvers<void>()
  /** The admin socket is there before the first plan is: whoever asks waits for it. */
  #planned = Promise.withResolvers<void>()

  constructor(
    config: Config,
    private readonly options: ControlOptions = {},
  ) {
    this.#config = config
    this.log = options.log ?? makeLog(config.log?.level ?? 'info')
    this.#authorities = new Authorities(this.log)
    this.#certificates = new Certificates({
      stateDir: this.#stateDir,
      openAcme: (hooks) =>
        new AcmeService(
          {
            log: this.log,
            stateDir: this.#stateDir,
            config: () => this.#config,
            offers: (name) => this.#offers(name),
            read: (challenging) => this.#readChallenges(challenging),
            answer: (challenges) => this.#supervisor.updateChallenges(challenges),
          },
          hooks,
        ),
      provide,
      log: this.log,
      event: (event) => this.events.certificate(event),
      changed: (routes) =>
        void this.#updateCertificates(new Set(routes)).catch((error: Error) => this.log('error', error.message)),
    })
    this.#facts = noFacts(config.kernel?.markBase ?? DEFAULT_MARK_BASE, programVersion)
    this.#supervisor = new Supervisor({
      configFile: options.configFile,
      onMessage: (message) => this.#onWorker(message),
      onDeath: (idPrefix, how) => {
        this.log('error', `The worker ended ${how}; starting the next one`)
        this.table.workerDied(idPrefix, Date.now())
      },
    })
    this.#cutting = new Cutting(
      { send: (command) => this.#command(command) },
      () => this.#kernel.plane,
      (error) => this.log('error', error.message),
    )
    this.#kernel = this.#kernelStart()
    this.reloads = new Reloads({
      log: this.log,
      configFile: options.configFile,
      stateDir: this.#stateDir,
      live: (route, endpoints) => connectionsOf(endpoints, this.table.totals(route.name)),
      running: () => ({ config: this.#config, plan: this.#plan }),
      serially: (work) =>
        this.#serially(() => {
          // What it would open nobody would close; and after handing over it is another program's.
          if (this.#stopping) throw new GatewayError('the gateway is stopping, or has handed over')
          return work()
        }),
      plan: async (next) =>
        this.#planFor(next, { ...this.#facts, resolved: await resolveNames(next, this.#facts.resolved) }),
      readAgain: (next) => readCertificatesAgain(this.#certificates, certificateSpecs(next, this.#plan)),
      carryOut: async (next, partly) => {
        await this.#resolveNames(next)
        await this.#carryOut(next, partly)
      },
    })
    this.api = new Api({
      configFile: options.configFile ?? null,
      startedAt: new Date(),
      table: this.table,
      events: this.events,
      kernel: this.#kernel,
      supervisor: this.#supervisor,
      certificates: this.#certificates,
      reloads: this.reloads,
      planned: this.#planned.promise,
      config: () => this.#config,
      plan: () => this.#plan,
      facts: () => ({ ...this.#facts, down: this.#health.down() }),
      observation: () => this.#observation,
      drains: () => this.#operatorDrains,
      applied: () => this.#applied,
      command: (command) => this.#command(command),
      upgrade: () => this.upgrade(),
      stop: () => this.stop(),
    })
  }

  get #stateDir() {
    return resolve(this.#config.stateDir ?? DEFAULT_STATE_DIR)
  }

  get #kernelPlace() {
    return { table: this.#config.kernel?.table ?? 'sluice', markBase: this.#facts.markBase }
  }

  /** The routes of the running configuration. */
  get configured(): Config['routes'] {
    return this.#config.routes
  }

  /** In one line. */
  get summary(): string {
    const connections = this.table.size + (this.#kernel.plane?.flows.size ?? 0)
    return `routes: ${this.#plan.routes.length}, connections: ${connections}`
  }

  /** Whether the worker answers; that we do, whoever gets this answer knows. */
  answers(): Promise<boolean> {
    return this.#supervisor.answers()
  }

  /** Somebody has moved the file away. */
  async reopenLogs(): Promise<void> {
    await this.#accessLog?.reopen()
  }

  /** Resolves when the gateway has stopped. */
  get done() {
    return this.#done.promise
  }

  // ---- start ----

  /** Resolves when every route is served: in user space at least, in the kernel where the configuration demands it. */
  async start(): Promise<void> {
    native().sluice_raise_nofile()
    this.table.observe(this.#health)
    this.table.observe(this.events)
    // Its socket first: a second gateway with the same configuration ends here, before it touches anything.
    this.#admin = new Admin({ config: this.#config.admin, stateDir: this.#stateDir, log: this.log }, this.api)
    const { predecessor, manager = null } = this.options
    try {
      await this.#openAccessLog()
      if (predecessor) await this.#takeOver(predecessor)
      else if (manager) this.#listeners.inherit(keptSockets())
      this.#descriptorStore = manager && new DescriptorStore(manager, this.#listeners.inherited)
      await this.#admin.start()
      await this.#recall()
      if (predecessor) this.#adopt(predecessor)
      await this.#resolveNames(this.#config)
      if (!predecessor) await this.#supervisor.start()
      await this.#carryOutAgain()
      await this.#workerStarts()
      // A stop does not wait for a start, and resolves what the start waits for.
      if (this.#stopping) return
      const kernel = this.#kernel.start()
      if (this.#plan.routes.some((route) => route.required)) await kernel
      else kernel.catch((error: Error) => this.log('error', error.message))
      // What is overdue is cut when the flows of an earlier life are known.
      void kernel.catch(() => {}).then(() => this.#stopping || this.#operatorDrains?.start())
    } catch (error) {
      await this.stop(0)
      throw error
    }
    if (this.#stopping) return
    this.#resolveTimer = setInterval(() => void this.#reresolve(), RESOLVE_EVERY_MS)
    this.#observation?.start()
    this.log('info', 'sluice serves', {
      version: VERSION,
      routes: this.#plan.routes.length,
      listeners: this.#listeners.size,
      pid: process.pid,
    })
  }

  async #openAccessLog() {
    const access = this.#config.log?.access ?? 'stdout'
    const destination = typeof access === 'object' ? access.file : access
    if (destination === 'off') return
    const path = destination === 'stdout' || isAbsolute(destination) ? destination : resolve(destination)
    const isDurable = typeof access === 'object' && access.durable === true
    try {
      this.#accessLog = await AccessLog.open(path, (message) => this.log('error', message), isDurable)
    } catch (error) {
      throw new GatewayError(`Cannot write the access log ${path}: ${(error as Error).message}`)
    }
    this.table.observe(this.#accessLog)
  }

  /** What takes long is done before the other lets go: until this one serves, clients wait in the backlog. */
  async #takeOver(predecessor: Predecessor) {
    this.#listeners.inherit(await predecessor.sockets())
    await this.#supervisor.start()
    await this.#inTime(this.#supervisor.ready)
    // What the other one shows may have become unreadable since it read it: then it had better stay.
    const plan = this.#planFor(this.#config, this.#facts)
    const specs = certificateSpecs(this.#config, plan)
    await this.#authorities.read(plan.routes.map((route) => route.user))
    await prepareCertificates(this.#certificates, withFiles(specs))
    await this.#certificates.askAhead(specs, PROVIDERS_AHEAD_MS)
    await predecessor.release(VERSION, this.#kernelPlace)
  }

  /** What stayed behind in the worker of the other. */
  #adopt(predecessor: Predecessor) {
    this.table.takeOver(predecessor.records.splice(0))
    predecessor.listen((message) => (this.#passOn ?? ((one) => this.#onWorker(one)))(message))
    void predecessor.over.then(() => {
      for (const prefix of predecessor.workers) this.table.workerDied(prefix, Date.now())
    })
  }

  /** What an earlier life has counted, and what operators had drained in it. */
  async #recall() {
    // Keys and counts: not for the worker, whoever makes a file in it first.
    await mkdir(this.#stateDir, { recursive: true, mode: 0o700 })
    this.#config = await this.reloads.begin(this.#config)
    const drains = await Drains.load(join(this.#stateDir, 'drains.json'), {
      log: this.log,
      exists: (what) => this.#meant(what).length > 0,
      apply: (what) => this.#applyDrain(what),
      left: ({ kind, name }) =>
        kind === 'route'
          ? this.table.totals(name).now
          : connectionsTo(name, this.#plan.routes, (route) => this.table.totals(route)),
      cut: (what) => this.#cutDrained(what),
    })
    this.#operatorDrains = drains
    Object.assign(this.#facts, drains.facts())
    this.#observation = await Observation.begin({
      log: this.log,
      table: this.table,
      totalsFile: join(this.#stateDir, 'totals.json'),
      accessLog: this.#accessLog,
      routes: () => this.#plan.routes,
      states: () => this.api.routesNow(),
      kernel: () => this.#kernel.plane,
      usableKernel: () => this.#kernel.usable,
      drains,
      health: (route, endpoint) => this.#health.of(route, endpoint),
      worker: () => this.#supervisor.view,
      certificates: this.#certificates,
      refresh: () => this.api.refresh(),
      count: () => this.#supervisor.count(),
    })
  }

  /** A route is served in user space until the kernel is ready. */
  #kernelStart(): KernelStart {
    const { table, log } = this
    return new KernelStart({
      log,
      plane: {
        table: this.#config.kernel?.table ?? 'sluice',
        base: this.#facts.markBase,
        sysctlMemory: join(this.#stateDir, 'sysctl.json'),
        sealMemory: join(this.#stateDir, 'rules.seal'),
        log,
        flowOpened: (route, target, openedMs, slot) => {
          table.flowOpened(route, target, openedMs)
          if (slot !== null && this.events.wanted) this.events.opened(this.#kernel.plane!.flows.record(slot))
        },
        flowCarried: (route, target, openedMs, more) => table.flowCarried(route, target, openedMs, more),
        flowSettled: (record, carried, written) => table.flowSettled(record, carried, written),
        refused: (route, { reason, count, enforced }) =>
          table.ingest({ ...NOTHING, refused: [{ route, reason, count, observed: !enforced }] }),
        established: (route, _target, latencyMs, clock) => this.#observation?.established(route, latencyMs, clock),
      },
      earlier: async () => [this.#observation?.since ?? null, await this.#observation?.written()],
      ready: (found) => {
        table.adopted()
        // What the table says counts: the numbers that were given out until now were of no consequence.
        this.#facts.numbers = { ...found.numbers }
        this.#highestNumber = Math.max(0, ...Object.values(found.numbers), ...found.numbersInUse)
        this.#facts.kernelUnusable = null
      },
      unusable: (reason) => (this.#facts.kernelUnusable = reason),
      carryOut: () => this.#carryOutAgain(),
    })
  }

  // ---- changes, one at a time ----

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(work)
    this.#changing = result.catch(() => {})
    return result
  }

  /** The configuration as it is when its turn has come: one that was reloaded meanwhile is not taken back. */
  #carryOutAgain(): Promise<void> {
    return this.#serially(async () => {
      if (!this.#stopping) await this.#carryOut(this.#config)
    })
  }

  /** Without HTTP-01 where another program has its port, and has it still. */
  async #offers(name: string): Promise<ChallengeType[]> {
    const listens = () =>
      this.#plan.listeners.some((one) => one.challenge && this.#listeners.tag(one.key) !== undefined)
    const offered = challengesFor(this.#config, name)
    if (offered.includes('http-01') && !listens()) {
      this.#takingPort ??= this.#carryOutAgain()
        .catch((error: Error) => this.log('error', error.message))
        .finally(() => (this.#takingPort = undefined))
      await this.#takingPort
    }
    return offered.filter((type) => type !== 'http-01' || listens())
  }

  /** Whether what comes to the challenge port is read. Resolves when that is so for the next connection: in the worker, and because
   *  the kernel has let go of the port. */
  async #readChallenges(challenging: boolean) {
    this.#facts.challenging = challenging
    await this.#carryOutAgain()
    await this.#inKernel
    await this.#workerHasApplied()
  }

  #planFor(config: Config, facts: Facts): Plan {
    const { plane } = this.#kernel
    const inUse = plane?.flows.numbers().keys() ?? []
    return makePlan(config, {
      ...facts,
      down: this.#health.down(),
      numbersInUse: [...inUse, this.#highestNumber],
      before: plane?.ruleset.state ?? emptyState(),
    })
  }

  /** Carries a configuration out in both planes. Throws before anything was changed when it cannot be done.
   *  @param partly also without the routes whose certificates cannot be read. */
  async #carryOut(config: Config, partly = this.#generation === 0): Promise<void> {
    const before = this.#plan
    const { phase } = this.#kernel
    const next = this.#planFor(config, this.#facts)
    // A thousand routes take a plan some milliseconds: others have their turn before it is carried out.
    await turn()
    const required = next.routes.filter((route) => route.required)
    const notKernel = required.find((route) => route.carrier !== 'kernel')
    if (notKernel && phase !== 'idle' && phase !== 'starting')
      throw new GatewayError(
        `Route "${notKernel.name}" demands forwardingEngine 'nftables', and the kernel cannot carry it: ${notKernel.reason}`,
      )

    const specs = certificateSpecs(config, next)
    if (partly) await prepareAtStart(this.#certificates, specs, this.log)
    else await prepareCertificates(this.#certificates, specs)
    const routes = await this.#authorities.read(
      next.routes.map((route) => route.user),
      true,
    )
    await this.#listeners.checkRanges(listensOf(next), listensOf(before))
    const opened = await this.#listeners.open(next.listeners, next.reservations)
    const applied = this.#applyKernel(next)
    this.#inKernel = applied
    if (required.length > 0 && applied)
      try {
        await applied
      } catch (error) {
        this.#listeners.close(opened)
        if (before.routes.length > 0) this.#applyKernel(before)
        throw new GatewayError(
          `Route "${required[0]!.name}" demands forwardingEngine 'nftables': ${(error as Error).message}`,
        )
      }

    this.#plan = next
    this.#planned.resolve()
    this.#config = config
    this.#facts.numbers = numbersOf(next)
    this.#highestNumber = next.routes.reduce((highest, route) => Math.max(highest, route.number), this.#highestNumber)
    const workerPlan: WorkerPlan = {
      generation: ++this.#generation,
      listeners: next.listeners.flatMap((listener) => {
        const descriptor = this.#listeners.tag(listener.key)
        return descriptor === undefined ? [] : [{ ...listener, descriptor }]
      }),
      routes,
      listens: listensOf(next).filter((listen) => listen.protocol === 'tcp'),
      limits: next.limits,
      durable: this.#accessLog?.durable ?? false,
      certificates: workerCertificates(this.#certificates, specs),
    }
    const wanted = new Set(next.listeners.map((listener) => listener.key))
    await this.#supervisor.apply(workerPlan, this.#listeners.descriptors(wanted))
    this.#listeners.keep(wanted, new Set(next.reservations.map((reservation) => reservation.key)))
    this.#descriptorStore?.keep(this.#listeners.sockets())
    this.#certificates.follow(specs)
    this.#leastConnections.follow(next.routes)
    this.#health.follow(configuredRoutes(config), next.routes)
    // What goes elsewhere does so first: a client that is cut and comes back at once must not meet the old target.
    void Promise.resolve(applied)
      .catch(() => {})
      .then(() => this.#cutting.changed(before, next))
  }

  /** Targets came, went or changed their share: the endpoints of these routes anew, and nothing else. Resolves when new
   *  connections go where they should. */
  #retarget(names: ReadonlySet<string>): Promise<void> {
    return this.#serially(async () => {
      if (this.#stopping) return
      const before = this.#kernel.plane?.ruleset.state ?? emptyState()
      const next = retarget(this.#plan, this.#config, { ...this.#facts, down: this.#health.down(), before }, names)
      const changed = next.routes.filter((route) => names.has(route.name))
      this.#plan = next
      // In the same turn: what is shown as planned and what is on its way to the kernel are the same.
      const applied = this.#applyKernel(next)
      this.#supervisor.updateRoutes(await this.#authorities.read(changed.map((route) => route.user)))
      this.#leastConnections.follow(next.routes)
      this.#health.follow(configuredRoutes(this.#config), next.routes, names)
      await applied?.catch(() => {})
    })
  }

  /** Hands the elements to the kernel's loop. undefined: there is no kernel plane (yet), and nothing for it to do. */
  #applyKernel(plan: Plan): Promise<void> | undefined {
    const kernel = this.#kernel.usable
    if (!kernel) return undefined
    kernel.learn(numbersOf(plan))
    kernel.setTimeouts(plan.routes)
    const any = plan.routes.some((route) => route.carrier === 'kernel')
    // A machine whose configuration needs nothing of the kernel keeps its settings and gets no table.
    if (isEmpty(plan.kernel) && kernel.ruleset.elements === 0 && kernel.ruleset.settled) return undefined
    const udp = plan.routes.filter((route) => protocolOf(route) === 'udp' && route.unserved === null)
    const listens = udp.flatMap((route) => route.listens)
    const applied = kernel.apply(plan.kernel, any, listens)
    applied.catch(() => {}) // the loop has logged it, and tries again
    return applied
  }

  /** Of routes whose certificates are others now; connections keep what they began with. */
  #updateCertificates(routes: ReadonlySet<string>): Promise<void> {
    return this.#serially(async () => {
      if (this.#stopping) return
      const specs = certificateSpecs(this.#config, this.#plan)
      await this.#supervisor.updateCertificates(workerCertificates(this.#certificates, specs, routes))
    })
  }

  // ---- what operators drain ----

  /** The routes that a drain is about, with the endpoints that it takes out. */
  #meant({ kind, name }: What): { route: PlannedRoute; endpoints: Endpoint[] }[] {
    return this.#plan.routes.flatMap((route) => {
      const endpoints = kind === 'route' ? route.endpoints : route.endpoints.filter((one) => isNamed(one, name))
      return (kind === 'route' ? route.name === name : endpoints.length > 0) ? [{ route, endpoints }] : []
    })
  }

  #applyDrain(what: What): Promise<void> {
    Object.assign(this.#facts, this.#operatorDrains!.facts())
    return this.#retarget(new Set(this.#meant(what).map(({ route }) => route.name)))
  }

  #cutDrained(what: What) {
    for (const { route, endpoints } of this.#meant(what))
      if (what.kind === 'route') this.#cutting.route(route, 0)
      else void this.#cutting.endpoints(route, endpoints, 'drained')
  }

  /** New connections first: a client whose connection is closed comes back at once. */
  async #onHealth(changes: HealthChange[]) {
    for (const { route, endpoint, up, why } of changes.slice(0, HEALTH_LINES_MAX))
      this.log(up ? 'info' : 'warn', `Target ${endpoint} of route "${route}" is ${up ? 'up' : 'down'}: ${why}`)
    if (changes.length > HEALTH_LINES_MAX)
      this.log('warn', `${changes.length - HEALTH_LINES_MAX} more targets changed at the same moment`)
    for (const change of changes) this.events.target(change)
    await this.#retarget(new Set(changes.map((change) => change.route)))
    if (this.#stopping) return
    for (const route of this.#plan.routes) {
      const dead = changes.filter((change) => change.route === route.name && !change.up)
      const gone = route.endpoints.filter((one) => dead.some((change) => change.endpoint === one.key))
      if (gone.length === 0) continue
      await this.#cutting.endpoints(route, gone, 'target_down')
      // Each looks at every flow: others have their turn in between.
      await turn()
    }
  }

  // ---- names of targets ----

  async #resolveNames(config: Config): Promise<boolean> {
    const resolved = await resolveNames(config, this.#facts.resolved)
    const changed = JSON.stringify(resolved) !== JSON.stringify(this.#facts.resolved)
    this.#facts.resolved = resolved
    return changed
  }

  async #reresolve() {
    await this.#serially(async () => {
      if (!this.#stopping && (await this.#resolveNames(this.#config))) await this.#carryOut(this.#config)
    }).catch((error: Error) => this.log('warn', error.message))
  }

  // ---- the worker ----

  #onWorker(message: ToControl) {
    if (this.#passOn && message.type === 'connections') return this.#passOn(message)
    switch (message.type) {
      case 'connections':
        if (this.#accessLog?.durable) void this.#writeOpened(message.opened)
        return this.table.ingest(message)
      case 'counted':
        return this.table.sampled(message.counts)
      case 'applied':
        this.#applied = {
          generation: message.generation,
          problems: new Map(message.problems.map(({ route, message: text }) => [route, text])),
        }
        for (const { route, message: text } of message.problems) this.log('error', `Route "${route}": ${text}`)
        if (message.generation >= this.#generation) {
          this.#workerApplied.resolve(true)
          this.#workerApplied = Promise.withResolvers()
        }
        return this.#workerReady.resolve()
      case 'checked':
        return this.#health.checked(message.results)
      case 'dialed':
        return this.#health.dialed(message.dials)
      case 'log':
        return this.log(message.level, message.message, message.fields)
    }
  }

  /** In the worker these connections wait for it: their lines come before everything else of them. */
  async #writeOpened(opened: ConnectionRecord[]) {
    if (opened.length === 0) return
    const ok = await this.#accessLog!.writeOpened(opened)
    this.#command({ type: 'written', ids: opened.map(({ id }) => id), ok })
  }

  /** To the worker, and to those that stayed behind in the programs before this one. */
  #command(command: ToWorker) {
    if (command.type === 'stop') this.#supervisor.hurry(command.graceMs)
    else this.#supervisor.send(command)
    this.options.predecessor?.send(command)
  }

  /** The first plan is carried out, or the start has failed. */
  async #workerStarts() {
    await this.#inTime(this.#workerReady.promise)
  }

  async #inTime(started: Promise<void>) {
    const { promise: late, reject } = Promise.withResolvers<never>()
    const timer = setTimeout(
      () => reject(new GatewayError('Cannot start: the worker does not answer; its output says why')),
      WORKER_STARTS_MS_MAX,
    )
    await Promise.race([started, late]).finally(() => clearTimeout(timer))
  }

  /** Waits for the worker to have carried out all that it was told; false when it had, or does not in time. */
  async #workerHasApplied(): Promise<boolean> {
    if (this.#applied.generation >= this.#generation) return false
    const late = setTimeout(() => this.#workerApplied.resolve(false), WORKER_APPLIES_MS_MAX)
    const result = await this.#workerApplied.promise
    clearTimeout(late)
    return result
  }

  // ---- end ----

  /** Starts the program anew, of which there may be another version now, and hands over to it. Resolves when it is ready to go on
   *  from here; rejects when it is not, and then nothing has changed. */
  upgrade(): Promise<{ pid: number; version: string }> {
    return this.#serially(async () => {
      if (this.#stopping) throw new GatewayError('Cannot hand over: the gateway is stopping')
      // The new program would begin without the change, and nobody would have taken it back.
      const until = this.reloads.unconfirmedUntil
      if (until !== null)
        throw new GatewayError(`A change waits until ${until} for "sluice confirm", or for being taken back`)
      this.log('info', 'Starting the program anew, to hand over to it')
      const successor = await Successor.start(this.#listeners.sockets(), this.#kernelPlace)
      if (this.#stopping) {
        // Nobody hands over to it: it ends.
        successor.close()
        throw new GatewayError('Cannot hand over: the gateway is stopping')
      }
      this.#stopping = this.#handOver(successor).finally(() => this.#done.resolve())
      const { pid, version } = successor
      return { pid, version }
    })
  }

  /** What only one can have goes at once. Connections in user space finish here, and belong to the other. */
  async #handOver(successor: Successor) {
    const { pid, version } = successor
    const { predecessor, manager } = this.options
    this.log('info', 'Handing over', { to: pid, version, connections: this.table.size })
    this.#leaveOff()
    await this.#certificates.stop()
    await this.#kernel.stop()
    const drained = this.#supervisor.stop(HANDOVER_DRAIN_MS_MAX)
    this.#listeners.keep(new Set())
    await this.#kernel.plane?.stop('keep', 0)
    this.events.stop()
    await this.#admin?.stop()
    // What is counted and written up to here is here; all that comes is the other's.
    const late: ToControl[] = []
    this.#passOn = (message) => void late.push(message)
    await this.#observation?.stop()
    await this.#accessLog?.close()
    // Before it says that it serves: only the main process is heard.
    manager?.handedOver(pid)
    const workers = [this.#supervisor.idPrefix, ...(predecessor?.workers ?? [])]
    await successor.release(this.table.records(), workers, (command) => this.#command(command))
    for (const message of late) successor.tell(message)
    this.#passOn = (message) => successor.tell(message)
    const sampling = setInterval(() => void this.#tellCounts(successor), HANDOVER_SAMPLE_MS)
    void successor.gone.then(() => this.#command({ type: 'stop', graceMs: 0 }))
    await Promise.all([drained, predecessor?.over])
    clearInterval(sampling)
    successor.close()
    this.log('info', 'Handed over; the last connection is over', { to: pid })
  }

  /** Of what goes on here. */
  async #tellCounts(successor: Successor) {
    const counts = await this.#supervisor.sample()
    if (counts.length > 0) successor.tell({ type: 'counted', counts, isLast: true })
  }

  /** Begins nothing any more. */
  #leaveOff() {
    this.#planned.resolve()
    this.#workerReady.resolve()
    clearInterval(this.#resolveTimer)
    this.#leastConnections.stop()
    this.#health.stop()
    this.#cutting.stop()
    this.#operatorDrains?.stop()
    this.reloads.stop()
  }

  /** Drains for graceMs (default timeouts.grace), then cuts what is left; the rules go or stay (default kernel.onStop). */
  stop(graceMs?: number, onStop = this.#config.kernel?.onStop ?? 'remove'): Promise<void> {
    const grace = graceMs ?? parseDuration(this.#config.timeouts?.grace ?? '5s')!
    // One that has handed over waits for its last connections, but not against the operator's will.
    if (this.#stopping) this.#command({ type: 'stop', graceMs: grace })
    this.#stopping ??= this.#stop(grace, onStop).finally(() => this.#done.resolve())
    return this.#stopping
  }

  /** Resolves when nothing goes on in the programs before this one, or they do not end in time. */
  async #leftBehind(graceMs: number) {
    const { promise: late, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, Math.min(graceMs + LEFT_BEHIND_MS_MAX, TIMER_MS_MAX))
    await Promise.race([this.options.predecessor?.over, late])
    clearTimeout(timer)
  }

  async #stop(graceMs: number, onStop: 'keep' | 'remove') {
    this.log('info', 'Stopping', { graceMs })
    this.options.manager?.stopping()
    this.#leaveOff()
    await this.#certificates.stop()
    // Whatever is under way ends first: its outcome is undone below.
    await this.#kernel.stop()
    await this.#changing
    this.#listeners.keep(new Set())
    this.options.predecessor?.send({ type: 'stop', graceMs })
    await Promise.all([
      this.#supervisor.stop(graceMs),
      this.#kernel.plane?.stop(onStop, graceMs),
      this.#leftBehind(graceMs),
    ])
    this.events.stop()
    await this.#admin?.stop()
    await this.#observation?.stop()
    await this.#accessLog?.close()
    this.log('info', 'Stopped')
  }
}

const NOTHING = { opened: [], changed: [], settled: [] }
const protocolOf = (route: PlannedRoute) => route.listens[0]!.protocol
const listensOf = (plan: Plan) => plan.routes.flatMap((route) => route.listens)
const numbersOf = (plan: Plan) => Object.fromEntries(plan.routes.map((route) => [route.name, route.number]))
