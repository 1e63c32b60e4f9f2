// How fast each route carries, as a running gateway tells it: a known load over every carrier is in the windows and in the
// history to the byte, a long transfer as it goes and not at its end; and who the clients are.
import { expect, test } from 'bun:test'
import { carriers, echo, type Peer } from './carriers.ts'
import { forward, Gateway, until, type RouteState, type Status } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

interface Moved {
  bytesIn: number
  bytesOut: number
  opened: number
  closed: number
}
type Rates = Record<'1s' | '10s' | '60s', Moved>
type Route = RouteState & { bytesIn: number; bytesOut: number; rates: Rates }
type Minutes = (Moved & { at: string })[]

const CHUNK = 40_000
const PACE_MS = 100
/** Different totals of a route that carries all the time: of one that tells at the end there would be two. */
const STEPS = 4

const routesOf = async (gateway: Gateway) => (await gateway.routes()) as Route[]
const statusOf = async (gateway: Gateway) => (await gateway.status()) as Status & { rates: Rates; history: Minutes }
const sum = <K extends string>(list: Record<K, number>[], field: K) => list.reduce((all, one) => all + one[field], 0)
/** Of the last minute. */
const carried = ({ '60s': minute }: Rates) => ({
  bytesIn: Math.round(minute.bytesIn * 60),
  bytesOut: Math.round(minute.bytesOut * 60),
  opened: Math.round(minute.opened * 60),
  closed: Math.round(minute.closed * 60),
})
const totalOf = ({ bytesIn, bytesOut, total, connections }: Route) => ({
  bytesIn,
  bytesOut,
  opened: total,
  closed: total - connections,
})

test('M2 G19: rates and history of a known load over every carrier, while it goes on and to the byte at the end', async () => {
  const all = await carriers()
  await using lab = await Lab.create()
  const targets = all.map((one) => one.listen(lab.backend, echo))
  await using gateway = await Gateway.start(
    lab,
    all.map((one, i) => one.route(one.name, 8400 + i, { host: lab.backend.address4, port: targets[i]!.port })),
  )
  const peers = await Promise.all(all.map((one, i) => one.connect(lab.client, lab.gateway.clientSide4, 8400 + i)))
  // Each goes on until its totals were seen to grow step by step, and nobody lists its connection meanwhile.
  let enough = false
  const talk = async (peer: Peer): Promise<number> => {
    let said = 0
    while (!enough) {
      peer.write(Buffer.alloc(CHUNK, 'x'))
      said += CHUNK
      await until(() => peer.received === said, 20_000, 'the echo comes back')
      await Bun.sleep(PACE_MS)
    }
    return said
  }
  const talking = Promise.all(peers.map(talk))
  const seen = new Map(all.map(({ name }) => [name as string, new Set<number>()]))
  const fastest = new Map<string, number>()
  const grows = until(
    async () => {
      for (const { name, bytesIn, rates } of await routesOf(gateway)) {
        seen.get(name)!.add(bytesIn)
        fastest.set(name, Math.max(fastest.get(name) ?? 0, rates['1s'].bytesIn))
      }
      return [...seen.values()].every(({ size }) => size >= STEPS) && [...fastest.values()].every((rate) => rate > 0)
    },
    30_000,
    'the totals of every route grow while it carries, and it has a rate',
  ).finally(() => (enough = true))
  const [said] = await Promise.all([talking, grows])
  for (const [i, { name }] of all.entries())
    console.log(
      `${name}: ${said[i]} bytes, ${seen.get(name)!.size} steps, ${Math.round(fastest.get(name)!)} B/s at most`,
    )
  expect(gateway.records()).toEqual([])
  for (const [i, one] of all.entries()) {
    const found = await until(
      async () => {
        const route = (await routesOf(gateway)).find(({ name }) => name === one.name)!
        return Bun.deepEquals(carried(route.rates), totalOf(route)) && route.bytesIn >= said[i]! && route
      },
      20_000,
      `the last minute of ${one.name} has all that it ever carried`,
    )
    const payload = said[i]!
    // The kernel's count is an estimate; the others know.
    const few = one.carrier === 'kernel' ? payload / 100 : 0
    expect([one.name, Math.abs(found.bytesIn - payload - one.prefix) <= few]).toEqual([one.name, true])
    expect([one.name, Math.abs(found.bytesOut - payload) <= few]).toEqual([one.name, true])
    peers[i]!.finish()
  }
  await gateway.recordsOf(all.length)
  const routes = await until(
    async () => {
      const routes = await routesOf(gateway)
      return routes.every((route) => Bun.deepEquals(carried(route.rates), totalOf(route))) && routes
    },
    20_000,
    'so it is when all of them have closed',
  )
  const status = await statusOf(gateway)
  const totals = routes.map(totalOf)
  const gatewayTotal = (['bytesIn', 'bytesOut', 'opened', 'closed'] as const).map((field) => sum(totals, field))
  expect(Object.values(carried(status.rates))).toEqual(gatewayTotal)
  expect((['bytesIn', 'bytesOut', 'opened', 'closed'] as const).map((field) => sum(status.history, field))).toEqual(
    gatewayTotal,
  )
  for (const route of routes) {
    const { history } = await gateway.ask<{ history: Minutes }>(`/v1/routes/${route.name}/history`)
    expect([route.name, sum(history, 'bytesIn'), sum(history, 'opened')]).toEqual([route.name, route.bytesIn, 1])
    expect(history.map(({ at }) => at)).toEqual(history.map(({ at }) => new Date(at).toISOString()).toSorted())
  }
  expect((await gateway.ask<{ status: number }>('/v1/routes/nobody/history')).status).toBe(404)
  const text = (await gateway.cli('status', '--admin', gateway.socket)).stdout
  expect(text).toMatch(/rates:\n +1s: in .*\/s, out .*\/s, .* connections\/s\n +10s: .*\n +60s: /)
  expect(text).not.toContain('history')
  expect((await gateway.cli('routes', '--admin', gateway.socket)).stdout).toMatch(/IN +OUT +IN\/S +OUT\/S +WHY/)
}, 120_000)

test('M2: the rates of a gateway that took over flows are not what they carried before', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('kernel', 8400, [{ host: lab.backend.address4, port: backend.port }])],
    { config: { kernel: { onStop: 'keep' } } },
  )
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say('x'.repeat(50_000))
  await until(async () => (await routesOf(gateway))[0]!.bytesIn >= 50_000, 10_000, 'it is counted')
  await gateway.stop()
  await talker.say('y'.repeat(60_000))
  await gateway.restart()
  await until(async () => (await routesOf(gateway))[0]!.bytesIn >= 110_000, 10_000, 'and what it carried meanwhile')
  await talker.say('z'.repeat(3000))
  const route = await until(
    async () => {
      const [route] = await routesOf(gateway)
      return carried(route!.rates).bytesOut >= 3000 && route
    },
    10_000,
    'what it carries now has a rate',
  )
  expect(carried(route.rates)).toEqual({ bytesIn: 3000, bytesOut: 3000, opened: 0, closed: 0 })
  await talker.close()
}, 60_000)

test('M2: clients by their live connections over every plane, and none that has gone', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
  ])
  const connect = (host: string, port: number) => Talker.connect(lab.client, host, port)
  const { clientSide4, clientSide6 } = lab.gateway
  const talkers = [await connect(clientSide4, 8400), await connect(clientSide4, 8401), await connect(clientSide6, 8401)]
  for (const talker of talkers) await talker.say('x'.repeat(2000))
  await visit(lab.client, clientSide6, 8401)
  await gateway.recordsOf(1)
  const expected = [
    { client: lab.client.address4, connections: 2, bytesIn: 4000, bytesOut: 4000, routes: ['kernel', 'user'] },
    { client: lab.client.address6, connections: 1, bytesIn: 2000, bytesOut: 2000, routes: ['user'] },
  ]
  const ask = (query = '') => gateway.ask<{ status: number; clients: object[]; total: number }>(`/v1/clients${query}`)
  await until(async () => Bun.deepEquals((await ask()).clients, expected), 5000, 'both are listed with their bytes')
  expect(await ask('?limit=1')).toEqual({ status: 200, clients: [expected[0]!], total: 2 })
  for (const limit of ['0', '-1', 'all', '1e9', '10001']) expect((await ask(`?limit=${limit}`)).status).toBe(400)
  for (const talker of talkers) await talker.close()
  await gateway.recordsOf(4)
  expect(await ask()).toEqual({ status: 200, clients: [], total: 0 })
}, 30_000)
