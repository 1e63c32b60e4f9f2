// Runs in a child process of its own: imports a TypeScript configuration and prints it as JSON. What JSON cannot carry, a
// handler written in the configuration, becomes the name of its route: the worker imports the same file and finds it there.
import { pathToFileURL } from 'node:url'

/** After these the others follow from the first. */
const ERRORS_MAX = 5

export async function evaluate(path: string): Promise<string> {
  const module = (await import(pathToFileURL(path).href)) as { default?: unknown }
  if (module.default === undefined)
    throw new Error('has no default export: write "export default defineConfig({ ... })"')
  return JSON.stringify(toData(module.default))
}

/** Where something is wrong, as far as it is known, and what. */
export function inWords(error: unknown): string {
  const all: unknown[] = error instanceof AggregateError ? error.errors.slice(0, ERRORS_MAX) : [error]
  return all
    .map((one) => {
      const { message, position } = one as {
        message?: string
        position?: { file: string; line: number; column: number }
      }
      return `${position ? `line ${position.line}, column ${position.column}: ` : ''}${message ?? String(one)}`
    })
    .join('\n')
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
