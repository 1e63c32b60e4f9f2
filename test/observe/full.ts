// An exposition in which every family has a sample: what names, dashboards and alerts are checked against.
import { ConnectionTable } from '../../src/connections/table.ts'
import { Metrics } from '../../src/observe/metrics.ts'

const record = {
  id: 'a',
  route: 'web',
  carrier: 'user' as const,
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: '10.0.0.5:80',
  state: 'closed' as const,
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 1,
  bytesOut: 1,
  reason: 'finished' as const,
}
const view = { route: 'web', target: '10.0.0.5:80', state: 'up' as const, up: true, weight: 1, share: 1 }

export async function fullExposition(): Promise<string> {
  const table = new ConnectionTable()
  const refused = [{ route: 'web', reason: 'route_limit' as const, count: 1 }]
  table.ingest({ opened: [], changed: [], settled: [record], refused })
  const metrics = new Metrics({
    version: '1.2.3',
    routes: () => ['web'],
    states: () => [{ name: 'web', carrier: 'user', state: 'active' }],
    totals: (route) => table.totals(route),
    flows: () => new Map(),
    proxied: () => [],
    targets: () => [{ ...view, connections: 0, total: 1, bytesIn: 1, bytesOut: 1 }],
    kernel: () => ({ elements: 1, transactions: 1, drifts: 0, eventsLost: 0 }),
    conntrack: () => ({ entries: 1, limit: 2 }),
    anomalies: () => 0,
    worker: () => ({ restarts: 0, accepting: true, acceptPauses: 0, swept: 0 }),
    accessLogDropped: () => 0,
    certificates: {
      views: () => [{ name: 'a.test', source: 'file', expiresInSeconds: 1 }],
      counts: { issued: 1, renewed: 0, failed: 0, expiring: 0, replaced: 0 },
    },
  })
  metrics.setup('web', 'kernel', 0.001)
  return (await metrics.expose()).text
}
