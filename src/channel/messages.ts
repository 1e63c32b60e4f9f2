// Everything control and worker say to each other. One JSON object a line; descriptors travel beside it (descriptors.ts).
import type { ConnectionEvents } from '../connections/record.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { PlannedListener, UserRoute } from '../plan/types.ts'

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
  /** PEM texts by route name. */
  certificates: Record<string, { cert: string; key: string }>
}

export type ToWorker =
  /** Descriptors were sent: take them now. The plan that names them follows. */
  | { type: 'descriptors' }
  | { type: 'plan'; plan: WorkerPlan }
  | { type: 'close'; id: string; reason: CloseReason }
  /** Closes every connection of a route: at once, or after deadlineMs. */
  | { type: 'drain'; route: string; deadlineMs: number }
  | { type: 'sample'; request: number }
  /** Stop accepting, let connections finish for graceMs, cut the rest, exit. */
  | { type: 'stop'; graceMs: number }

export type ToControl =
  | { type: 'ready'; pid: number; uid: number }
  /** The plan is carried out; problems name what could not be (a handler module that does not load). */
  | { type: 'applied'; generation: number; problems: { route: string; message: string }[] }
  | ({ type: 'connections' } & ConnectionEvents)
  | {
      type: 'sampled'
      request: number
      counts: { id: string; bytesIn: number; bytesOut: number; state: 'opening' | 'open' | 'half-closed' | 'closing' }[]
    }
  | { type: 'log'; level: 'debug' | 'info' | 'warn' | 'error'; message: string; fields?: Record<string, unknown> }
  | { type: 'stopped' }
