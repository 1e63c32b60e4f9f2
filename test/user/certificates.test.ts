// The certificates of one route: which of them a client gets, how they are replaced, and what it is told while there is none.
import { beforeAll, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import tls from 'node:tls'
import type { RouteCertificate, RouteCertificates } from '../../src/channel/messages.ts'
import { openssl } from '../certificates/tools.ts'
import { authority, type Pair } from './authority.ts'
import { hello, sni } from './hellos.ts'
import { client, connected, echo, ends, forward, later, open, readAll, reasons, route, target } from './plane.ts'

let ours: Awaited<ReturnType<typeof authority>>
const of: Record<string, Pair> = {}
beforeAll(async () => {
  ours = await authority('ours')
  of.a = await ours.issue(['a.test'])
  of.next = await ours.issue(['a.test'])
  of.rsa = await ours.issue(['a.test'], { rsa: true })
  of.b = await ours.issue(['b.test'])
  of.wild = await ours.issue(['*.wild.test'])
})

const one = (names: string[], ...pairs: Pair[]): RouteCertificate => ({
  names,
  cert: pairs.map(({ cert }) => cert),
  key: pairs.map(({ key }) => key),
})
const all = (...list: RouteCertificate[]): RouteCertificates => ({ perName: false, list })
const perName = (...list: RouteCertificate[]): RouteCertificates => ({ perName: true, list })
const terminating = async (domains: string[] = []) =>
  route('r', { domains, action: forward(await echo(), { tls: ends('terminate') }) })

interface Visit {
  serial?: string
  answer?: string
  error?: string
  reused?: boolean
  session?: Buffer
}

/** Shakes hands, says "x", hears the answer, closes. Whatever goes wrong is told and not thrown. */
function visit(port: number, servername: string, options: tls.ConnectionOptions = {}): Promise<Visit> {
  const { promise, resolve } = Promise.withResolvers<Visit>()
  const seen: Visit = {}
  const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, servername, ...options }, () => {
    seen.serial = socket.getPeerCertificate().serialNumber?.toLowerCase()
    seen.reused = socket.isSessionReused()
    socket.write('x')
  })
  socket.on('session', (session) => (seen.session = session))
  socket.on('data', (bytes) => {
    seen.answer = String(bytes)
    seen.session ??= socket.getSession()
    socket.destroy()
  })
  socket.on('error', (error: NodeJS.ErrnoException) => (seen.error ??= error.code ?? error.message))
  socket.on('end', () => socket.destroy())
  socket.on('close', () => resolve(seen))
  later(() => socket.destroy())
  return promise
}

const serialOf = (pair: Pair) => new X509Certificate(pair.cert).serialNumber.toLowerCase()

for (const peek of [true, false])
  test(`F2: of several certificates of a route the name gets its own, or the first (the port ${peek ? 'reads names' : 'alone decides'})`, async () => {
    const certificates = {
      r: all(one(['a.test'], of.a!), one(['B.test'], of.b!), one(['*.wild.test'], of.wild!)),
    }
    const bench = await open([await terminating()], { peek, certificates })
    const cases: [string, Pair][] = [
      ['a.test', of.a!],
      ['b.test', of.b!],
      ['B.TEST', of.b!],
      ['x.wild.test', of.wild!],
      ['x.y.wild.test', of.a!],
      ['wild.test', of.a!],
      ['c.test', of.a!],
      ['', of.a!],
    ]
    for (const [name, pair] of cases)
      expect([name, await visit(bench.port, name)]).toMatchObject([name, { serial: serialOf(pair), answer: 'x' }])
  })

test('F2: a hello in pieces gets the certificate of its name where nobody else reads it', async () => {
  const bench = await open([await terminating()], {
    certificates: { r: all(one(['a.test'], of.a!), one(['b.test'], of.b!)) },
  })
  // A client in front of which every byte of the hello is a segment of its own.
  const upstream = client(bench.port)
  await connected(upstream)
  upstream.setNoDelay(true)
  const between = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      async data(socket, bytes) {
        if (socket.data) return void upstream.write(bytes)
        ;(socket as { data: unknown }).data = true
        for (const byte of bytes) {
          upstream.write(Buffer.from([byte]))
          await new Promise((resolve) => setImmediate(resolve))
        }
      },
      open(socket) {
        upstream.on('data', (bytes) => socket.write(bytes))
      },
      close() {
        upstream.destroy()
      },
    },
  })
  later(() => between.stop(true))
  expect(await visit(between.port, 'b.test')).toMatchObject({ serial: serialOf(of.b!), answer: 'x' })
  // Half a hello and no more.
  const half = client(bench.port)
  await connected(half)
  half.end(Buffer.from('16030100050100', 'hex'))
  expect(reasons(await bench.settle(2))).toContain('handshake_failed')
})

test('F2: ECDSA and RSA side by side: each client gets the kind that it can read', async () => {
  const bench = await open([await terminating()], { certificates: { r: all(one(['a.test'], of.a!, of.rsa!)) } })
  const shown = async (...options: string[]) => {
    const { output } = await openssl(
      's_client',
      '-connect',
      `127.0.0.1:${bench.port}`,
      '-servername',
      'a.test',
      ...options,
    )
    return /Peer signature type: (\S+)/.exec(output)?.[1]
  }
  expect(await shown('-tls1_3')).toBe('ECDSA')
  expect(await shown('-tls1_3', '-sigalgs', 'rsa_pss_rsae_sha256')).toBe('RSA-PSS')
  expect(await shown('-tls1_3', '-sigalgs', 'ECDSA+SHA256')).toBe('ECDSA')
  expect(await shown('-tls1_2')).toBe('ECDSA')
  expect(await shown('-tls1_2', '-cipher', 'ECDHE-RSA-AES128-GCM-SHA256')).toMatch(/^RSA/)
  expect(await shown('-tls1_2', '-cipher', 'ECDHE-ECDSA-AES128-GCM-SHA256')).toBe('ECDSA')
})

test('F2: 200 swaps under load: no handshake fails, live connections go on, the last one counts', async () => {
  const routes = [await terminating()]
  const bench = await open(routes, { certificates: { r: all(one(['a.test'], of.a!)) } })
  const standing = tls.connect({ port: bench.port, host: '127.0.0.1', ca: ours.ca, servername: 'a.test' })
  standing.on('error', () => {})
  later(() => standing.destroy())
  await new Promise((resolve) => standing.once('secureConnect', resolve))
  let stopping = false
  const visits: Visit[] = []
  const visitors = Array.from({ length: 4 }, async () => {
    while (!stopping) visits.push(await visit(bench.port, 'a.test'))
  })
  for (let i = 0; i < 200; i++) {
    const list = [one(['a.test'], i % 2 === 0 ? of.next! : of.a!)]
    expect(await bench.plane.updateCertificates({ r: all(...list) })).toEqual([])
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
  while (visits.length < 20) await Bun.sleep(1)
  stopping = true
  await Promise.all(visitors)
  expect(visits.filter(({ answer }) => answer !== 'x')).toEqual([])
  expect(new Set(visits.map(({ serial }) => serial)).size).toBe(2)
  standing.write('still')
  expect(await new Promise((resolve) => standing.once('data', (bytes) => resolve(String(bytes))))).toBe('still')
  expect((await visit(bench.port, 'a.test')).serial).toBe(serialOf(of.a!))
  console.log(`${visits.length} handshakes beside 200 swaps`)
})

test('F2: a swap leaves the tickets of what stays alone', async () => {
  const both = all(one(['a.test'], of.a!), one(['b.test'], of.b!))
  const bench = await open([await terminating()], { peek: true, certificates: { r: both } })
  const first = await visit(bench.port, 'a.test')
  await bench.plane.updateCertificates({ r: all(one(['a.test'], of.a!), one(['b.test'], of.wild!)) })
  expect(await visit(bench.port, 'a.test', { session: first.session })).toMatchObject({ reused: true, answer: 'x' })
  await bench.plane.updateCertificates({ r: all(one(['a.test'], of.next!)) })
  expect(await visit(bench.port, 'a.test', { session: first.session })).toMatchObject({ reused: false, answer: 'x' })
})

test('F2: a certificate that cannot be used is told, and the one before stays', async () => {
  const routes = [await terminating()]
  const bench = await open(routes, { certificates: { r: all(one(['a.test'], of.a!), one(['b.test'], of.b!)) } })
  const mismatched = one(['a.test'], { cert: of.next!.cert, key: of.a!.key })
  const problems = await bench.plane.updateCertificates({ r: all(mismatched, one(['b.test'], of.b!)) })
  expect(problems).toEqual([
    { route: 'r', message: expect.stringMatching(/^Cannot use the certificate for a\.test: /) },
  ])
  expect((await visit(bench.port, 'a.test')).serial).toBe(serialOf(of.a!))
  expect((await visit(bench.port, 'b.test')).serial).toBe(serialOf(of.b!))
  // Nor does a plan that repeats it take it away, or one whose certificates never were.
  expect(await bench.apply(routes, { r: all(mismatched) })).toHaveLength(1)
  expect((await visit(bench.port, 'a.test')).serial).toBe(serialOf(of.a!))
  expect(await bench.plane.updateCertificates({ nobody: all() })).toEqual([])
})

for (const relay of [true, false])
  test(`F7: a name whose certificate is being issued is told apart, until it comes (${relay ? 'relay thread' : 'TypeScript'})`, async () => {
    const routes = [
      await terminating(['a.test', 'b.test']),
      // A target for bytes as they are, so that the relay thread accepts.
      route('plain', { domains: ['p.test'], action: forward([target(9)], { tls: ends('passthrough') }) }),
    ]
    const certificates = { r: perName(one(['a.test'], of.a!)) }
    const bench = await open(routes, { peek: true, relay, certificates })
    expect(await visit(bench.port, 'a.test')).toMatchObject({ serial: serialOf(of.a!), answer: 'x' })
    for (const version of ['-tls1_2', '-tls1_3']) {
      const args = ['s_client', '-connect', `127.0.0.1:${bench.port}`, '-servername', 'b.test', version]
      expect((await openssl(...args)).output).toContain('alert internal error')
    }
    expect((await visit(bench.port, 'c.test')).serial).toBeUndefined()
    const records = await bench.settle(4)
    expect(records.slice(1).map(({ route, reason, serverName }) => [route, reason, serverName])).toEqual([
      ['r', 'certificate_pending', 'b.test'],
      ['r', 'certificate_pending', 'b.test'],
      ['', 'no_route', 'c.test'],
    ])
    await bench.plane.updateCertificates({ r: perName(one(['a.test'], of.a!), one(['b.test'], of.b!)) })
    expect(await visit(bench.port, 'b.test')).toMatchObject({ serial: serialOf(of.b!), answer: 'x' })
    // A plan that comes next has what the message brought.
    await bench.plane.updateRoutes([{ ...routes[0]!, priority: 1 }, routes[1]!])
    expect(await visit(bench.port, 'b.test')).toMatchObject({ serial: serialOf(of.b!), answer: 'x' })
  })

test('F7: the alert for a pending name is the whole answer', async () => {
  const bench = await open([await terminating(['b.test'])], { peek: true, certificates: { r: perName() } })
  const socket = client(bench.port)
  await connected(socket)
  const answer = readAll(socket)
  socket.write(hello(sni('b.test')))
  expect((await answer).bytes.toString('hex')).toBe('15030300020250')
  expect(reasons(await bench.settle(1))).toEqual(['certificate_pending'])
})
