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
  /** Stops: connections finish within the grace period, the rest is cut. */
  stop(): Promise<void>
}

/**
 * Starts the gateway in this process, with a worker process beside it. Rejects with every problem when the configuration
 * is wrong, and with the reason when it cannot be carried out.
 */
export async function start(config: Config): Promise<RunningGateway> {
  const [{ check }, { Control, GatewayError }] = await Promise.all([
    import('./config/check.ts'),
    import('./control.ts'),
  ])
  const checked = check(config)
  if (!checked.ok)
    throw new GatewayError(
      checked.problems.map((problem) => `${problem.path}: ${problem.message} (${problem.remedy})`).join('\n'),
    )
  const control = new Control(checked.config)
  await control.start()
  return { setRoutes: (routes) => control.setRoutes(routes), stop: () => control.stop() }
}
