// Which route a connection gets through the whole gateway: by name, by protocol, by default; while routes and ports come and
// go under traffic.
import { expect, test } from 'bun:test'
import { captureHello } from '../user/hellos.ts'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, listening, NftStub, until } from './gateway.ts'
import { crowd, echoBackend, Talker, visit, visitors } from './traffic.ts'

const passthrough = { tls: { mode: 'passthrough' } }
const named = (domains: string | string[], rest: object = {}) => ({ match: { domains }, ...rest })

const helloOf = (name: string | null) =>
  captureHello((port) => ['openssl', 's_client', '-connect', `127.0.0.1:${port}`, ...(name ? ['-servername', name] : ['-noservername'])]) // prettier-ignore

/** A backend that says its name to whoever says something. */
function telling(where: Namespace, name: string) {
  const heard: Buffer[] = []
  const { port } = where.listen({
    data(socket, bytes) {
      heard.push(bytes)
      socket.write(name)
    },
    end: (socket) => void socket.end(),
    error: () => {},
  })
  return { port, heard }
}

/** Says these bytes and resolves to what is answered first; null: the connection ended. */
async function told(from: Namespace, host: string, port: number, bytes: Uint8Array | string, localAddress?: string) {
  const { promise, resolve } = Promise.withResolvers<string | null>()
  const socket = await from.connect(
    host,
    port,
    {
      open: (socket) => void socket.write(bytes),
      data: (_, answer) => resolve(answer.toString()),
      end: () => resolve(null),
      close: () => resolve(null),
      error: () => {},
    },
    localAddress ? { localAddress } : {},
  )
  const answer = await promise
  socket.terminate()
  return answer
}

/** The connections that are over, once there are so many. */
const closed = (gateway: Gateway, count: number) =>
  until(
    () => {
      const records = gateway.records().filter(({ event }) => event === 'closed')
      return records.length >= count && records
    },
    10_000,
    `${count} connections are over`,
  )

const nobodyIsLeft = (gateway: Gateway) =>
  until(async () => (await gateway.connections()).length === 0, 5000, 'no connection is left')

test('E8: what matches no route goes to defaults.target, unread; without one it is closed at once and leaves nothing', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  await lab.client.must(['ip', 'addr', 'add', '10.99.1.3/24', 'dev', 'uplink'])
  const [a, rest] = [telling(lab.backend, 'a'), telling(lab.backend, 'rest')]
  const to = [{ host: lab.backend.address4, port: a.port }]
  const routes = [
    forward('a', 8443, to, passthrough, named('a.test')),
    forward('few', 8400, to, {}, { match: { clientIps: ['10.99.1.3'] } }),
    forward('all', 8401, to),
  ]
  const defaults = { target: { host: lab.backend.address4, port: rest.port } }
  await using gateway = await Gateway.start(lab, routes, { config: { defaults } })
  const hello = await helloOf('b.test')
  expect(await told(lab.client, host, 8443, await helloOf('a.test'))).toBe('a')
  expect(await told(lab.client, host, 8443, hello)).toBe('rest')
  expect(Buffer.concat(rest.heard).equals(Buffer.from(hello))).toBe(true)
  expect(await told(lab.client, host, 8443, await helloOf(null))).toBe('rest')
  expect(await told(lab.client, host, 8443, 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n')).toBe('rest')
  expect(await told(lab.client, host, 8443, 'SSH-2.0-x\r\n')).toBe('rest')
  expect(await told(lab.client, host, 8400, 'x', '10.99.1.3')).toBe('a')
  expect(await told(lab.client, host, 8400, 'x', lab.client.address4)).toBe('rest')
  expect(await told(lab.client, host, 8401, 'x')).toBe('a')

  // It is seen as any other route.
  const records = await closed(gateway, 8)
  const byDefault = records.filter((record) => record.route === '_default')
  expect(byDefault.map(({ serverName, carrier }) => [serverName ?? null, carrier])).toEqual([
    ['b.test', 'splice'],
    [null, 'splice'],
    [null, 'splice'],
    [null, 'splice'],
    [null, 'splice'],
  ])
  expect(await gateway.route('_default')).toMatchObject({
    carrier: 'splice',
    state: 'active',
    total: 5,
    connections: 0,
  })
  const planned = await gateway.cli('plan', '--config', gateway.file)
  expect(planned.stdout).toMatch(/_default +\*:8443,\*:8400 +splice +takes what matches no other route/)
  const metrics = await lab.gateway.must(['curl', '-s', '--unix-socket', gateway.socket, 'http://sluice/metrics'])
  expect(metrics).toMatch(/^sluice_\w+\{.*route="_default".*\} 5$/m)

  const drain = (undo: boolean) => gateway.ask<{ status: number }>('/v1/drain', 'POST', { route: '_default', undo })
  expect((await drain(false)).status).toBe(200)
  expect(await told(lab.client, host, 8443, hello)).toBeNull()
  expect(await told(lab.client, host, 8443, await helloOf('a.test'))).toBe('a')
  expect((await drain(true)).status).toBe(200)
  expect(await told(lab.client, host, 8443, hello)).toBe('rest')

  // Its own security is that of the defaults, as for every route without one.
  gateway.write(routes, { defaults: { ...defaults, security: { ipBlockList: ['10.99.1.3'] } } })
  expect((await gateway.reload()).status).toBe(200)
  await gateway.settled()
  expect(await told(lab.client, host, 8443, hello, '10.99.1.3')).toBeNull()
  await expect(told(lab.client, host, 8401, 'x', '10.99.1.3')).rejects.toThrow('refused')
  expect(await told(lab.client, host, 8443, hello, lab.client.address4)).toBe('rest')
  type Refusals = { refused: Record<string, number> }
  await until(
    async () => ((await gateway.route('_default')) as never as Refusals).refused.route_ip_blocked === 1,
    5000,
    'the refusal is counted',
  )

  gateway.write(routes, { defaults: {} })
  expect(await gateway.reload()).toMatchObject({ status: 200, changes: { removed: ['_default'] } })
  await gateway.settled()
  await closed(gateway, 11)
  const heard = rest.heard.length
  const rapid = Array.from({ length: 20 }, (_, i) =>
    i % 2 === 0
      ? told(lab.client, host, 8443, hello)
      : told(lab.client, host, 8400, 'x', lab.client.address4).catch(() => null),
  )
  expect(new Set(await Promise.all(rapid))).toEqual(new Set([null]))
  await nobodyIsLeft(gateway)
  const unmatched = (await closed(gateway, 31)).slice(11)
  expect(new Set(unmatched.map((record) => `${record.route} ${record.reason}`))).toEqual(new Set([' no_route']))
  expect(rest.heard.length).toBe(heard)
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

test('E9: 50 updates of the routes at once, under traffic: nobody is reset, the last one counts', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const [one, two] = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const to = (backend: { port: number }) => [{ host: lab.backend.address4, port: backend.port }]
  const version = (i: number) => [
    forward('kernel', 8400, to(i % 2 ? one : two)),
    forward('user', 8401, to(i % 2 ? two : one), { forwardingEngine: 'user' }),
    forward('name', 8443, to(i % 2 ? one : two), passthrough, named(`v${i}.test`)),
    forward('splice', 8444, to(one), {}, named('*', { acceptProxyProtocol: { from: ['203.0.113.0/24'] } })),
  ]
  await using gateway = await Gateway.start(lab, version(0))
  const ports = [8400, 8401, 8444]
  const crowds = await Promise.all(ports.map((port) => crowd(lab.client, host, port, 6)))
  const coming = ports.map((port) => visitors(lab.client, host, port))
  const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => gateway.putRoutes(version(i + 1))))
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
  await gateway.settled()
  for (const crowd of crowds) {
    const rounds = crowd.talkers[0]!.rounds
    await until(() => crowd.talkers[0]!.rounds > rounds + 2, 5000, 'they still talk')
    expect(await crowd.stop()).toEqual([])
  }
  for (const visitors of coming) expect(await visitors.stop()).toEqual([])
  expect(Math.min(...coming.map((visitors) => visitors.served))).toBeGreaterThan(3)
  // The 50th, and no other.
  expect(await told(lab.client, host, 8443, await helloOf('v49.test'))).toBeNull()
  const hello = await helloOf('v50.test')
  expect(await told(lab.client, host, 8443, hello)).not.toBeNull()
  await nobodyIsLeft(gateway)
  const reasons = new Set(gateway.records().map((record) => record.reason))
  expect([...reasons].filter((reason) => !['finished', 'no_route', 'client_reset'].includes(reason!))).toEqual([])
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

test('E9: changes while the kernel is still being started are not taken back, and each starts from the one before', async () => {
  await using lab = await Lab.create()
  using stub = new NftStub('sleep 0.2')
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const version = (i: number) => [forward(`v${i}`, 8400, to)]
  await using gateway = await Gateway.start(lab, version(0), { env: stub.env, ready: (routes) => routes.length > 0 })
  const names = async () => (await gateway.routes()).map(({ name }) => name)
  let last = 0
  do {
    // Many at once, so that one is being carried out at whatever moment the kernel becomes ready.
    const puts = Array.from({ length: 20 }, () => gateway.putRoutes(version(++last)))
    expect(new Set((await Promise.all(puts)).map(({ status }) => status))).toEqual(new Set([200]))
    for (let look = 0; look < 10; look++) expect(await names()).toEqual([`v${last}`])
  } while ((await gateway.status()).kernel.phase !== 'ready')
  await gateway.settled(30_000)
  expect(await names()).toEqual([`v${last}`])
  console.log(`${last} changes while the kernel was being started`)

  // What is reloaded at the same moment counts for what is put: neither takes the other back.
  const few = forward('few', 8402, to, {}, { match: { clientIps: ['203.0.113.0/24'] } })
  gateway.write([few], { defaults: { target: to[0] } })
  const both = [gateway.reload()]
  both.push(until(async () => (await names()).includes('few'), 5000, 'the reload counts').then(() => gateway.putRoutes([few, ...version(last)]))) // prettier-ignore
  expect((await Promise.all(both)).map(({ status }) => status)).toEqual([200, 200])
  await gateway.settled()
  expect(await names()).toEqual(['few', `v${last}`, '_default'])
  await visit(lab.client, lab.gateway.clientSide4, 8402)
}, 60_000)

test('E10: ports are added and removed: shared ones stay while a route needs them, one in use is told, nobody else notices', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const stay = forward('stay', 8400, to, { forwardingEngine: 'user' })
  const a = forward('a', [8443, 8444], to, passthrough, named('a.test'))
  const b = forward('b', [8443, 8445], to, passthrough, named('b.test'))
  const before = await listening(lab.gateway)
  const ours = async () =>
    (await listening(lab.gateway)).filter((end) => !before.includes(end)).map((end) => Number(end.split(':').at(-1))).toSorted() // prettier-ignore
  await using gateway = await Gateway.start(lab, [stay])
  expect(await ours()).toEqual([8400])
  const others = await crowd(lab.client, host, 8400, 4)
  const put = async (...routes: object[]) => {
    const answer = await gateway.putRoutes(routes)
    if (answer.status === 200) await gateway.settled()
    return answer
  }
  const hears = (ports: number[]) => until(async () => Bun.deepEquals(await ours(), ports), 5000, `the gateway listens on ${ports}`) // prettier-ignore
  await put(stay, a)
  await hears([8400, 8443, 8444])
  await put(stay, a, b)
  await hears([8400, 8443, 8444, 8445])
  // A connection outlives its port.
  const hello = await helloOf('b.test')
  await put(stay, a, b, forward('short', 8446, to, { forwardingEngine: 'user' }))
  const standing = await Talker.connect(lab.client, host, 8446)
  await standing.say()
  await put(stay, b)
  await hears([8400, 8443, 8445])
  await expect(Talker.connect(lab.client, host, 8446)).rejects.toThrow('refused')
  await standing.say()
  await standing.close()
  expect(await told(lab.client, host, 8443, hello)).not.toBeNull()
  await put(stay)
  await hears([8400])
  await expect(told(lab.client, host, 8443, hello)).rejects.toThrow('refused')

  // A port that another program has: told, and nothing of the change is done.
  const taken = lab.gateway.listen({ data() {} }, { port: 8450 })
  const refused = await put(stay, forward('c', [8449, 8450, 8451], to))
  expect(refused.status).toBe(422)
  expect(refused.problems![0]!.message).toMatch(/8450.* listens there/)
  expect((await gateway.routes()).map(({ name }) => name)).toEqual(['stay'])
  expect(await ours()).toEqual([8400, 8450])
  taken.stop()
  expect((await put(stay, forward('c', [8449, 8450, 8451], to))).status).toBe(200)
  await hears([8400, 8449, 8450, 8451])
  await put(stay)
  await hears([8400])
  expect(await others.stop()).toEqual([])
  expect(await gateway.stop()).toBe(0)
  expect(await listening(lab.gateway)).toEqual(before)
}, 60_000)

test('E11: a ClientHello in segments of one byte, through the whole gateway', async () => {
  await using lab = await Lab.create()
  const [a, b] = [telling(lab.backend, 'a'), telling(lab.backend, 'b')]
  const to = ({ port }: { port: number }) => [{ host: lab.backend.address4, port }]
  await using gateway = await Gateway.start(lab, [
    forward('a', 8443, to(a), passthrough, named('a.test')),
    forward('b', 8443, to(b), passthrough, named('*.test')),
  ])
  const hello = await helloOf('a.test')
  const { promise, resolve } = Promise.withResolvers<string | null>()
  const socket = await lab.client.connect(lab.gateway.clientSide4, 8443, {
    data: (_, answer) => resolve(answer.toString()),
    close: () => resolve(null),
    error: () => {},
  })
  socket.setNoDelay(true)
  for (let sent = 0; sent < hello.length;) {
    sent += socket.write(hello.subarray(sent, sent + 1) as Buffer)
    await new Promise((resolve) => setImmediate(resolve))
  }
  expect(await promise).toBe('a')
  socket.terminate()
  const [record] = await closed(gateway, 1)
  expect(record).toMatchObject({ route: 'a', serverName: 'a.test', bytesIn: hello.length })
  expect(Buffer.concat(a.heard).equals(Buffer.from(hello))).toBe(true)
}, 60_000)

test('L1, E13: curl follows a redirect to https; plain HTTP and TLS by name share a port; what fits nowhere is closed', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const [tls, plain] = [telling(lab.backend, 'tls'), telling(lab.backend, 'plain')]
  const to = ({ port }: { port: number }) => [{ host: lab.backend.address4, port }]
  const secure = forward('secure', [8080, 8443], to(tls), passthrough, named('*.a.test'))
  const redirect = (name: string, match: object, to: string, status?: number) => ({
    name,
    match,
    action: { type: 'redirect', to, ...(status ? { status } : {}) },
  })
  await using gateway = await Gateway.start(lab, [
    secure,
    redirect('up', { ports: [80, 8080] }, 'https://{host}:8443{path}'),
    redirect('moved', { ports: 80, domains: 'old.test' }, 'https://new.test{path}', 301),
    forward('ssh', 8443, to(plain)),
  ])
  const curl = async (url: string, more: string[] = [], stdin?: string) => {
    const { hostname, port } = new URL(url)
    return lab.client.must(['curl', '-sS', '-m', '10', '-o', '/dev/null', '-w', '%{http_code} %{redirect_url}', '--resolve', `${hostname}:${port || 80}:${host}`, ...more, url], stdin === undefined ? {} : { stdin }) // prettier-ignore
  }
  expect(await curl('http://x.a.test/p/q?r=s%20t&u=')).toBe('308 https://x.a.test:8443/p/q?r=s%20t&u=')
  expect(await curl('http://X.A.test:8080/')).toBe('308 https://x.a.test:8443/')
  expect(await curl('http://old.test/deep?er')).toBe('301 https://new.test/deep?er')
  expect(await curl('http://x.a.test/', ['--data-binary', '@-'], 'x'.repeat(200_000))).toBe(
    '308 https://x.a.test:8443/',
  )
  expect(await curl('http://x.a.test/', ['-I'])).toBe('308 https://x.a.test:8443/')
  expect(await curl('http://x.a.test/', ['--http1.0'])).toBe('308 https://x.a.test:8443/')
  expect(await told(lab.client, host, 8080, await helloOf('x.a.test'))).toBe('tls')
  expect(await told(lab.client, host, 8443, await helloOf('x.a.test'))).toBe('tls')
  expect(await told(lab.client, host, 8443, 'GET / HTTP/1.1\r\nHost: x.a.test\r\n\r\n')).toBe('plain')
  expect(await told(lab.client, host, 8443, 'SSH-2.0-x\r\n')).toBe('plain')
  expect(await told(lab.client, host, 8080, 'SSH-2.0-x\r\n')).toBeNull()
  expect(await told(lab.client, host, 8080, await helloOf('b.test'))).toBeNull()
  await nobodyIsLeft(gateway)
  const records = await closed(gateway, 12)
  const unrouted = records.filter(({ route }) => route === '').map(({ reason }) => reason)
  expect(unrouted.toSorted()).toEqual(['malformed_hello', 'no_route'])
  expect(records.filter(({ reason }) => reason === 'responded').length).toBe(6)
  expect(plain.heard.length).toBe(2)
}, 60_000)

test('E14: a wrong route is refused with a path and a remedy, and what runs goes on unchanged', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const good = forward('good', 8443, to, passthrough, named('*'))
  await using gateway = await Gateway.start(lab, [good])
  const standing = await Talker.connect(lab.client, lab.gateway.clientSide4, 8443)
  await standing.say()
  const wrong: [object, string][] = [
    [forward('bad', 8400, to, {}, named('a.test')), 'routes[1].match.domains'],
    [forward('bad', 8400, to, passthrough, named('a b')), 'routes[1].match.domains'],
    [forward('_default', 8400, to), 'routes[1].name'],
    [forward('good', 8400, to), 'routes[1].name'],
    [forward('bad', [{ from: 9, to: 8 }], to), 'routes[1].match.ports[0]'],
    [forward('bad', 8400, [{ host: '10.0.0.1', port: 0 }]), 'routes[1].action.targets[0].port'],
    [{ ...good, name: 'bad' }, 'routes[1].match'],
    [forward('bad', 8400, to, {}, { securty: {} }), 'routes[1].securty'],
    [forward('bad', 8400, to, { tls: { mode: 'terminate', certificate: { cert: '/none', key: '/none' } } }), 'routes.bad.action.tls.certificate'],
  ] // prettier-ignore
  for (const [route, path] of wrong) {
    const { status, problems } = await gateway.putRoutes([good, route])
    expect([path, status, problems!.map((problem) => problem.path)]).toEqual([path, 422, [path]])
    expect(problems![0]!.message.length * problems![0]!.remedy.length).toBeGreaterThan(0)
  }
  expect((await gateway.routes()).map(({ name }) => name)).toEqual(['good'])
  await standing.say()
  await standing.close()
}, 60_000)
