// What a route needs, whatever the machine: what of its connections has to be read, and what follows for who can carry it.
import { TWIN_PORTS_MAX } from '../base/limits.ts'
import type { Config, Route, Tls } from './schema.ts'

/** Its connections are told by a name in their first bytes. */
export const readsName = ({ match }: Route) => [match.domains ?? '*'].flat().some((name) => name !== '*')

/** Why the kernel could never carry the route, whatever the machine; undefined when it could. Shared with plan by its words. */
export function neverKernel(route: Route): string | undefined {
  const { action, match } = route
  if (action.type !== 'forward') return `a ${action.type} is done in user space`
  if (action.tls && action.tls.mode !== 'passthrough') return 'TLS ends here'
  if (readsName(route)) return 'the server name has to be read'
  if (route.acceptProxyProtocol) return 'a PROXY protocol header has to be read'
  if (action.sendProxyProtocol) return 'a PROXY protocol header has to be sent'
  if (match.clientIps) return 'clients are told apart in user space'
  if (action.forwardingEngine === 'user') return "forwardingEngine is 'user'"
  return undefined
}

/** A range that is too wide for a listening socket on each of its ports. */
export const isWide = ({ match }: Route) =>
  [match.ports].flat().some((ports) => typeof ports === 'object' && ports.to - ports.from >= TWIN_PORTS_MAX)

export const WIDE = `user space listens on ${TWIN_PORTS_MAX} ports of a range at most`

/** Why a TCP route cannot do without listening sockets; undefined when it can: in the kernel, or because it only refuses there. */
export const userSpaceOnly = (route: Route) =>
  route.match.protocol === 'udp' || route.action.type === 'block' ? undefined : neverKernel(route)

/** A connection's opening is on disk before its first outbound byte: the kernel waits for no log. */
export const isDurable = ({ log }: Config) => typeof log?.access === 'object' && log.access.durable === true

// ---- certificates ----

const tlsOf = ({ action }: Route): Tls | undefined => ('tls' in action ? action.tls : undefined)

/** TLS ends here: the route needs a certificate. */
export function terminates(route: Route): boolean {
  const mode = tlsOf(route)?.mode
  return mode === 'terminate' || mode === 'terminate-and-reencrypt'
}

/** The gateway asks a CA for its certificates. */
export const isAutomatic = (route: Route) => terminates(route) && (tlsOf(route)!.certificate ?? 'auto') === 'auto'

/** A module gives its certificates, or says that a CA is to be asked. */
export function asksModule(route: Route): boolean {
  const certificate = terminates(route) ? tlsOf(route)!.certificate : undefined
  return typeof certificate === 'object' && certificate !== null && 'module' in certificate
}

/** A CA may be asked for its names. */
export const mayAskCa = (route: Route) => isAutomatic(route) || asksModule(route)

export const DEFAULT_CHALLENGE_PORT = 80
/** Where a CA looks for TLS-ALPN-01, always. */
export const TLS_ALPN_PORT = 443

export const listensOn = ({ match }: Route, port: number) =>
  (match.protocol ?? 'tcp') === 'tcp' &&
  [match.ports].flat().some((one) => (typeof one === 'number' ? one === port : one.from <= port && port <= one.to))
