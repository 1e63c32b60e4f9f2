// Control's view of its worker process: start it, pass it descriptors and plans, start the next one when it dies. The
// listening sockets are control's, so their backlog waits meanwhile and nobody is refused.
import { readFile } from 'node:fs/promises'
import { CHALLENGES_TOLD_MS_MAX, WORKER_ANSWERS_MS_MAX } from '../base/limits.ts'
import { TIMER_MS_MAX } from '../base/units.ts'
import { Channel, closeEnds, openEnds } from '../channel/channel.ts'
import type { HealthCheck, PlacedChallenges, ToControl, ToWorker, WorkerPlan } from '../channel/messages.ts'
import { selfArguments } from '../config/load.ts'
import { WORKER_ENVIRONMENT, type WorkerStart } from '../channel/messages.ts'
import type { UserRoute } from '../plan/types.ts'

/** A worker that dies younger than this is restarted with growing pauses. */
const YOUNG_MS = 5000
const RESTART_MS_MAX = 5000
const SAMPLE_MS_MAX = 2000

export interface SupervisorOptions {
  configFile?: string
  onMessage(message: ToControl): void
  /** The worker with these ids has ended although nobody asked it to. */
  onDeath(idPrefix: string, how: string): void
}

export class Supervisor {
  #channel: Channel<ToWorker, ToControl> | undefined
  #child: Bun.Subprocess | undefined
  #plan: WorkerPlan | undefined
  #checks: HealthCheck[] = []
  #challenges: Extract<ToWorker, { type: 'challenges' }> = { type: 'challenges', generation: 0, http: {}, tls: {} }
  /** By generation. */
  #challenged = new Map<number, (answered: boolean) => void>()
  /** tag → descriptor of every listener there is: a new worker gets them all. */
  #descriptors = new Map<number, number>()
  #sent = new Set<number>()
  #sending = Promise.resolve()
  #generation = 0
  #restart: ReturnType<typeof setTimeout> | undefined
  #restartMs = 0
  #stopping = false
  #stopped: (() => void) | undefined
  #samples = new Map<number, (counts: Sampled['counts']) => void>()
  #nextSample = 1
  #counted: ((all: boolean) => void) | undefined
  #ponged: (() => void) | undefined
  #stopTimer: ReturnType<typeof setTimeout> | undefined
  readonly #ready = Promise.withResolvers<void>()
  pid: number | null = null
  /** What the ids of its connections begin with. */
  idPrefix = ''
  uid: number | null = null
  restarts = 0
  /** false: it has paused for want of descriptors. */
  accepting = true
  descriptorsMax: number | null = null
  /** Of all workers there were. */
  acceptPauses = 0
  swept = 0

  constructor(private readonly options: SupervisorOptions) {}

  async start(): Promise<void> {
    const ends = openEnds()
    // Two lives can begin within a second, when one hands over to the next.
    const idPrefix = (this.idPrefix = `u${Date.now().toString(36)}${(this.#generation++).toString(36)}-`)
    const start: WorkerStart = { idPrefix, configFile: this.options.configFile, user: await workerUser() }
    const startedAt = performance.now()
    const child = Bun.spawn([process.execPath, ...selfArguments(), 'worker'], {
      stdio: ['ignore', 'inherit', 'inherit', ends.theirs.lines, ends.theirs.descriptors],
      env: { ...process.env, [WORKER_ENVIRONMENT]: JSON.stringify(start) },
      cwd: '/',
    })
    closeEnds(ends.theirs)
    this.#child = child
    this.#sent.clear()
    this.pid = child.pid
    this.#channel = await Channel.open<ToWorker, ToControl>(
      ends.ours,
      (message) => this.#onMessage(message),
      () => child.kill('SIGKILL'),
    )
    void child.exited.then(() => this.#onExit(child, idPrefix, performance.now() - startedAt))
    if (this.#plan) void this.#send()
    this.#channel.send({ type: 'health', checks: this.#checks })
    // Before its plan: who comes now waits in the backlog.
    if (this.#challenges.generation > 0) this.#channel.send(this.#challenges)
  }

  /** The first worker has started. */
  get ready(): Promise<void> {
    return this.#ready.promise
  }

  #onMessage(message: ToControl) {
    if (message.type === 'ready') {
      this.uid = message.uid
      this.#ready.resolve()
    }
    if (message.type === 'stopped') this.#stopped?.()
    if (message.type === 'pong') this.#ponged?.()
    if (message.type === 'swept') this.swept += message.count
    if (message.type === 'accepting') {
      if (message.paused && this.accepting) this.acceptPauses++
      this.accepting = !message.paused
      this.descriptorsMax = message.limit
    }
    if (message.type === 'challenged') this.#tellChallenged(message.generation)
    if (message.type === 'counted' && message.isLast) this.#counted?.(true)
    if (message.type === 'sampled') {
      this.#samples.get(message.request)?.(message.counts)
      this.#samples.delete(message.request)
    }
    this.options.onMessage(message)
  }

  #onExit(child: Bun.Subprocess, idPrefix: string, ageMs: number) {
    if (this.#child !== child) return
    this.#channel?.close()
    this.#channel = undefined
    this.pid = null
    this.accepting = true
    for (const answer of this.#samples.values()) answer([])
    this.#samples.clear()
    this.#counted?.(false)
    this.#ponged?.()
    this.#stopped?.()
    if (this.#stopping) return
    this.options.onDeath(idPrefix, child.signalCode ? `by ${child.signalCode}` : `with exit code ${child.exitCode}`)
    this.restarts++
    this.#restartMs = ageMs > YOUNG_MS ? 0 : Math.min(Math.max(this.#restartMs * 2, 100), RESTART_MS_MAX)
    // The first death is answered at once: the backlog waits.
    this.#restart = setTimeout(() => void this.start(), this.restarts === 1 ? 0 : this.#restartMs)
  }

  /** The whole plan, and the descriptors of its listeners by tag. Resolves when they are on their way: until then the
   *  descriptors of the plan before must stay open, or their numbers could be another's when they are sent. */
  apply(plan: WorkerPlan, descriptors: Map<number, number>): Promise<void> {
    this.#plan = plan
    this.#descriptors = descriptors
    for (const tag of this.#sent) if (!descriptors.has(tag)) this.#sent.delete(tag)
    return this.#send()
  }

  #send(): Promise<void> {
    const channel = this.#channel
    if (!channel) return Promise.resolve()
    // In order: the descriptors of one plan before its line, plans one after another.
    return (this.#sending = this.#sending.then(async () => {
      const plan = this.#plan
      if (channel !== this.#channel || !plan) return
      const fresh = [...this.#descriptors].filter(([tag]) => !this.#sent.has(tag))
      for (const [tag] of fresh) this.#sent.add(tag)
      await channel.sendDescriptors(fresh, { type: 'descriptors' }).catch(() => channel.close())
      channel.send({ type: 'plan', plan })
    }))
  }

  /** These routes of the plan anew, without the rest of it. The next worker gets them too. */
  updateRoutes(routes: UserRoute[]): Promise<void> {
    const plan = this.#plan
    if (!plan || routes.length === 0) return Promise.resolve()
    const byName = new Map(routes.map((route) => [route.name, route]))
    this.#plan = { ...plan, routes: plan.routes.map((route) => byName.get(route.name) ?? route) }
    const channel = this.#channel
    // Behind a plan that waits for its descriptors.
    return (this.#sending = this.#sending.then(() => {
      if (channel === this.#channel) channel?.send({ type: 'routes', routes })
    }))
  }

  /** The certificates of these routes anew, without the rest of the plan. The next worker gets them too. */
  updateCertificates(certificates: WorkerPlan['certificates']): Promise<void> {
    const plan = this.#plan
    if (!plan) return Promise.resolve()
    this.#plan = { ...plan, certificates: { ...plan.certificates, ...certificates } }
    const channel = this.#channel
    // Behind a plan that waits for its descriptors.
    return (this.#sending = this.#sending.then(() => {
      if (channel === this.#channel) channel?.send({ type: 'certificates', certificates })
    }))
  }

  /** Every challenge to answer from now on; the next worker gets them too. Resolves when a worker answers them; false: none did
   *  in time, or the gateway stops. */
  updateChallenges(placed: PlacedChallenges): Promise<boolean> {
    const generation = this.#challenges.generation + 1
    this.#challenges = { type: 'challenges', generation, ...placed }
    if (this.#stopping) return Promise.resolve(false)
    const { promise, resolve } = Promise.withResolvers<boolean>()
    const answer = (answered: boolean) => {
      clearTimeout(timer)
      this.#challenged.delete(generation)
      resolve(answered)
    }
    const timer = setTimeout(() => answer(false), CHALLENGES_TOLD_MS_MAX)
    this.#challenged.set(generation, answer)
    this.#channel?.send(this.#challenges)
    return promise
  }

  /** A newer state takes the place of those before it. */
  #tellChallenged(generation: number) {
    for (const [asked, answer] of [...this.#challenged]) if (asked <= generation) answer(true)
  }

  /** All health checks there are. The next worker gets them too. */
  updateChecks(checks: HealthCheck[]) {
    this.#checks = checks
    this.#channel?.send({ type: 'health', checks })
  }

  send(message: ToWorker) {
    this.#channel?.send(message)
  }

  /** Byte counts of the live connections; empty when the worker does not answer in time. */
  sample(): Promise<Sampled['counts']> {
    if (!this.#channel) return Promise.resolve([])
    const request = this.#nextSample++
    const { promise, resolve } = Promise.withResolvers<Sampled['counts']>()
    const timer = setTimeout(() => {
      this.#samples.delete(request)
      resolve([])
    }, SAMPLE_MS_MAX)
    this.#samples.set(request, (counts) => {
      clearTimeout(timer)
      resolve(counts)
    })
    this.#channel.send({ type: 'sample', request })
    return promise
  }

  /** Has the worker tell what live connections have carried since they were counted last. Resolves when it has told all of it;
   *  false: it did not, in time. One at a time. */
  count(): Promise<boolean> {
    if (!this.#channel) return Promise.resolve(false)
    const { promise, resolve } = Promise.withResolvers<boolean>()
    const timer = setTimeout(() => resolve(false), SAMPLE_MS_MAX)
    this.#counted = (all) => {
      clearTimeout(timer)
      resolve(all)
    }
    this.#channel.send({ type: 'count' })
    return promise
  }

  /** Whether the worker answers, in time. true where there is none yet: the next one is on its way. */
  answers(): Promise<boolean> {
    if (!this.#channel || this.uid === null) return Promise.resolve(true)
    // It has not answered the one before.
    if (this.#ponged) return Promise.resolve(false)
    const { promise, resolve } = Promise.withResolvers<boolean>()
    const timer = setTimeout(() => resolve(false), WORKER_ANSWERS_MS_MAX)
    this.#ponged = () => {
      clearTimeout(timer)
      this.#ponged = undefined
      resolve(true)
    }
    this.#channel.send({ type: 'ping' })
    return promise
  }

  /** For those who look. */
  get view() {
    const { pid, uid, restarts, accepting, acceptPauses, descriptorsMax, swept } = this
    return { pid, uid, restarts, accepting, acceptPauses, descriptorsMax, swept }
  }

  /** One that stops already has less time for it from now on. */
  hurry(graceMs: number) {
    if (this.#stopping && this.#stopped) this.#askToStop(graceMs)
  }

  #askToStop(graceMs: number) {
    clearTimeout(this.#stopTimer)
    this.#stopTimer = setTimeout(() => this.#stopped?.(), Math.min(graceMs + 1000, TIMER_MS_MAX))
    this.#channel?.send({ type: 'stop', graceMs })
  }

  async stop(graceMs: number): Promise<void> {
    this.#stopping = true
    clearTimeout(this.#restart)
    for (const answer of [...this.#challenged.values()]) answer(false)
    const child = this.#child
    if (!child || !this.#channel) return
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#stopped = resolve
    this.#askToStop(graceMs)
    await promise
    clearTimeout(this.#stopTimer)
    this.#channel?.close()
    const killer = setTimeout(() => child.kill('SIGKILL'), 500)
    await child.exited
    clearTimeout(killer)
  }
}

type Sampled = Extract<ToControl, { type: 'sampled' }>

/** The system user "sluice" that `make install` makes, else "nobody". */
async function workerUser(): Promise<{ uid: number; gid: number } | null> {
  if (process.getuid!() !== 0) return null
  const users = new Map(
    (await readFile('/etc/passwd', 'utf8').catch(() => ''))
      .split('\n')
      .map((line) => [line.split(':')[0]!, line.split(':')]),
  )
  const entry = users.get('sluice') ?? users.get('nobody')
  return entry ? { uid: Number(entry[2]), gid: Number(entry[3]) } : null
}
