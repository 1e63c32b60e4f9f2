// What a route, or one of its targets, has carried: sums that never go back, over an estimate that is corrected as over a
// restart in which live flows are counted anew from their first byte. Pure.
import type { CloseReason, RefusalReason } from './reasons.ts'

/** What connections carried, from the client (in) and to it (out). */
export interface Carried {
  bytesIn: number
  bytesOut: number
  /** Packets are known of kernel flows only. */
  packetsIn: number
  packetsOut: number
}

export interface TargetTotals extends Carried {
  now: number
  total: number
  reasons: Partial<Record<CloseReason, number>>
}

export interface RouteTotals extends TargetTotals {
  refused: Partial<Record<RefusalReason, number>>
  /** What would have been refused if the route did not only observe. */
  observed: Partial<Record<RefusalReason, number>>
  /** By "ip:port". */
  targets: ReadonlyMap<string, TargetTotals>
}

export const NOTHING_CARRIED: Readonly<Carried> = { bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0 }
const CARRIED = Object.keys(NOTHING_CARRIED) as (keyof Carried)[]

/** Flows, and what they carried. */
export interface Share extends Carried {
  flows: number
}

export interface Account {
  /** What is shown. It carries the sum's highest value until now. */
  shown: TargetTotals
  /** What the connections' counts add up to; less than is shown where an estimate was corrected downwards. */
  sum: Carried
  /** The part of it that live kernel flows have: after a restart they are counted again, from their first byte. */
  live: Share
  /** After a restart: of what live flows had in the stored totals, the part that has not been counted again yet. */
  owed: Share
}

const noShare = (): Share => ({ flows: 0, ...NOTHING_CARRIED })

export const emptyAccount = (): Account => ({
  shown: { now: 0, total: 0, ...NOTHING_CARRIED, reasons: {} },
  sum: { ...NOTHING_CARRIED },
  live: noShare(),
  owed: noShare(),
})

/** A connection opened. `flow`: the kernel carries it; `counted`: the stored totals may have it already. */
export function accountOpened(account: Account, flow: boolean, counted: boolean) {
  account.shown.now++
  if (flow) account.live.flows++
  if (counted && account.owed.flows > 0) account.owed.flows--
  else account.shown.total++
}

/** A connection has carried this much more than was said of it before. */
export function accountCarried(account: Account, more: Carried, flow: boolean, counted: boolean) {
  const { shown, sum, live, owed } = account
  for (const key of CARRIED) {
    let amount = more[key]
    if (amount === 0) continue
    if (flow) live[key] += amount
    if (counted && amount > 0) {
      const known = Math.min(owed[key], amount)
      owed[key] -= known
      amount -= known
    }
    sum[key] += amount
    if (sum[key] > shown[key]) shown[key] = sum[key]
  }
}

/** A connection is over. `flow`: all that it carried, when it was the kernel's. */
export function accountClosed(account: Account, reason: CloseReason, flow: Carried | null) {
  const { shown, live } = account
  shown.now--
  shown.reasons[reason] = (shown.reasons[reason] ?? 0) + 1
  if (!flow) return
  live.flows--
  for (const key of CARRIED) live[key] -= flow[key]
}

/** A connection turns out to belong elsewhere: it and what it carried until now go with it. */
export function accountMoved(from: Account, to: Account, carried: Carried) {
  from.shown.now--
  from.shown.total--
  to.shown.now++
  to.shown.total++
  for (const key of CARRIED) {
    from.sum[key] -= carried[key]
    from.shown[key] -= carried[key]
  }
  accountCarried(to, carried, false, false)
}

// ---- across a restart ----

export interface StoredAccount extends Carried {
  total: number
  reasons: TargetTotals['reasons']
  live: Share
}

export function storeAccount({ shown, live, owed }: Account): StoredAccount {
  const stored: StoredAccount = {
    total: shown.total,
    ...NOTHING_CARRIED,
    reasons: { ...shown.reasons },
    live: { ...live },
  }
  // What is still owed belongs to live flows as well: a second restart may come before all of them were seen.
  stored.live.flows += owed.flows
  for (const key of CARRIED) {
    stored[key] = shown[key]
    stored.live[key] += owed[key]
  }
  return stored
}

/** What was stored may come from a file that somebody edited: what is no count is 0. */
export function restoreAccount(stored: unknown): Account {
  const account = emptyAccount()
  const { shown, sum, owed } = account
  const from = object(stored)
  const live = object(from.live)
  shown.total = count(from.total)
  owed.flows = count(live.flows)
  shown.reasons = restoreCounts(from.reasons)
  for (const key of CARRIED) {
    shown[key] = sum[key] = count(from[key])
    owed[key] = count(live[key])
  }
  return account
}

export const restoreCounts = (stored: unknown): Record<string, number> =>
  Object.fromEntries(Object.entries(object(stored)).map(([key, value]) => [key, count(value)]))

const object = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
const count = (value: unknown): number => (typeof value === 'number' && Number.isFinite(value) && value > 0 ? value : 0)

/** Every live flow has been counted again: what is still owed was of flows that ended without a trace. */
export function accountAdopted(account: Account) {
  account.owed = noShare()
}
