// What a scrape says, read back with a parser that is strict about the text format.
import { expect, test } from 'bun:test'
import { ConnectionTable } from '../../src/connections/table.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import type { TargetView } from '../../src/observe/admin.ts'
import { Metrics, type MetricSources } from '../../src/observe/metrics.ts'
import { parseMetrics, series } from './exposition.ts'

const settled = (id: string, more: Partial<ConnectionRecord> = {}): ConnectionRecord => ({
  id,
  route: 'web',
  carrier: 'user',
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: '10.0.0.5:80',
  state: 'closed',
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 10,
  bytesOut: 20,
  reason: 'finished',
  ...more,
})
const NOTHING = { opened: [], changed: [], settled: [], refused: [] }
const target = (more: Partial<TargetView>): TargetView => ({
  route: 'web',
  target: '10.0.0.5:80',
  state: 'up',
  up: true,
  weight: 1,
  share: 1,
  connections: 1,
  total: 2,
  bytesIn: 3,
  bytesOut: 4,
  ...more,
})

function sources(table: ConnectionTable, more: Partial<MetricSources> = {}): MetricSources {
  return {
    version: '1.2.3',
    routes: () => ['web'],
    states: () => [],
    totals: (route) => table.totals(route),
    flows: () => new Map(),
    proxied: () => table.records(),
    targets: () => [],
    kernel: () => null,
    conntrack: () => null,
    anomalies: () => table.anomalies,
    worker: () => ({ restarts: 0, accepting: true, acceptPauses: 2, swept: 0 }),
    accessLogDropped: () => 0,
    certificates: { views: () => [], counts: { issued: 0, renewed: 0, failed: 0, expiring: 0, replaced: 0 } },
    ...more,
  }
}

const scrape = async (metrics: Metrics) => parseMetrics((await metrics.expose()).text)

test('M2: connections, bytes, packets, reasons and refusals by route, of both planes', async () => {
  const table = new ConnectionTable()
  table.ingest({
    ...NOTHING,
    opened: [
      settled('s', { state: 'open', carrier: 'splice', bytesIn: 1, bytesOut: 2 }),
      settled('u', { state: 'open', bytesIn: 0, bytesOut: 0 }),
    ],
    settled: [
      settled('a'),
      settled('b', { reason: 'killed' }),
      settled('c', { route: '', target: null, reason: 'malformed_hello', bytesIn: 7, bytesOut: 0 }),
    ],
    refused: [
      { route: 'web', reason: 'route_limit', count: 3 },
      { route: 'web', reason: 'route_limit', count: 5, observed: true },
      { route: '', reason: 'descriptors', count: 1 },
    ],
  })
  table.flowOpened('web', '10.0.0.5:80', 1)
  table.flowCarried('web', '10.0.0.5:80', 1, { bytesIn: 100, bytesOut: 200, packetsIn: 5, packetsOut: 6 })
  const metrics = new Metrics(sources(table, { flows: () => new Map([['web', 1]]) }))
  const found = await scrape(metrics)
  expect(series(found, 'sluice_connections')).toEqual({
    'carrier=kernel,route=web': 1,
    'carrier=splice,route=web': 1,
    'carrier=user,route=web': 1,
  })
  expect(series(found, 'sluice_connections_opened_total')).toEqual({ 'route=web': 5, 'route=': 1 })
  expect(series(found, 'sluice_connections_closed_total')).toEqual({
    'reason=finished,route=web': 1,
    'reason=killed,route=web': 1,
    'reason=malformed_hello,route=': 1,
  })
  expect(series(found, 'sluice_connections_refused_total')).toEqual({
    'mode=enforce,reason=route_limit,route=web': 3,
    'mode=observe,reason=route_limit,route=web': 5,
    'mode=enforce,reason=descriptors,route=': 1,
  })
  expect(series(found, 'sluice_receive_bytes_total')).toEqual({ 'route=web': 121, 'route=': 7 })
  expect(series(found, 'sluice_transmit_bytes_total')).toEqual({ 'route=web': 242 })
  expect(series(found, 'sluice_receive_packets_total')).toEqual({ 'route=web': 5 })
  expect(series(found, 'sluice_transmit_packets_total')).toEqual({ 'route=web': 6 })
  expect(series(found, 'sluice_anomalies_total')).toEqual({ '': 0 })
  expect(series(found, 'sluice_build_info')).toEqual({ 'version=1.2.3': 1 })
})

test('M2: targets, the kernel and conntrack; what is not there has no series', async () => {
  const table = new ConnectionTable()
  const bare = await scrape(new Metrics(sources(table)))
  for (const name of ['sluice_kernel_elements', 'sluice_conntrack_limit', 'sluice_target_up'])
    expect(series(bare, name)).toEqual({})
  const found = await scrape(
    new Metrics(
      sources(table, {
        targets: () => [
          target({}),
          target({ target: '[2001:db8::5]:80', state: 'draining', up: false, share: 0, connections: 7 }),
        ],
        kernel: () => ({ elements: 4, transactions: 5, drifts: 6, eventsLost: 7 }),
        conntrack: () => ({ entries: 8, limit: 9 }),
      }),
    ),
  )
  expect(series(found, 'sluice_target_up')).toEqual({
    'route=web,target=10.0.0.5:80': 1,
    'route=web,target=[2001:db8::5]:80': 0,
  })
  expect(series(found, 'sluice_target_connections')).toEqual({
    'route=web,target=10.0.0.5:80': 1,
    'route=web,target=[2001:db8::5]:80': 7,
  })
  const single = (name: string) => series(found, name)['']
  expect([
    single('sluice_kernel_elements'),
    single('sluice_kernel_transactions_total'),
    single('sluice_kernel_drifts_total'),
    single('sluice_kernel_events_lost_total'),
    single('sluice_conntrack_entries'),
    single('sluice_conntrack_limit'),
  ]).toEqual([4, 5, 6, 7, 8, 9])
  for (const name of [
    'process_cpu_seconds_total',
    'process_resident_memory_bytes',
    'process_start_time_seconds',
    'process_open_fds',
    'process_max_fds',
  ])
    expect(single(name)).toBeGreaterThan(0)
  expect(single('process_start_time_seconds')! * 1000).toBeLessThan(Date.now())
})

test('M2: the setup histogram says whose clock it is, and forgets routes that are gone', async () => {
  const table = new ConnectionTable()
  let routes = ['web', 'mail']
  const metrics = new Metrics(sources(table, { routes: () => routes }))
  metrics.setup('web', 'kernel', 0.0002)
  metrics.setup('web', 'kernel', 0.2)
  metrics.setup('web', 'receipt', 100)
  metrics.setup('mail', 'kernel', 1)
  const found = await scrape(metrics)
  expect(series(found, 'sluice_setup_seconds_count')).toEqual({
    'clock=kernel,route=web': 2,
    'clock=receipt,route=web': 1,
    'clock=kernel,route=mail': 1,
  })
  const buckets = series(found, 'sluice_setup_seconds_bucket')
  expect([
    buckets['clock=kernel,le=0.0001,route=web'],
    buckets['clock=kernel,le=0.00025,route=web'],
    buckets['clock=kernel,le=0.25,route=web'],
    buckets['clock=receipt,le=5,route=web'],
    buckets['clock=receipt,le=+Inf,route=web'],
  ]).toEqual([0, 1, 2, 0, 1])
  routes = ['web']
  expect(Object.keys(series(await scrape(metrics), 'sluice_setup_seconds_count'))).toHaveLength(2)
  // Back again: it counts from nothing.
  routes = ['web', 'mail']
  metrics.setup('mail', 'kernel', 1)
  expect(series(await scrape(metrics), 'sluice_setup_seconds_count')['clock=kernel,route=mail']).toBe(1)
})

test('M2: names that are hostile to the format do not break it', async () => {
  const name = 'a"b\\c\nd{e="f"} 5 # é'
  const table = new ConnectionTable()
  table.ingest({ ...NOTHING, settled: [settled('a', { route: name })] })
  const found = await scrape(new Metrics(sources(table, { routes: () => [name] })))
  expect(series(found, 'sluice_connections_opened_total')).toEqual({ [`route=${name}`]: 1 })
})

test('M2: labels are those of the configuration: nothing of what clients send makes a series', async () => {
  const table = new ConnectionTable()
  for (let i = 0; i < 100; i++) table.ingest({ ...NOTHING, settled: [settled(`x${i}`, { client: `10.0.0.${i}:1` })] })
  const before = (await scrape(new Metrics(sources(table)))).length
  for (let i = 0; i < 100; i++)
    table.ingest({
      ...NOTHING,
      settled: [settled(`y${i}`, { client: `10.1.0.${i}:1`, target: `10.9.9.9:${i}`, route: 'gone' })],
    })
  expect((await scrape(new Metrics(sources(table)))).length).toBe(before)
})

test('M2: every family has its help and its type', async () => {
  const { text, contentType } = await new Metrics(sources(new ConnectionTable())).expose()
  expect(contentType).toStartWith('text/plain; version=0.0.4')
  const help = [...text.matchAll(/^# HELP (\S+) (.+)$/gm)].map(([, name]) => name)
  const types = [...text.matchAll(/^# TYPE (\S+) (counter|gauge|histogram)$/gm)].map(([, name]) => name)
  expect(types).toEqual(help)
  expect(help.length).toBeGreaterThan(25)
  // Counters end in _total, as the ecosystem's linters ask.
  for (const [, name] of text.matchAll(/^# TYPE (\S+) counter$/gm)) expect(name).toEndWith('_total')
})

test('M2: ten thousand routes in a scrape do not hold the event loop for long', async () => {
  const table = new ConnectionTable()
  const names = Array.from({ length: 10_000 }, (_, i) => `route-${i}`)
  for (const route of names) table.ingest({ ...NOTHING, settled: [settled(route, { route })] })
  const metrics = new Metrics(sources(table, { routes: () => names }))
  let longest = 0
  let last = performance.now()
  const turning = setInterval(() => {
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }, 1)
  const begun = performance.now()
  const [first, second] = await Promise.all([metrics.expose(), metrics.expose()])
  const took = performance.now() - begun
  clearInterval(turning)
  expect(second).toBe(first)
  const lines = first.text.split('\n').length
  expect(lines).toBeGreaterThan(90_000)
  console.log(`${lines} lines in ${took.toFixed(0)} ms, the event loop held for ${longest.toFixed(0)} ms at most`)
})

test('M2: seconds until certificates expire, and what happened to them', async () => {
  const certificates = {
    views: () => [
      { name: 'a.test', source: 'auto' as const, expiresInSeconds: 3600 },
      { name: 'b.test', source: 'file' as const, expiresInSeconds: 20 },
      { name: 'b.test', source: 'file' as const, expiresInSeconds: -5 },
      { name: 'pending.test', source: 'auto' as const },
    ],
    counts: { issued: 1, renewed: 2, failed: 3, expiring: 0, replaced: 4 },
  }
  const found = await scrape(new Metrics(sources(new ConnectionTable(), { certificates })))
  expect(series(found, 'sluice_certificate_expiry_seconds')).toEqual({
    'name=a.test,source=auto': 3600,
    'name=b.test,source=file': -5,
  })
  expect(series(found, 'sluice_certificate_events_total')).toMatchObject({ 'what=failed': 3, 'what=replaced': 4 })
})
