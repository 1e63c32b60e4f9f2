// The admin API: what it answers, on whichever socket it is asked. It answers with what control tells it and hands control
// what it is told.
import { CLIENTS_LISTED_MAX } from '../base/limits.ts'
import { turn } from '../base/turns.ts'
import type { AuthorityView, CertificateView, RenewAnswer } from '../certificates/index.ts'
import type { Problem } from '../config/check.ts'
import type { ClientView } from '../connections/clients.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { Minute } from '../connections/throughput.ts'
import type { Explanation } from '../plan/explanation.ts'
import { BadRequest, bodyOf, everyMethod, type AdminRoutes } from './admin-requests.ts'
import type { Events } from './events.ts'

/** What control lets the API see and do. */
export interface Gateway {
  status(): Promise<Record<string, unknown>>
  routes(): Promise<Record<string, unknown>[]>
  targets(): Promise<TargetView[]>
  connections(): Promise<ConnectionRecord[]>
  /** The busiest, of so many in all. */
  clients(limit: number): Promise<{ clients: ClientView[]; total: number }>
  /** null: there is no such route. */
  history(route: string): Promise<Minute[] | null>
  /** What would become of a connection; the words are checked there. */
  explain(client: string, listener: string, serverName: string | null): Promise<ExplainAnswer>
  close(id: string): Promise<boolean>
  /** @param request a DrainRequest, as it came: it is checked there. */
  drain(request: unknown): Promise<DrainAnswer>
  drains(): Promise<DrainView[]>
  certificates(): Promise<CertificateView[]>
  /** null: no route uses the local authority. */
  authority(): Promise<AuthorityView | null>
  renewCertificate(name: string): Promise<RenewAnswer>
  metrics(): Promise<Exposition>
  /** @param confirm a duration, as it came. */
  reload(confirm?: unknown): Promise<ReloadResult>
  confirm(): Promise<ConfirmAnswer>
  /** What a configuration would change; nothing is done. */
  preview(config: unknown): Promise<ReloadResult>
  setRoutes(routes: unknown): Promise<ReloadResult>
  setRoute(name: string, route: unknown): Promise<ReloadResult>
  /** null: there is no such route. */
  removeRoute(name: string): Promise<ReloadResult | null>
  readonly events: Events
  /** Rejects when the new program does not get ready. */
  upgrade(): Promise<{ pid: number; version: string }>
  stop(): void
}

export interface RouteChange {
  route: string
  change: 'added' | 'removed' | 'changed'
  /** What is another one, in the plan's words: "carrier user → kernel", "targets", "security". */
  what: string[]
  /** Of its live connections: those that go on, those that have a deadline, those that are cut at once. */
  keeps: number
  drains: number
  cuts: number
  /** How long the draining ones have. */
  drainMs: number | null
}

export interface Changes {
  added: string[]
  removed: string[]
  changed: string[]
  untouched: string[]
  /** All but the untouched ones. */
  routes: RouteChange[]
}

export type ReloadResult =
  | {
      ok: true
      changes: Changes
      /** It is taken back then (ISO 8601), unless it is confirmed. */
      unconfirmedUntil?: string
      /** Files that are no good: what they held before is used on. */
      warnings?: Problem[]
    }
  | { ok: false; problems: Problem[] }
export type ConfirmAnswer = { ok: true } | { ok: false; error: string }

export interface TargetView {
  route: string
  /** One entry for each address of a target: "10.0.0.5:8080". */
  target: string
  /** As it is configured, where that is something else: "db.internal:5432". */
  configured?: string
  state: 'up' | 'down' | 'draining' | 'drained'
  /** It works, as far as is known; also of one that is drained. */
  up: boolean
  weight: number
  /** Of new connections now: 0 when it takes none. */
  share: number
  connections: number
  total: number
  bytesIn: number
  bytesOut: number
  lastError?: string
}

export interface DrainRequest {
  route?: string
  target?: string
  /** A duration: what is left then is cut. */
  for?: string
  undo?: boolean
}
export interface DrainView {
  route?: string
  target?: string
  state: 'draining' | 'drained'
  /** Connections. */
  left: number
  since: string
  /** When what is left is cut; null: never. */
  until: string | null
}
/** drain is null after an undo. */
export type DrainAnswer = { ok: true; drain: DrainView | null } | { ok: false; status: 400 | 404 | 409; error: string }

export type ExplainAnswer = { ok: true; explanation: Explanation } | { ok: false; error: string }

export interface Exposition {
  contentType: string
  text: string
}

const CLIENTS_LISTED = 20

export const adminRoutes = (gateway: Gateway): AdminRoutes => everyMethod(answers(gateway))

/** One that is misunderstood would be a change that is never taken back. */
function confirmOf(body: unknown = {}): unknown {
  const fields = typeof body === 'object' && body !== null ? Object.keys(body) : ['']
  if (fields.some((field) => field !== 'confirm')) throw new BadRequest('expected { "confirm": "60s" } or no body')
  return (body as { confirm?: unknown }).confirm
}

function answers(gateway: Gateway): AdminRoutes {
  return {
    '/v1/status': { GET: async () => Response.json(await gateway.status()) },
    '/v1/routes': {
      GET: async () => Response.json({ routes: await gateway.routes() }),
      PUT: async (request) => {
        const body = await bodyOf(request)
        const routes = Array.isArray(body) ? body : (body as { routes?: unknown } | null | undefined)?.routes
        return act(await gateway.setRoutes(routes))
      },
    },
    '/v1/targets': { GET: async () => Response.json({ targets: await gateway.targets() }) },
    '/v1/certificates': { GET: async () => Response.json({ certificates: await gateway.certificates() }) },
    '/v1/certificates/authority': {
      GET: async () => {
        const authority = await gateway.authority()
        return authority
          ? Response.json(authority)
          : Response.json({ error: 'no route uses the local authority' }, { status: 404 })
      },
    },
    '/v1/certificates/:name/renew': {
      POST: async (request, server) => {
        // A CA and a module take their time; each has its own deadline.
        server.timeout(request, 0)
        const answer = await gateway.renewCertificate(request.params.name!)
        return answer.ok
          ? Response.json({ certificates: answer.certificates })
          : Response.json({ error: answer.error }, { status: answer.status })
      },
    },
    '/v1/drains': { GET: async () => Response.json({ drains: await gateway.drains() }) },
    '/v1/drain': {
      POST: async (request) => {
        const answer = await gateway.drain(await bodyOf(request))
        return answer.ok
          ? Response.json({ drain: answer.drain })
          : Response.json({ error: answer.error }, { status: answer.status })
      },
    },
    '/metrics': {
      GET: async () => {
        const { contentType, text } = await gateway.metrics()
        return new Response(text, { headers: { 'content-type': contentType } })
      },
    },
    '/v1/connections': { GET: async () => list('connections', await gateway.connections()) },
    '/v1/clients': {
      GET: async (request) => {
        const limit = new URL(request.url).searchParams.get('limit') ?? String(CLIENTS_LISTED)
        return /^[0-9]+$/.test(limit) && Number(limit) >= 1 && Number(limit) <= CLIENTS_LISTED_MAX
          ? Response.json(await gateway.clients(Number(limit)))
          : Response.json({ error: `limit is a number from 1 to ${CLIENTS_LISTED_MAX}` }, { status: 400 })
      },
    },
    '/v1/routes/:name': {
      PUT: async (request) => act(await gateway.setRoute(request.params.name!, await bodyOf(request))),
      DELETE: async (request) => {
        const result = await gateway.removeRoute(request.params.name!)
        return result ? act(result) : Response.json({ error: `no route ${request.params.name!}` }, { status: 404 })
      },
    },
    '/v1/routes/:name/history': {
      GET: async (request) => {
        const history = await gateway.history(request.params.name!)
        return history
          ? Response.json({ history })
          : Response.json({ error: `no route ${request.params.name!}` }, { status: 404 })
      },
    },
    '/v1/explain': {
      GET: async (request) => {
        const { searchParams: words } = new URL(request.url)
        const answer = await gateway.explain(words.get('client') ?? '', words.get('listener') ?? '', words.get('sni'))
        return answer.ok ? Response.json(answer.explanation) : Response.json({ error: answer.error }, { status: 400 })
      },
    },
    '/v1/connections/:id': {
      DELETE: async (request) =>
        (await gateway.close(request.params.id!))
          ? Response.json({ closed: request.params.id! })
          : Response.json({ error: `no connection ${request.params.id!}` }, { status: 404 }),
    },
    '/v1/events': {
      GET: (request, server) => {
        // It may be silent for long; the heartbeat finds out who has gone.
        server.timeout(request, 0)
        return gateway.events.subscribe(new URL(request.url).searchParams.get('route'))
      },
    },
    '/v1/reload': {
      POST: async (request) => act(await gateway.reload(confirmOf(await bodyOf(request)))),
    },
    '/v1/confirm': {
      POST: async () => {
        const answer = await gateway.confirm()
        return answer.ok ? Response.json({ confirmed: true }) : Response.json({ error: answer.error }, { status: 409 })
      },
    },
    '/v1/plan': { POST: async (request) => act(await gateway.preview(await bodyOf(request))) },
    '/v1/upgrade': {
      POST: async (request, server) => {
        // A program takes seconds to start on a busy machine.
        server.timeout(request, 0)
        try {
          return Response.json(await gateway.upgrade(), { status: 202 })
        } catch (error) {
          return Response.json({ error: (error as Error).message }, { status: 409 })
        }
      },
    },
    '/v1/stop': {
      POST: () => {
        gateway.stop()
        return Response.json({ stopping: true }, { status: 202 })
      },
    },
  }
}

export const notFound = () => Response.json({ error: 'not found' }, { status: 404 })
export const failed = (error: Error) => Response.json({ error: error.message }, { status: 500 })

const act = (result: ReloadResult) =>
  Response.json(result.ok ? { ...result, ok: undefined } : { problems: result.problems }, {
    status: result.ok ? 200 : 422,
  })

/** About 10 ms of work. */
const ITEMS_PER_TURN = 2000

/** A long list is written piece by piece: as one piece, 100,000 connections are a third of a second in which nothing else happens. */
function list(name: string, items: unknown[]): Response {
  if (items.length <= ITEMS_PER_TURN) return Response.json({ [name]: items })
  let at = 0
  const body = new ReadableStream({
    async pull(stream) {
      await turn()
      const piece = JSON.stringify(items.slice(at, at + ITEMS_PER_TURN)).slice(1, -1)
      const isLast = at + ITEMS_PER_TURN >= items.length
      stream.enqueue(`${at === 0 ? `{"${name}":[` : ','}${piece}${isLast ? ']}' : ''}`)
      at += ITEMS_PER_TURN
      if (isLast) stream.close()
    },
  })
  return new Response(body, { headers: { 'content-type': 'application/json' } })
}
