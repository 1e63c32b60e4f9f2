// What a change of the configuration means: what cannot change under a running gateway, what did, and how it is refused.
import type { Problem } from '../config/check.ts'
import type { Config } from '../config/schema.ts'
import type { Changes, RouteChange } from '../observe/admin.ts'
import type { Endpoint, Plan, PlannedRoute } from '../plan/types.ts'

/** A start or a change that cannot be done; nothing of it was. */
export class GatewayError extends Error {
  override name = 'GatewayError'
}

/** The same, with the places in the configuration that are to blame. */
export class ProblemsError extends GatewayError {
  constructor(readonly problems: Problem[]) {
    super(problems.map((problem) => `${problem.path}: ${problem.message}`).join('; '))
  }
}

/** What is opened once at the start and cannot change under a running gateway. */
export function fixedChanges(before: Config, after: Config): Problem[] {
  const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)
  const remedy = 'restart the gateway for this change'
  const fixed = ['kernel', 'admin', 'stateDir', 'log', 'workers', 'store'] as const
  // Settings of a CA are read when its first certificate is wanted.
  return [...fixed, ...(before.acme ? (['acme'] as const) : [])]
    .filter((field) => !same(before[field], after[field]))
    .map((path) => ({ path, message: 'cannot change while the gateway runs', remedy }))
}

/** What becomes of the connections that a route has when it is replaced by `kept`, or by nothing; null: they go on. */
export interface Effect {
  /** 0: they are cut at once; else that is how long they have. */
  deadlineMs: number
  /** Those that go to these; null: all of them. */
  endpoints: Endpoint[] | null
}

/** UDP does not finish: who is silent for a while and comes back must not meet a target that is no longer meant. */
export function effectOn(old: PlannedRoute, kept: PlannedRoute | undefined): Effect | null {
  const deadlineMs = old.listens[0]!.protocol === 'udp' ? 0 : old.drainMs
  if (deadlineMs === null) return null
  if (!kept || doesElse(old, kept)) return { deadlineMs, endpoints: null }
  const endpoints = old.endpoints.filter((one) => !kept.endpoints.some((other) => other.key === one.key))
  return endpoints.length > 0 ? { deadlineMs, endpoints } : null
}

/** More has changed than its targets. */
const doesElse = (a: PlannedRoute, b: PlannedRoute) => withoutTargets(a) !== withoutTargets(b)
const withoutTargets = ({ user: { action } }: PlannedRoute) => JSON.stringify({ ...action, targets: undefined })

/** @param live how many connections a route has now: in all, or those that go to some of its endpoints. */
export function changesOf(before: Plan, after: Plan, live: Live): Changes {
  const old = new Map(before.routes.map((route) => [route.name, route]))
  const changes: Changes = { added: [], removed: [], changed: [], untouched: [], routes: [] }
  for (const route of after.routes) {
    const was = old.get(route.name)
    old.delete(route.name)
    if (was && textOf(was) === textOf(route)) {
      changes.untouched.push(route.name)
      continue
    }
    const change = was ? 'changed' : 'added'
    changes[change].push(route.name)
    changes.routes.push({
      route: route.name,
      change,
      what: was ? differences(was, route) : [],
      ...consequences(was, route, live),
    })
  }
  for (const route of old.values())
    changes.routes.push({ route: route.name, change: 'removed', what: [], ...consequences(route, undefined, live) })
  changes.removed = [...old.keys()]
  return changes
}

/** endpoints null: wherever they go. */
export type Live = (route: PlannedRoute, endpoints: Endpoint[] | null) => number

function consequences(
  was: PlannedRoute | undefined,
  next: PlannedRoute | undefined,
  live: Live,
): Pick<RouteChange, 'keeps' | 'drains' | 'cuts' | 'drainMs'> {
  const none = { keeps: 0, drains: 0, cuts: 0, drainMs: null }
  if (!was) return none
  const all = live(was, null)
  const effect = effectOn(was, next)
  if (!effect) return { ...none, keeps: all }
  const concerned = effect.endpoints ? live(was, effect.endpoints) : all
  const left = { ...none, keeps: Math.max(0, all - concerned) }
  return effect.deadlineMs === 0
    ? { ...left, cuts: concerned }
    : { ...left, drains: concerned, drainMs: effect.deadlineMs }
}

/** A reason may change with the machine while the route does not. */
const textOf = (route: PlannedRoute) => JSON.stringify({ ...route, reason: '' })

function differences(was: PlannedRoute, now: PlannedRoute): string[] {
  const differ = (a: unknown, b: unknown) => JSON.stringify(a) !== JSON.stringify(b)
  const found: string[] = []
  if (was.carrier !== now.carrier) found.push(`carrier ${was.carrier} → ${now.carrier}`)
  if (differ(was.listens, now.listens)) found.push('ports')
  if (differ(was.endpoints, now.endpoints)) found.push('targets')
  if (doesElse(was, now)) found.push('action')
  const fields = Object.keys(now.user) as (keyof PlannedRoute['user'])[]
  for (const field of fields)
    if (!['name', 'carrier', 'action'].includes(field) && differ(was.user[field], now.user[field])) found.push(field)
  if (was.preserveSourceIp !== now.preserveSourceIp) found.push('preserveSourceIp')
  if (was.drainMs !== now.drainMs) found.push('drain')
  return found.length > 0 ? found : ['where it stands in the kernel']
}
