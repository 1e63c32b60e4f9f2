// The answer to what would become of a connection, and what beside the plan it is made from.
import type { Carrier, KernelState, Plan } from './types.ts'

export interface Step {
  step: string
  /** stop: here it ends. note: it may matter. */
  verdict: 'ok' | 'note' | 'stop'
  detail: string
}

/** carried: to a target or a handler. answered: by the gateway itself. refused: without a record. closed: with one. dropped: by
 *  somebody else's rule. not ours: nothing of the gateway is there. */
export type Outcome = 'carried' | 'answered' | 'refused' | 'closed' | 'dropped' | 'not ours'

export interface Explanation {
  client: string
  listener: string
  serverName: string | null
  outcome: Outcome
  /** A reason of a refusal or of a close, as the README lists them. */
  reason: string | null
  route: string | null
  carrier: Carrier | null
  /** Where it may go, each with its share of new connections. */
  targets: { target: string; share: number }[]
  steps: Step[]
}

/** What is known beside the plan. */
export interface Now {
  /** What is in the kernel; null: none of ours. */
  kernel: KernelState | null
  /** Why, in words. */
  kernelReason: string | null
  /** Of this machine; null: not known. */
  addresses: ReadonlySet<string> | null
  /** Live connections, by route; '' is all of them. null: nobody has counted. */
  counts: Record<string, { now: number; ofClient: number }> | null
  /** Other people's chains that drop what is forwarded. */
  foreign: { family: string; table: string; chain: string; drops: string; commands: string[] }[]
  /** What keeps a route from being carried as planned, by name. */
  problems: Record<string, string>
}

export const nothingKnown = (plan: Plan): Now => ({
  kernel: plan.kernel,
  kernelReason: null,
  addresses: null,
  counts: null,
  foreign: [],
  problems: {},
})
