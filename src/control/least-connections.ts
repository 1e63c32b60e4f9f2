// least-connections for kernel routes: the kernel cannot count while it chooses, so the shares of the targets follow the
// connections they have, once a second. The arithmetic is pure.
import type { Endpoint, PlannedRoute } from '../plan/types.ts'

const EVERY_MS = 1000
/** Shares are said in this many parts: the slots of the route's table. */
const PARTS = 64

export interface Load {
  weight: number
  active: number
}

/** How `coming` new connections have to be shared out for the loads (active / weight) to come as near to each other as they
 *  can: water poured into unequal vessels. */
export function pour(loads: Load[], coming: number): number[] {
  const order = loads.map((_, i) => i).toSorted((a, b) => level(loads[a]!) - level(loads[b]!))
  let [weight, active] = [0, coming]
  let surface = Infinity
  for (const [rank, i] of order.entries()) {
    if (level(loads[i]!) >= surface && rank > 0) break
    weight += loads[i]!.weight
    active += loads[i]!.active
    surface = active / weight
  }
  return loads.map((load) => Math.max(0, surface * load.weight - load.active))
}

const level = ({ weight, active }: Load) => active / weight

/** Whole parts of PARTS, at least one each: a target that has too many now may have too few before the next look. */
export function parts(amounts: number[]): number[] {
  const total = amounts.reduce((sum, amount) => sum + amount, 0)
  const out = amounts.map((amount) => Math.max(1, Math.round((amount / total) * PARTS)))
  while (out.reduce((sum, part) => sum + part, 0) !== PARTS) {
    const over = out.reduce((sum, part) => sum + part, 0) > PARTS
    const largest = out.indexOf(Math.max(...out))
    out[largest]! += over ? -1 : 1
  }
  return out
}

export class LeastConnections {
  #timer: ReturnType<typeof setInterval> | undefined
  readonly #opened = new Map<string, number>()

  /** @param counts live connections of a route by "ip:port", and how many it has had in total.
   *  @param onShares the routes whose shares have changed. */
  constructor(
    private readonly counts: (route: PlannedRoute) => { active: Map<string, number>; total: number },
    private readonly onShares: (shares: Record<string, Record<string, number>>) => void,
  ) {}

  /** Follows these routes from now on; those that do not choose by connections, or have no choice, are ignored. */
  follow(routes: PlannedRoute[]) {
    clearInterval(this.#timer)
    this.#timer = undefined
    const followed = routes.filter(chooses)
    if (followed.length > 0) this.#timer = setInterval(() => this.#look(followed), EVERY_MS)
  }

  #look(routes: PlannedRoute[]) {
    const changed: Record<string, Record<string, number>> = {}
    for (const route of routes) {
      const { active, total } = this.counts(route)
      const before = this.#opened.get(route.name) ?? total
      this.#opened.set(route.name, total)
      const usable = route.endpoints.filter(isUsable)
      if (usable.length < 2 || usable.length > PARTS) continue
      const loads = usable.map((one) => ({ weight: one.weight, active: active.get(one.key) ?? 0 }))
      // As many as came since the last look, and never so few that one connection would turn everything around.
      const shares = parts(pour(loads, Math.max(total - before, usable.length * 2)))
      if (usable.some((one, i) => Math.abs(one.share - shares[i]!) > 1))
        changed[route.name] = Object.fromEntries(usable.map((one, i) => [one.key, shares[i]!]))
    }
    if (Object.keys(changed).length > 0) this.onShares(changed)
  }

  stop() {
    clearInterval(this.#timer)
  }
}

const isUsable = (endpoint: Endpoint) => endpoint.share > 0

const chooses = (route: PlannedRoute) =>
  route.carrier === 'kernel' &&
  route.user.action.type === 'forward' &&
  route.user.action.balance === 'least-connections' &&
  route.endpoints.filter(isUsable).length > 1
