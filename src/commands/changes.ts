// What a change of the configuration does, as a table: sluice reload shows what it did, sluice plan what it would do.
import type { Changes, RouteChange } from '../observe/admin.ts'
import { table } from './shared.ts'

export function changesInWords(changes: Changes): string {
  const { added, removed, changed, untouched, routes } = changes
  const counts = `${changed.length} changed, ${added.length} added, ${removed.length} removed, ${untouched.length} untouched\n`
  if (routes.length === 0) return counts
  return (
    table(
      ['ROUTE', 'CHANGE', 'WHAT', 'KEEPS', 'DRAINS', 'CUTS'],
      routes.map((one) => [
        one.route,
        one.change,
        one.what.join(', ') || '-',
        String(one.keeps),
        drains(one),
        String(one.cuts),
      ]),
    ) + `\n${counts}`
  )
}

const drains = ({ drains, drainMs }: RouteChange) => (drainMs === null ? '0' : `${drains} in ${drainMs / 1000} s`)
