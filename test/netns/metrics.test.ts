// What is counted of a real gateway's traffic: metrics, totals that never go back over restarts and crashes, and refusals.
import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseMetrics, series, type Sample } from '../observe/exposition.ts'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

async function scrape(gateway: Gateway): Promise<Sample[]> {
  const answer = await fetch('http://sluice/metrics', { unix: gateway.socket } as RequestInit)
  expect(answer.headers.get('content-type')).toStartWith('text/plain; version=0.0.4')
  return parseMetrics(await answer.text())
}
const values = async (gateway: Gateway, name: string) => series(await scrape(gateway), name)

test('M2: a scrape shows the traffic of both planes, target by target', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
  ])
  const live = await Promise.all([8400, 8401].map((port) => Talker.connect(lab.client, lab.gateway.clientSide4, port)))
  for (const talker of live) await talker.say('x'.repeat(3000))
  for (const port of [8400, 8401]) await visit(lab.client, lab.gateway.clientSide4, port, 'y'.repeat(1000))
  await gateway.recordsOf(2)
  // Live connections are in it, with what they carried so far.
  await until(
    async () => {
      const { 'route=kernel': kernel, 'route=user': user } = await values(gateway, 'sluice_receive_bytes_total')
      return kernel === 4000 && user === 4000
    },
    5000,
    'every byte is counted',
  )
  const found = await scrape(gateway)
  expect(series(found, 'sluice_transmit_bytes_total')).toEqual({ 'route=kernel': 4000, 'route=user': 4000 })
  expect(series(found, 'sluice_connections')).toMatchObject({
    'carrier=kernel,route=kernel': 1,
    'carrier=user,route=kernel': 0,
    'carrier=kernel,route=user': 0,
  })
  expect(series(found, 'sluice_connections_opened_total')).toEqual({ 'route=kernel': 2, 'route=user': 2 })
  expect(series(found, 'sluice_route_active')).toEqual({
    'carrier=kernel,route=kernel': 1,
    'carrier=user,route=user': 1,
  })
  expect(series(found, 'sluice_connections_closed_total')).toEqual({
    'reason=finished,route=kernel': 1,
    'reason=finished,route=user': 1,
  })
  const packets = series(found, 'sluice_receive_packets_total')
  expect(packets['route=kernel']).toBeGreaterThan(5)
  const target = `${lab.backend.address4}:${backend.port}`
  for (const [name, value] of [
    ['sluice_target_up', 1],
    ['sluice_target_connections', 1],
    ['sluice_target_connections_total', 2],
    ['sluice_target_receive_bytes_total', 4000],
  ] as const)
    expect(series(found, name)).toEqual({
      [`route=kernel,target=${target}`]: value,
      [`route=user,target=${target}`]: value,
    })
  expect(series(found, 'sluice_kernel_elements')['']).toBeGreaterThan(0)
  expect(series(found, 'sluice_conntrack_limit')['']).toBeGreaterThan(0)
  expect(series(found, 'sluice_anomalies_total')).toEqual({ '': 0 })
  expect((await gateway.ask<{ conntrack: object }>('/v1/status')).conntrack).toMatchObject({
    entries: expect.any(Number),
    limit: expect.any(Number),
  })
}, 30_000)

test('M2: the setup of kernel flows is measured, of one in eight', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('web', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  // A connection that is over within a few milliseconds is told as a whole; these last.
  const talkers = await Promise.all(
    Array.from({ length: 200 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8400)),
  )
  for (const talker of talkers) await talker.say()
  const counts = await until(
    async () => {
      const found = await values(gateway, 'sluice_setup_seconds_count')
      return Object.keys(found).length > 0 && found
    },
    5000,
    'some were measured',
  )
  const [[labels, count]] = Object.entries(counts) as [[string, number]]
  expect(labels).toMatch(/^clock=(kernel|receipt),route=web$/)
  expect(count).toBeLessThan(100)
  const seconds = (await values(gateway, 'sluice_setup_seconds_sum'))[labels]!
  console.log(`${count} of 200 measured, ${((seconds / count) * 1e6).toFixed(0)} us on average (${labels})`)
  expect(seconds).toBeGreaterThan(0)
}, 30_000)

for (const how of ['stop', 'kill'] as const)
  test(`I8: totals go on after a ${how}, live flows are counted once, and what the kernel carried meanwhile is in them`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: backend.port }]
    await using gateway = await Gateway.start(
      lab,
      [forward('kernel', 8400, to), forward('user', 8401, to, { forwardingEngine: 'user' })],
      { config: { kernel: { onStop: 'keep' } } },
    )
    const { clientSide4 } = lab.gateway
    const lasting = await Talker.connect(lab.client, clientSide4, 8400)
    await lasting.say('x'.repeat(2000))
    for (const port of [8400, 8401]) await visit(lab.client, clientSide4, port, 'y'.repeat(500))
    await gateway.recordsOf(2)
    const opened = async () => values(gateway, 'sluice_connections_opened_total')
    const received = async () => values(gateway, 'sluice_receive_bytes_total')
    await until(async () => (await received())['route=kernel'] === 2500, 5000, 'counted')
    expect(await opened()).toEqual({ 'route=kernel': 2, 'route=user': 1 })
    if (how === 'stop') expect(await gateway.stop()).toBe(0)
    else {
      // What is stored every ten seconds has all of it.
      await until(
        async () => {
          const stored = (await Bun.file(join(gateway.directory, 'state/totals.json')).json()) as {
            routes: Record<string, { total: number; bytesIn: number }>
          }
          return stored.routes.kernel!.bytesIn === 2500 && stored.routes.user!.total === 1
        },
        15_000,
        'the totals are stored',
      )
      await gateway.kill9()
    }
    // The kernel forwards without us: a flow that goes on, and one that comes and goes.
    await lasting.say('z'.repeat(3000))
    await visit(lab.client, clientSide4, 8400, 'w'.repeat(700))
    await gateway.restart()
    const expected = { 'route=kernel': 3, 'route=user': 1 }
    await until(async () => Bun.deepEquals(await opened(), expected), 5000, 'every connection is counted once')
    await until(async () => (await received())['route=kernel'] === 6200, 5000, 'every byte is counted once')
    expect((await received())['route=user']).toBe(500)
    await lasting.close()
    const closed = () => values(gateway, 'sluice_connections_closed_total')
    await until(async () => (await closed())['reason=finished,route=kernel'] === 3, 5000, 'all of them are over')
    expect([await opened(), (await received())['route=kernel']]).toEqual([expected, 6200])
    expect(await values(gateway, 'sluice_anomalies_total')).toEqual({ '': 0 })
  }, 60_000)

test('I8: totals that are damaged are put aside, and the gateway starts', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('web', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  await gateway.recordsOf(1)
  expect(await gateway.stop()).toBe(0)
  writeFileSync(join(gateway.directory, 'state/totals.json'), '{"version":1,"at":')
  await gateway.restart()
  expect(gateway.logText()).toContain('totals.json.bad')
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  await until(async () => (await gateway.route('web')).total === 1, 5000, 'it counts from nothing')
}, 30_000)

test('I10: refused connections are counted by reason and mode, and are a line or two in the access log', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const security = { ipBlockList: [lab.client.address4] }
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to, {}, { security }),
    forward('watching', 8401, to, {}, { security: { ...security, mode: 'observe' } }),
    forward('user', 8402, to, { forwardingEngine: 'user' }, { security }),
  ])
  const { clientSide4 } = lab.gateway
  const flood = 200
  for (const port of [8400, 8402])
    await Promise.all(
      Array.from({ length: flood }, () =>
        visit(lab.client, clientSide4, port).then(
          () => Promise.reject(new Error('served')),
          () => {},
        ),
      ),
    )
  for (let i = 0; i < 3; i++) await visit(lab.client, clientSide4, 8401)
  const wanted = {
    'mode=enforce,reason=route_ip_blocked,route=kernel': flood,
    'mode=enforce,reason=route_ip_blocked,route=user': flood,
    'mode=observe,reason=route_ip_blocked,route=watching': 3,
  }
  const refused = await until(
    async () => {
      const found = await values(gateway, 'sluice_connections_refused_total')
      return (
        Object.keys(wanted).every((key) => key in found && found[key]! >= wanted[key as keyof typeof wanted]) && found
      )
    },
    10_000,
    'all of them are counted',
  )
  expect(refused).toEqual(wanted)
  expect(await gateway.stop()).toBe(0)
  const lines = gateway.records().filter(({ event }) => event === 'refused') as unknown as {
    route: string
    reason: string
    count: number
    mode?: string
  }[]
  const sum = (route: string) =>
    lines.filter((line) => line.route === route).reduce((total, { count }) => total + count, 0)
  expect([sum('kernel'), sum('user'), sum('watching')]).toEqual([flood, flood, 3])
  expect(lines.length).toBeLessThanOrEqual(6)
  expect(lines.filter((line) => line.mode === 'observe').map(({ route }) => route)).toContain('watching')
}, 60_000)
