// A route as the admin API and the command line show it.
import type { RouteTotals } from '../connections/table.ts'
import type { PlannedRoute } from '../plan/types.ts'

export interface Carried {
  carrier: PlannedRoute['carrier']
  /** active: as planned. applying: on the way there. fallback: in user space because the kernel did not take it. failed: not served. */
  state: 'active' | 'applying' | 'fallback' | 'failed'
  reason: string
}

export const routeView = (route: PlannedRoute, carried: Carried, totals: RouteTotals) => ({
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
  packetsIn: totals.packetsIn,
  packetsOut: totals.packetsOut,
  reasons: totals.reasons,
  refused: totals.refused,
  observed: totals.observed,
})
