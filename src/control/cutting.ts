// Ends connections that a change, a drain or a dead target leaves behind, in both planes: at once, or after a deadline.
import { FLOW_CUTS_PER_TURN } from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { KernelPlane } from '../kernel/index.ts'
import { leadsTo } from '../plan/endpoints.ts'
import type { Endpoint, Plan, PlannedRoute } from '../plan/types.ts'
import { effectOn } from './changes.ts'
import type { Supervisor } from './supervisor.ts'

export class Cutting {
  readonly #timers = new Set<ReturnType<typeof setTimeout>>()

  constructor(
    private readonly supervisor: Pick<Supervisor, 'send'>,
    private readonly kernel: () => KernelPlane | undefined,
    private readonly onError: (error: Error) => void,
  ) {}

  /** Routes that are gone or go elsewhere: their connections finish, are cut, or are cut after a deadline, as the route says. */
  changed(before: Plan, next: Plan) {
    const now = new Map(next.routes.map((route) => [route.name, route]))
    for (const old of before.routes) {
      const effect = effectOn(old, now.get(old.name))
      if (!effect) continue
      const { deadlineMs, endpoints } = effect
      if (endpoints) this.#after(deadlineMs, () => this.endpoints(old, endpoints, 'drained'))
      else this.route(old, deadlineMs)
    }
  }

  /** Those of a route that are there now: a new one is not part of the drain. */
  route(route: PlannedRoute, deadlineMs: number) {
    this.supervisor.send({ type: 'drain', route: route.name, deadlineMs })
    const flows = this.#flowsOf(route)
    this.#after(deadlineMs, () => this.#close(flows, 'drained'))
  }

  /** Those of a route that go to these endpoints. */
  endpoints(route: PlannedRoute, endpoints: Endpoint[], reason: CloseReason): Promise<void> {
    for (const { key } of endpoints)
      this.supervisor.send({ type: 'closeTarget', route: route.name, endpoint: key, reason })
    return this.#close(
      this.#flowsOf(route).filter(({ target }) => endpoints.some((endpoint) => leadsTo(endpoint, target))),
      reason,
    )
  }

  #flowsOf(route: PlannedRoute): { id: string; target: string | null }[] {
    const flows = this.kernel()?.flows
    return (flows?.slotsOf(route.number) ?? []).map((slot) => flows!.record(slot))
  }

  /** Never rejects: what cannot be closed is told. */
  #close(flows: { id: string }[], reason: CloseReason): Promise<void> {
    const close = ({ id }: { id: string }) => void this.kernel()?.close(id, reason)
    return inTurns(flows, FLOW_CUTS_PER_TURN, close).catch(this.onError)
  }

  #after(ms: number, act: () => Promise<void>) {
    if (ms === 0) return void act()
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      void act()
    }, ms)
    this.#timers.add(timer)
  }

  stop() {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
  }
}
