// Ports and addresses as networks have them: large ranges, targets by name, hairpins, loopback at either end, UDP on one
// address of several.
import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Lab } from './lab.ts'
import { forward, Gateway, listening, until } from './gateway.ts'
import { echoBackend, Talker, udpClient, udpEcho, visit } from './traffic.ts'

const nftables = { forwardingEngine: 'nftables' }
const udp = { match: { protocol: 'udp' } }

test('H12: a range over 256 ports keeps the port, in the kernel alone: no sockets, and none for loopback clients', async () => {
  await using lab = await Lab.create()
  const ports = [9000, 9500, 9999]
  const backends = ports.map((port) => echoBackend(lab.backend, { port, name: String(port) }))
  const datagrams = await Promise.all(ports.map((port) => udpEcho(lab.backend, { port, name: String(port) })))
  const to = [lab.backend.address4, lab.backend.address6].map((host) => ({ host, port: 'preserve' }))
  await using gateway = await Gateway.start(lab, [
    forward('wide', [{ from: 9000, to: 9999 }], to),
    forward('wide-udp', [{ from: 9000, to: 9999 }], to, {}, udp),
    forward('inside', 9500, [{ host: lab.backend.address4, port: 9999 }]),
  ])
  expect((await gateway.route('wide')).reason).toContain('too many for sockets')
  expect(await listening(lab.gateway)).toEqual(['*:9500'])
  for (const [host, address] of [
    [lab.gateway.clientSide4, lab.client.address4],
    [lab.gateway.clientSide6, lab.client.address6],
  ] as const)
    for (const port of ports) {
      // A narrower route goes first, and it has IPv4 only.
      if (port === 9500 && host.includes(':')) continue
      const talker = await Talker.connect(lab.client, host, port)
      expect(await talker.read(4)).toBe(String(port === 9500 ? 9999 : port))
      await talker.close()
      const client = await udpClient(lab.client, address)
      expect(await client.ask('', host, port)).toEqual({ from: `${host}:${port}`, text: String(port) })
      client.close()
    }
  await expect(Talker.connect(lab.client, lab.gateway.clientSide4, 10_000)).rejects.toThrow('refused')
  await expect(Talker.connect(lab.gateway, '127.0.0.1', 9000)).rejects.toThrow('refused')
  // The gateway's own clients have it by its other addresses.
  const own = await Talker.connect(lab.gateway, lab.gateway.clientSide4, 9000)
  expect(await own.read(4)).toBe('9000')
  await own.close()
  expect((await gateway.recordsOf(6)).map(({ carrier }) => carrier)).toEqual(Array(6).fill('kernel'))
  expect(backends.map(({ clients }) => clients.length)).toEqual([3, 0, 3])
  expect(datagrams.map(({ clients }) => clients.length)).toEqual([2, 1, 2])
}, 30_000)

test('H17: hairpin: client and target in the same subnet behind the gateway', async () => {
  await using lab = await Lab.create()
  const addresses = { '10.99.1.9': 24, 'fd00:99:1::9': 64 }
  for (const [ip, length] of Object.entries(addresses))
    await lab.client.must([
      'ip', 'addr', 'add', `${ip}/${length}`, 'dev', 'uplink', ...(length === 64 ? ['nodad'] : []),
    ]) // prettier-ignore
  const neighbour = echoBackend(lab.client)
  const datagrams = await udpEcho(lab.client, { hostname: '10.99.1.9' })
  await using gateway = await Gateway.start(lab, [
    forward('tcp', 8400, Object.keys(addresses).map((host) => ({ host, port: neighbour.port }))), // prettier-ignore
    forward('udp', 8400, [{ host: '10.99.1.9', port: datagrams.port }], {}, udp),
  ])
  for (const [host, localAddress] of [
    [lab.gateway.clientSide4, lab.client.address4],
    [lab.gateway.clientSide6, lab.client.address6],
  ] as const) {
    const talker = await Talker.connect(lab.client, host, 8400, { localAddress })
    await talker.say()
    await talker.close()
  }
  const client = await udpClient(lab.client, lab.client.address4)
  expect(await client.ask('x', lab.gateway.clientSide4, 8400)).toMatchObject({ text: 'x' })
  // The answer could not find its way if the target saw the client.
  expect(neighbour.clients).toEqual([lab.gateway.clientSide4, lab.gateway.clientSide6])
  expect((await gateway.recordsOf(2)).map(({ carrier }) => carrier)).toEqual(['kernel', 'kernel'])
}, 30_000)

test('H17: loopback at either end goes by the user-space twin; for UDP it is refused by name', async () => {
  await using lab = await Lab.create()
  const local = echoBackend(lab.gateway, { hostname: '127.0.0.1' })
  const local6 = echoBackend(lab.gateway, { hostname: '::1' })
  const remote = echoBackend(lab.backend)
  const routes = [
    forward('to-loopback', 8400, [{ host: '127.0.0.1', port: local.port }]),
    forward('to-loopback6', 8401, [{ host: '::1', port: local6.port }]),
    forward('remote', 8402, [{ host: lab.backend.address4, port: remote.port }]),
  ]
  await using gateway = await Gateway.start(lab, routes)
  for (const name of ['to-loopback', 'to-loopback6']) {
    expect((await gateway.route(name)).carrier).toBe('user')
    expect((await gateway.route(name)).reason).toContain('loopback address')
  }
  for (const port of [8400, 8401])
    for (const host of [lab.gateway.clientSide4, lab.gateway.clientSide6]) await visit(lab.client, host, port)
  for (const port of [8400, 8401, 8402]) for (const host of ['127.0.0.1', '::1']) await visit(lab.gateway, host, port)
  expect((await gateway.recordsOf(10)).map(({ carrier }) => carrier)).toEqual(Array(10).fill('user'))
  for (const name of ['net.ipv4.conf.all.route_localnet', 'net.ipv4.conf.default.route_localnet'])
    expect(lab.gateway.sysctl(name)).toBe('0')
  const refused = await gateway.putRoutes([forward('udp', 8500, [{ host: '127.0.0.1', port: 1 }], {}, udp)])
  expect(refused.status).toBe(422)
  expect(refused.problems!.map(({ message }) => message).join()).toContain('loopback')
  const listens = { match: { protocol: 'udp', addresses: ['127.0.0.1'] } }
  const also = await gateway.putRoutes([forward('udp', 8500, [{ host: lab.backend.address4, port: 1 }], {}, listens)])
  expect(also.status).toBe(422)
  expect(also.problems!.map(({ message }) => message).join()).toContain('loopback')
}, 30_000)

test('H12: UDP on one address of several; the others have another route, or none', async () => {
  await using lab = await Lab.create()
  const [one, rest] = await Promise.all([...'or'].map((name) => udpEcho(lab.backend, { name })))
  const to = (backend: { port: number } | undefined) => [{ host: lab.backend.address4, port: backend!.port }]
  const at = { match: { protocol: 'udp', addresses: [lab.gateway.clientSide4] } }
  await using gateway = await Gateway.start(lab, [
    forward('one', [8500, 8501], to(one), {}, at),
    forward('rest', 8500, to(rest), {}, udp),
  ])
  const answer = async (host: string, port: number) => {
    const client = await udpClient(lab.client, lab.client.address4)
    const heard = await client.ask('', host, port, 300)
    client.close()
    return heard
  }
  const { clientSide4, backendSide4 } = lab.gateway
  expect(await answer(clientSide4, 8500)).toEqual({ from: `${clientSide4}:8500`, text: 'o' })
  expect(await answer(clientSide4, 8501)).toEqual({ from: `${clientSide4}:8501`, text: 'o' })
  expect(await answer(backendSide4, 8500)).toEqual({ from: `${backendSide4}:8500`, text: 'r' })
  expect(await answer(backendSide4, 8501)).toBeUndefined()
  expect((await gateway.connections()).map(({ route }) => route).toSorted()).toEqual(['one', 'one', 'rest'])
}, 30_000)

test('H11, H12: preserveSourceIp with UDP and with several targets: each sees the client', async () => {
  await using lab = await Lab.create()
  const backends = await Promise.all([...'ab'].map((name) => udpEcho(lab.backend, { name })))
  const tcp = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const hosts = [lab.backend.address4, lab.backend.address6]
  const to = (list: { port: number }[]) => hosts.flatMap((host) => list.map(({ port }) => ({ host, port })))
  await using gateway = await Gateway.start(lab, [
    forward('udp', 8500, to(backends), { preserveSourceIp: true }, udp),
    forward('tcp', 8500, to(tcp), { preserveSourceIp: true }),
  ])
  for (const [host, address] of [
    [lab.gateway.clientSide4, lab.client.address4],
    [lab.gateway.clientSide6, lab.client.address6],
  ] as const)
    for (let i = 0; i < 2; i++) {
      const client = await udpClient(lab.client, address)
      expect(await client.ask('', host, 8500)).toMatchObject({ from: `${host}:8500` })
      client.close()
      await visit(lab.client, host, 8500)
    }
  const clients = backends.map((backend) => backend.clients.map((client) => client.replace(/:\d+$/, '')))
  const seen = [lab.client.address4, lab.client.address6]
  expect(clients).toEqual([seen, seen])
  expect(tcp.map((backend) => backend.clients)).toEqual([seen, seen])
  await gateway.recordsOf(4)
}, 30_000)

// ---- names ----

const directory = mkdtempSync(join(tmpdir(), 'sluice-hosts-'))
const hosts = join(directory, 'hosts')
const original = readFileSync('/etc/hosts', 'utf8')
afterAll(() => {
  Bun.spawnSync(['umount', '/etc/hosts'])
  rmSync(directory, { recursive: true })
})

/** The mounts are the laboratory's own (inside.ts). Written in place: it is the file that is mounted. */
const write = (lines: string[]) => writeFileSync(hosts, `${original}\n${lines.join('\n')}\n`)

test('E6, H12: a target by name is every address of it; another address is a change of slots, its flows stay', async () => {
  write([])
  const mounted = Bun.spawnSync(['mount', '--bind', hosts, '/etc/hosts'])
  expect(mounted.stderr.toString()).toBe('')
  await using lab = await Lab.create()
  for (const ip of ['10.99.2.3', '10.99.2.4'])
    await lab.backend.must(['ip', 'addr', 'add', `${ip}/24`, 'dev', 'uplink'])
  const [first, second, third] = ['10.99.2.2', '10.99.2.3', '10.99.2.4'].map((hostname, i) =>
    echoBackend(lab.backend, { hostname, port: 9000, name: 'abc'[i]! }),
  )
  write(['10.99.2.2 db.sluice.test', '10.99.2.3 db.sluice.test'])
  await using gateway = await Gateway.start(lab, [
    forward('named', 8400, [{ host: 'db.sluice.test', port: 9000 }], nftables),
  ])
  const went = async (count: number) => {
    const letters: string[] = []
    for (let i = 0; i < count; i++) {
      const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
      letters.push(await talker.read(1))
      await talker.close()
    }
    return letters.toSorted().join('')
  }
  expect(await went(6)).toBe('aaabbb')
  const kept = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await kept.read(2)
  write(['10.99.2.4 db.sluice.test'])
  const started = performance.now()
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await until(async () => (await went(1)) === 'c', 5000, 'the name is looked up again')
  console.log(`another address after ${(performance.now() - started).toFixed(0)} ms`)
  expect(await went(4)).toBe('cccc')
  await kept.say()
  await kept.close()
  // A name that does not resolve now keeps what it had.
  write([])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  expect(await went(2)).toBe('cc')
  expect([first!.failures, second!.failures, third!.failures]).toEqual([[], [], []])
}, 60_000)
