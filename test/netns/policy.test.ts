// Limits and lists in the kernel, for routes of every carrier: one too many is refused with a reset before anybody sees it,
// what is closed makes room, and every refusal is counted by route and reason.
import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, until, type RouteState } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

type Counts = RouteState & { refused: Record<string, number>; observed: Record<string, number> }

const counts = async (gateway: Gateway, name: string) => (await gateway.route(name)) as Counts

/** The kernel's counters are read every two seconds. */
const refusedIs = (gateway: Gateway, name: string, refused: Record<string, number>) =>
  until(async () => Bun.deepEquals((await counts(gateway, name)).refused, refused), 8000, `${name} has refused so many`)
    .catch(async () => expect((await counts(gateway, name)).refused).toEqual(refused)) // prettier-ignore

const refused = (from: Namespace, host: string, port: number, localAddress?: string) =>
  expect(Talker.connect(from, host, port, localAddress ? { localAddress } : {})).rejects.toThrow('refused')

/** Opens `count` connections at once; resolves to those that stand. */
async function burst(from: Namespace, host: string, port: number, count: number, localAddress?: string) {
  const all = await Promise.allSettled(
    Array.from({ length: count }, () => Talker.connect(from, host, port, localAddress ? { localAddress } : {})),
  )
  for (const one of all) if (one.status === 'rejected') expect(String(one.reason)).toContain('refused')
  return all.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
}

const both = (lab: Lab, port: number) => [lab.backend.address4, lab.backend.address6].map((host) => ({ host, port }))

/** A second client behind the same link, with an address of each family. */
async function secondClient(lab: Lab) {
  await lab.client.must(['ip', 'addr', 'add', '10.99.1.3/24', 'dev', 'uplink'])
  await lab.client.must(['ip', 'addr', 'add', 'fd00:99:1::3/64', 'dev', 'uplink', 'nodad'])
  return { '4': '10.99.1.3', '6': 'fd00:99:1::3' }
}

/** Those whose route the kernel can tell from the port. */
const CARRIERS = ['kernel', 'user', 'terminate', 'handler'] as const

/** A route of each carrier with the same rules, each on a port of its own. */
function everyCarrier(targets: { host: string; port: number }[], security: object) {
  const rest = { security, timeouts: { firstByte: '30s', handshake: '30s' } }
  const handler = join('/tmp', `sluice-policy-handler-${process.pid}.ts`)
  writeFileSync(handler, `export default { async connect(socket) { await socket.readable.pipeTo(socket.writable) } }`)
  return [
    forward('kernel', 8400, targets, {}, rest),
    forward('user', 8401, targets, { forwardingEngine: 'user' }, rest),
    forward('terminate', 8402, targets, { tls: { mode: 'terminate', certificate: 'self-signed' } }, rest),
    { name: 'handler', match: { ports: 8403 }, action: { type: 'socket-handler', handler }, ...rest },
  ]
}

test('H14, I5: maxConnections: N+1 is refused with a reset whatever the carrier, a close makes room, v4 and v6 count together', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, everyCarrier(both(lab, backend.port), { maxConnections: 3 }))
  const [four, six] = [lab.gateway.clientSide4, lab.gateway.clientSide6]
  for (const [i, name] of CARRIERS.entries()) {
    const port = 8400 + i
    expect((await gateway.route(name)).carrier).toBe(name === 'kernel' ? 'kernel' : 'user')
    const held = [
      await Talker.connect(lab.client, four, port),
      await Talker.connect(lab.client, six, port),
      await Talker.connect(lab.client, four, port),
    ]
    for (const host of [four, six, four]) await refused(lab.client, host, port)
    await held[0]!.close()
    held[0] = await until(() => Talker.connect(lab.client, six, port), 3000, `${name}: a close has made room`)
    await refused(lab.client, four, port)
    // A client that leaves while its target is dialled is never seen there.
    const seen = Math.min(i + 1, 2) * 4
    await until(() => backend.clients.length === seen, 5000, `${name}: the target has seen who was admitted`)
    for (const talker of held) await talker.close()
  }
  // What waited for room was refused as well: only what is sure is compared.
  for (const name of CARRIERS)
    await until(async () => (await counts(gateway, name)).refused.route_limit! >= 4, 8000, `${name} counts refusals`)
  // Four of each carrier and not one more, refused ones have none.
  const records = await gateway.recordsOf(CARRIERS.length * 4)
  expect(
    Object.fromEntries(CARRIERS.map((name) => [name, records.filter((one) => one.route === name).length])),
  ).toEqual(Object.fromEntries(CARRIERS.map((name) => [name, 4])))
  // Nothing of the TLS routes got as far as the target.
  expect(backend.clients.length).toBe(8)
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

test('H14, I5: maxConnectionsPerIp: each client has its own, whatever the carrier; the kernel forgets idle clients', async () => {
  await using lab = await Lab.create()
  const other = await secondClient(lab)
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, everyCarrier(both(lab, backend.port), { maxConnectionsPerIp: 2 }))
  const clients = async () =>
    (await Promise.all(['clients4', 'clients6'].map((set) => lab.gateway.must(['nft', 'list', 'set', 'inet', 'sluice', set]))))
      .join('')
      .match(/ct count/g)?.length ?? 0 // prettier-ignore
  for (const [i, name] of CARRIERS.entries())
    for (const [host, first, second] of [
      [lab.gateway.clientSide4, lab.client.address4, other[4]],
      [lab.gateway.clientSide6, lab.client.address6, other[6]],
    ] as const) {
      const port = 8400 + i
      const connect = () => Talker.connect(lab.client, host, port, { localAddress: first })
      const held = [await connect(), await connect()]
      await refused(lab.client, host, port, first)
      const others = await burst(lab.client, host, port, 2, second)
      expect([name, host, others.length]).toEqual([name, host, 2])
      await refused(lab.client, host, port, second)
      expect(await clients()).toBeGreaterThanOrEqual(2)
      await held.pop()!.close()
      held.push(await until(connect, 3000, `${name}: a close has made room`))
      for (const talker of [...held, ...others]) await talker.close()
    }
  for (const name of CARRIERS)
    await until(async () => (await counts(gateway, name)).refused.route_ip_limit! >= 4, 8000, `${name} counts refusals`)
  await gateway.recordsOf(CARRIERS.length * 2 * 5)
  await until(async () => (await clients()) === 0, 10_000, 'the kernel has forgotten the clients')
}, 90_000)

test('H14, I5: connectionRatePerIp: so many at once, then at the rate; another client has its own, whatever the carrier', async () => {
  await using lab = await Lab.create()
  const other = await secondClient(lab)
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    everyCarrier(both(lab, backend.port), { connectionRatePerIp: '4/minute' }),
  )
  const host = lab.gateway.clientSide4
  for (const [i, name] of CARRIERS.entries()) {
    const here = await burst(lab.client, host, 8400 + i, 9)
    const there = await burst(lab.client, host, 8400 + i, 5, other[4])
    expect([name, here.length, there.length]).toEqual([name, 4, 4])
    const seen = Math.min(i + 1, 2) * 8
    await until(() => backend.clients.length === seen, 5000, `${name}: the target has seen who was admitted`)
    for (const talker of [...here, ...there]) await talker.close()
  }
  for (const name of CARRIERS) await refusedIs(gateway, name, { route_rate: 6 })
  expect(backend.clients.length).toBe(16)
  await gateway.recordsOf(CARRIERS.length * 8)
}, 60_000)

test('H14: another limit counts at once, also for clients that the kernel knows already', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const route = (security: object) => [forward('kernel', 8400, to, { forwardingEngine: 'nftables' }, { security })]
  await using gateway = await Gateway.start(lab, route({ maxConnectionsPerIp: 1, connectionRatePerIp: '3/hour' }))
  const host = lab.gateway.clientSide4
  const reload = async (security: object) => {
    gateway.write(route(security))
    expect(await gateway.reload()).toMatchObject({ status: 200 })
  }
  const first = await Talker.connect(lab.client, host, 8400)
  await refused(lab.client, host, 8400)
  // Its element is in use: the number in it is the old one.
  await reload({ maxConnectionsPerIp: 3, connectionRatePerIp: '3/hour' })
  const second = await Talker.connect(lab.client, host, 8400)
  const third = await Talker.connect(lab.client, host, 8400)
  // The bucket of three an hour is empty.
  await refused(lab.client, host, 8400)
  await reload({ connectionRatePerIp: '30/minute' })
  const more = await burst(lab.client, host, 8400, 10)
  expect(more.length).toBe(10)
  for (const talker of [first, second, third, ...more]) await talker.close()
  await gateway.recordsOf(13)
}, 30_000)

test('I5, I6: global limits count the connections of all routes and carriers together', async () => {
  await using lab = await Lab.create()
  const other = await secondClient(lab)
  const backend = echoBackend(lab.backend)
  const host = lab.gateway.clientSide4
  for (const [limits, reason, allowed] of [
    [{ maxConnections: 5 }, 'global_limit', [5, 0]],
    [{ maxConnectionsPerIp: 5 }, 'global_ip_limit', [5, 5]],
    [{ connectionRatePerIp: '5/hour' }, 'global_rate', [5, 5]],
  ] as const) {
    await using gateway = await Gateway.start(lab, everyCarrier(both(lab, backend.port), {}), { config: { limits } })
    const ports = [8400, 8401, 8402, 8403, 8400, 8401, 8402, 8403, 8400, 8401]
    const held: Talker[] = []
    const stand: number[] = []
    for (const address of [lab.client.address4, other[4]]) {
      const before = held.length
      for (const port of ports) held.push(...(await burst(lab.client, host, port, 1, address)))
      stand.push(held.length - before)
    }
    expect([reason, ...stand]).toEqual([reason, ...allowed])
    await until(
      async () => {
        const all = await Promise.all(CARRIERS.map((name) => counts(gateway, name)))
        return all.reduce((sum, one) => sum + (one.refused[reason] ?? 0), 0) === 20 - held.length
      },
      8000,
      `${reason}: every refusal is counted`,
    )
    for (const talker of held) await talker.close()
    await gateway.recordsOf(held.length)
    expect(await gateway.stop()).toBe(0)
  }
}, 90_000)

test('I6: a burst never exceeds the maximum', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, everyCarrier(both(lab, backend.port), { maxConnections: 10 }))
  const host = lab.gateway.clientSide4
  let stood = 0
  for (const [i, name] of CARRIERS.entries())
    for (let round = 0; round < 3; round++) {
      const held = await until(
        async () => {
          const some = await burst(lab.client, host, 8400 + i, 60)
          stood += some.length
          expect(some.length).toBeLessThanOrEqual(10)
          if (some.length > 0) return some
        },
        5000,
        `${name}: some of a burst stand`,
      )
      // What stands fills the route together with nothing else: soon there is room for exactly the rest.
      await until(
        async () => {
          const one = await burst(lab.client, host, 8400 + i, 1)
          stood += one.length
          held.push(...one)
          expect(held.length).toBeLessThanOrEqual(10)
          return held.length === 10
        },
        5000,
        `${name}: the route is full (${held.length})`,
      )
      if (i === 0) await until(() => backend.open.size === 10, 3000, 'the target has ten')
      for (const talker of held) await talker.close()
    }
  const records = await gateway.recordsOf(stood)
  expect(records.length).toBe(stood)
}, 90_000)

test('H13, I3: a blocked client and the block action are refused in the kernel; the target sees nothing, there is no record', async () => {
  await using lab = await Lab.create()
  const other = await secondClient(lab)
  const backend = echoBackend(lab.backend)
  const to = both(lab, backend.port)
  const lists = { ipAllowList: ['10.99.*', 'fd00:99::/32'], ipBlockList: [other[4], `${other[6]}-${other[6]}f`] }
  await using gateway = await Gateway.start(lab, [
    forward('lists', 8400, to, {}, { security: lists }),
    { name: 'block', match: { ports: 8401 }, action: { type: 'block' } },
    forward('observe', 8402, to, {}, { security: { ...lists, mode: 'observe' } }),
    forward('observe-user', 8403, to, { forwardingEngine: 'user' }, { security: { ...lists, mode: 'observe' } }),
  ])
  const four = [lab.gateway.clientSide4, lab.client.address4, other[4]] as const
  const six = [lab.gateway.clientSide6, lab.client.address6, other[6]] as const
  let visits = 0
  for (const [host, welcome, blocked] of [four, six]) {
    const talker = await Talker.connect(lab.client, host, 8400, { localAddress: welcome })
    await talker.say()
    await talker.close()
    visits++
    await refused(lab.client, host, 8400, blocked)
    await refused(lab.client, host, 8401)
    for (const port of [8402, 8403])
      for (const localAddress of [welcome, blocked]) {
        const observed = await Talker.connect(lab.client, host, port, { localAddress })
        await observed.say()
        await observed.close()
        visits++
      }
  }
  // A client on the gateway itself hears it too.
  await refused(lab.gateway, lab.gateway.clientSide4, 8401)
  await refusedIs(gateway, 'lists', { route_ip_blocked: 2 })
  await refusedIs(gateway, 'block', { blocked: 3 })
  // Nobody was refused by those in observe, and what they would have refused is counted apart, once.
  for (const name of ['observe', 'observe-user']) {
    await until(
      async () => (await counts(gateway, name)).observed.route_ip_blocked! >= 2,
      8000,
      'observed ones are counted',
    )
    const { observed, refused } = await counts(gateway, name)
    expect({ name, observed, refused }).toEqual({ name, observed: { route_ip_blocked: 2 }, refused: {} })
  }
  expect(backend.clients.length).toBe(visits)
  await gateway.recordsOf(visits)
}, 30_000)
