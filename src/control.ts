// The control process: the wiring of the whole gateway. It turns a configuration into a plan, owns every listening socket,
// and carries the plan out in both planes; it never touches a byte of a client. Changes are made one at a time.
import { lookup } from 'node:dns/promises'
import { isAbsolute, join, resolve } from 'node:path'
import { DEFAULT_SOCKET, DEFAULT_STATE_DIR, VERSION } from './base/about.ts'
import { cString, native, ptr } from './base/native.ts'
import { canonicalIp, parseTarget } from './base/addresses.ts'
import { parseDuration } from './base/units.ts'
import { Certificates } from './certificates/index.ts'
import type { ToControl, WorkerPlan } from './channel/messages.ts'
import { check, type Problem } from './config/check.ts'
import { loadConfig } from './config/load.ts'
import type { Config } from './config/schema.ts'
import type { ConnectionRecord } from './connections/record.ts'
import { ConnectionTable } from './connections/table.ts'
import { KernelPlane, probeKernel, programVersion } from './kernel/index.ts'
import { AccessLog } from './observe/access-log.ts'
import { AdminServer, type Gateway, type ReloadResult } from './observe/admin.ts'
import { makeLog, type Log } from './observe/log.ts'
import { plan as makePlan } from './plan/plan.ts'
import type { Facts, Plan, PlannedRoute } from './plan/types.ts'
import { Supervisor } from './supervisor.ts'

const DEFAULT_MARK_BASE = 0x51000000
/** The kernel holds this many accepted connections that a worker has not taken yet (capped by net.core.somaxconn). */
const BACKLOG = 4096
const RESOLVE_MS_MAX = 2000
const RESOLVE_EVERY_MS = 30_000
/** Between attempts to use a kernel that could not be used. */
const KERNEL_RETRY_MS_MIN = 1000
const KERNEL_RETRY_MS_MAX = 30_000
const EADDRINUSE = 98
/** Only a change that needs a port again waits for it. */
const WORKER_APPLIES_MS_MAX = 2000
/** Listening sockets opened before the event loop gets a turn. */
const LISTENERS_AT_ONCE = 64

/** A start or a change that cannot be done; nothing of it was. */
export class GatewayError extends Error {
  override name = 'GatewayError'
}

export interface ControlOptions {
  /** Read again by reload; also where inline handlers are found. */
  configFile?: string
  log?: Log
}

interface Listener {
  key: string
  port: number
  tag: number
  fd: number
}

export class Control implements Gateway {
  readonly log: Log
  readonly table = new ConnectionTable()
  readonly #supervisor: Supervisor
  #kernel: KernelPlane | undefined
  /** Why the kernel plane is not in use: starting, unusable, or null. */
  #kernelState: { phase: 'idle' | 'starting' | 'ready' | 'unusable'; reason: string | null } = {
    phase: 'idle',
    reason: null,
  }
  #config: Config
  #plan: Plan = { routes: [], listeners: [], kernel: {} }
  #facts: Facts
  #listeners = new Map<string, Listener>()
  #nextTag = 1
  #generation = 0
  #applied = { generation: 0, problems: new Map<string, string>() }
  #changing: Promise<unknown> = Promise.resolve()
  #kernelStart: Promise<void> | undefined
  #drains = new Set<ReturnType<typeof setTimeout>>()
  #resolveTimer: ReturnType<typeof setInterval> | undefined
  #kernelRetry: ReturnType<typeof setTimeout> | undefined
  /** No number up to this one is given to a new route: flows of a route that has gone may carry it still. */
  #highestNumber = 0
  #admin: AdminServer | undefined
  #accessLog: AccessLog | undefined
  #certificates: Certificates
  #startedAt = new Date()
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
    this.#certificates = new Certificates(this.#stateDir)
    this.#facts = {
      kernelUnusable: null,
      numbers: {},
      numbersInUse: [],
      resolved: {},
      markBase: config.kernel?.markBase ?? DEFAULT_MARK_BASE,
      programVersion,
    }
    this.#supervisor = new Supervisor({
      configFile: options.configFile,
      onMessage: (message) => this.#onWorker(message),
      onDeath: (idPrefix, how) => {
        this.log('error', `The worker ended ${how}; starting the next one`)
        this.table.workerDied(idPrefix, Date.now())
      },
    })
  }

  get #stateDir() {
    return resolve(this.#config.stateDir ?? DEFAULT_STATE_DIR)
  }

  /** Resolves when the gateway has stopped. */
  get done() {
    return this.#done.promise
  }

  // ---- start ----

  /** Resolves when every route is served: in user space at least, in the kernel where the configuration demands it. */
  async start(): Promise<void> {
    native().sluice_raise_nofile()
    const access = this.#config.log?.access ?? 'stdout'
    const destination = typeof access === 'object' ? access.file : access
    if (destination !== 'off') {
      this.#accessLog = await AccessLog.open(
        destination === 'stdout' || isAbsolute(destination) ? destination : resolve(destination),
        (message) => this.log('error', message),
      )
      this.table.observe(this.#accessLog)
    }
    // Its socket first: a second gateway with the same configuration ends here, before it touches anything.
    this.#admin = new AdminServer(this.#config.admin?.socket ?? DEFAULT_SOCKET, this)
    try {
      await this.#admin.start()
      await this.#resolveNames(this.#config)
      await this.#supervisor.start()
      await this.#change(this.#config)
      await this.#workerReady.promise
      // A stop does not wait for a start, and resolves what the start waits for.
      if (this.#stopping) return
      const kernel = this.#startKernel()
      if (this.#plan.routes.some((route) => route.required)) await kernel
      else kernel.catch((error: Error) => this.log('error', error.message))
    } catch (error) {
      await this.stop(0)
      throw error
    }
    if (this.#stopping) return
    this.#resolveTimer = setInterval(() => void this.#reresolve(), RESOLVE_EVERY_MS)
    this.log('info', 'sluice serves', {
      version: VERSION,
      routes: this.#plan.routes.length,
      listeners: this.#listeners.size,
      pid: process.pid,
    })
  }

  /** In the background: a route is served in user space until the kernel is ready. Rejects when a route demands the kernel.
   *  A machine that cannot do it now may be able to later (nft is installed, a lock is released): it is tried again. */
  #startKernel(retryMs = KERNEL_RETRY_MS_MIN): Promise<void> {
    return (this.#kernelStart = this.#tryKernel(retryMs))
  }

  async #tryKernel(retryMs: number): Promise<void> {
    if (this.#kernelState.phase === 'idle') this.#kernelState = { phase: 'starting', reason: null }
    const before = this.#kernelState.reason
    try {
      const probe = await probeKernel()
      if (this.#stopping) return
      if (probe.unusable) throw new GatewayError(probe.unusable)
      const kernel = new KernelPlane({
        table: this.#config.kernel?.table ?? 'sluice',
        base: this.#facts.markBase,
        sysctlMemory: join(this.#stateDir, 'sysctl.json'),
        log: this.log,
        changed: () => this.#kernelChanged(),
        flowOpened: (route) => this.table.flowOpened(route),
        flowSettled: (record) => this.table.settled(record),
      })
      this.#kernel = kernel
      const found = await kernel.start()
      // What the table says counts: the numbers that were given out until now were of no consequence.
      this.#facts.numbers = { ...found.numbers }
      this.#highestNumber = Math.max(0, ...Object.values(found.numbers), ...found.numbersInUse)
      this.#facts.kernelUnusable = null
      if (found.hadTable)
        this.log('info', 'Took over the kernel table of an earlier run', {
          routes: Object.keys(found.numbers).length,
          flows: kernel.flows.size,
        })
      this.#kernelState = { phase: 'ready', reason: null }
    } catch (error) {
      const reason = (error as Error).message
      this.#kernel = undefined
      this.#kernelState = { phase: 'unusable', reason }
      this.#facts.kernelUnusable = reason
      if (reason !== before) this.log('warn', `The kernel carries nothing: ${reason}`)
      if (!this.#stopping)
        this.#kernelRetry = setTimeout(
          () =>
            this.#startKernel(Math.min(retryMs * 2, KERNEL_RETRY_MS_MAX)).catch((error: Error) =>
              this.log('warn', error.message),
            ),
          retryMs,
        )
      if (reason === before) return
    }
    await this.#serially(async () => {
      if (!this.#stopping) await this.#carryOut(this.#config)
    })
  }

  // ---- changes, one at a time ----

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(work)
    this.#changing = result.catch(() => {})
    return result
  }

  #change(config: Config): Promise<void> {
    return this.#serially(() => this.#carryOut(config))
  }

  /** Carries a configuration out in both planes. Throws before anything was changed when it cannot be done. */
  async #carryOut(config: Config): Promise<void> {
    const before = this.#plan
    const inUse = this.#kernel?.flows.numbers().keys() ?? []
    const next = makePlan(config, { ...this.#facts, numbersInUse: [...inUse, this.#highestNumber] })
    const required = next.routes.filter((route) => route.required)
    const notKernel = required.find(
      (route) =>
        route.carrier !== 'kernel' && this.#kernelState.phase !== 'idle' && this.#kernelState.phase !== 'starting',
    )
    if (notKernel)
      throw new GatewayError(
        `Route "${notKernel.name}" demands forwardingEngine 'nftables', and the kernel cannot carry it: ${notKernel.reason}`,
      )

    const certificates = await this.#prepareCertificates(config, next)
    const opened = await this.#openListeners(next)
    const previous = this.#kernel?.ruleset
    const applied = this.#applyKernel(next)
    if (required.length > 0 && applied)
      try {
        await applied
      } catch (error) {
        for (const listener of opened) this.#closeListener(listener)
        if (previous && before.routes.length) this.#applyKernel(before)
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
      listeners: next.listeners.map((listener) => ({
        ...listener,
        descriptor: this.#listeners.get(listener.key)!.tag,
      })),
      routes: next.routes.map((route) => route.user),
      certificates,
    }
    const wanted = new Set(next.listeners.map((listener) => listener.key))
    const gone = [...this.#listeners.values()].filter((listener) => !wanted.has(listener.key))
    await this.#supervisor.apply(
      workerPlan,
      new Map(
        [...this.#listeners.values()]
          .filter((listener) => wanted.has(listener.key))
          .map((listener) => [listener.tag, listener.fd]),
      ),
    )
    for (const listener of gone) this.#closeListener(listener)
    this.#drainChanged(before, next)
  }

  /** Hands the elements to the kernel's loop. undefined: there is no kernel plane (yet), and nothing for it to do. */
  #applyKernel(plan: Plan): Promise<void> | undefined {
    const kernel = this.#kernel
    if (!kernel || this.#kernelState.phase !== 'ready') return undefined
    kernel.learn(numbersOf(plan))
    const any = plan.routes.some((route) => route.carrier === 'kernel')
    // A machine whose configuration needs nothing of the kernel keeps its settings and gets no table.
    if (!any && kernel.ruleset.elements === 0 && kernel.ruleset.settled) return undefined
    const applied = kernel.apply(plan.kernel, any)
    applied.catch(() => {}) // the loop has logged it, and tries again
    return applied
  }

  #kernelChanged() {}

  async #prepareCertificates(config: Config, plan: Plan): Promise<WorkerPlan['certificates']> {
    const specs = config.routes.flatMap((route) => {
      const tls = 'tls' in route.action ? route.action.tls : undefined
      if (!tls || tls.mode === 'passthrough' || !plan.routes.some((planned) => planned.name === route.name)) return []
      const names = [route.match.domains ?? []].flat().filter((name) => name !== '*')
      const certificate = tls.certificate as 'self-signed' | { cert: string; key: string }
      return [{ route: route.name, names: names.length ? names : ['localhost'], certificate }]
    })
    if (specs.length === 0) return {}
    const { certificates, problems } = await this.#certificates.prepare(specs)
    if (problems.length > 0)
      throw new ProblemsError(
        problems.map(({ route, message }) => ({
          path: `routes.${route}.action.tls.certificate`,
          message,
          remedy: 'mend the files, or use "self-signed"',
        })),
      )
    return Object.fromEntries(certificates)
  }

  // ---- listeners ----

  /** Opens what the plan has and we have not. All of them, or none and an error that names the port. */
  async #openListeners(plan: Plan): Promise<Listener[]> {
    const opened: Listener[] = []
    for (const { key, address, port } of plan.listeners) {
      if (this.#listeners.has(key)) continue
      const text = cString(address)
      const open = () => native().sluice_listen(ptr(text), port, BACKLOG)
      let fd = open()
      // A change before this one may have closed the port here, and the worker is about to close it there.
      if (fd === -EADDRINUSE && (await this.#workerHasApplied())) fd = open()
      if (fd === -EADDRINUSE) fd = this.#listenBeside(address, port)
      if (fd < 0) {
        for (const listener of opened) this.#closeListener(listener)
        throw new GatewayError(`Cannot listen on ${key}: ${errorText(-fd)}`)
      }
      const listener = { key, port, tag: this.#nextTag++, fd }
      this.#listeners.set(key, listener)
      opened.push(listener)
      if (opened.length % LISTENERS_AT_ONCE === 0) await new Promise((turn) => setImmediate(turn))
    }
    return opened
  }

  /** One address of a port whose other addresses, or all of them, are ours already: the kernel gives a connection to the
   *  narrower socket, but it lets only those in beside each other that agree to it. */
  #listenBeside(address: string, port: number): number {
    const ours = [...this.#listeners.values()].filter((listener) => listener.port === port)
    if (ours.length === 0) return -EADDRINUSE
    const text = cString(address)
    const fds = Int32Array.from(ours, (listener) => listener.fd)
    return native().sluice_listen_beside(ptr(text), port, BACKLOG, ptr(fds), fds.length)
  }

  /** Waits for the worker to have carried out all that it was told; false when it had, or does not in time. */
  async #workerHasApplied(): Promise<boolean> {
    if (this.#applied.generation >= this.#generation) return false
    const late = setTimeout(() => this.#workerApplied.resolve(false), WORKER_APPLIES_MS_MAX)
    const result = await this.#workerApplied.promise
    clearTimeout(late)
    return result
  }

  #closeListener(listener: Listener) {
    native().sluice_close(listener.fd)
    this.#listeners.delete(listener.key)
  }

  // ---- what a change does to live connections ----

  /** Routes that are gone or go elsewhere: their connections finish, are cut, or are cut after a deadline, as the route says. */
  #drainChanged(before: Plan, next: Plan) {
    const now = new Map(next.routes.map((route) => [route.name, route]))
    for (const old of before.routes) {
      const kept = now.get(old.name)
      const retargeted = kept && JSON.stringify(kept.user.action) !== JSON.stringify(old.user.action)
      if ((kept && !retargeted) || old.drainMs === null) continue
      this.#drain(old, old.drainMs)
    }
  }

  #drain(route: PlannedRoute, deadlineMs: number) {
    this.#supervisor.send({ type: 'drain', route: route.name, deadlineMs })
    // Only flows that are there now: a new one of the same route is not part of the drain.
    const ids = this.#kernel?.flows.slotsOf(route.number).map((slot) => this.#kernel!.flows.record(slot).id) ?? []
    const cut = () => {
      for (const id of ids) this.#kernel?.close(id, 'drained')
    }
    if (deadlineMs === 0) return cut()
    const timer = setTimeout(() => {
      this.#drains.delete(timer)
      cut()
    }, deadlineMs)
    this.#drains.add(timer)
  }

  // ---- names of targets ----

  async #resolveNames(config: Config): Promise<boolean> {
    const names = new Set(
      config.routes
        .flatMap((route) => (route.action.type === 'forward' ? route.action.targets : []))
        .flatMap((target) => {
          const host = parseTarget(target.host)
          return host?.kind === 'name' ? [host.name] : []
        }),
    )
    const resolved: Record<string, string[]> = {}
    await Promise.all(
      [...names].map(async (name) => {
        const deadline = Promise.withResolvers<null>()
        const timer = setTimeout(() => deadline.resolve(null), RESOLVE_MS_MAX)
        const found = await Promise.race([lookup(name, { all: true }).catch(() => null), deadline.promise])
        clearTimeout(timer)
        // A name that does not resolve now keeps the addresses it had.
        const addresses = found
          ? [...new Set(found.map((entry) => canonicalIp(entry.address)))].toSorted()
          : this.#facts.resolved[name]
        if (addresses) resolved[name] = addresses
      }),
    )
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
    switch (message.type) {
      case 'connections':
        return this.table.ingest(message)
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
      case 'log':
        return this.log(message.level, message.message, message.fields)
    }
  }

  // ---- what the admin API sees and does ----

  async status() {
    const routes = await this.routes()
    const kernel = this.#kernel
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt.toISOString(),
      configFile: this.options.configFile ?? null,
      routes: { total: routes.length, active: routes.filter((route) => route.state === 'active').length },
      connections: { kernel: kernel?.flows.size ?? 0, proxied: this.table.size },
      worker: { pid: this.#supervisor.pid, uid: this.#supervisor.uid, restarts: this.#supervisor.restarts },
      kernel: {
        active: this.#kernelState.phase === 'ready' && (kernel?.ruleset.elements ?? 0) > 0,
        phase: this.#kernelState.phase,
        reason: this.#kernelState.reason ?? kernel?.ruleset.error ?? null,
        tables: kernel
          ? [this.#config.kernel?.table ?? 'sluice', `${this.#config.kernel?.table ?? 'sluice'}_anchor`]
          : [],
        elements: kernel?.ruleset.elements ?? 0,
        transactions: kernel?.ruleset.transactions ?? 0,
        drifts: kernel?.ruleset.drifts ?? 0,
        eventsLost: kernel?.lost ?? 0,
      },
      anomalies: this.table.anomalies,
    }
  }

  async routes() {
    await this.#planned.promise
    return this.#plan.routes.map((route) => {
      const totals = this.table.totals(route.name)
      return {
        name: route.name,
        ...this.#carried(route),
        planned: route.carrier,
        number: route.number,
        listens: route.listens,
        connections: totals.now,
        total: totals.total,
        bytesIn: totals.bytesIn,
        bytesOut: totals.bytesOut,
        reasons: totals.reasons,
        refused: totals.refused,
      }
    })
  }

  /** What carries a route's new connections at this moment, and why it is not what was planned. */
  #carried(route: PlannedRoute): {
    carrier: PlannedRoute['carrier']
    state: 'active' | 'applying' | 'fallback' | 'failed'
    reason: string
  } {
    const problem = this.#applied.problems.get(route.name)
    if (problem) return { carrier: route.carrier, state: 'failed', reason: problem }
    // Before it has taken over what an earlier life left, the numbers mean nothing.
    const inKernel = this.#kernelState.phase === 'ready' && this.#kernel?.isActive(route.number, route.name) === true
    if (route.carrier !== 'kernel' && inKernel)
      return { carrier: 'kernel', state: 'applying', reason: 'in the kernel until its rules are out of it' }
    if (route.carrier === 'user' && this.#kernelState.phase === 'unusable' && route.reason === this.#kernelState.reason)
      return { carrier: 'user', state: 'fallback', reason: route.reason }
    if (route.carrier !== 'kernel')
      return {
        carrier: route.carrier,
        state: this.#applied.generation === 0 ? 'applying' : 'active',
        reason: route.reason,
      }
    if (inKernel) return { carrier: 'kernel', state: 'active', reason: route.reason }
    const error = this.#kernel?.ruleset.error
    if (error) return { carrier: 'user', state: 'fallback', reason: `the kernel did not take its rules: ${error}` }
    return { carrier: 'user', state: 'applying', reason: 'in user space until its rules are in the kernel' }
  }

  async connections(): Promise<ConnectionRecord[]> {
    const [counts] = await Promise.all([this.#supervisor.sample(), this.#kernel?.fresh()])
    for (const { id, bytesIn, bytesOut, state } of counts) {
      const record = this.table.get(id)
      if (record) Object.assign(record, { bytesIn, bytesOut, state })
    }
    return [...this.table.records(), ...(this.#kernel?.flows.records() ?? [])]
  }

  async close(id: string): Promise<boolean> {
    if (this.#kernel?.close(id, 'killed')) return true
    if (!this.table.get(id)) return false
    this.#supervisor.send({ type: 'close', id, reason: 'killed' })
    return true
  }

  async reload(): Promise<ReloadResult> {
    const file = this.options.configFile
    if (!file)
      return {
        ok: false,
        problems: [
          {
            path: '(the configuration)',
            message: 'the gateway was started without a file',
            remedy: 'use PUT /v1/routes',
          },
        ],
      }
    const loaded = await loadConfig(file)
    if (!loaded.ok) return loaded
    return this.setConfig(loaded.config)
  }

  async setRoutes(routes: unknown): Promise<ReloadResult> {
    const checked = check({ ...this.#config, routes })
    return checked.ok ? this.setConfig(checked.config) : checked
  }

  /** Level-triggered: the whole configuration, of which what did not change is not touched. */
  async setConfig(config: Config): Promise<ReloadResult> {
    const fixed = fixedChanges(this.#config, config)
    if (fixed.length > 0) return { ok: false, problems: fixed }
    const before = this.#plan
    try {
      await this.#serially(async () => {
        await this.#resolveNames(config)
        await this.#carryOut(config)
      })
    } catch (error) {
      if (error instanceof ProblemsError) return { ok: false, problems: error.problems }
      if (error instanceof GatewayError)
        return {
          ok: false,
          problems: [
            { path: '(the gateway)', message: error.message, remedy: 'the running configuration is unchanged' },
          ],
        }
      throw error
    }
    return { ok: true, changes: changesOf(before, this.#plan) }
  }

  // ---- end ----

  /** For restarts: goes without touching kernel rules or settings. */
  stop(graceMs?: number): Promise<void> {
    const grace = graceMs ?? parseDuration(this.#config.timeouts?.grace ?? '5s')!
    this.#stopping ??= this.#stop(grace).finally(() => this.#done.resolve())
    return this.#stopping
  }

  async #stop(graceMs: number) {
    this.log('info', 'Stopping', { graceMs })
    this.#planned.resolve()
    this.#workerReady.resolve()
    clearInterval(this.#resolveTimer)
    clearTimeout(this.#kernelRetry)
    for (const timer of this.#drains) clearTimeout(timer)
    // Whatever is under way ends first: its outcome is undone below.
    await this.#kernelStart?.catch(() => {})
    await this.#changing
    for (const listener of [...this.#listeners.values()]) this.#closeListener(listener)
    await Promise.all([
      this.#supervisor.stop(graceMs),
      this.#kernel?.stop(this.#config.kernel?.onStop ?? 'remove', graceMs),
    ])
    await this.#admin?.stop()
    await this.#accessLog?.close()
    this.log('info', 'Stopped')
  }
}

class ProblemsError extends Error {
  constructor(readonly problems: Problem[]) {
    super(problems.map((problem) => `${problem.path}: ${problem.message}`).join('; '))
  }
}

const numbersOf = (plan: Plan) => Object.fromEntries(plan.routes.map((route) => [route.name, route.number]))

/** What is opened once at the start and cannot change under a running gateway. */
function fixedChanges(before: Config, after: Config): Problem[] {
  const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)
  const remedy = 'restart the gateway for this change'
  return (['kernel', 'admin', 'stateDir', 'log', 'workers', 'store'] as const)
    .filter((field) => !same(before[field], after[field]))
    .map((path) => ({ path, message: 'cannot change while the gateway runs', remedy }))
}

function changesOf(before: Plan, after: Plan): Record<string, string[]> {
  const old = new Map(before.routes.map((route) => [route.name, JSON.stringify({ ...route, reason: '' })]))
  const changes: Record<string, string[]> = { added: [], removed: [], changed: [], untouched: [] }
  for (const route of after.routes) {
    const was = old.get(route.name)
    changes[
      was === undefined ? 'added' : was === JSON.stringify({ ...route, reason: '' }) ? 'untouched' : 'changed'
    ]!.push(route.name)
    old.delete(route.name)
  }
  changes.removed = [...old.keys()]
  return changes
}

/** The errors a listening socket can have, in words. */
function errorText(errno: number): string {
  const texts: Record<number, string> = {
    13: 'permission denied (ports below 1024 need root)',
    98: 'the port is in use by another program',
    99: 'this machine does not have the address',
    24: 'too many open descriptors',
    97: 'this machine has no IPv6',
  }
  return texts[errno] ?? `error ${errno}`
}
