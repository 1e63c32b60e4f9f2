// Who may connect, and how often: lists of networks as sorted intervals, and counters that are given back exactly once.
// The kernel checks the same before us where it can; this is the check for what only user space knows.
import { compareBytes, parseNetwork } from '../base/addresses.ts'
import { RATE_CLIENTS_MAX } from '../base/limits.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import type { UserRoute } from '../plan/types.ts'

/** A set of networks; membership is a binary search. */
export class NetworkList {
  readonly #byFamily: Record<4 | 6, { from: Uint8Array; to: Uint8Array }[]> = { 4: [], 6: [] }
  readonly empty: boolean

  constructor(networks: readonly string[]) {
    this.empty = networks.length === 0
    for (const network of networks)
      for (const { family, from, to } of parseNetwork(network) ?? []) this.#byFamily[family].push({ from, to })
    for (const family of [4, 6] as const) this.#byFamily[family] = merge(this.#byFamily[family])
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

/** Sorted, and without overlaps: the search needs both. */
function merge(list: { from: Uint8Array; to: Uint8Array }[]) {
  const out: typeof list = []
  for (const next of list.sort((a, b) => compareBytes(a.from, b.from))) {
    const last = out.at(-1)
    if (last && compareBytes(next.from, last.to) <= 0) {
      if (compareBytes(next.to, last.to) > 0) last.to = next.to
    } else out.push({ ...next })
  }
  return out
}

/** New connections for each client in a sliding window, estimated from this window and the one before (as nginx and Envoy do). */
export class Rate {
  #window = 0
  #now = new Map<string, number>()
  #before = new Map<string, number>()

  constructor(
    readonly count: number,
    readonly perMs: number,
  ) {}

  /** Counts one and says whether it is within the limit. */
  take(client: string, nowMs: number): boolean {
    const window = Math.floor(nowMs / this.perMs)
    if (window !== this.#window) {
      this.#before = window === this.#window + 1 ? this.#now : new Map()
      this.#now = new Map()
      this.#window = window
    }
    const taken = this.#now.get(client) ?? 0
    const share = 1 - (nowMs - window * this.perMs) / this.perMs
    if (taken + (this.#before.get(client) ?? 0) * share >= this.count) return false
    if (taken === 0 && this.#now.size >= RATE_CLIENTS_MAX) this.#now.delete(this.#now.keys().next().value!)
    this.#now.set(client, taken + 1)
    return true
  }

  get clients() {
    return this.#now.size + this.#before.size
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
