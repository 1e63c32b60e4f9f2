// The routes of a listener as they are chosen from, and for each that was not chosen why. Pure.
import { inInterval, mergeNetworks } from '../base/addresses.ts'
import { matchesName } from '../base/names.ts'
import { choiceOf, type Choice, type ClientList, type FirstBytes } from './choose.ts'
import type { Plan, PlannedListener, PlannedRoute, UserRoute } from './types.ts'

export interface ReadyRoute extends Choice {
  name: string
  user: UserRoute
  planned: PlannedRoute
}

/** Asked once: it need not be quick. */
export function listOf(networks: readonly string[]): ClientList {
  const merged = mergeNetworks(networks)
  return {
    empty: networks.length === 0,
    has: (ip) => merged[ip.length === 4 ? 4 : 6].some((interval) => inInterval(ip, interval)),
  }
}

/** In the order in which they are tried. */
export function readyRoutes(plan: Plan, { routes }: PlannedListener): ReadyRoute[] {
  const byName = new Map(plan.routes.map((route) => [route.name, route]))
  return routes.flatMap((name) => {
    const planned = byName.get(name)
    return planned
      ? [{ ...choiceOf(planned.user, listOf(planned.user.clientIps)), name, user: planned.user, planned }]
      : []
  })
}

/** A port can have ten thousand names. */
const CONSIDERED_MAX = 5

export function considered(
  routes: ReadyRoute[],
  chosen: ReadyRoute | undefined,
  first: FirstBytes,
  name: string | null,
  client: Uint8Array,
): string[] {
  const others = routes.filter((route) => route !== chosen)
  const lines = others
    .slice(0, CONSIDERED_MAX)
    .map((route) => `not "${route.name}": ${whyNot(route, chosen, first, name, client)}`)
  const more = others.length - lines.length
  return more > 0 ? [...lines, `nor ${more} more`] : lines
}

function whyNot(
  route: ReadyRoute,
  chosen: ReadyRoute | undefined,
  first: FirstBytes,
  name: string | null,
  client: Uint8Array,
): string {
  if (route.user.action.type === 'challenge') return 'it answers certificate authorities only'
  if (first !== 'unread') {
    if (first === 'tls' && route.byHost) return 'it reads HTTP, and this is TLS'
    if (first !== 'tls' && route.needsTls) return 'it wants TLS'
    if (first === 'other' && route.byHost) return 'it reads HTTP'
    if (route.domains.length > 0 && !route.domains.some((pattern) => matchesName(pattern, name ?? undefined)))
      return name === null ? 'it wants a name' : `${name} is none of its names`
  }
  if (!route.clients.empty && !route.clients.has(client)) return 'it is for other clients'
  if (!chosen) return 'it comes after'
  return route.priority < chosen.priority
    ? 'its priority is lower'
    : `"${chosen.name}" says more of the connection, or comes first`
}
