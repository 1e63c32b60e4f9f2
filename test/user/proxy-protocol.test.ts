// The PROXY protocol in the user plane: from trusted senders it comes before everything else and makes the client who it
// says; to targets it goes before everything else, whoever carries the rest.
import { expect, test } from 'bun:test'
import type net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import type { UserRoute } from '../../src/plan/types.ts'
import { localHeader, peekProxyHeader, proxyHeader, type ProxyHeader } from '../../src/user/peek/proxy-header.ts'
import { signed } from '../certificates/tools.ts'
import { seen } from './fixtures/handlers.ts'
import { client, connected, echo, ends, forward, gone, later, open, readAll, reasons, route, server } from './plane.ts'

const LOOPBACK = ['127.0.0.0/8']
const from = (clientIp: string, clientPort = 40000) => ({
  clientIp,
  clientPort,
  listenerIp: clientIp.includes(':') ? '2001:db8::443' : '198.51.100.7',
  listenerPort: 443,
})
const V1 = 'PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n'

const trusting = (action: UserRoute['action'], more: Parameters<typeof route>[1] = {}, peek = false) =>
  open([route('r', { action, acceptProxyProtocol: LOOPBACK, ...more })], { trusted: LOOPBACK, peek })

/** A target that takes a header off each connection and hands out what came and the rest. */
async function receiver(serve: (socket: net.Socket, rest: Buffer) => void) {
  const headers: ProxyHeader[] = []
  const port = await server((socket) => {
    let got = Buffer.alloc(0)
    const read = (bytes: Buffer) => {
      got = Buffer.concat([got, bytes])
      const peek = peekProxyHeader(got)
      if (peek.verdict === 'more') return
      socket.off('data', read)
      if (peek.verdict === 'no') return void socket.destroy()
      headers.push(peek.header)
      serve(socket, got.subarray(peek.header.length))
    }
    socket.on('data', read)
  })
  return { port, headers }
}

const answer = (socket: net.Socket, rest: Buffer) => {
  socket.write(rest)
  socket.pipe(socket)
}

for (const carrier of ['user', 'splice'] as const)
  for (const peek of [false, true])
    test(`J1 J2 G19: both versions, glued to the payload and byte by byte (${carrier}, ${peek ? 'peeked' : 'unread'})`, async () => {
      const bench = await trusting(forward(await echo()), { carrier }, peek)
      for (const wire of [
        Buffer.from(V1),
        proxyHeader('v2', from('192.0.2.1')),
        proxyHeader('v2', from('2001:db8::1')),
      ]) {
        const glued = client(bench.port)
        glued.end(Buffer.concat([wire, Buffer.from('no TLS')]))
        expect((await readAll(glued)).bytes.toString()).toBe('no TLS')
        const slow = client(bench.port)
        slow.setNoDelay(true)
        for (const byte of wire) {
          slow.write(Uint8Array.of(byte))
          await new Promise((resolve) => setImmediate(resolve))
        }
        slow.end('no TLS')
        expect((await readAll(slow)).bytes.toString()).toBe('no TLS')
      }
      const records = await bench.settle(6)
      for (const [i, record] of records.entries())
        expect(record).toMatchObject({
          carrier,
          client: i < 4 ? '192.0.2.1:40000' : '[2001:db8::1]:40000',
          listener: i < 4 ? '198.51.100.7:443' : '[2001:db8::443]:443',
          proxy: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
          bytesIn: 6,
          bytesOut: 6,
          reason: 'finished',
        })
      expect(bench.plane.timers.armed).toBe(0)
    })

test('J1: a target that speaks first is heard after the header alone', async () => {
  const bench = await trusting(forward(await server((socket) => void socket.end('220 ready'))))
  const socket = client(bench.port)
  socket.write(V1)
  expect((await readAll(socket)).bytes.toString()).toBe('220 ready')
  socket.end()
  expect((await bench.settle(1))[0]).toMatchObject({ client: '192.0.2.1:40000', bytesIn: 0, bytesOut: 9 })
})

test('J1: nobody else is believed: the same bytes are the payload of whoever sent them', async () => {
  const bench = await open([route('r', { action: forward(await echo()), acceptProxyProtocol: ['10.0.0.0/8'] })], {
    trusted: ['10.0.0.0/8'],
  })
  const socket = client(bench.port)
  socket.end(V1)
  expect((await readAll(socket)).bytes.toString()).toBe(V1)
  const [record] = await bench.settle(1)
  expect(record).toMatchObject({ bytesIn: V1.length, client: expect.stringMatching(/^127\.0\.0\.1:/) })
  expect(record!.proxy).toBeUndefined()
})

test('J2: LOCAL and UNKNOWN: the sender speaks for itself', async () => {
  const bench = await trusting(forward(await echo()))
  for (const wire of [localHeader('v1'), localHeader('v2'), Buffer.from('PROXY UNKNOWN ::1 ::2 1 2\r\n')]) {
    const socket = client(bench.port)
    socket.end(Buffer.concat([wire, Buffer.from('x')]))
    expect((await readAll(socket)).bytes.toString()).toBe('x')
  }
  for (const { client, proxy, listener } of await bench.settle(3)) {
    expect(client).toBe(proxy!)
    expect(listener).toBe(`127.0.0.1:${bench.port}`)
  }
})

test('J2: missing, garbled, cut short or late: closed with a reason, and no target hears of it', async () => {
  let accepted = 0
  const bench = await trusting(forward(await server((socket) => (accepted++, void socket.end()))), {
    timeoutsMs: { firstByte: 300 },
  })
  const signature = '\r\n\r\n\0\r\nQUIT\n'
  const sealed = Buffer.from(proxyHeader('v2', from('192.0.2.1'), { tlvs: [], checksum: true }))
  sealed[sealed.length - 1]! ^= 1
  const wrong = [
    'GET / HTTP/1.1\r\n',
    'PROXY TCP4 nonsense\r\n',
    'PROXY '.padEnd(200, 'x'),
    `${signature}\x11`,
    `${signature}\x21\x11\xff\xff`, // longer than any header we take
    sealed.toString('latin1'), // a wrong checksum
  ]
  for (const text of wrong) {
    const socket = client(bench.port)
    socket.write(Buffer.from(text, 'latin1'))
    await gone(socket)
  }
  client(bench.port).end('PROXY TCP4 192.')
  const settled = await bench.settle(wrong.length + 1)
  expect(reasons(settled)).toEqual(settled.map(() => 'malformed_proxy_header'))
  client(bench.port).end()
  expect((await bench.settle(wrong.length + 2)).at(-1)!.reason).toBe('closed_before_data')
  client(bench.port).write('PROXY TCP4')
  expect((await bench.settle(wrong.length + 3)).at(-1)!.reason).toBe('first_byte_timeout')
  expect(accepted).toBe(0)
  expect(bench.plane.timers.armed).toBe(0)
})

test('J1 I2 I4: lists and the choice of a route go by the real client', async () => {
  const security = { block: ['192.0.2.66'], allow: ['192.0.2.0/24', '203.0.113.0/24'] }
  const shared = { acceptProxyProtocol: LOOPBACK, security }
  const greet = async (word: string) => forward(await server((socket) => void socket.end(word)))
  const bench = await open(
    [
      route('some', { action: await greet('some'), clientIps: ['203.0.113.0/24'], ...shared }),
      route('rest', { action: await greet('rest'), ...shared }),
    ],
    { trusted: LOOPBACK },
  )
  const heard = async (ip: string) => {
    const socket = client(bench.port)
    socket.write(proxyHeader('v2', from(ip)))
    return (await readAll(socket)).bytes.toString()
  }
  expect(await Promise.all(['203.0.113.9', '192.0.2.1', '192.0.2.66', '127.0.0.1', '10.1.1.1'].map(heard))).toEqual([
    'some',
    'rest',
    '',
    '',
    '',
  ])
  await bench.settle(2)
  bench.plane.reporter.flush()
  expect(bench.refused).toEqual(new Map([['route_ip_blocked', 3]]))
})

test('J4: 200 clients through one proxy: each has its own limits, the proxy has none', async () => {
  const bench = await open(
    [
      route('r', {
        action: forward(await echo()),
        acceptProxyProtocol: LOOPBACK,
        security: { maxConnectionsPerIp: 1, rate: { count: 2, perMs: 3_600_000 } },
      }),
    ],
    {
      trusted: LOOPBACK,
      limits: { maxConnections: null, maxConnectionsPerIp: 1, rate: { count: 3, perMs: 3_600_000 } },
    },
  )
  const visit = async (ip: string, port: number) => {
    const socket = client(bench.port)
    socket.write(Buffer.concat([proxyHeader('v2', from(ip, port)), Buffer.from('x')]))
    const admitted = await Promise.race([
      new Promise<boolean>((resolve) => socket.once('data', () => resolve(true))),
      gone(socket).then(() => false),
    ])
    return { socket, admitted }
  }
  const ips = Array.from({ length: 200 }, (_, i) => `192.0.2.${i + 1}`)
  const first = await Promise.all(ips.map((ip) => visit(ip, 1000)))
  expect(first.filter(({ admitted }) => !admitted)).toEqual([])
  expect((await visit(ips[7]!, 1001)).admitted).toBe(false)
  first[7]!.socket.end()
  await bench.settle(1)
  // Its place is free again, its rate is used up with this one.
  const again = await visit(ips[7]!, 1002)
  expect(again.admitted).toBe(true)
  again.socket.end()
  await bench.settle(2)
  expect((await visit(ips[7]!, 1003)).admitted).toBe(false)
  bench.plane.reporter.flush()
  expect(bench.refused).toEqual(new Map([['route_ip_limit', 1], ['route_rate', 1]])) // prettier-ignore
})

test('J1: a route that does not trust the sender gets none of its connections', async () => {
  const bench = await open(
    [
      route('closed', { action: forward(await echo()), domains: [] }),
      route('other', { action: forward(await echo()), acceptProxyProtocol: ['10.0.0.0/8'] }),
    ],
    { trusted: LOOPBACK },
  )
  const socket = client(bench.port)
  socket.write(V1)
  await gone(socket)
  expect((await bench.settle(1))[0]!.reason).toBe('no_route')
})

for (const version of ['v1', 'v2'] as const)
  for (const carrier of ['user', 'splice'] as const)
    test(`J3 G19: ${version} is the first thing the target gets, and no payload (${carrier})`, async () => {
      const { port, headers } = await receiver(answer)
      const bench = await open([route('r', { carrier, action: forward(port, { sendProxyProtocol: version }) })])
      const socket = client(bench.port)
      await connected(socket)
      const own = socket.localPort!
      socket.end('payload')
      expect((await readAll(socket)).bytes.toString()).toBe('payload')
      expect(headers.map(({ ends }) => ends)).toEqual([
        { clientIp: '127.0.0.1', clientPort: own, listenerIp: '127.0.0.1', listenerPort: bench.port },
      ])
      expect((await bench.settle(1))[0]).toMatchObject({ carrier, bytesIn: 7, bytesOut: 7, reason: 'finished' })
    })

test('J3: a target that waits for the header before it greets is not waited for', async () => {
  const { port } = await receiver((socket) => void socket.end('220 ready'))
  for (const carrier of ['user', 'splice'] as const) {
    const bench = await open([route('r', { carrier, action: forward(port, { sendProxyProtocol: 'v2' }) })])
    expect((await readAll(client(bench.port))).bytes.toString()).toBe('220 ready')
  }
})

test('J1 J3: what came in goes out: the real client, its TLVs in version 2, the checksum made anew', async () => {
  const { port, headers } = await receiver(answer)
  const tlvs = [{ type: 2, value: new Uint8Array(Buffer.from('a.test')) }]
  for (const version of ['v1', 'v2'] as const) {
    const bench = await trusting(forward(port, { sendProxyProtocol: version }), { carrier: 'splice' })
    const socket = client(bench.port)
    socket.end(Buffer.concat([proxyHeader('v2', from('2001:db8::1'), { tlvs, checksum: true }), Buffer.from('x')]))
    expect((await readAll(socket)).bytes.toString()).toBe('x')
  }
  expect(headers.map(({ ends }) => ends)).toEqual([from('2001:db8::1'), from('2001:db8::1')])
  expect(headers.map(({ tlvs, checksum }) => ({ tlvs, checksum }))).toEqual([
    { tlvs: [], checksum: false },
    { tlvs, checksum: true },
  ])
})

test('J5: a handler is given the client and the proxy with the socket, and the bytes as ever', async () => {
  const handler = (kind: string): UserRoute['action'] => ({
    type: 'handler',
    module: join(import.meta.dir, 'fixtures/handlers.ts'),
    inline: null,
    env: { kind },
    reach: { private: false, ports: null },
    tls: null,
  })
  const told = await trusting(handler('info'))
  const asking = client(told.port)
  asking.write(V1)
  const info = JSON.parse((await readAll(asking)).bytes.toString())
  expect(info.remoteAddress).toBe('192.0.2.1:40000')
  const proxy = `127.0.0.1:${asking.localPort}`
  expect(seen.ctx).toMatchObject({ clientIp: '192.0.2.1', clientPort: 40000, proxy })
  asking.end()
  expect((await told.settle(1))[0]).toMatchObject({ client: '192.0.2.1:40000', proxy, bytesIn: 0 })

  const echoing = await trusting(handler('echo'))
  const socket = client(echoing.port)
  socket.write(V1 + 'glued, ')
  socket.end('and later')
  expect((await readAll(socket)).bytes.toString()).toBe('glued, and later')
  expect((await echoing.settle(1))[0]).toMatchObject({ bytesIn: 16, bytesOut: 16, reason: 'finished' })
})

// ---- TLS ----

const pair = await signed(['a.test'])
const upstream = { serverName: 'a.test', ca: pair.cert, insecure: false }

/** A TLS client that says a header first. */
async function tlsAfter(port: number, header: Uint8Array): Promise<tls.TLSSocket> {
  const raw = client(port)
  await connected(raw)
  raw.write(header)
  const socket = tls.connect({ socket: raw, ca: pair.cert, servername: 'a.test' })
  later(() => socket.destroy())
  socket.on('error', () => {})
  await new Promise((resolve) => socket.once('secureConnect', resolve))
  return socket
}

for (const mode of ['passthrough', 'terminate', 'terminate-and-reencrypt'] as const)
  test(`J1 J3 G19: a header before the ClientHello on both sides (${mode})`, async () => {
    const secret = tls.createServer(pair, (socket) => void socket.on('error', () => {}).pipe(socket))
    await new Promise<void>((resolve) => secret.listen(0, '127.0.0.1', resolve))
    later(() => secret.close())
    // The header is taken off by a socket of its own: a TLS server has no way to give it what was read too much.
    const secured = (socket: net.Socket, rest: Buffer) => {
      if (mode === 'terminate') return answer(socket, rest)
      const inner = client((secret.address() as net.AddressInfo).port)
      inner.write(rest)
      socket.pipe(inner).pipe(socket)
    }
    const { port, headers } = await receiver(secured)
    const bench = await open(
      [
        route('r', {
          carrier: mode === 'passthrough' ? 'splice' : 'user',
          domains: ['a.test'],
          acceptProxyProtocol: LOOPBACK,
          action: forward(port, { sendProxyProtocol: 'v2', tls: ends(mode, { upstream }) }),
        }),
      ],
      { trusted: LOOPBACK, peek: true, certificates: { r: pair } },
    )
    const socket = await tlsAfter(bench.port, proxyHeader('v1', from('192.0.2.1')))
    socket.write('hello')
    expect(await new Promise((resolve) => socket.once('data', (bytes) => resolve(String(bytes))))).toBe('hello')
    expect(headers.map((header) => header.ends)).toEqual([from('192.0.2.1')])
    socket.end()
    const [record] = await bench.settle(1)
    expect(record).toMatchObject({ client: '192.0.2.1:40000', serverName: 'a.test', reason: 'finished' })
    if (mode !== 'passthrough') expect([record!.bytesIn, record!.bytesOut]).toEqual([5, 5])
  })

for (const version of ['v1', 'v2'] as const)
  for (const type of ['tcp', { http: '/' }] as const)
    test(`J3: a health check says that it is no client (${version}, ${type === 'tcp' ? 'tcp' : 'http'})`, async () => {
      const { port, headers } = await receiver((socket) => void socket.end('HTTP/1.1 200 OK\r\n\r\n'))
      const bench = await open([route('r', { action: forward(port) })])
      later(() => bench.plane.check([]))
      const check = { route: 'r', endpoint: `127.0.0.1:${port}`, host: '127.0.0.1', port, type, name: null }
      bench.plane.check([{ ...check, sendProxyProtocol: version, intervalMs: 100, timeoutMs: 1000 }])
      while (headers.length === 0) await Bun.sleep(1)
      expect(headers[0]).toMatchObject({ ends: null, tlvs: [] })
    })
