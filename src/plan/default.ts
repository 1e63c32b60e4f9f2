// The route that `defaults.target` makes: behind all others, on every TCP port where a connection may match none of them. Pure.
import { readsName } from '../config/needs.ts'
import type { Config, Route } from '../config/schema.ts'
import type { Listen, PlannedListener } from './types.ts'

/** No configuration can have it: names begin with a letter or a digit there. */
export const DEFAULT_ROUTE = '_default'

/** null: there is none. Where it listens follows from the others: see leftOver(). */
export function defaultRoute({ defaults }: Config): Route | null {
  if (!defaults?.target) return null
  return { name: DEFAULT_ROUTE, match: { ports: [] }, action: { type: 'forward', targets: [defaults.target] } }
}

/** What has targets of its own: the routes as they are configured, and the default one. */
export function configuredRoutes(config: Config): Route[] {
  const fallback = defaultRoute(config)
  return fallback ? [...config.routes, fallback] : config.routes
}

/** A connection to a port with these routes may match none of them.
 *  @param peek the first bytes are read there: then what speaks another protocol than a route does is left over, too. */
export const leavesOver = (routes: Route[], peek: boolean) =>
  !routes.some((route) => takesEveryName(route) && !route.match.clientIps && (!peek || takesEveryProtocol(route)))

const takesEveryName = (route: Route) => !readsName(route) || [route.match.domains!].flat().includes('*')

function takesEveryProtocol(route: Route): boolean {
  if (readsName(route) || route.action.type === 'redirect') return false
  return route.action.type === 'block' || route.action.tls === undefined
}

/** Where the default route is tried last. */
export const leftOver = (listeners: PlannedListener[], any: string): Listen[] =>
  listeners
    .filter((listener) => listener.routes.includes(DEFAULT_ROUTE))
    .map(({ address, port }) => ({ address: address === any ? null : address, from: port, to: port, protocol: 'tcp' }))
