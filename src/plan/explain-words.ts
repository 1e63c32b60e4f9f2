// What an explanation lists: targets with their shares, those that get none, and the ports nearby. Pure.
import { own } from '../base/own.ts'
import type { Asked } from './asked.ts'
import type { Explanation } from './explanation.ts'
import type { Facts, Plan, PlannedRoute } from './types.ts'

/** More are no help in finding the one that was meant. */
const NEAR_MAX = 3

export const CHOICE = {
  'round-robin': 'in turns',
  'source-hash': "by the client's address, always the same one",
  'least-connections': 'by who has the fewest connections',
}

export const quoted = (names: string[]) =>
  names.length > NEAR_MAX ? `"${names[0]}" and ${names.length - 1} more` : names.map((name) => `"${name}"`).join(', ')

export const percent = (share: number) => `${Math.round(share * 1000) / 10} %`

/** User space goes by the configured weights of those that are used. */
export function sharesInUserSpace({ endpoints }: PlannedRoute, port: number): Explanation['targets'] {
  const used = endpoints.filter(({ share }) => share > 0)
  const total = used.reduce((sum, { weight }) => sum + weight, 0)
  return used.map(({ key, weight }) => ({ target: key.replace(/:preserve$/, `:${port}`), share: weight / total }))
}

export function unusedTargets({ name, endpoints }: PlannedRoute, { down, drained }: Facts): string[] {
  return endpoints
    .filter(({ share }) => share === 0)
    .map(({ key, target }) => {
      const why = drained[key] || drained[target] ? 'drained' : own(down, name)?.[key] ? 'down' : 'of weight 0'
      return `${key} gets none: it is ${why}`
    })
}

/** Of the same protocol, each with the routes that it has. */
export function nearestListens({ routes }: Plan, { port, protocol }: Asked): string[] {
  const away = ({ from, to }: { from: number; to: number }) => (port < from ? from - port : Math.max(0, port - to))
  const near = new Map<string, string[]>()
  const all = routes.flatMap(({ name, listens }) => listens.map((listen) => ({ ...listen, name })))
  for (const { address, from, to, name } of all
    .filter((one) => one.protocol === protocol)
    .toSorted((a, b) => away(a) - away(b))) {
    const where = `${address === null ? '' : `${address} port `}${from === to ? from : `${from}-${to}`}`
    const names = near.get(where)
    if (names) names.push(name)
    else near.set(where, [name])
  }
  return [...near].slice(0, NEAR_MAX).map(([where, names]) => `${where} (${quoted(names)})`)
}
