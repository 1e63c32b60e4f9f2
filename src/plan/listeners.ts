// Which listening sockets the routes need, and in which order the routes of one are tried. Pure.
import { canonicalIp, formatEnd } from '../base/addresses.ts'
import { TWIN_PORTS_MAX } from '../base/limits.ts'
import { narrowness } from '../base/names.ts'
import { readsName } from '../config/needs.ts'
import type { Route } from '../config/schema.ts'
import { leavesOver } from './default.ts'
import type { Listen, Plan, PlannedListener } from './types.ts'

export const ANY = '::'

/** The bytes of a connection to this route's ports have to be seen before a route can be chosen. */
export const needsPeek = (route: Route) => readsName(route) || route.acceptProxyProtocol !== undefined

/** What of it has to be read, for an operator. */
export const whatIsRead = (route: Route) =>
  [route.acceptProxyProtocol && 'PROXY protocol header', readsName(route) && 'server name']
    .filter(Boolean)
    .join(' and ')

export const protocolOf = (route: Route) => route.match.protocol ?? 'tcp'

export function listensOf(route: Route): Listen[] {
  const ports = [route.match.ports].flat().map((port) => (typeof port === 'number' ? { from: port, to: port } : port))
  const addresses = route.match.addresses?.map(canonicalIp) ?? [null]
  const protocol = protocolOf(route)
  return addresses.flatMap((address) => ports.map((port) => ({ address, ...port, protocol })))
}

/** Routes that no configuration has. */
export interface Internal {
  /** The default route, tried behind all others where it gets anything. */
  fallback?: Route | null
  /** The one on which a CA is answered, the very last on its port. */
  challenge?: Route | null
  /** It is answered now. */
  challenging?: boolean
}

interface Wanted {
  address: string
  port: number
  routes: Route[]
}

export function listeners(routes: Route[], internal: Internal = {}): PlannedListener[] {
  const { fallback, challenge, challenging = false } = internal
  const byKey = new Map<string, Wanted>()
  const tcp = routes
    .flatMap((route) => listensOf(route).map((listen) => ({ ...listen, route })))
    .filter(({ protocol }) => protocol === 'tcp')
  for (const { address, from, to, route } of tcp)
    if (to - from < TWIN_PORTS_MAX) for (let port = from; port <= to; port++) want(byKey, address ?? ANY, port, route)
  if (challenge) want(byKey, ANY, challenge.match.ports as number)
  // A range has no sockets of its own, but what is left of it where others share a port comes to theirs.
  const shared = new Set([...byKey.values()].map(({ port }) => port))
  for (const { address, from, to, route } of tcp)
    if (to - from >= TWIN_PORTS_MAX)
      for (const port of shared) if (from <= port && port <= to) want(byKey, address ?? ANY, port, route)
  // A socket on one address takes that address's connections from the one on all of them: it must know the wider routes too.
  for (const { address, port } of [...byKey.values()])
    if (address !== ANY)
      for (const route of byKey.get(formatEnd(ANY, port))?.routes ?? []) want(byKey, address, port, route)
  return [...byKey].map(([key, { address, port, routes: own }]) => {
    const reads = own.some(readsName)
    const ordered = bySpecificity(own)
    const answers = challenge?.match.ports === port
    const takesRest = fallback && own.length > 0 && leavesOver(ordered, reads)
    const all = [...ordered, ...(takesRest ? [fallback] : []), ...(answers ? [challenge] : [])]
    return {
      key,
      address,
      port,
      peek: reads || (answers && challenging),
      ...(answers && { challenge: true }),
      ...(own.length === 0 && { optional: true }),
      trusted: [...new Set(own.flatMap((route) => route.acceptProxyProtocol?.from ?? []))],
      routes: all.map((route) => route.name),
    }
  })
}

function want(byKey: Map<string, Wanted>, address: string, port: number, route?: Route) {
  const key = formatEnd(address, port)
  const one = byKey.get(key) ?? { address, port, routes: [] }
  if (route && !one.routes.includes(route)) one.routes.push(route)
  byKey.set(key, one)
}

/** UDP ports of the routes, as far as they are few enough for a socket each. */
export function reservations(routes: Route[]): Plan['reservations'] {
  const byKey = new Map<string, Plan['reservations'][number]>()
  for (const { address, from, to, protocol } of routes.flatMap(listensOf)) {
    if (protocol !== 'udp' || to - from >= TWIN_PORTS_MAX) continue
    for (let port = from; port <= to; port++) {
      const key = formatEnd(address ?? ANY, port)
      byKey.set(key, { key, address: address ?? ANY, port })
    }
  }
  return [...byKey.values()]
}

/** Higher priority, then the narrower match: exact name, the wildcard that says more, any; told-apart clients before all; an
 *  address before none; fewer ports. A connection gets the first of these whose pattern fits its name best (plan/choose.ts). */
export function bySpecificity(routes: Route[]): Route[] {
  if (routes.length < 2) return routes
  // The keys once for each route, not for each comparison.
  return routes
    .map((route) => ({
      route,
      priority: route.priority ?? 0,
      name: nameOf(route),
      rest: rest(route),
      ports: portCount(route),
    }))
    .sort((a, b) => b.priority - a.priority || b.name - a.name || b.rest - a.rest || a.ports - b.ports)
    .map(({ route }) => route)
}

const portCount = (route: Route) => listensOf(route).reduce((sum, listen) => sum + listen.to - listen.from + 1, 0)

/** Of its narrowest pattern. */
const nameOf = ({ match }: Route) => Math.max(...[match.domains ?? '*'].flat().map(narrowness))
const rest = ({ match }: Route) => (match.clientIps ? 2 : 0) + (match.addresses ? 1 : 0)
