// Who reaches what, and from where it seems to come: clients on the gateway itself, IPv6, several targets, ranges,
// addresses, and traffic that only passes by.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { elements, forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

/** The carriers of the connections that are there, in the order in which they came. */
const carriers = async (gateway: Gateway) =>
  (await gateway.connections())
    .toSorted((a, b) => Date.parse(a.openedAt) - Date.parse(b.openedAt))
    .map((one) => one.carrier)

test('H17: clients on the gateway itself: its own addresses by the kernel, loopback by the user-space twin', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('both', 8400, [
      { host: lab.backend.address4, port: backend.port },
      { host: lab.backend.address6, port: backend.port },
    ]),
  ])
  for (const [host, carrier] of [
    [lab.gateway.clientSide4, 'kernel'],
    [lab.gateway.backendSide4, 'kernel'],
    [lab.gateway.clientSide6, 'kernel'],
    ['127.0.0.1', 'user'],
    ['::1', 'user'],
  ] as const) {
    const talker = await Talker.connect(lab.gateway, host, 8400)
    await talker.say()
    await until(async () => (await gateway.connections()).length === 1, 2000, 'it is listed')
    expect([host, ...(await carriers(gateway))]).toEqual([host, carrier])
    await talker.close()
    await until(async () => (await gateway.connections()).length === 0, 2000, 'it is gone')
  }
})

test('H12: IPv6 end to end, through each carrier; the record spells it so', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address6, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
  ])
  for (const port of [8400, 8401]) {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide6, port)
    await talker.say('x'.repeat(5000))
    const [one] = await until(
      async () => {
        const all = await gateway.connections()
        return all.length === 1 && all[0]!.state === 'open' && all
      },
      2000,
      'it is listed',
    )
    expect(one).toMatchObject({
      client: `[${lab.client.address6}]:${talker.localPort}`,
      listener: `[${lab.gateway.clientSide6}]:${port}`,
      target: `[${lab.backend.address6}]:${backend.port}`,
    })
    await talker.close()
    await until(async () => (await gateway.connections()).length === 0, 2000, 'it is gone')
  }
  const records = await gateway.recordsOf(2)
  expect(records.map((record) => [record.bytesIn, record.bytesOut])).toEqual([
    [5000, 5000],
    [5000, 5000],
  ])
  expect(backend.clients).toEqual([lab.gateway.backendSide6, lab.gateway.backendSide6])
})

test('IPv4 clients of a route whose only target has IPv6 are served in user space', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('six', 8400, [{ host: lab.backend.address6, port: backend.port }]),
  ])
  await visit(lab.client, lab.gateway.clientSide6, 8400)
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  expect((await gateway.recordsOf(2)).map((record) => record.carrier).toSorted()).toEqual(['kernel', 'user'])
})

test('H11: preserveSourceIp: the target sees the client, else the gateway', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const both = [
    { host: lab.backend.address4, port: backend.port },
    { host: lab.backend.address6, port: backend.port },
  ]
  await using gateway = await Gateway.start(lab, [
    forward('preserve', 8400, both, { preserveSourceIp: true }),
    forward('masquerade', 8401, both),
  ])
  for (const port of [8400, 8401])
    for (const host of [lab.gateway.clientSide4, lab.gateway.clientSide6]) await visit(lab.client, host, port)
  expect(backend.clients).toEqual([
    lab.client.address4,
    lab.client.address6,
    lab.gateway.backendSide4,
    lab.gateway.backendSide6,
  ])
  const records = await gateway.recordsOf(4)
  expect(records.map((record) => record.client.replace(/:\d+$/, '')).toSorted()).toEqual([
    lab.client.address4,
    lab.client.address4,
    `[${lab.client.address6}]`,
    `[${lab.client.address6}]`,
  ])
})

test('E6, E7: several targets by weight; with source-hash a client stays with its target', async () => {
  await using lab = await Lab.create()
  const backends = ['a', 'b', 'c'].map((name) => echoBackend(lab.backend, { name }))
  const targets = backends.map((backend, i) => ({
    host: lab.backend.address4,
    port: backend.port,
    weight: [1, 3, 0][i],
  }))
  const even = targets.map((target) => ({ ...target, weight: 1 }))
  await using gateway = await Gateway.start(lab, [
    forward('weighted', 8400, targets),
    forward('sticky', 8401, even, { balance: 'source-hash' }),
    forward('user', 8402, even, { forwardingEngine: 'user' }),
  ])
  const went = async (port: number, count: number, from = lab.client) => {
    const counts: Record<string, number> = { a: 0, b: 0, c: 0 }
    for (let i = 0; i < count; i++) {
      const talker = await Talker.connect(from, lab.gateway.clientSide4, port)
      counts[(await talker.read(2)).trim()]!++
      await talker.close()
    }
    return counts
  }
  const weighted = await went(8400, 200)
  expect(weighted.c).toBe(0)
  // 50 expected, standard deviation 6.1: seven of them on either side.
  expect(weighted.a).toBeGreaterThan(7)
  expect(weighted.a).toBeLessThan(93)
  expect(weighted.a! + weighted.b!).toBe(200)
  expect(Object.values(await went(8401, 20)).toSorted()).toEqual([0, 0, 20])
  expect(await went(8402, 30)).toEqual({ a: 10, b: 10, c: 10 })
  // 100 clients with addresses of their own are spread.
  for (let i = 0; i < 40; i++) await lab.client.must(['ip', 'addr', 'add', `10.99.1.${100 + i}/24`, 'dev', 'uplink'])
  const counts: Record<string, number> = { a: 0, b: 0, c: 0 }
  for (let i = 0; i < 40; i++) {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8401, {
      localAddress: `10.99.1.${100 + i}`,
    })
    counts[(await talker.read(2)).trim()]!++
    await talker.close()
  }
  expect(Object.values(counts).every((count) => count > 0)).toBe(true)
  expect((await gateway.status()).anomalies).toBe(0)
}, 20_000)

test('transit traffic to the port of a route is left alone', async () => {
  await using lab = await Lab.create()
  const [ours, theirs] = [echoBackend(lab.backend, { name: 'o' }), echoBackend(lab.backend, { port: 8400, name: 't' })]
  await using gateway = await Gateway.start(lab, [
    forward('ours', 8400, [{ host: lab.backend.address4, port: ours.port }]),
  ])
  for (const host of [lab.backend.address4, lab.backend.address6]) {
    const passing = await Talker.connect(lab.client, host, 8400)
    expect(await passing.read(1)).toBe('t')
    await passing.close()
  }
  expect(theirs.clients).toEqual([lab.client.address4, lab.client.address6])
  const one = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  expect(await one.read(1)).toBe('o')
  await until(async () => (await gateway.connections()).length === 1, 5000, 'this one is a connection of ours')
  await one.close()
  expect((await gateway.recordsOf(1)).length).toBe(1)
})

test("E1, E6: port ranges, lists of ports, and port: 'preserve', through each carrier", async () => {
  await using lab = await Lab.create()
  const first = 8500
  const backends = Array.from({ length: 5 }, (_, i) => echoBackend(lab.backend, { port: first + i, name: String(i) }))
  const one = echoBackend(lab.backend, { name: '*' })
  const preserve = [{ host: lab.backend.address4, port: 'preserve' }]
  await using gateway = await Gateway.start(lab, [
    forward('range', [{ from: first, to: first + 2 }, first + 4], preserve),
    forward('many-to-one', [{ from: 8600, to: 8605 }], [{ host: lab.backend.address4, port: one.port }]),
  ])
  const says = async (port: number) => {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, port)
    const heard = await talker.read(1)
    await talker.close()
    return heard
  }
  for (const i of [0, 1, 2, 4]) expect(await says(first + i)).toBe(String(i))
  await expect(says(first + 3)).rejects.toThrow('refused')
  for (const port of [8600, 8603, 8605]) expect(await says(port)).toBe('*')
  expect((await gateway.recordsOf(7)).map((record) => record.carrier)).toEqual(Array(7).fill('kernel'))
  const { listen, listen_range } = (await elements(lab.gateway))!
  expect([listen!.length, listen_range!.length]).toEqual([1, 2])
  gateway.write([forward('range', [{ from: first, to: first + 2 }, first + 4], preserve, { forwardingEngine: 'user' })])
  await gateway.reload()
  await gateway.settled()
  for (const i of [0, 1, 2, 4]) expect(await says(first + i)).toBe(String(i))
  expect((await gateway.recordsOf(11)).slice(7).map((record) => record.carrier)).toEqual(Array(4).fill('user'))
  expect(backends.map((backend) => backend.clients.length)).toEqual([2, 2, 2, 0, 2])
})

test('match.addresses: each address has its own route, the rest another, in kernel and user space', async () => {
  await using lab = await Lab.create()
  const names = ['four', 'six', 'rest', 'user']
  const [four, six, rest, user] = names.map((name) => echoBackend(lab.backend, { name: name[0]! }))
  const to = (backend: { port: number } | undefined) => [
    { host: lab.backend.address4, port: backend!.port },
    { host: lab.backend.address6, port: backend!.port },
  ]
  await lab.gateway.must(['ip', 'addr', 'add', '10.99.1.77/24', 'dev', 'to-client'])
  await using gateway = await Gateway.start(lab, [
    forward('four', 8400, to(four), {}, { match: { addresses: [lab.gateway.clientSide4] } }),
    forward('six', 8400, to(six), {}, { match: { addresses: [lab.gateway.clientSide6] } }),
    forward('user', 8400, to(user), { forwardingEngine: 'user' }, { match: { addresses: ['10.99.1.77'] } }),
    forward('rest', 8400, to(rest)),
  ])
  for (const [host, letter] of [
    [lab.gateway.clientSide4, 'f'],
    [lab.gateway.clientSide6, 's'],
    ['10.99.1.77', 'u'],
    [lab.gateway.backendSide4, 'r'],
    [lab.gateway.backendSide6, 'r'],
  ] as const) {
    const talker = await Talker.connect(lab.client, host, 8400)
    expect([host, await talker.read(1)]).toEqual([host, letter])
    await talker.close()
  }
  const carried = (await gateway.recordsOf(5)).map((record) => `${record.route} ${record.carrier}`)
  expect(carried.toSorted()).toEqual(['four kernel', 'rest kernel', 'rest kernel', 'six kernel', 'user user'])
})
