// UDP, which the kernel carries alone: who answers, from where, how a flow is seen and how it ends.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker, udpClient, udpEcho } from './traffic.ts'

const udp = { match: { protocol: 'udp' } }
const end = (host: string, port: number) => (host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
const both = (lab: Lab, port: number | 'preserve') =>
  [lab.backend.address4, lab.backend.address6].map((host) => ({ host, port }))
const lines = (lab: Lab) =>
  [
    [lab.gateway.clientSide4, lab.client.address4, lab.backend.address4],
    [lab.gateway.clientSide6, lab.client.address6, lab.backend.address6],
  ] as const

test('H12, E6: UDP in IPv4 and IPv6, ports kept, ranges and lists: the answer comes from where the client sent', async () => {
  await using lab = await Lab.create()
  const one = await udpEcho(lab.backend)
  const kept = await Promise.all([8501, 8502, 8510].map((port) => udpEcho(lab.backend, { port, name: `${port} ` })))
  const wide = await udpEcho(lab.backend, { name: 'wide ' })
  await using gateway = await Gateway.start(lab, [
    forward('one', 8500, both(lab, one.port), {}, udp),
    forward('kept', [{ from: 8501, to: 8502 }, 8510], both(lab, 'preserve'), {}, udp),
    forward('wide', [{ from: 20_000, to: 20_999 }], both(lab, wide.port), {}, udp),
  ])
  let flows = 0
  for (const [host, address] of lines(lab)) {
    const client = await udpClient(lab.client, address)
    for (const [port, name] of [
      [8500, ''],
      [8501, '8501 '],
      [8502, '8502 '],
      [8510, '8510 '],
      [20_000, 'wide '],
      [20_999, 'wide '],
    ] as const) {
      for (const text of ['first', 'second', 'x'.repeat(1200)])
        expect(await client.ask(text, host, port)).toEqual({ from: `${host}:${port}`, text: `${name}${text}` })
      flows++
    }
    expect(await client.ask('nobody', host, 8503, 200)).toBeUndefined()
    client.close()
  }
  expect(one.clients.length).toBe(2)
  expect(kept.map((backend) => backend.clients.length)).toEqual([2, 2, 2])
  const listed = await until(
    async () => {
      const all = await gateway.connections()
      return all.length === flows && all
    },
    3000,
    `${flows} flows are listed`,
  )
  for (const flow of listed) expect(flow).toMatchObject({ carrier: 'kernel', state: 'open' })
  expect(
    listed
      .filter(({ listener }) => listener.endsWith(':8500'))
      .map(({ target }) => target)
      .toSorted(),
  ).toEqual([end(lab.backend.address4, one.port), end(lab.backend.address6, one.port)].toSorted())
  expect((await gateway.status()).anomalies).toBe(0)
}, 30_000)

test('H12, G14: a UDP flow has one record from its first datagram to its idle timeout', async () => {
  await using lab = await Lab.create()
  const backend = await udpEcho(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('quiet', 8500, both(lab, backend.port), {}, { ...udp, timeouts: { idle: '2s' } }),
  ])
  const client = await udpClient(lab.client, lab.client.address4)
  const host = lab.gateway.clientSide4
  // Never silent for two seconds, and longer there than that: it is one flow.
  for (let i = 0; i < 8; i++) {
    expect(await client.ask('12345678', host, 8500)).toMatchObject({ text: '12345678' })
    await Bun.sleep(400)
  }
  expect(gateway.records()).toEqual([])
  const [record] = await gateway.recordsOf(1, 15_000)
  expect(record).toMatchObject({
    route: 'quiet',
    carrier: 'kernel',
    client: `${lab.client.address4}:${client.port}`,
    listener: `${host}:8500`,
    target: `${lab.backend.address4}:${backend.port}`,
    reason: 'idle_timeout',
  })
  console.log(`bytes ${record!.bytesIn} in, ${record!.bytesOut} out of 64 each`)
  expect(Date.parse(record!.closedAt!) - Date.parse(record!.openedAt)).toBeGreaterThan(3000)
  // Whoever comes back is a new flow.
  expect(await client.ask('again', host, 8500)).toMatchObject({ text: 'again' })
  await gateway.recordsOf(2, 15_000)
}, 60_000)

test('H12: UDP beside a TCP route of the same port, each to its own target', async () => {
  await using lab = await Lab.create()
  const tcp = echoBackend(lab.backend, { name: 't' })
  const datagrams = await udpEcho(lab.backend, { name: 'u' })
  await using gateway = await Gateway.start(lab, [
    forward('tcp', 8500, both(lab, tcp.port)),
    forward('udp', 8500, both(lab, datagrams.port), {}, udp),
  ])
  for (const [host, address] of lines(lab)) {
    const talker = await Talker.connect(lab.client, host, 8500)
    expect(await talker.read(1)).toBe('t')
    await talker.close()
    const client = await udpClient(lab.client, address)
    expect(await client.ask('x', host, 8500)).toEqual({ from: `${host}:8500`, text: 'ux' })
  }
  expect((await gateway.recordsOf(2)).map(({ route }) => route)).toEqual(['tcp', 'tcp'])
  expect((await gateway.connections()).map(({ route }) => route)).toEqual(['udp', 'udp'])
}, 30_000)

test('H12, E7: UDP flows take turns by weight, or follow their client', async () => {
  await using lab = await Lab.create()
  const backends = await Promise.all([...'abc'].map((name) => udpEcho(lab.backend, { name })))
  const targets = backends.flatMap(({ port }, i) => both(lab, port).map((target) => ({ ...target, weight: i + 1 })))
  const even = targets.map((target) => ({ ...target, weight: 1 }))
  await using gateway = await Gateway.start(lab, [
    forward('turns', 8500, targets, {}, udp),
    forward('sticky', 8501, even, { balance: 'source-hash' }, udp),
  ])
  for (const [host, address] of lines(lab)) {
    const went: Record<string, number> = {}
    const sticky = new Set<string>()
    for (let i = 0; i < 60; i++) {
      const client = await udpClient(lab.client, address)
      const { text } = (await client.ask('', host, 8500))!
      // A flow stays where it is.
      for (let again = 0; again < 3; again++) expect((await client.ask('', host, 8500))!.text).toBe(text)
      went[text] = (went[text] ?? 0) + 1
      sticky.add((await client.ask('', host, 8501))!.text)
      client.close()
    }
    console.log(`${host}: ${JSON.stringify(went)}`)
    expect(sticky.size).toBe(1)
    expect(went.a! + went.b! + went.c!).toBe(60)
    expect(Math.abs(went.c! - 30)).toBeLessThanOrEqual(3)
    expect(Math.abs(went.b! - 20)).toBeLessThanOrEqual(3)
  }
  expect((await gateway.status()).anomalies).toBe(0)
}, 30_000)

test('H9, H12: a UDP flow whose target is gone is cut on reload, and goes on with the new one; others stay', async () => {
  await using lab = await Lab.create()
  const [old, next, other] = await Promise.all([...'ono'].map((name) => udpEcho(lab.backend, { name })))
  const routes = (port: number) => [
    forward('moves', 8500, both(lab, port), { forwardingEngine: 'nftables' }, udp),
    forward('stays', 8501, both(lab, other!.port), { forwardingEngine: 'nftables' }, udp),
  ]
  await using gateway = await Gateway.start(lab, routes(old!.port))
  const host = lab.gateway.clientSide4
  const client = await udpClient(lab.client, lab.client.address4)
  expect((await client.ask('', host, 8500))!.text).toBe('o')
  expect((await client.ask('', host, 8501))!.text).toBe('o')
  await until(async () => (await gateway.connections()).length === 2, 3000, 'both are listed')
  gateway.write(routes(next!.port))
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  const [record] = await gateway.recordsOf(1)
  expect(record).toMatchObject({ route: 'moves', target: `${lab.backend.address4}:${old!.port}`, reason: 'drained' })
  // The same socket, which was never told anything.
  expect((await client.ask('', host, 8500))!.text).toBe('n')
  expect((await client.ask('', host, 8501))!.text).toBe('o')
  expect(other!.clients.length).toBe(1)
  expect(gateway.records().length).toBe(1)
}, 30_000)

test('H12: a client that was sending before the route was there reaches it', async () => {
  await using lab = await Lab.create()
  const backend = await udpEcho(lab.backend)
  // Something that has this machine track connections, as a firewall does.
  await lab.gateway.nft('table inet firewall { chain in { type filter hook input priority 0; ct state new accept\n}\n}')
  await using gateway = await Gateway.start(lab, [forward('other', 8400, both(lab, 1))])
  for (const [host, address] of lines(lab)) {
    const client = await udpClient(lab.client, address)
    let stopped = false
    const sending = (async () => {
      while (!stopped) {
        client.send('early', host, 8500)
        await Bun.sleep(20)
      }
    })()
    await using _ = { [Symbol.asyncDispose]: async () => void ((stopped = true), await sending) }
    const known = ['conntrack', '-L', '-p', 'udp', '-f', host.includes(':') ? 'ipv6' : 'ipv4']
    const knows = async () => (await lab.gateway.must(known)).includes('dport=8500')
    await until(knows, 5000, 'conntrack knows the flow')
    gateway.write([forward('other', 8400, both(lab, 1)), forward('late', 8500, both(lab, backend.port), {}, udp)])
    expect(await gateway.reload()).toMatchObject({ status: 200 })
    await gateway.settled()
    await until(() => client.heard.some(({ from }) => from === `${host}:8500`), 5000, 'it is answered')
    gateway.write([forward('other', 8400, both(lab, 1))])
    expect(await gateway.reload()).toMatchObject({ status: 200 })
  }
}, 60_000)

test('H14: limits and lists of a UDP route: what is too much is dropped and counted, flows that are there go on', async () => {
  await using lab = await Lab.create()
  const backend = await udpEcho(lab.backend)
  await lab.client.must(['ip', 'addr', 'add', '10.99.1.3/24', 'dev', 'uplink'])
  const security = { maxConnections: 3, maxConnectionsPerIp: 2, ipBlockList: ['10.99.1.3'] }
  await using gateway = await Gateway.start(lab, [
    forward('limited', 8500, both(lab, backend.port), {}, { ...udp, security }),
  ])
  const host = lab.gateway.clientSide4
  const clients = await Promise.all(Array.from({ length: 4 }, () => udpClient(lab.client, lab.client.address4)))
  const answered = async () => {
    const answers = []
    for (const client of clients) answers.push((await client.ask('x', host, 8500, 200)) !== undefined)
    return answers
  }
  expect(await answered()).toEqual([true, true, false, false])
  expect(await answered()).toEqual([true, true, false, false])
  const blocked = await udpClient(lab.client, '10.99.1.3')
  expect(await blocked.ask('x', host, 8500, 200)).toBeUndefined()
  expect(backend.clients.length).toBe(2)
  await until(
    async () => {
      const { refused } = (await gateway.route('limited')) as unknown as { refused: Record<string, number> }
      return Bun.deepEquals(refused, { route_ip_limit: 4, route_ip_blocked: 1 })
    },
    8000,
    'each refusal is counted',
  )
  expect((await gateway.connections()).length).toBe(2)
}, 30_000)
