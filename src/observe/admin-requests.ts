// What every request of the admin API has in common: the methods of a path, the time that an answer may take, and the body.
import type { BunRequest, Server } from 'bun'

const METHODS = ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'] as const
/** A configuration has ten seconds to be evaluated, and changes are made one after another. Bun takes 255 at most. */
const ANSWER_S_MAX = 250

type Answer = Response | Promise<Response>
export type AdminHandler = (request: BunRequest<string>, server: Server<undefined>) => Answer
/** What Bun.serve takes: a path, of which a part may be named, and what each method does there. */
export type AdminRoutes = Record<string, Partial<Record<(typeof METHODS)[number], AdminHandler>>>

/** What was asked wrongly, apart from a configuration in it. */
export class BadRequest extends Error {}

/** Those that mean nothing on a path are answered too. */
export function everyMethod(routes: AdminRoutes): AdminRoutes {
  return Object.fromEntries(
    Object.entries(routes).map(([path, handlers]) => {
      const allow = Object.keys(handlers).join(', ')
      const refuse = () => Response.json({ error: `not that method: ${allow}` }, { status: 405, headers: { allow } })
      const handlerOf = (method: (typeof METHODS)[number]) => (handlers[method] ? patient(handlers[method]) : refuse)
      return [path, Object.fromEntries(METHODS.map((method) => [method, handlerOf(method)]))]
    }),
  )
}

const patient =
  (handler: AdminHandler): AdminHandler =>
  async (request, server) => {
    server.timeout(request, ANSWER_S_MAX)
    try {
      return await handler(request, server)
    } catch (error) {
      if (!(error instanceof BadRequest)) throw error
      return Response.json({ error: error.message }, { status: 400 })
    }
  }

/** undefined: it is empty. */
export async function bodyOf(request: Request): Promise<unknown> {
  const text = await request.text()
  try {
    return text === '' ? undefined : JSON.parse(text)
  } catch (error) {
    throw new BadRequest(`the body is no JSON: ${(error as Error).message}`)
  }
}
