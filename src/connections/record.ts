// What is known of one connection, whichever plane carries it. The shape is public (README, "Records").
import type { CloseReason, RefusalReason } from './reasons.ts'

import type { Carrier } from '../plan/types.ts'

export type { Carrier }

export interface ConnectionRecord {
  /** Unique among the gateway's connections; the same across a restart for kernel flows. */
  id: string
  route: string
  carrier: Carrier
  /** "ip:port" or "[v6]:port"; after a PROXY header the real client. */
  client: string
  /** Where the client connected to; after a PROXY header what that says. */
  listener: string
  /** The trusted sender of the PROXY header, where there was one. */
  proxy?: string
  target: string | null
  serverName?: string
  tls?: { version: string; cipher: string; alpn?: string }
  state: 'opening' | 'open' | 'half-closed' | 'closing' | 'closed'
  /** ISO 8601. */
  openedAt: string
  closedAt?: string
  /** Payload bytes from the client. */
  bytesIn: number
  /** Payload bytes to the client. */
  bytesOut: number
  reason?: CloseReason
}

/** What a plane reports, in batches. A connection that opened and settled within one batch is in `settled` only. */
export interface ConnectionEvents {
  opened: ConnectionRecord[]
  changed: (Partial<ConnectionRecord> & { id: string })[]
  /** Over, with its final counts and reason. Exactly once for each connection. */
  settled: ConnectionRecord[]
  /** observed: by a route that only observes, so it was carried all the same. */
  refused: { route: string; reason: RefusalReason; count: number; observed?: boolean }[]
}
