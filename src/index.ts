// The library: the gateway inside a program of yours, and what a configuration file imports.
import type { Config } from './config/schema.ts'
import type { ReloadResult } from './observe/admin.ts'

export type { Action, Config, Handler, Route, Security, Target, Timeouts, Tls } from './config/schema.ts'
export type { ConnectionRecord } from './connections/record.ts'

/** Gives a configuration its type; returns it as it is. */
export function defineConfig(config: Config): Config {
  return config
}

/** A running gateway. Every call waits for those before it. */
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

/**
 * Starts the gateway in this process, with a worker process beside it. Rejects with every problem when the configuration
 * is wrong, and with the reason when it cannot be carried out.
 */
export async function start(config: Config): Promise<RunningGateway> {
  const [{ check }, { Control }, { GatewayError }] = await Promise.all([
    import('./config/check.ts'),
    import('./control.ts'),
    import('./control/changes.ts'),
  ])
  const checked = check(config)
  if (!checked.ok)
    throw new GatewayError(
      checked.problems.map((problem) => `${problem.path}: ${problem.message} (${problem.remedy})`).join('\n'),
    )
  const control = new Control(checked.config)
  await control.start()
  // A change that starts from the present routes must see those before it.
  let last: Promise<unknown> = Promise.resolve()
  const inTurn = (change: () => Promise<ReloadResult>) => {
    const result = last.then(change)
    last = result.catch(() => {})
    return result
  }
  const others = (name: string) => control.configured.filter((route) => route.name !== name)
  return {
    setRoutes: (routes) => inTurn(() => control.setRoutes(routes)),
    addRoute: (route) => inTurn(() => control.setRoutes([...others(route.name), route])),
    removeRoute: (name) => inTurn(() => control.setRoutes(others(name))),
    reload: (next) =>
      inTurn(async () => {
        const result = check(next)
        return result.ok ? control.setConfig(result.config) : result
      }),
    stop: () => control.stop(),
  }
}
