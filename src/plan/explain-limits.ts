// Whether a route's lists and limits let a client in, as far as it can be known without a connection. Pure.
import { listOf } from './explain-routes.ts'
import type { Limits, Plan, PlannedRoute } from './types.ts'

interface Count {
  now: number
  ofClient: number
}

export interface Judged {
  /** In the words of the documented refusals. */
  refusal: string | null
  notes: string[]
}

/** @param count live connections; undefined: nobody has counted. */
export function refusalBy({ user: { security } }: PlannedRoute, client: Uint8Array, count: Count | undefined): Judged {
  if (listOf(security.block).has(client))
    return { refusal: 'route_ip_blocked', notes: ['the client is on its block list'] }
  if (security.allow.length > 0 && !listOf(security.allow).has(client))
    return { refusal: 'route_ip_blocked', notes: ['the client is not on its allow list'] }
  return within(security, count, ['route_limit', 'route_ip_limit'])
}

/** Of all routes together. */
export const refusalByAll = ({ limits }: Plan, count: Count | undefined): Judged =>
  limits ? within(limits, count, ['global_limit', 'global_ip_limit']) : { refusal: null, notes: [] }

function within(limits: Limits, count: Count | undefined, [all, each]: [string, string]): Judged {
  const notes: string[] = []
  const isFull = (now: number | undefined, max: number | null, what: string) => {
    if (max === null) return false
    notes.push(`${now ?? 'an unknown number'} of at most ${max} connections${what}`)
    return now !== undefined && now >= max
  }
  const full = isFull(count?.now, limits.maxConnections, '')
  const clientFull = isFull(count?.ofClient, limits.maxConnectionsPerIp, ' of this client')
  const { rate } = limits
  if (rate)
    notes.push(
      `this client may open ${rate.count} in ${rate.perMs / 1000} s; how many of them it has opened is known to the connection only`,
    )
  return { refusal: full ? all : clientFull ? each : null, notes }
}
