// Handshakes with clients and with targets: which certificate is shown, who is let in, which session opens which route, and
// what the record says when one fails.
import { beforeAll, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import net from 'node:net'
import tls from 'node:tls'
import type { UserTls } from '../../src/plan/types.ts'
import { authority, type Pair } from './authority.ts'
import {
  client,
  connected,
  descriptors,
  echo,
  ends,
  forward,
  gone,
  later,
  open,
  readAll,
  reasons,
  route,
  server,
} from './plane.ts'

let ours: Awaited<ReturnType<typeof authority>>
let theirs: Awaited<ReturnType<typeof authority>>
const of: Record<string, Pair> = {}
beforeAll(async () => {
  ours = await authority('ours')
  theirs = await authority('theirs')
  const kinds: Record<string, Promise<Pair>> = {
    server: ours.issue(['a.test', 'b.test', 'localhost', '127.0.0.1']),
    wild: ours.issue(['*.wild.test']),
    next: ours.issue(['a.test']),
    client: ours.issue(['somebody']),
    stranger: theirs.issue(['somebody']),
    expired: ours.issue(['a.test'], { from: -3, to: -1 }),
    early: ours.issue(['a.test'], { from: 1 }),
  }
  for (const [kind, pair] of Object.entries(kinds)) of[kind] = await pair
})

const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const
const only = (version: tls.SecureVersion) => ({ minVersion: version, maxVersion: version })

interface Visit {
  /** What came back; null: nothing, the connection ended. */
  answer: string | null
  error: string
  /** Of the certificate that was shown. */
  serial: string | undefined
  reused: boolean
  session: Buffer | undefined
  alpn: string | false | null
}

/** Shakes hands, says "x", hears the answer, closes. Whatever goes wrong is told and not thrown. */
function visit(port: number, options: tls.ConnectionOptions = {}): Promise<Visit> {
  const { promise, resolve } = Promise.withResolvers<Visit>()
  const seen: Visit = { answer: null, error: '', serial: undefined, reused: false, session: undefined, alpn: null }
  const socket = tls.connect({ port, host: '127.0.0.1', ca: ours.ca, servername: 'a.test', ...options }, () => {
    seen.serial = socket.getPeerCertificate().serialNumber
    seen.reused = socket.isSessionReused()
    seen.alpn = socket.alpnProtocol
    socket.write('x')
  })
  socket.on('session', (session) => (seen.session = session))
  socket.on('data', (bytes) => {
    seen.answer = String(bytes)
    // TLS 1.3: the ticket came before the answer did.
    seen.session ??= socket.getSession()
    socket.destroy()
  })
  socket.on('error', (error: NodeJS.ErrnoException) => (seen.error ||= error.code ?? error.message))
  socket.on('end', () => socket.destroy())
  socket.on('close', () => resolve(seen))
  later(() => socket.destroy())
  return promise
}

const serialOf = ({ cert }: Pair) => new X509Certificate(cert).serialNumber

async function tlsServer(
  pair: Pair,
  serve: (socket: tls.TLSSocket) => void,
  options: tls.TlsOptions = {},
): Promise<number> {
  const listening = tls.createServer({ ...pair, ...options }, (socket) => {
    socket.on('error', () => {})
    serve(socket)
  })
  listening.on('tlsClientError', () => {})
  await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve))
  later(() => listening.close())
  return (listening.address() as net.AddressInfo).port
}

test('F2: several certificates on one port, exact, wildcard and for those without a name', async () => {
  const to = forward(await echo(), { tls: ends('terminate') })
  const bench = await open(
    [
      route('exact', { domains: ['a.test'], action: to }),
      route('wild', { domains: ['*.wild.test'], action: to }),
      route('any', { action: to }),
    ],
    { peek: true, certificates: { exact: of.server!, wild: of.wild!, any: of.next! } },
  )
  const shown = async (servername: string) =>
    (await visit(bench.port, { servername, rejectUnauthorized: false })).serial?.toLowerCase()
  expect([await shown('a.test'), await shown('A.TEST'), await shown('x.wild.test'), await shown('c.test'), await shown('')])
    .toEqual([of.server!, of.server!, of.wild!, of.next!, of.next!].map((pair) => serialOf(pair).toLowerCase())) // prettier-ignore
  expect((await bench.settle(5)).map((record) => record.route)).toEqual(['exact', 'exact', 'wild', 'any', 'any'])
})

test('F2: certificates are replaced under load: no handshake fails, live connections go on', async () => {
  const routes = [route('a', { action: forward(await echo(), { tls: ends('terminate') }) })]
  const bench = await open(routes, { certificates: { a: of.server! } })
  const standing = tls.connect({ port: bench.port, host: '127.0.0.1', ca: ours.ca, servername: 'a.test' })
  standing.on('error', () => {})
  later(() => standing.destroy())
  await new Promise((resolve) => standing.once('secureConnect', resolve))
  let stopping = false
  const visits: Visit[] = []
  const visitors = Array.from({ length: 4 }, async () => {
    while (!stopping) visits.push(await visit(bench.port))
  })
  for (let i = 0; i < 20; i++) {
    await bench.apply(routes, { a: i % 2 === 0 ? of.next! : of.server! })
    const before = visits.length
    while (visits.length < before + 4) await Bun.sleep(1)
    standing.write(`still ${i}`)
    expect(await new Promise((resolve) => standing.once('data', (bytes) => resolve(String(bytes))))).toBe(`still ${i}`)
  }
  stopping = true
  await Promise.all(visitors)
  expect(visits.filter((one) => one.answer !== 'x')).toEqual([])
  expect(new Set(visits.map((one) => one.serial)).size).toBe(2)
})

for (const version of VERSIONS)
  test(`F1, F2: a client certificate: none, of another authority, expired, not yet valid, right (${version})`, async () => {
    let accepted = 0
    const port = await server((socket) => (accepted++, void socket.pipe(socket)))
    const bench = await open(
      [route('a', { action: forward(port, { tls: ends('terminate', { clientCa: ours.ca }) }) })],
      {
        certificates: { a: of.server! },
      },
    )
    const answers: (string | null)[] = []
    for (const shows of [{}, of.stranger!, of.expired!, of.early!]) {
      const { answer } = await visit(bench.port, { ...shows, ...only(version) })
      answers.push(answer)
    }
    expect(answers).toEqual([null, null, null, null])
    expect(reasons(await bench.settle(4))).toEqual(Array(4).fill('handshake_failed'))
    expect(accepted).toBe(0)
    expect((await visit(bench.port, { ...of.client!, ...only(version) })).answer).toBe('x')
    expect((await bench.settle(5))[4]).toMatchObject({ tls: { version } })
    expect(bench.plane.size).toBe(0)
  })

for (const version of VERSIONS)
  test(`E12: a session is resumed, also after a change that leaves certificate and clientCa alone (${version})`, async () => {
    const action = forward(await echo(), { tls: ends('terminate', { clientCa: ours.ca }) })
    const bench = await open([route('a', { action })], { certificates: { a: of.server! } })
    const mine = { ...of.client!, ...only(version) }
    const first = await visit(bench.port, mine)
    const again = async () => (await visit(bench.port, { ...mine, session: first.session })).reused
    expect([first.reused, await again()]).toEqual([false, true])
    // Anything else of the route makes it anew.
    await bench.apply([route('a', { action, security: { block: ['203.0.113.9'] } })])
    expect(await again()).toBe(true)
    await bench.apply([route('a', { action })], { a: of.next! })
    expect(await again()).toBe(false)
    const other = forward(await echo(), { tls: ends('terminate', { clientCa: theirs.ca }) })
    await bench.apply([route('a', { action: other })], { a: of.server! })
    expect((await visit(bench.port, { ...mine, session: first.session })).answer).toBeNull()
  })

for (const version of VERSIONS)
  test(`E12: a session of one name opens no other name, with another clientCa, without one, or without a name (${version})`, async () => {
    const heard: string[] = []
    const to = async (name: string, clientCa: string | null) => {
      const port = await server((socket) => socket.on('data', (bytes) => (heard.push(name), socket.write(bytes))))
      return forward(port, { tls: ends('terminate', { clientCa }) })
    }
    // One and the same certificate for all of them: nothing but the route tells them apart.
    const names = { ours: 'a.test', theirs: 'b.test', open: 'localhost' }
    const bench = await open(
      [
        route('ours', { domains: ['a.test'], action: await to('ours', ours.ca) }),
        route('theirs', { domains: ['b.test'], action: await to('theirs', theirs.ca) }),
        route('open', { domains: ['localhost'], action: await to('open', null) }),
      ],
      { peek: true, certificates: { ours: of.server!, theirs: of.server!, open: of.server! } },
    )
    const as = { ours: of.client!, theirs: of.stranger!, open: {} }
    const outcomes: Record<string, string> = {}
    for (const from of Object.keys(names) as (keyof typeof names)[]) {
      const first = await visit(bench.port, { servername: names[from], ...as[from], ...only(version) })
      expect([from, first.answer]).toEqual([from, 'x'])
      for (const target of Object.keys(names) as (keyof typeof names)[]) {
        heard.length = 0
        const { answer, reused } = await visit(bench.port, {
          servername: names[target],
          // With the certificate that the session was made with, if any.
          ...as[from],
          ...only(version),
          session: first.session,
        })
        outcomes[`${from} to ${target}`] = answer === null ? 'refused' : `${heard} ${reused ? 'resumed' : 'anew'}`
      }
      const nameless = await visit(bench.port, { servername: '', ...as[from], ...only(version), session: first.session, rejectUnauthorized: false }) // prettier-ignore
      outcomes[`${from} without a name`] = nameless.answer === null ? 'refused' : 'answered'
    }
    expect(outcomes).toEqual({
      'ours to ours': 'ours resumed',
      'ours to theirs': 'refused',
      'ours to open': 'open anew',
      'ours without a name': 'refused',
      'theirs to ours': 'refused',
      'theirs to theirs': 'theirs resumed',
      'theirs to open': 'open anew',
      'theirs without a name': 'refused',
      'open to ours': 'refused',
      'open to theirs': 'refused',
      'open to open': 'open resumed',
      'open without a name': 'refused',
    })
  })

test('F8: a target shows: a certificate of its own making, of another name, expired, the right one; it is asked by name', async () => {
  const asked: (string | false)[] = []
  const answering = (pair: Pair, options: tls.TlsOptions = {}) =>
    tlsServer(
      pair,
      (socket) => (asked.push(socket.servername || false), socket.on('data', (bytes) => void socket.write(`${socket.alpnProtocol || '-'} ${bytes}`))),
      options,
    ) // prettier-ignore
  const h2 = { ALPNProtocols: ['h2', 'http/1.1'] }
  const [right, stranger, expired, wild] = [
    await answering(of.server!, h2),
    await answering(of.stranger!),
    await answering(of.expired!),
    await answering(of.wild!),
  ]
  const to = (port: number, upstream: Partial<UserTls['upstream']>, name: string | null = null) => {
    const action = forward(port, {
      tls: ends('terminate-and-reencrypt', {
        alpn: ['h2', 'http/1.1'],
        upstream: { serverName: null, ca: ours.ca, insecure: false, ...upstream },
      }),
    })
    return action.type === 'forward' && name
      ? { ...action, targets: action.targets.map((one) => ({ ...one, name })) }
      : action
  }
  const cases: [string, ReturnType<typeof to>, string | null][] = [
    ['right', to(right, { serverName: 'a.test' }), 'h2 x'],
    ['by the name of its host', to(right, {}, 'b.test'), 'h2 x'],
    ['by its address', to(right, {}), 'h2 x'],
    ['another name', to(right, { serverName: 'c.test' }), null],
    ['an address that it does not have', to(wild, {}), null],
    ['a wildcard', to(wild, { serverName: 'x.wild.test' }), '- x'],
    ['a wildcard two levels deep', to(wild, { serverName: 'y.x.wild.test' }), null],
    ['another authority', to(stranger, { serverName: 'somebody' }), null],
    ['another authority that is known', to(stranger, { serverName: 'somebody', ca: theirs.ca }), '- x'],
    ['the system does not know it', to(right, { serverName: 'a.test', ca: null }), null],
    ['expired', to(expired, { serverName: 'a.test' }), null],
    ['expired, insecure', to(expired, { serverName: 'a.test', insecure: true }), '- x'],
    ['another name, insecure', to(right, { serverName: 'c.test', insecure: true }), 'h2 x'],
  ]
  const bench = await open(
    cases.map(([name, action]) => route(name, { action })),
    {
      listeners: cases.map(([name]) => ({ routes: [name], peek: false })),
      certificates: Object.fromEntries(cases.map(([name]) => [name, of.server!])),
    },
  )
  const answers: [string, string | null][] = []
  for (const [i, [name]] of cases.entries()) {
    const { answer } = await visit(bench.ports[i]!, { ALPNProtocols: ['h2'] })
    answers.push([name, answer])
    await bench.settle(i + 1)
  }
  expect(answers).toEqual(cases.map(([name, , answer]) => [name, answer]))
  const failed = bench.settled.filter((record) => record.reason === 'target_tls_failed').map(({ route }) => route)
  expect(failed).toEqual(cases.flatMap(([name, , answer]) => (answer === null ? [name] : [])))
  expect(asked.slice(0, 3)).toEqual(['a.test', 'b.test', false])
  expect(bench.plane.size).toBe(0)
})

test('F1, E13: what fails in a handshake, and what the record says of it', async () => {
  let accepted = 0
  const port = await server((socket) => (accepted++, void socket.pipe(socket)))
  const bench = await open(
    [
      route('a', {
        action: forward(port, { tls: ends('terminate', { minVersion: 'TLSv1.3', alpn: ['h2'] }) }),
        timeoutsMs: { handshake: 400 },
      }),
    ],
    { certificates: { a: of.server! } },
  )
  const hello = await helloOf('a.test')
  const raw = async (bytes: Buffer | string, then: 'waits' | 'ends' | 'resets' = 'waits') => {
    const socket = client(bench.port)
    await connected(socket)
    await new Promise<void>((resolve) => socket.write(bytes, () => resolve()))
    if (then === 'ends') socket.end()
    if (then === 'resets') socket.resetAndDestroy()
    else await readAll(socket).then(() => socket.destroy())
  }
  const cases: [string, () => Promise<unknown>, string][] = [
    ['an older version', () => visit(bench.port, { maxVersion: 'TLSv1.2' }), 'handshake_failed'],
    ['no common protocol', () => visit(bench.port, { ALPNProtocols: ['imap'] }), 'handshake_failed'],
    ['a client that does not trust us', () => visit(bench.port, { ca: theirs.ca }), 'handshake_failed'],
    ['plain HTTP', () => raw('GET / HTTP/1.1\r\nHost: a.test\r\n\r\n'), 'handshake_failed'],
    ['another protocol', () => raw('SSH-2.0-x\r\n'), 'handshake_failed'],
    ['silence', () => gone(client(bench.port)), 'handshake_timeout'],
    ['half a hello, then silence', () => raw(hello.subarray(0, 80)), 'handshake_timeout'],
    ['a hello, then silence', () => raw(hello), 'handshake_timeout'],
    ['half a hello and FIN', () => raw(hello.subarray(0, 80), 'ends'), 'handshake_failed'],
    ['a hello and RST', () => raw(hello, 'resets'), 'handshake_failed'],
    ['a hello, then garbage', () => raw(Buffer.concat([hello, Buffer.alloc(200, 0x41)])), 'handshake_failed'],
    ['a fatal alert', () => raw(Buffer.concat([hello, Buffer.from('15030300020230', 'hex')])), 'handshake_failed'],
    ['FIN at once', async () => raw('', 'ends'), 'closed_before_data'],
  ]
  for (const [i, [, fail]] of cases.entries()) {
    await fail()
    await bench.settle(i + 1)
  }
  expect(bench.settled.map((record, i) => `${cases[i]![0]}: ${record.reason}`)).toEqual(
    cases.map(([what, , reason]) => `${what}: ${reason}`),
  )
  expect(accepted).toBe(0)
  expect(bench.plane.size).toBe(0)
  expect(bench.plane.timers.armed).toBe(0)
  const before = descriptors()
  // I10: as often as a client likes, a line a second and no more.
  const logged = bench.logged.length
  for (let i = 0; i < 100; i++) await raw('SSH-2.0-x\r\n')
  await bench.settle(cases.length + 100)
  expect(bench.logged.length - logged).toBeLessThan(10)
  expect(descriptors()).toBeLessThanOrEqual(before + 2)
  expect((await visit(bench.port, { ALPNProtocols: ['h2'] })).answer).toBe('x')
})

/** A ClientHello as a real client sends it. */
async function helloOf(servername: string): Promise<Buffer> {
  const taken = Promise.withResolvers<Buffer>()
  const port = await server(
    (socket) => void socket.once('data', (bytes: Buffer) => (taken.resolve(bytes), socket.destroy())),
  )
  void visit(port, { servername })
  return taken.promise
}

test('E13: "acme-tls/1" is a hello like any other: by name to the target that ends TLS itself', async () => {
  const port = await tlsServer(
    of.server!,
    (socket) => socket.on('data', () => void socket.end(`${socket.alpnProtocol}`)),
    {
      ALPNProtocols: ['acme-tls/1'],
    },
  )
  const other = await server((socket) => void socket.destroy())
  const bench = await open(
    [
      route('a', { carrier: 'splice', domains: ['a.test'], action: forward(port, { tls: ends('passthrough') }) }),
      route('any', { carrier: 'splice', action: forward(other, { tls: ends('passthrough') }) }),
    ],
    { peek: true },
  )
  const seen = await visit(bench.port, { ALPNProtocols: ['acme-tls/1'] })
  expect([seen.answer, seen.alpn]).toEqual(['acme-tls/1', 'acme-tls/1'])
  expect((await bench.settle(1))[0]).toMatchObject({ route: 'a', serverName: 'a.test' })
})

test('I2, I3, I7: lists and limits on a terminated route: checked before the handshake, which the target never hears of', async () => {
  let accepted = 0
  const port = await server((socket) => (accepted++, void socket.pipe(socket)))
  const to = forward(port, { tls: ends('terminate') })
  const bench = await open(
    [
      route('blocked', { action: to, security: { block: ['127.0.0.0/8'] } }),
      route('others', { action: to, security: { allow: ['10.0.0.0/8'] } }),
      route('two', { action: to, security: { maxConnectionsPerIp: 2 }, timeoutsMs: { handshake: 60_000 } }),
    ],
    {
      listeners: ['blocked', 'others', 'two'].map((name) => ({ routes: [name], peek: false })),
      certificates: { blocked: of.server!, others: of.server!, two: of.server! },
    },
  )
  for (const at of [0, 1]) expect((await visit(bench.ports[at]!)).answer).toBeNull()
  // Two that never finish their handshake hold both places.
  const stuck = [client(bench.ports[2]!), client(bench.ports[2]!)]
  await Promise.all(stuck.map(connected))
  while (bench.plane.size < 2) await Bun.sleep(1)
  expect((await visit(bench.ports[2]!)).answer).toBeNull()
  stuck[0]!.destroy()
  await bench.settle(1)
  expect((await visit(bench.ports[2]!)).answer).toBe('x')
  await bench.settle(2)
  bench.plane.reporter.flush()
  expect(Object.fromEntries(bench.refused)).toEqual({ route_ip_blocked: 2, route_ip_limit: 1 })
  expect(accepted).toBe(1)
})

test('L7: behind TLS the answer goes on after the client has sent all it had, past halfClosed where that is allowed', async () => {
  const port = await server((socket) => {
    socket.resume().on('end', () => {
      let pieces = 0
      const timer = setInterval(() => {
        if (++pieces === 6) (clearInterval(timer), void socket.end('last'))
        else socket.write('piece ')
      }, 100)
      socket.on('close', () => clearInterval(timer))
    })
  })
  const action = forward(port, { tls: ends('terminate'), allowHalfOpen: true })
  const bench = await open([route('a', { action, timeoutsMs: { halfClosed: 200 } })], {
    certificates: { a: of.server! },
  })
  const socket = tls.connect({ port: bench.port, host: '127.0.0.1', ca: ours.ca, servername: 'a.test', allowHalfOpen: true } as never, () => socket.end('GET')) // prettier-ignore
  later(() => socket.destroy())
  expect((await readAll(socket)).bytes.toString()).toBe('piece piece piece piece piece last')
  expect((await bench.settle(1))[0]).toMatchObject({ bytesIn: 3, bytesOut: 34, reason: 'finished' })
})
