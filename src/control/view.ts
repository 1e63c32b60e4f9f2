// A route as the admin API and the command line show it.
import type { RouteTotals } from '../connections/table.ts'
import type { Rates } from '../connections/throughput.ts'
import type { KernelPhase } from './kernel-start.ts'
import type { PlannedRoute } from '../plan/types.ts'

export interface Carried {
  carrier: PlannedRoute['carrier']
  /** active: as planned. applying: on the way there. fallback: in user space because the kernel did not take it. failed: not served. */
  state: 'active' | 'applying' | 'fallback' | 'failed'
  reason: string
}

export interface CarriedFacts {
  /** Why the worker could not carry the route out. */
  problem: string | undefined
  /** A worker has carried out a plan. */
  workerReady: boolean
  phase: KernelPhase
  /** Why the kernel cannot be used. */
  unusable: string | null
  inKernel: 'as wanted' | 'as before' | false
  /** Why the last transaction failed. */
  error: string | null
}

/** What carries a route's new connections at this moment, and why it is not what was planned. */
export function carriedNow(route: PlannedRoute, facts: CarriedFacts): Carried {
  const { carrier, reason, unserved } = route
  const { problem, workerReady, phase, unusable, inKernel, error } = facts
  const pending = phase === 'idle' || phase === 'starting'
  if (problem) return { carrier, state: 'failed', reason: problem }
  if (unserved !== null && !pending) return { carrier, state: 'failed', reason: unserved }
  if (inKernel === 'as wanted' && carrier === 'kernel') return { carrier, state: 'active', reason }
  if (inKernel && carrier === 'kernel')
    return {
      carrier,
      state: 'applying',
      reason: error ? `the kernel did not take its change: ${error}` : 'in the kernel as it was until its change is in',
    }
  if (inKernel) return { carrier: 'kernel', state: 'applying', reason: 'in the kernel until its rules are out of it' }
  if (phase !== 'ready' && route.listens[0]!.protocol === 'udp')
    return { carrier, state: 'applying', reason: 'served once its rules are in the kernel' }
  if (phase === 'unusable' && reason === unusable) return { carrier: 'user', state: 'fallback', reason }
  if (carrier !== 'kernel') return { carrier, state: workerReady ? 'active' : 'applying', reason }
  if (error) return { carrier: 'user', state: 'fallback', reason: `the kernel did not take its rules: ${error}` }
  return { carrier: 'user', state: 'applying', reason: 'in user space until its rules are in the kernel' }
}

export const routeView = (route: PlannedRoute, carried: Carried, totals: RouteTotals, rates: Rates | null) => ({
  name: route.name,
  ...carried,
  planned: route.carrier,
  /** An operator has drained it: it takes no new connections. */
  draining: route.user.draining,
  number: route.number,
  listens: route.listens,
  connections: totals.now,
  total: totals.total,
  bytesIn: totals.bytesIn,
  bytesOut: totals.bytesOut,
  /** A second; null: so many other routes are busy that it is not known. */
  rates,
  packetsIn: totals.packetsIn,
  packetsOut: totals.packetsOut,
  reasons: totals.reasons,
  refused: totals.refused,
  observed: totals.observed,
})
