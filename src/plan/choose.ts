// Which route a connection gets: of those with the highest priority, the one whose pattern says most of the name; of several,
// the first in the plan's order. Security is no part of it: a blocked client does not fall through to the next route.
import { matchesName, narrowness } from '../base/names.ts'
import type { UserRoute } from './types.ts'

/** A list of clients; user/security.ts has one that is quick. */
export interface ClientList {
  readonly empty: boolean
  has(ip: Uint8Array): boolean
}

export interface Choice {
  readonly priority: number
  readonly domains: readonly string[]
  /** Of its narrowest pattern. */
  readonly narrowest: number
  readonly clients: ClientList
  /** The route reads HTTP and not TLS: its domains mean the Host header. */
  readonly byHost: boolean
  /** The route needs a ClientHello: TLS is terminated, or passed through by name. */
  readonly needsTls: boolean
}

/** What the first bytes were: nothing read (the port alone decides), a ClientHello, an HTTP request head, or something else. */
export type FirstBytes = 'unread' | 'tls' | 'http' | 'other'

/** Asked for the client's address only where a route has a list: most have none. */
export interface Caller {
  readonly clientBytes: Uint8Array
}

/** @param routes in the plan's order: by priority, then by their narrowest pattern, those for some clients before the others. */
export function selectRoute<T extends Choice>(
  routes: readonly T[],
  first: FirstBytes,
  name: string | undefined,
  client: Caller,
): T | undefined {
  let best: T | undefined
  let bestFit = -1
  for (const route of first === 'unread' ? routes : candidates(routes, name)) {
    if (best && (route.priority !== best.priority || route.narrowest < bestFit)) break
    if (!speaks(route, first)) continue
    const fit = fitOf(route.domains, first, name)
    if (fit < bestFit || (fit === bestFit && (!best || route.clients.empty || !best.clients.empty))) continue
    if (!route.clients.empty && !route.clients.has(client.clientBytes)) continue
    // What follows has no narrower pattern than this one.
    if (fit === route.narrowest) return route
    best = route
    bestFit = fit
  }
  return best
}

/** Why a connection that gets none of them ends: either nobody here speaks what came, or those who do do not want this name or client. */
export function reasonWithout(routes: readonly Choice[], first: FirstBytes): 'no_route' | 'malformed_hello' {
  const spoken =
    first === 'unread' ||
    first === 'tls' ||
    routes.some((route) => !route.needsTls && (first === 'http' || !route.byHost))
  return spoken ? 'no_route' : 'malformed_hello'
}

/** What of a route says which connections are its own. */
export function choiceOf<C extends ClientList>(user: UserRoute, clients: C): Choice & { readonly clients: C } {
  const tls = 'tls' in user.action ? user.action.tls : null
  const byHost = user.action.type === 'redirect' && (tls === null || tls.mode === 'passthrough')
  return {
    priority: user.priority,
    domains: user.domains,
    narrowest: narrowestOf(user.domains),
    clients,
    byHost,
    needsTls: tls !== null || (user.domains.length > 0 && !byHost),
  }
}

// ---- of thousands, those that can match ----

/** Where each route stands in the list, by what its patterns say. */
interface Index {
  exact: Map<string, number[]>
  /** Of "*.example.com": ".example.com". */
  below: Map<string, number[]>
  /** Any name, none, or a "*" elsewhere. */
  others: number[]
}

/** Fewer are looked at faster than looked up. */
const INDEXED_MIN = 16
/** false: seen once. A list of one connection's own, behind a proxy, is not worth an index. */
const indexes = new WeakMap<readonly Choice[], Index | false>()

/** The routes that can match this name, still in the plan's order. */
function candidates<T extends Choice>(routes: readonly T[], name: string | undefined): readonly T[] {
  if (routes.length < INDEXED_MIN) return routes
  let index = indexes.get(routes)
  if (!index) {
    indexes.set(routes, index === undefined ? false : (index = indexOf(routes)))
    if (!index) return routes
  }
  const found = [...index.others]
  if (name !== undefined) {
    found.push(...(index.exact.get(name) ?? []))
    for (let dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', dot + 1))
      found.push(...(index.below.get(name.slice(dot)) ?? []))
  }
  return found.sort((a, b) => a - b).map((at) => routes[at]!)
}

function indexOf(routes: readonly Choice[]): Index {
  const index: Index = { exact: new Map(), below: new Map(), others: [] }
  const add = (map: Map<string, number[]>, key: string, at: number) => {
    const list = map.get(key)
    if (list) list.push(at)
    else map.set(key, [at])
  }
  routes.forEach(({ domains }, at) => {
    if (domains.length === 0 || domains.some(isOther)) return void index.others.push(at)
    for (const pattern of domains)
      if (pattern.startsWith('*')) add(index.below, pattern.slice(1), at)
      else add(index.exact, pattern, at)
  })
  return index
}

const isOther = (pattern: string) => pattern.includes('*') && (pattern.lastIndexOf('*') > 0 || pattern[1] !== '.')

// ---- one route ----

function speaks(route: Choice, first: FirstBytes): boolean {
  if (first === 'unread') return true
  if (first === 'tls') return !route.byHost
  if (route.needsTls) return false
  return first === 'http' || !route.byHost
}

/** How narrow the pattern is that the name matches; -1: none does. */
function fitOf(patterns: readonly string[], first: FirstBytes, name: string | undefined): number {
  // Where nothing was read, a redirect checks the Host header itself.
  if (patterns.length === 0 || first === 'unread') return 0
  let fit = -1
  for (const pattern of patterns) if (matchesName(pattern, name)) fit = Math.max(fit, narrowness(pattern))
  return fit
}

/** Of a route with these patterns; without any it takes every name. */
const narrowestOf = (patterns: readonly string[]) => Math.max(0, ...patterns.map(narrowness))
