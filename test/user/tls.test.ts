// Ports that read first: by server name to a TLS backend without touching its bytes, TLS that ends here, TLS that begins again.
import { beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
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

let key: string
let cert: string
/** A certificate for a.test and 127.0.0.1 that signs itself. */
beforeAll(() => {
  const dir = mkdtempSync(join(tmpdir(), 'sluice-tls-'))
  const made = Bun.spawnSync([
    'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
    '-subj', '/CN=a.test', '-addext', 'subjectAltName=DNS:a.test,DNS:*.a.test,IP:127.0.0.1',
    '-keyout', join(dir, 'key'), '-out', join(dir, 'cert'),
  ]) // prettier-ignore
  if (!made.success) throw new Error(String(made.stderr))
  key = readFileSync(join(dir, 'key'), 'utf8')
  cert = readFileSync(join(dir, 'cert'), 'utf8')
  rmSync(dir, { recursive: true })
})

async function tlsServer(serve: (socket: tls.TLSSocket) => void, options: tls.TlsOptions = {}): Promise<number> {
  const listening = tls.createServer({ key, cert, ...options }, (socket) => {
    socket.on('error', () => {})
    serve(socket)
  })
  listening.on('tlsClientError', () => {})
  await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve))
  later(() => listening.close())
  return (listening.address() as net.AddressInfo).port
}

/** Resolves when the handshake is over, either way. */
function tlsClient(port: number, options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ port, host: '127.0.0.1', ca: cert, servername: 'a.test', ...options }, () =>
      resolve(socket),
    )
    socket.on('error', reject)
    socket.on('close', () => reject(new Error('closed')))
    later(() => socket.destroy())
  })
}

const once = (socket: net.Socket) =>
  new Promise<string>((resolve) => socket.once('data', (bytes) => resolve(String(bytes))))

for (const carrier of ['splice', 'user'] as const)
  test(`E11 F1: a name leads to its backend, which ends TLS itself (${carrier})`, async () => {
    const port = await tlsServer((socket) => socket.on('data', (bytes) => socket.end(`${socket.servername}: ${bytes}`)))
    const other = await server((socket) => void socket.end())
    const bench = await open(
      [
        route('a', { carrier, domains: ['*.a.test'], action: forward(port, { tls: ends('passthrough') }) }),
        route('b', { carrier, domains: ['b.test'], action: forward(other, { tls: ends('passthrough') }) }),
      ],
      { peek: true },
    )
    const socket = await tlsClient(bench.port, { servername: 'x.a.test' })
    socket.write('hello')
    expect(await once(socket)).toBe('x.a.test: hello')
    await gone(socket)
    const [record] = await bench.settle(1)
    expect(record).toMatchObject({ route: 'a', carrier, serverName: 'x.a.test', target: `127.0.0.1:${port}` })
    expect(record!.bytesIn).toBeGreaterThan(200)
    expect(record!.bytesOut).toBeGreaterThan(200)
    expect(['finished', 'half_closed_timeout']).toContain(record!.reason!)
    const nobody = tlsClient(bench.port, { servername: 'c.test' })
    expect(nobody).rejects.toThrow()
    expect((await bench.settle(2))[1]).toMatchObject({ reason: 'no_route', route: '', serverName: 'c.test' })
  })

/** A ClientHello as openssl would send it: taken from a connection to a listener of ours. */
async function hello(servername: string): Promise<Buffer> {
  const taken = Promise.withResolvers<Buffer>()
  const port = await server(
    (socket) => void socket.once('data', (bytes: Buffer) => (taken.resolve(bytes), socket.destroy())),
  )
  tlsClient(port, { servername }).catch(() => {})
  return taken.promise
}

test('E11: a hello in segments of one byte', async () => {
  const bytes = await hello('a.test')
  let got = Buffer.alloc(0)
  const all = Promise.withResolvers<void>()
  const port = await server((socket) =>
    socket.on('data', (more: Buffer) => {
      got = Buffer.concat([got, more])
      if (got.length === bytes.length) all.resolve()
    }),
  )
  const bench = await open(
    [route('a', { carrier: 'splice', domains: ['a.test'], action: forward(port, { tls: ends('passthrough') }) })],
    { peek: true },
  )
  const socket = client(bench.port)
  socket.setNoDelay(true)
  await connected(socket)
  for (const byte of bytes) {
    socket.write(Buffer.of(byte))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await all.promise
  expect(got.equals(bytes)).toBe(true)
  while (bench.plane.sample()[0]?.state !== 'open') await Bun.sleep(1)
  expect(bench.plane.sample()[0]).toMatchObject({ bytesIn: bytes.length, bytesOut: 0 })
  expect(bench.plane.close(bench.plane.sample()[0]!.id, 'killed')).toBe(true)
  await gone(socket)
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'killed', bytesIn: bytes.length, carrier: 'splice' })
  expect(bench.plane.size).toBe(0)
})

test('E11 E8 D9: silence, other protocols and no name where a name decides', async () => {
  const bench = await open(
    [
      route('a', {
        domains: ['a.test'],
        action: forward(1, { tls: ends('passthrough') }),
        timeoutsMs: { firstByte: 200 },
      }),
    ],
    { peek: true },
  )
  await gone(client(bench.port))
  const http = client(bench.port)
  http.write('GET / HTTP/1.1\r\n\r\n')
  await gone(http)
  const ssh = client(bench.port)
  ssh.write('SSH-2.0-x\r\n')
  await gone(ssh)
  client(bench.port).end()
  expect(reasons(await bench.settle(4))).toEqual([
    'first_byte_timeout',
    'malformed_hello',
    'malformed_hello',
    'closed_before_data',
  ])
  expect(bench.plane.size).toBe(0)
})

test('E13: on a port that reads names, a route without a name gets what is not TLS', async () => {
  const bench = await open(
    [
      route('a', { domains: ['a.test'], action: forward(1, { tls: ends('passthrough') }) }),
      route('rest', { action: forward(await echo()) }),
    ],
    { peek: true },
  )
  const socket = client(bench.port)
  socket.write('SSH-2.0-x\r\n')
  expect(await once(socket)).toBe('SSH-2.0-x\r\n')
  socket.destroy()
  expect((await bench.settle(1))[0]).toMatchObject({ route: 'rest' })
})

for (const peek of [true, false])
  test(`F1: TLS ends here; bytes, name, version and protocol are known (${peek ? 'peeked' : 'not peeked'})`, async () => {
    const bench = await open(
      [
        route('a', {
          domains: peek ? ['a.test'] : [],
          action: forward(await echo(), { tls: ends('terminate', { alpn: ['h2', 'http/1.1'] }) }),
        }),
      ],
      { peek, certificates: { a: { key, cert } } },
    )
    const socket = await tlsClient(bench.port, { ALPNProtocols: ['http/1.1'] })
    expect(socket.alpnProtocol).toBe('http/1.1')
    const big = Buffer.alloc(3_000_000, 'sluice ')
    socket.write(big)
    const chunks: Buffer[] = []
    socket.on('data', (bytes: Buffer) => {
      chunks.push(bytes)
      if (chunks.reduce((sum, one) => sum + one.length, 0) === big.length) socket.end()
    })
    await gone(socket)
    expect(Buffer.concat(chunks).equals(big)).toBe(true)
    expect((await bench.settle(1))[0]).toMatchObject({
      reason: 'finished',
      serverName: 'a.test',
      tls: { version: 'TLSv1.3', alpn: 'http/1.1' },
      bytesIn: big.length,
      bytesOut: big.length,
    })
  })

test('F1 G5: handshakes that fail say so', async () => {
  const bench = await open(
    [
      route('a', {
        action: forward(await echo(), { tls: ends('terminate', { alpn: ['h2'], minVersion: 'TLSv1.3' }) }),
        timeoutsMs: { handshake: 300 },
      }),
    ],
    {
      certificates: { a: { key, cert } },
    },
  )
  const failing: (() => Promise<unknown>)[] = [
    () => tlsClient(bench.port, { ALPNProtocols: ['imap'] }),
    () => tlsClient(bench.port, { maxVersion: 'TLSv1.2' }),
    () => tlsClient(bench.port, { ca: [] as string[] }),
    async () => {
      const socket = client(bench.port)
      socket.write('GET / HTTP/1.1\r\n\r\n')
      await readAll(socket)
    },
    async () => {
      const socket = client(bench.port)
      socket.write((await hello('a.test')).subarray(0, 50))
      await readAll(socket)
    },
    () => gone(client(bench.port)),
    async () => {
      const socket = client(bench.port)
      await connected(socket)
      socket.destroy()
    },
    async () => {
      const socket = client(bench.port)
      await connected(socket)
      socket.write((await hello('a.test')).subarray(0, 50), () => socket.resetAndDestroy())
    },
  ]
  for (const [i, fail] of failing.entries()) {
    await fail().catch(() => {})
    await bench.settle(i + 1)
  }
  expect(reasons(bench.settled)).toEqual([
    'handshake_failed',
    'handshake_failed',
    // The client rejects our certificate after the handshake is over for us (TLS 1.3).
    bench.settled[2]!.reason,
    'handshake_failed',
    'handshake_timeout',
    'handshake_timeout',
    'closed_before_data',
    'handshake_failed',
  ])
  expect(bench.plane.size).toBe(0)
  expect(bench.plane.timers.armed).toBe(0)
})

test('F1: a client certificate is demanded and checked', async () => {
  const bench = await open(
    [route('a', { action: forward(await echo(), { tls: ends('terminate', { clientCa: cert }) }) })],
    {
      certificates: { a: { key, cert } },
    },
  )
  const good = await tlsClient(bench.port, { key, cert })
  good.write('x')
  expect(await once(good)).toBe('x')
  good.destroy()
  await bench.settle(1)
  await tlsClient(bench.port).then(gone, () => {})
  expect((await bench.settle(2))[1]!.reason).toBe('handshake_failed')
})

test('F2: without a certificate handshakes fail; with the next plan they do not, and live connections stay', async () => {
  const routes = [route('a', { action: forward(await echo(), { tls: ends('terminate') }) })]
  const bench = await open(routes)
  await tlsClient(bench.port).catch(() => {})
  expect(reasons(await bench.settle(1))).toEqual(['handshake_failed'])
  await bench.apply(routes, { a: { key, cert } })
  const socket = await tlsClient(bench.port)
  await bench.apply(routes, { a: { key, cert: `${cert}\n` } })
  socket.write('x')
  expect(await once(socket)).toBe('x')
  expect(await bench.apply(routes, { a: { key: 'nonsense', cert } })).toHaveLength(1)
})

test('E12: a session is resumed, also after a plan that changes nothing', async () => {
  const routes = [route('a', { action: forward(await echo(), { tls: ends('terminate') }) })]
  const bench = await open(routes, { certificates: { a: { key, cert } } })
  const first = await tlsClient(bench.port, { maxVersion: 'TLSv1.2' })
  const session = first.getSession()
  first.destroy()
  await bench.apply(routes)
  const second = await tlsClient(bench.port, { maxVersion: 'TLSv1.2', session })
  expect(second.isSessionReused()).toBe(true)
})

test('F1 F8: TLS begins again to the target, whose name is verified', async () => {
  const port = await tlsServer(
    (socket) =>
      socket.on('data', (bytes) => socket.write(`${socket.servername || '-'} ${socket.alpnProtocol || '-'} ${bytes}`)),
    { ALPNProtocols: ['http/1.1'] },
  )
  const plain = await server((socket) => void socket.end('no TLS here'))
  const mute = await server(() => {})
  const to = (serverName: string | null, ca: string | null, insecure = false, at = port) =>
    forward(at, {
      tls: ends('terminate-and-reencrypt', { alpn: ['http/1.1'], upstream: { serverName, ca, insecure } }),
    })
  const cases = [
    ['byname', to('a.test', cert)],
    ['byaddress', to(null, cert)],
    ['insecure', to('b.test', null, true)],
    ['wrongname', to('b.test', cert)],
    ['untrusted', to('a.test', null)],
    ['untrustedaddress', to(null, null)],
    ['plain', to('a.test', cert, false, plain)],
    ['mute', to('a.test', cert, false, mute)],
  ] as const
  const certificates = Object.fromEntries(cases.map(([name]) => [name, { key, cert }]))
  const bench = await open(
    cases.map(([name, action]) => route(name, { action, timeoutsMs: { handshake: 400 } })),
    { listeners: cases.map(([name]) => ({ routes: [name], peek: false })), certificates },
  )
  const answers: string[] = []
  for (const [i, port] of bench.ports.entries()) {
    const socket = await tlsClient(port, { ALPNProtocols: ['http/1.1'] })
    socket.write('x')
    answers.push(await Promise.race([once(socket), gone(socket).then(() => 'closed')]))
    socket.destroy()
    await bench.settle(i + 1)
  }
  expect(answers).toEqual([
    'a.test http/1.1 x',
    '- http/1.1 x',
    'b.test http/1.1 x',
    'closed',
    'closed',
    'closed',
    'closed',
    'closed',
  ])
  expect(reasons(bench.settled).slice(3)).toEqual(Array(5).fill('target_tls_failed'))
  expect(bench.plane.size).toBe(0)
})

test('Q1: a TLS client that half-closes gets the whole answer; target is told', async () => {
  const bytes = Buffer.alloc(4_000_000, 'x')
  const port = await server((socket) => void socket.resume().on('end', () => socket.end(bytes)))
  const bench = await open([route('a', { action: forward(port, { tls: ends('terminate') }) })], {
    certificates: { a: { key, cert } },
  })
  const socket = await tlsClient(bench.port)
  socket.end('x')
  expect((await readAll(socket)).bytes.length).toBe(bytes.length)
  expect((await bench.settle(1))[0]).toMatchObject({ bytesIn: 1, bytesOut: bytes.length })
})

test('G4: a storm of handshakes that break off anywhere leaves nothing', async () => {
  const bench = await open(
    [route('a', { domains: ['a.test'], action: forward(await echo(), { tls: ends('terminate') }) })],
    {
      certificates: { a: { key, cert } },
      peek: true,
    },
  )
  const bytes = await hello('a.test')
  const before = descriptors()
  let running = 0
  for (let i = 0; i < 400; i++) {
    const socket = net.connect({ port: bench.port, host: '127.0.0.1' })
    socket.on('error', () => {})
    running++
    socket.on('close', () => running--)
    socket.on('data', () => {})
    const part = Buffer.from(bytes.subarray(0, i % 3 === 0 ? bytes.length : (i * 37) % bytes.length))
    if (i % 5 === 0 && part.length > 100) part[(i * 13) % part.length]! ^= 0xff
    socket.write(part)
    setTimeout(() => (i % 2 ? socket.destroy() : socket.resetAndDestroy()), i % 7)
    if (running > 50) await Bun.sleep(1)
  }
  while (running > 0 || bench.plane.size > 0) await Bun.sleep(5)
  bench.plane.reporter.flush()
  expect(reasons(bench.settled)).not.toContain('internal_error')
  expect(bench.plane.timers.armed).toBe(0)
  // What is reset is closed by a turn of the loop of its own.
  for (let turns = 0; turns < 200 && descriptors() > before + 2; turns++) await Bun.sleep(5)
  expect(descriptors()).toBeLessThanOrEqual(before + 2)
}, 20_000)
