// Everything control and worker say to each other. One JSON object a line; descriptors travel beside it (descriptors.ts).
import type { ConnectionEvents, ConnectionRecord } from '../connections/record.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Limits, PlannedListener, UserRoute } from '../plan/types.ts'

/** How control tells a worker who it is; one JSON object in this variable of the environment. */
export const WORKER_ENVIRONMENT = 'SLUICE_WORKER'
/** Where its ends of the channel are. */
export const WORKER_ENDS = { lines: 3, descriptors: 4 }

export interface WorkerStart {
  idPrefix: string
  configFile?: string
  user: { uid: number; gid: number } | null
}

/** What a worker has to carry out: always the whole of it, never a difference, so that a message can be repeated. */
export interface WorkerPlan {
  generation: number
  listeners: (PlannedListener & {
    /** Tag of the listening descriptor, sent once beside the first plan that names it. */ descriptor: number
  })[]
  routes: UserRoute[]
  /** Where the gateway listens for TCP in either plane: no handler may connect to it. */
  listens: { address: string | null; from: number; to: number }[]
  limits: Limits | null
  /** Connections wait until their openings are on disk: each is answered by `written`. */
  durable: boolean
  /** By route name. */
  certificates: Record<string, RouteCertificates>
}

/** PEM texts: cert[i], with its chain, belongs to key[i]. Several pairs are several kinds of key, of which a client gets one. */
export interface RouteCertificate {
  names: string[]
  cert: string[]
  key: string[]
}

export interface RouteCertificates {
  /** Each name has its own and is served no other one: a connection for a name without one ends as `certificate_pending`.
   *  false: the first of the list stands in for a name that none of them covers. */
  perName: boolean
  list: RouteCertificate[]
}

/** Every challenge that is to be answered now. */
export interface PlacedChallenges {
  /** token → key authorization (HTTP-01). */
  http: Record<string, string>
  /** name → the certificate that answers for it (TLS-ALPN-01), PEM. */
  tls: Record<string, { cert: string; key: string }>
}

/** A check of one endpoint, again and again. */
export interface HealthCheck {
  route: string
  endpoint: string
  /** An address, or "unix:" and a path. */
  host: string
  /** 0 for a unix socket. */
  port: number
  type: 'tcp' | 'tls' | { http: string }
  /** What a TLS target is asked for, and an HTTP one is told; null: nothing is known but its address. */
  name: string | null
  /** The target expects a PROXY header first: it is told that this is no client. */
  sendProxyProtocol: 'v1' | 'v2' | null
  intervalMs: number
  timeoutMs: number
}

export interface CheckResult {
  route: string
  endpoint: string
  ok: boolean
  error?: string
  /** How long it took. */
  ms: number
}

/** How dialling one endpoint went in the last few milliseconds: failures in a row, after a success where there was one. */
export interface DialReport {
  route: string
  endpoint: string
  /** ISO 8601 (of the newest), as everywhere: when the attempt began. Only said of an endpoint that had failed before. */
  succeededAt?: string
  failedAt?: string
  failures: number
  reason?: CloseReason
}

export type ConnectionCounts = Pick<ConnectionRecord, 'id' | 'bytesIn' | 'bytesOut'>

export type ToWorker =
  /** Descriptors were sent: take them now. The plan that names them follows. */
  | { type: 'descriptors' }
  | { type: 'plan'; plan: WorkerPlan }
  /** These routes of the plan anew: the targets of some have other weights now. */
  | { type: 'routes'; routes: UserRoute[] }
  /** The certificates of these routes anew; connections keep what they began with. */
  | { type: 'certificates'; certificates: Record<string, RouteCertificates> }
  | ({ type: 'challenges'; generation: number } & PlacedChallenges)
  /** Every check that is to be made. */
  | { type: 'health'; checks: HealthCheck[] }
  /** The openings of these connections are on disk, and the connections may go on; ok = false: they cannot be written. */
  | { type: 'written'; ids: string[]; ok: boolean }
  | { type: 'close'; id: string; reason: CloseReason }
  /** Closes the connections of a route to one of its endpoints; what is being dialled goes on to another. */
  | { type: 'closeTarget'; route: string; endpoint: string; reason: CloseReason }
  /** Closes every connection of a route: at once, or after deadlineMs. */
  | { type: 'drain'; route: string; deadlineMs: number }
  | { type: 'sample'; request: number }
  /** What live connections have carried, as far as it was not told before. */
  | { type: 'count' }
  /** Are you alive? */
  | { type: 'ping' }
  /** Stop accepting, let connections finish for graceMs, cut the rest, exit. */
  | { type: 'stop'; graceMs: number }

export type ToControl =
  | { type: 'ready'; pid: number; uid: number }
  /** The plan is carried out; problems name what could not be (a handler module that does not load). */
  | { type: 'applied'; generation: number; problems: { route: string; message: string }[] }
  /** The challenges of this generation are answered from now on, and no others. */
  | { type: 'challenged'; generation: number }
  | ({ type: 'connections' } & ConnectionEvents)
  | { type: 'checked'; results: CheckResult[] }
  | { type: 'dialed'; dials: DialReport[] }
  | {
      type: 'sampled'
      request: number
      counts: { id: string; bytesIn: number; bytesOut: number; state: 'opening' | 'open' | 'half-closed' | 'closing' }[]
    }
  /** Answers a count, in several pieces where there is much to tell. */
  | { type: 'counted'; counts: ConnectionCounts[]; isLast: boolean }
  | { type: 'pong' }
  /** Accepting has paused for want of descriptors, or goes on; or the limit of descriptors is another. */
  | { type: 'accepting'; paused: boolean; limit: number }
  /** The sweep found so many connections that nothing would have ended any more, and ended them. */
  | { type: 'swept'; count: number }
  | { type: 'log'; level: 'debug' | 'info' | 'warn' | 'error'; message: string; fields?: Record<string, unknown> }
  | { type: 'stopped' }
