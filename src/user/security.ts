// Who may connect, and how often: lists of networks as sorted intervals, and counters that are given back exactly once.
// The kernel checks the same before us where it can; this is the check for what only user space knows.
import { compareBytes, mergeNetworks, type Interval } from '../base/addresses.ts'
import { RATE_CLIENTS_MAX } from '../base/limits.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import type { Limits, UserRoute } from '../plan/types.ts'

/** A set of networks; membership is a binary search. */
export class NetworkList {
  readonly #byFamily: Record<4 | 6, Interval[]>
  readonly empty: boolean

  constructor(networks: readonly string[]) {
    this.empty = networks.length === 0
    this.#byFamily = mergeNetworks(networks)
  }

  has(ip: Uint8Array): boolean {
    const list = this.#byFamily[ip.length === 4 ? 4 : 6]
    let low = 0
    let high = list.length - 1
    while (low <= high) {
      const middle = (low + high) >> 1
      if (compareBytes(ip, list[middle]!.from) < 0) high = middle - 1
      else if (compareBytes(ip, list[middle]!.to) > 0) low = middle + 1
      else return true
    }
    return false
  }
}

/** New connections of each client: a bucket that holds `count` and is filled at that rate, as nft's limit is in the kernel
 *  (src/kernel/chains.ts), so that both say the same of the same connections. */
export class Rate {
  /** Client → when its bucket was or will be empty of what it has taken: the past is a full one. */
  readonly #emptyAt = new Map<string, number>()

  constructor(
    readonly count: number,
    readonly perMs: number,
  ) {}

  /** Counts one and says whether it is within the limit. */
  take(client: string, nowMs: number): boolean {
    const oneMs = this.perMs / this.count
    const owed = Math.max(0, (this.#emptyAt.get(client) ?? 0) - nowMs)
    if (owed + oneMs > this.perMs + 1e-6) return false
    // Last used, last forgotten.
    this.#emptyAt.delete(client)
    this.#forget(nowMs)
    this.#emptyAt.set(client, nowMs + owed + oneMs)
    return true
  }

  /** A few whose bucket is full again with each that comes, and the oldest where there are too many. */
  #forget(nowMs: number) {
    let looks = 0
    for (const [client, emptyAt] of this.#emptyAt) {
      if (++looks > 4 || (emptyAt > nowMs && this.#emptyAt.size < RATE_CLIENTS_MAX)) return
      this.#emptyAt.delete(client)
    }
  }

  get clients() {
    return this.#emptyAt.size
  }
}

/** Connections of one route now. Outlives a change of the route, so that a reload frees no slot twice and gives none away. */
export class Counters {
  total = 0
  readonly byClient = new Map<string, number>()

  enter(client: string) {
    this.total++
    this.byClient.set(client, (this.byClient.get(client) ?? 0) + 1)
  }

  leave(client: string) {
    this.total--
    const left = this.byClient.get(client)! - 1
    if (left > 0) this.byClient.set(client, left)
    else this.byClient.delete(client)
  }
}

/** The limits of all routes together, over the connections of user space. The kernel counts everything that it sees, this
 *  what it does not: clients on loopback, and a machine whose kernel is not used. */
export class Everyone {
  readonly counters = new Counters()
  #limits: Limits | null = null
  #rate: Rate | null = null

  set(limits: Limits | null) {
    const rate = limits?.rate ?? null
    if (rate?.count !== this.#rate?.count || rate?.perMs !== this.#rate?.perMs)
      this.#rate = rate && new Rate(rate.count, rate.perMs)
    this.#limits = limits
  }

  refusalFor(client: string, nowMs: number): RefusalReason | undefined {
    if (!this.#limits) return undefined
    const { maxConnections, maxConnectionsPerIp } = this.#limits
    if (maxConnections !== null && this.counters.total >= maxConnections) return 'global_limit'
    if (maxConnectionsPerIp !== null && (this.counters.byClient.get(client) ?? 0) >= maxConnectionsPerIp)
      return 'global_ip_limit'
    return this.#rate && !this.#rate.take(client, nowMs) ? 'global_rate' : undefined
  }
}

export interface Guard {
  readonly rules: UserRoute['security']
  readonly allow: NetworkList
  readonly block: NetworkList
  readonly counters: Counters
  readonly rate: Rate | null
}

/** Why this client may not have another connection; undefined when it may. Block beats allow. */
export function refusalFor(
  guard: Guard,
  client: string,
  caller: { readonly clientBytes: Uint8Array },
  nowMs: number,
): RefusalReason | undefined {
  const { rules, counters } = guard
  if (!guard.block.empty && guard.block.has(caller.clientBytes)) return 'route_ip_blocked'
  if (!guard.allow.empty && !guard.allow.has(caller.clientBytes)) return 'route_ip_blocked'
  if (rules.maxConnections !== null && counters.total >= rules.maxConnections) return 'route_limit'
  if (rules.maxConnectionsPerIp !== null && (counters.byClient.get(client) ?? 0) >= rules.maxConnectionsPerIp)
    return 'route_ip_limit'
  if (guard.rate && !guard.rate.take(client, nowMs)) return 'route_rate'
  return undefined
}
