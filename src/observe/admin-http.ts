// The admin API and the dashboard over HTTP: the same API as on the unix socket, for who has the token. Without it there
// is the page that asks for it, and nothing else.
import type { Server } from 'bun'
import { formatEnd } from '../base/addresses.ts'
import {
  ADMIN_BODY_BYTES_MAX,
  ADMIN_FAILURES_MS,
  ADMIN_IDLE_MS_MAX,
  ADMIN_LOGIN_BYTES_MAX,
  ADMIN_SESSION_MS_MAX,
} from '../base/limits.ts'
import { SECURITY_HEADERS, whyNotByCookie, whyNotOurs, type Listens, type Refusal } from './admin-guard.ts'
import { Login } from './admin-login.ts'
import type { AdminHandler, AdminRoutes } from './admin-requests.ts'
import { adminRoutes, failed, notFound, type Gateway } from './admin-routes.ts'
import { dashboard, type Assets } from './dashboard/assets.ts'

export interface AdminHttpOptions extends Listens {
  token: string
  /** In whole seconds. */
  idleMs?: number
  onShutOut?: (client: string) => void
}

const BEARER = /^Bearer +(\S+)$/i
const LAST_ANSWERS_MS_MAX = 250

export class AdminHttp {
  #server: Server<undefined> | undefined
  readonly #login: Login
  #assets: Assets = new Map()

  constructor(
    private readonly options: AdminHttpOptions,
    private readonly gateway: Gateway,
  ) {
    this.#login = new Login(options.token, options.onShutOut)
  }

  /** Where it listens; what the host part of a URL is. */
  get url(): string {
    return `http://${formatEnd(this.options.hostname, this.#listens.port)}/`
  }

  /** With the port that the kernel chose for 0. */
  get #listens(): Listens {
    return { hostname: this.options.hostname, port: this.#server?.port ?? this.options.port }
  }

  async start() {
    this.#assets = await dashboard()
    const { hostname, port, idleMs = ADMIN_IDLE_MS_MAX } = this.options
    try {
      this.#server = Bun.serve({
        hostname,
        port,
        development: false,
        maxRequestBodySize: ADMIN_BODY_BYTES_MAX,
        idleTimeout: idleMs / 1000,
        routes: this.#guarded({
          ...adminRoutes(this.gateway),
          '/logout': {
            POST: () => new Response(null, { status: 204, headers: { 'set-cookie': this.#cookie('', 0) } }),
          },
        }),
        fetch: (request, server) => this.#page(request, server),
        error: (error) => secured(failed(error)),
      })
    } catch (cause) {
      throw new Error(`Cannot listen on ${formatEnd(hostname, port)} (admin.http): ${(cause as Error).message}`, {
        cause,
      })
    }
  }

  async stop() {
    const { promise: late, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, LAST_ANSWERS_MS_MAX)
    await Promise.race([this.#server?.stop(), late])
    clearTimeout(timer)
    await this.#server?.stop(true)
  }

  // ---- what is answered ----

  #guarded(routes: AdminRoutes): AdminRoutes {
    const guard =
      (handler: AdminHandler): AdminHandler =>
      async (request, server) => {
        const refusal = whyNotOurs(request, this.#listens) ?? this.#whyUnknown(request, server)
        return secured(refusal ? refused(refusal) : await handler(request, server))
      }
    return Object.fromEntries(
      Object.entries(routes).map(([path, methods]) => [
        path,
        Object.fromEntries(Object.entries(methods).map(([method, handler]) => [method, guard(handler)])),
      ]),
    )
  }

  /** Everything that is no route of the API. */
  async #page(request: Request, server: Server<undefined>): Promise<Response> {
    const refusal = whyNotOurs(request, this.#listens)
    if (refusal) return secured(refused(refusal))
    const { pathname } = new URL(request.url)
    if (pathname === '/login' && request.method === 'POST') return secured(await this.#logIn(request, server))
    const asset = request.method === 'GET' ? this.#assets.get(pathname) : undefined
    const unknown = asset?.isPublic ? null : this.#whyUnknown(request, server)
    if (unknown?.status === 401 && pathname === '/') return secured(seeOther('/login'))
    if (unknown) return secured(refused(unknown))
    return asset ? secured(new Response(asset.bytes, { headers: asset.headers })) : secured(notFound())
  }

  /** Whether the request has the token, or what stands for it. */
  #whyUnknown(request: Request, server: Server<undefined>): Refusal | null {
    const authorization = request.headers.get('authorization')
    if (authorization !== null) return this.#whyWrong(BEARER.exec(authorization)?.[1] ?? '', request, server)
    const session = new Bun.CookieMap(request.headers.get('cookie') ?? '').get(this.#cookieName)
    return session && this.#login.isSession(session)
      ? whyNotByCookie(request)
      : { status: 401, error: 'the token is missing: Authorization: Bearer TOKEN' }
  }

  #whyWrong(token: string, request: Request, server: Server<undefined>): Refusal | null {
    const answer = this.#login.try(token, server.requestIP(request)?.address ?? '')
    if (answer === 'limited') return { status: 429, error: 'too many wrong tokens: wait a minute' }
    return answer === 'wrong' ? { status: 401, error: 'the token is wrong' } : null
  }

  async #logIn(request: Request, server: Server<undefined>): Promise<Response> {
    const notOurs = whyNotByCookie(request)
    if (notOurs) return refused(notOurs)
    const length = Number(request.headers.get('content-length') ?? Infinity)
    if (length > ADMIN_LOGIN_BYTES_MAX) return refused({ status: 413, error: 'this is no token' })
    const { token } = ((await request.json().catch(() => null)) ?? {}) as { token?: unknown }
    const wrong = this.#whyWrong(typeof token === 'string' ? token.trim() : '', request, server)
    if (wrong) return refused(wrong)
    const cookie = this.#cookie(this.#login.session(), ADMIN_SESSION_MS_MAX / 1000)
    return new Response(null, { status: 204, headers: { 'set-cookie': cookie } })
  }

  /** Cookies do not tell ports apart: two gateways of one machine would log each other out. */
  get #cookieName() {
    return `sluice-${this.#listens.port}`
  }

  #cookie(value: string, maxAge: number): string {
    return new Bun.Cookie(this.#cookieName, value, { httpOnly: true, sameSite: 'strict', path: '/', maxAge }).toString()
  }
}

function secured(response: Response): Response {
  for (const [name, value] of Object.entries(SECURITY_HEADERS)) response.headers.set(name, value)
  if (!response.headers.has('cache-control')) response.headers.set('cache-control', 'no-store')
  return response
}

const seeOther = (location: string) => new Response(null, { status: 303, headers: { location } })

function refused({ status, error }: Refusal): Response {
  const headers: Record<string, string> =
    status === 401
      ? { 'www-authenticate': 'Bearer realm="sluice"' }
      : status === 429
        ? { 'retry-after': String(ADMIN_FAILURES_MS / 1000) }
        : {}
  return Response.json({ error }, { status, headers })
}
