// Which route a connection gets: the listener's routes in the plan's order, first match wins. Security is no part of it: a
// blocked client does not fall through to the next route.
import type { NetworkList } from './security.ts'

export interface Choice {
  readonly domains: readonly string[]
  readonly clients: NetworkList
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

export function selectRoute<T extends Choice>(
  routes: readonly T[],
  first: FirstBytes,
  name: string | undefined,
  client: Caller,
): T | undefined {
  return routes.find(
    (route) =>
      speaks(route, first) &&
      (route.clients.empty || route.clients.has(client.clientBytes)) &&
      matchesName(route.domains, first === 'unread' ? undefined : name, first),
  )
}

function speaks(route: Choice, first: FirstBytes): boolean {
  if (first === 'unread') return true
  if (first === 'tls') return !route.byHost
  if (route.needsTls) return false
  return first === 'http' || !route.byHost
}

function matchesName(patterns: readonly string[], name: string | undefined, first: FirstBytes): boolean {
  // Where nothing was read, a redirect checks the Host header itself.
  if (patterns.length === 0 || first === 'unread') return true
  return patterns.some((pattern) => matchesDomain(pattern, name))
}

/** "*" is any name or none; "*.example.com" is every name below example.com, at any depth, and not example.com itself. */
export function matchesDomain(pattern: string, name: string | undefined): boolean {
  if (pattern === '*') return true
  if (name === undefined) return false
  if (!pattern.startsWith('*.')) return pattern === name
  return name.length > pattern.length - 1 && name.endsWith(pattern.slice(1))
}
