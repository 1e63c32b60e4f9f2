// Finds the function that serves a handler route: a module's default export, or a handler that stands in the configuration
// file itself. Code of the operator runs here for the first time, so it has a deadline and its failures are values.
import { HANDLER_LOAD_MS_MAX } from '../base/limits.ts'
import type { UserRoute } from '../plan/types.ts'

type HandlerAction = UserRoute['action'] & { type: 'handler' }

type Env = Record<string, unknown>

/** What serves one connection after the other. */
export interface LoadedHandler {
  connect(socket: unknown, env: Env, ctx: object): unknown
  /** What has to resolve before anything leaves. */
  gate?(env: Env, ctx: object): PromiseLike<unknown> | undefined
}

export async function loadHandler(
  action: HandlerAction,
  configFile?: string,
): Promise<LoadedHandler | { problem: string }> {
  const file = action.inline === null ? action.module : (configFile ?? action.module)
  let loaded: { default?: unknown }
  try {
    loaded = await withDeadline(import(file), file)
  } catch (error) {
    return { problem: `Cannot load handler ${file}: ${error instanceof Error ? error.message : String(error)}` }
  }
  const found = action.inline === null ? loaded.default : inlineHandler(loaded.default, action.inline)
  return invoker(found) ?? { problem: `Handler does not export a connect() function. (${file})` }
}

function inlineHandler(config: unknown, route: string): unknown {
  const { routes } = (config ?? {}) as { routes?: { name?: string; action?: { handler?: unknown } }[] }
  return Array.isArray(routes) ? routes.find((one) => one?.name === route)?.action?.handler : undefined
}

/** An object with connect(), a class whose instances have it (one for each connection, as in the Workers runtime), or a plain function. */
function invoker(found: unknown): LoadedHandler | undefined {
  const object = found as Partial<LoadedHandler> | null | undefined
  if (typeof object?.connect === 'function')
    return {
      connect: (socket, env, ctx) => object.connect!(socket, env, ctx),
      gate: (env, ctx) => object.gate?.(env, ctx),
    }
  if (typeof found !== 'function') return undefined
  const { prototype } = found as { prototype?: Partial<LoadedHandler> }
  if (typeof prototype?.connect === 'function') {
    const Class = found as new (ctx: object, env: Env) => LoadedHandler
    return { connect: (socket, env, ctx) => new Class(ctx, env).connect(socket, env, ctx) }
  }
  if (/^class\b/.test(Function.prototype.toString.call(found))) return undefined
  return { connect: found as LoadedHandler['connect'] }
}

async function withDeadline<T>(promise: Promise<T>, file: string): Promise<T> {
  let timer: Timer | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`${file} was not loaded after ${HANDLER_LOAD_MS_MAX} ms`)),
      HANDLER_LOAD_MS_MAX,
    )
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
