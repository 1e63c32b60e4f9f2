// The library: the gateway inside a program of yours, and what a configuration file imports. Its types stand in types/index.d.ts
// with their documentation.
import type { Config } from './config/schema.ts'
import type { ReloadResult, RunningGateway } from './types/index.d.ts'

export type * from './types/index.d.ts'
export { routes } from './routes.ts'

export function defineConfig(config: Config): Config {
  return config
}

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
    setRoutes: (routes) => inTurn(() => control.reloads.setRoutes(routes)),
    addRoute: (route) => inTurn(() => control.reloads.setRoutes([...others(route.name), route])),
    removeRoute: (name) => inTurn(() => control.reloads.setRoutes(others(name))),
    reload: (next) =>
      inTurn(async () => {
        const result = check(next)
        return result.ok ? control.reloads.setConfig(result.config) : result
      }),
    stop: () => control.stop(),
  }
}
