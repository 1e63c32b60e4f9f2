// The short way to write the usual routes: what `routes` of 'sluice' has.
import type { Forward, Handler, Redirect, Route, SocketHandler, Target, Tls } from '../config/schema.ts'

/** "10.0.0.5:8080", "[2001:db8::5]:8080", "db.internal" (the port that the client used), "unix:/run/app.sock"; or a target as the
 * configuration writes it. */
export type Place = string | Target

/** Everything of a route that the helper does not say itself. Without a name it has one of what it does and for whom. */
export interface RouteOptions
  extends Partial<Omit<Route, 'match' | 'action'>>, Partial<Omit<Route['match'], 'domains'>> {}
/** And of its forwarding. */
export interface ForwardOptions extends RouteOptions, Partial<Omit<Forward, 'type' | 'targets' | 'tls'>> {}
export interface TlsOptions extends ForwardOptions {
  tls?: Partial<Tls>
}

export interface Routes {
  /** Forwards port 80 as it is; nothing of it is read, so the kernel carries it.
   * @example routes.http('10.0.0.5:8080') */
  http(to: Place | Place[], options?: ForwardOptions): Route
  /** Ends TLS on port 443, with a certificate that is had and renewed by itself where `tls` names no other.
   * @example routes.httpsTerminate('app.example.com', '10.0.0.5:8080', { tls: { alpn: ['http/1.1'] } }) */
  httpsTerminate(domains: string | string[], to: Place | Place[], options?: TlsOptions): Route
  /** Forwards port 443 by server name and leaves TLS between client and target.
   * @example routes.httpsPassthrough(['a.example.com', '*.b.example.com'], '10.0.0.6:443') */
  httpsPassthrough(domains: string | string[], to: Place | Place[], options?: ForwardOptions): Route
  /** Sends browsers from port 80 to https, or to where `to` says; domains: '*' for all.
   * @example routes.redirect('*') */
  redirect(domains: string | string[], options?: RouteOptions & Partial<Omit<Redirect, 'type'>>): Route
  /** Shares the connections of a port among targets that are checked every five seconds.
   * @example routes.loadBalancer(5432, ['10.0.0.7:5432', { host: '10.0.0.8', port: 5432, weight: 2 }]) */
  loadBalancer(ports: Route['match']['ports'], to: Place[], options?: ForwardOptions): Route
  /** Runs a handler for every connection of a port.
   * @example routes.socketHandler(2525, './smtp.ts', { env: { greeting: 'hello' } }) */
  socketHandler(
    ports: Route['match']['ports'],
    handler: string | Handler,
    options?: RouteOptions & Partial<Omit<SocketHandler, 'type' | 'handler'>>,
  ): Route
  /** Forwards in the kernel or not at all.
   * @example routes.nftables(53, '10.0.0.53:53', { protocol: 'udp', preserveSourceIp: true }) */
  nftables(ports: Route['match']['ports'], to: Place | Place[], options?: ForwardOptions): Route
}
