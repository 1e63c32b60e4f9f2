// Targets as the admin API and the command line show them, and what is asked of one: who they are, and how many connections
// they have. Pure.
import { endpointKey, isIp, parseTarget } from '../base/addresses.ts'
import type { RouteTotals, TargetTotals } from '../connections/table.ts'
import type { TargetView } from '../observe/admin.ts'
import { leadsTo } from '../plan/endpoints.ts'
import type { Endpoint, PlannedRoute } from '../plan/types.ts'

/** What is known of an endpoint beside its traffic. */
export interface EndpointHealth {
  up: boolean
  lastError: string | null
}

export interface TargetFacts {
  totals(route: string): RouteTotals
  health(route: string, endpoint: string): EndpointHealth | undefined
  drained(route: string, endpoint: Endpoint): boolean
}

type Forwarding = Pick<PlannedRoute, 'name' | 'endpoints'>

/** One after another: a scrape of very many takes them bit by bit. */
export function* targetViews(routes: Iterable<Forwarding>, facts: TargetFacts): Generator<TargetView> {
  for (const { name, endpoints } of routes) {
    if (endpoints.length === 0) continue
    const totals = facts.totals(name)
    for (const endpoint of endpoints) {
      const carried = totalsOf(endpoint, totals)
      const health = facts.health(name, endpoint.key)
      const up = health?.up !== false
      yield {
        route: name,
        target: endpoint.key,
        ...(endpoint.target === endpoint.key ? {} : { configured: endpoint.target }),
        state: facts.drained(name, endpoint) ? (carried.now > 0 ? 'draining' : 'drained') : up ? 'up' : 'down',
        up,
        weight: endpoint.weight,
        share: endpoint.share,
        connections: carried.now,
        total: carried.total,
        bytesIn: carried.bytesIn,
        bytesOut: carried.bytesOut,
        ...(health?.lastError ? { lastError: health.lastError } : {}),
      }
    }
  }
}

type Sums = Pick<TargetTotals, 'now' | 'total' | 'bytesIn' | 'bytesOut'>

/** Totals are by the address that a connection went to: an endpoint that keeps the client's port has one for each of them. */
function totalsOf(endpoint: Endpoint, { targets }: RouteTotals): Sums {
  const one = targets.get(endpoint.key)
  const sums: Sums = { now: 0, total: 0, bytesIn: 0, bytesOut: 0 }
  if (one) return one
  if (endpoint.port !== null || endpoint.host.kind === 'unix') return sums
  for (const [target, totals] of targets) {
    if (!leadsTo(endpoint, target)) continue
    for (const key of Object.keys(sums) as (keyof Sums)[]) sums[key] += totals[key]
  }
  return sums
}

/** `target` names this endpoint: by itself, or as it is configured. */
export const isNamed = (endpoint: Endpoint, target: string) => endpoint.key === target || endpoint.target === target

/** Connections that go to a target now, over every route that has it. */
export function connectionsTo(
  target: string,
  routes: Iterable<Forwarding>,
  totals: (route: string) => RouteTotals,
): number {
  let count = 0
  for (const { name, endpoints } of routes) {
    // Two names may have an address in common.
    const named = new Map(endpoints.filter((one) => isNamed(one, target)).map((one) => [one.key, one]))
    for (const endpoint of named.values()) count += totalsOf(endpoint, totals(name)).now
  }
  return count
}

/** Of one route, in all or to some of its endpoints. */
export function connectionsOf(endpoints: Endpoint[] | null, totals: RouteTotals): number {
  if (endpoints === null) return totals.now
  return endpoints.reduce((sum, endpoint) => sum + totalsOf(endpoint, totals).now, 0)
}

/** "10.0.0.5:80", "[2001:DB8::5]:80", "DB.internal:5432", "10.0.0.5:preserve", "unix:/run/app.sock" in the plan's own spelling;
 *  undefined when it is none of them. */
export function canonicalTarget(text: string): string | undefined {
  const unix = text.startsWith('unix:') && parseTarget(text)
  if (unix) return endpointKey(unix, null)
  const found = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5}|preserve)$/.exec(text)
  if (!found) return undefined
  const host = parseTarget(found[1] ?? found[2]!)
  const port = found[3] === 'preserve' ? null : Number(found[3])
  if (!host || host.kind === 'unix' || (found[1] !== undefined && !isIp(found[1]))) return undefined
  return port === null || (port > 0 && port < 65_536) ? endpointKey(host, port) : undefined
}
