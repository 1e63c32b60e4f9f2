// What 'sluice' is to a program or a configuration that imports it: the one place where its types are written down but for the
// configuration's, which come from its schema. src/index.ts is what is behind them.
import type { Config } from '../config/schema.ts'
import type { Changes } from '../observe/admin.ts'
import type { Routes } from './routes.d.ts'

export type { Action, Config, Handler, Route, Security, Target, Timeouts, Tls } from '../config/schema.ts'
export type { ConnectionRecord } from '../connections/record.ts'
export type { Changes, RouteChange } from '../observe/admin.ts'
export type { ForwardOptions, Place, RouteOptions, Routes, TlsOptions } from './routes.d.ts'

/** What became of a change: which routes it added, removed, changed and left as they were, and what that is to their connections, with
 * certificate files that are no good any more (what they held before is shown on) as warnings; or every problem that it has.
 * @example if (!result.ok) for (const { path, message, remedy } of result.problems) console.log(path, message, remedy) */
export type ReloadResult = { ok: true; changes: Changes; warnings?: Problem[] } | { ok: false; problems: Problem[] }
interface Problem {
  path: string
  message: string
  remedy: string
}

/** What a module named by `certificate: { module }` exports as its default: asked for each of the route's domains, in a short-lived
 * process, and again when two thirds of the certificate's life are over. PEM texts, or paths of files.
 * @example
 * import type { CertificateProvider } from 'sluice'
 * export default (async (name) => {
 *   const answer = await fetch(`https://vault.internal/v1/secret/${name}`)
 *   return answer.ok ? ((await answer.json()) as { cert: string; key: string }) : 'acme'
 * }) satisfies CertificateProvider
 */
export type CertificateProvider = (
  name: string,
) => 'acme' | { cert: string; key: string } | Promise<'acme' | { cert: string; key: string }>

/** Gives a configuration its type; returns it as it is.
 * @example
 * export default defineConfig({
 *   routes: [
 *     { name: 'web', match: { ports: 80 }, action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 8080 }] } },
 *   ],
 * }) */
export declare function defineConfig(config: Config): Config

/** The short way to write the usual routes.
 * @example
 * export default defineConfig({
 *   routes: [routes.redirect('*'), routes.httpsTerminate('app.example.com', '10.0.0.5:8080')],
 *   acme: { email: 'admin@example.com', termsAgreed: true },
 * }) */
export declare const routes: Routes

/** A running gateway. Every call waits for those before it.
 * @example const result = await gateway.addRoute({ name: 'web', match: { ports: 80 }, action: { type: 'block' } }) */
export interface RunningGateway {
  /** Replaces all routes. Refused whole when one of them is wrong. */
  setRoutes(routes: Config['routes']): Promise<ReloadResult>
  /** Adds one route, or replaces the one of that name. */
  addRoute(route: Config['routes'][number]): Promise<ReloadResult>
  /** Removes a route; what happens to its connections is its "drain". */
  removeRoute(name: string): Promise<ReloadResult>
  /** Replaces the whole configuration. */
  reload(config: Config): Promise<ReloadResult>
  /** Stops: connections finish within the grace period, the rest is cut. */
  stop(): Promise<void>
}

/** Starts the gateway in this process, with a worker process beside it. Rejects with every problem when the configuration
 * is wrong, and with the reason when it cannot be carried out.
 * @example
 * const gateway = await start({ routes: [] })
 * process.on('SIGTERM', () => gateway.stop()) */
export declare function start(config: Config): Promise<RunningGateway>
