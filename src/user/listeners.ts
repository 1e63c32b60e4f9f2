// What a worker listens on, following its plans: opened from the descriptors that control sends, kept over changes, and closed
// so that nobody who has come is lost.
import { LISTENER_CLOSES_MS_MAX } from '../base/limits.ts'
import { native } from '../base/native.ts'
import type { WorkerPlan } from '../channel/messages.ts'
import type { PlannedListener } from '../plan/types.ts'
import { looksFor, readsBy, type Listening, type Reads } from './listen.ts'
import type { LiveRoute } from './route.ts'
import { NetworkList } from './security.ts'

/** What could not be carried out; the rest serves. */
export interface Problem {
  route: string
  message: string
}

export class Listeners {
  readonly #byKey = new Map<string, Listening>()
  /** Stopped, and perhaps with a connection that is not known yet. */
  readonly #leaving = new Map<Listening, Promise<void>>()
  #paused = false
  /** Their descriptors. */
  descriptors = 0

  /** @param make one that owns the descriptor; throws when it is no listening socket.
   *  @param left one has gone, and the last connection that came to it is known. */
  constructor(
    private readonly make: (planned: PlannedListener, reads: Reads, fd: number) => Listening,
    private readonly left: () => void,
  ) {}

  get(key: string): Listening | undefined {
    return this.#byKey.get(key)
  }

  /** Some descriptor of one of them; undefined: there is none. */
  get anyDescriptor(): number | undefined {
    const [listener] = this.#byKey.values()
    return listener?.anyDescriptor
  }

  /** Of none of them a connection can come any more that is not known yet. */
  get areGone(): boolean {
    return this.#leaving.size === 0
  }

  /** These and no others. Takes the descriptors that it needs, by their tags, and closes the rest. */
  follow(
    plan: WorkerPlan,
    routesOf: (name: string) => LiveRoute | undefined,
    descriptors: Map<number, number>,
  ): Problem[] {
    const problems: Problem[] = []
    const wanted = new Set(plan.listeners.map((listener) => listener.key))
    for (const [key, listener] of this.#byKey) if (!wanted.has(key)) this.#close(key, listener)
    for (const planned of plan.listeners) {
      const routes = planned.routes.flatMap((name) => routesOf(name) ?? [])
      const fd = descriptors.get(planned.descriptor)
      let listener = this.#byKey.get(planned.key)
      const reads = readsBy(planned, routes)
      if (fd !== undefined) {
        descriptors.delete(planned.descriptor)
        if (listener) this.#close(planned.key, listener)
        listener = this.#open(planned, reads, fd, problems)
      } else if (listener && listener.reads !== reads) {
        const copy = native().sluice_dup(listener.anyDescriptor)
        this.#close(planned.key, listener)
        listener = this.#open(planned, reads, copy, problems)
      }
      if (!listener) {
        if (fd === undefined && !planned.optional) problems.push(...cannot(planned, 'no descriptor came with the plan'))
        continue
      }
      listener.plan = planned
      listener.routes = routes
      listener.looksFor = looksFor(planned, routes)
      listener.trusted = new NetworkList(planned.trusted)
    }
    for (const fd of descriptors.values()) native().sluice_close(fd)
    descriptors.clear()
    return problems
  }

  #open(planned: PlannedListener, reads: Reads, fd: number, problems: Problem[]): Listening | undefined {
    try {
      const listener = this.make(planned, reads, fd)
      this.#byKey.set(planned.key, listener)
      this.descriptors += listener.descriptors
      if (this.#paused) listener.pause()
      return listener
    } catch (error) {
      problems.push(...cannot(planned, (error as Error).message))
      return undefined
    }
  }

  #close(key: string, listener: Listening) {
    this.#byKey.delete(key)
    this.descriptors -= listener.descriptors
    const gone = listener.stop().then(() => {
      this.#leaving.delete(listener)
      this.left()
    })
    this.#leaving.set(listener, gone)
  }

  /** The ports that were given up are free when it resolves: somebody may want them back with the next plan. */
  async closed() {
    if (this.#leaving.size === 0) return
    const { promise: late, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, LISTENER_CLOSES_MS_MAX)
    await Promise.race([Promise.all(this.#leaving.values()), late])
    clearTimeout(timer)
  }

  /** Nobody is accepted meanwhile: the kernel's backlog holds who comes. */
  pause() {
    this.#paused = true
    for (const listener of this.#byKey.values()) listener.pause()
  }

  resume() {
    this.#paused = false
    for (const listener of this.#byKey.values()) listener.resume()
  }

  stop() {
    for (const [key, listener] of this.#byKey) this.#close(key, listener)
  }
}

const cannot = ({ key, routes }: PlannedListener, why: string): Problem[] =>
  routes.map((route) => ({ route, message: `Cannot listen on ${key}: ${why}` }))
