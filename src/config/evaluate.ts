// Runs in a child process of its own: imports a TypeScript configuration and prints it as JSON. What JSON cannot carry, a
// handler written in the configuration, becomes the name of its route: the worker imports the same file and finds it there.
import { pathToFileURL } from 'node:url'

export async function evaluate(path: string): Promise<string> {
  const module = (await import(pathToFileURL(path).href)) as { default?: unknown }
  if (module.default === undefined)
    throw new Error('has no default export: write "export default defineConfig({ ... })"')
  return JSON.stringify(toData(module.default))
}

function toData(config: unknown): unknown {
  const routes = (config as { routes?: unknown } | null)?.routes
  if (!Array.isArray(routes)) return config
  return {
    ...(config as object),
    routes: routes.map((route) => {
      const handler = route?.action?.handler
      const isHandler = typeof handler === 'function' || typeof handler?.connect === 'function'
      return isHandler ? { ...route, action: { ...route.action, handler: { inline: String(route.name) } } } : route
    }),
  }
}
