// Health of targets in a worker: checks against real servers, what failed dials say, and routes whose targets take none.
import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { HEALTH_CHECKS_AT_ONCE_MAX } from '../../src/base/limits.ts'
import type { CheckResult, HealthCheck } from '../../src/channel/messages.ts'
import { HealthChecks } from '../../src/user/health.ts'
import { peekClientHello } from '../../src/user/peek/client-hello.ts'
import { Timers } from '../../src/user/timers.ts'
import {
  blackHole,
  client,
  connected,
  descriptors,
  echo,
  forward,
  gone,
  later,
  open,
  readAll,
  reasons,
  route,
  server,
  synSent,
  target,
} from './plane.ts'

const INTERVAL_MS = 200

const check = (port: number, more: Partial<HealthCheck> = {}): HealthCheck => ({
  route: 'r',
  endpoint: `127.0.0.1:${port}`,
  host: '127.0.0.1',
  port,
  type: 'tcp',
  name: null,
  sendProxyProtocol: null,
  intervalMs: INTERVAL_MS,
  timeoutMs: 1000,
  ...more,
})

/** Runs checks until told otherwise; `results(n)` resolves to the first n. */
function checking(checks: HealthCheck[]) {
  const timers = new Timers()
  const got: CheckResult[] = []
  let wake = () => {}
  const health = new HealthChecks({
    timers,
    checked: (results) => {
      got.push(...results)
      wake()
    },
    crashed: (error) => {
      throw error
    },
  })
  health.set(checks)
  later(() => health.set([]))
  return {
    health,
    timers,
    got,
    async results(n: number) {
      while (got.length < n) await new Promise<void>((resolve) => (wake = resolve))
      return got.slice(0, n)
    },
  }
}

/** The result of one check, which is then made no more. */
async function first(one: HealthCheck): Promise<CheckResult> {
  const { health, results } = checking([one])
  const [result] = await results(1)
  health.set([])
  return result!
}

const free = async () => {
  const listening = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => listening.once('listening', resolve))
  const { port } = listening.address() as net.AddressInfo
  await new Promise((resolve) => listening.close(resolve))
  return port
}

test('E7 K4: a tcp check connects, again and again, and leaves nothing', async () => {
  let accepted = 0
  const port = await server(() => accepted++)
  const before = descriptors()
  const { health, timers, results } = checking([check(port)])
  for (const result of await results(3))
    expect(result).toEqual({ route: 'r', endpoint: `127.0.0.1:${port}`, ok: true, ms: expect.any(Number) })
  health.set([])
  expect([health.running, timers.armed]).toEqual([0, 0])
  expect(accepted).toBeGreaterThanOrEqual(3)
  // The other ends are this process too: they close when they hear of it.
  while (descriptors() > before) await Bun.sleep(5)
})

test('E7: a check says why it failed', async () => {
  expect(await first(check(await free()))).toMatchObject({ ok: false, error: 'connection refused' })
  const hole = await blackHole()
  const before = synSent(hole)
  expect(await first(check(hole, { timeoutMs: 300 }))).toMatchObject({ ok: false, error: 'no answer in time' })
  expect(synSent(hole)).toBe(before)
  const unix = { endpoint: 'unix:/nowhere/at.all', host: 'unix:/nowhere/at.all' }
  expect(await first(check(0, unix))).toMatchObject({ endpoint: unix.endpoint, ok: false, error: 'no such socket' })
})

test('E7: a unix socket is checked too', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'sluice-health-'))
  later(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 's')
  const listening = net.createServer((socket) =>
    socket.once('data', (request) =>
      socket.end(`HTTP/1.1 ${/Host: localhost\r/.test(String(request)) ? 200 : 400}\r\n`),
    ),
  )
  await new Promise<void>((resolve) => listening.listen(path, resolve))
  later(() => listening.close())
  for (const type of ['tcp', { http: '/' }] as const)
    expect(await first(check(0, { type, host: `unix:${path}` }))).toMatchObject({ ok: true })
})

test('E7: an http check asks for the path and takes 2xx and 3xx', async () => {
  const requests: string[] = []
  let answer = ''
  const port = await server((socket) =>
    socket.once('data', (bytes) => {
      requests.push(String(bytes))
      // Byte by byte, and the connection stays: the check must not wait for its end.
      for (const byte of answer) socket.write(byte)
    }),
  )
  const ask = (said: string, more: Partial<HealthCheck> = {}) => {
    answer = said
    return first(check(port, { type: { http: '/healthz?x=1' }, ...more }))
  }
  expect(await ask('HTTP/1.1 204 No Content\r\n\r\n', { name: 'app.internal' })).toMatchObject({ ok: true })
  expect(await ask('HTTP/1.1 302 Found\r\n')).toMatchObject({ ok: true })
  expect(await ask('HTTP/1.0 503 Busy\r\n')).toMatchObject({ ok: false, error: 'status 503' })
  expect(await ask('SSH-2.0-x\r\n')).toMatchObject({ ok: false, error: 'the answer is not HTTP/1' })
  expect(await ask('HTTP/1.1 200', { timeoutMs: 300 })).toMatchObject({ ok: false, error: 'no answer in time' })
  expect(requests[0]).toStartWith(`GET /healthz?x=1 HTTP/1.1\r\nHost: app.internal:${port}\r\n`)
  expect(requests[1]).toContain(`\r\nHost: 127.0.0.1:${port}\r\n`)
  expect(requests[0]).toEndWith('\r\nConnection: close\r\n\r\n')
  const silent = await server((socket) => void socket.end())
  expect(await first(check(silent, { type: { http: '/' } }))).toMatchObject({
    ok: false,
    error: 'closed without an answer',
  })
})

test('E7: a tls check shakes hands, by name, and does not verify', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'sluice-health-'))
  const made = Bun.spawnSync([
    'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
    '-subj', '/CN=other.test', '-keyout', join(dir, 'key'), '-out', join(dir, 'cert'),
  ]) // prettier-ignore
  if (!made.success) throw new Error(String(made.stderr))
  const [key, cert] = await Promise.all(['key', 'cert'].map((name) => Bun.file(join(dir, name)).text()))
  rmSync(dir, { recursive: true })
  const secure = tls.createServer({ key, cert }, (socket) => void socket.on('error', () => {}))
  secure.on('tlsClientError', () => {})
  await new Promise<void>((resolve) => secure.listen(0, '127.0.0.1', resolve))
  later(() => secure.close())
  const { port } = secure.address() as net.AddressInfo
  expect(await first(check(port, { type: 'tls', name: 'app.test' }))).toMatchObject({ ok: true })
  expect(await first(check(port, { type: 'tls' }))).toMatchObject({ ok: true })

  const hellos: ReturnType<typeof peekClientHello>[] = []
  const reader = await server((socket) =>
    socket.once('data', (bytes: Buffer) => {
      hellos.push(peekClientHello(bytes))
      socket.destroy()
    }),
  )
  for (const name of ['app.test', null])
    expect(await first(check(reader, { type: 'tls', name }))).toMatchObject({ ok: false })
  expect(hellos.map((hello) => hello.verdict === 'yes' && hello.hello.serverName)).toEqual(['app.test', undefined])

  // Plain TCP says yes to a backend that speaks no TLS; this does not.
  const plain = await server((socket) => socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')))
  const refused = await first(check(plain, { type: 'tls' }))
  expect([refused.ok, refused.error!.startsWith('TLS: ')]).toEqual([false, true])
  const silent = await server(() => {})
  expect(await first(check(silent, { type: 'tls', timeoutMs: 300 }))).toMatchObject({ error: 'no answer in time' })
})

test('E7: more checks than may run at once wait for their turn', async () => {
  const hole = await blackHole()
  const count = HEALTH_CHECKS_AT_ONCE_MAX + 50
  const checks = Array.from({ length: count }, (_, i) =>
    check(hole, { endpoint: `e${i}`, intervalMs: 1000, timeoutMs: 2000 }),
  )
  const { health, got, results, timers } = checking(checks)
  let most = 0
  while (got.length < count) {
    most = Math.max(most, health.running)
    await results(got.length + 1)
  }
  expect(most).toBe(HEALTH_CHECKS_AT_ONCE_MAX)
  expect(new Set(got.map((result) => result.endpoint)).size).toBe(count)
  expect(got.every((result) => result.error === 'no answer in time')).toBe(true)
  health.set([])
  expect([health.running, timers.armed]).toEqual([0, 0])
}, 20_000)

test('E7: a check that stays in the list keeps its rhythm, one that goes ends at once and is not told', async () => {
  const port = await server(() => {})
  const hole = await blackHole()
  const [stays, goes] = [check(port), check(hole, { endpoint: 'gone', intervalMs: 100, timeoutMs: 5000 })]
  const { health, got, results, timers } = checking([stays, goes])
  await results(1)
  while (health.running === 0) await Bun.sleep(5)
  health.set([stays])
  expect(timers.armed).toBe(1)
  health.set([stays, stays])
  expect(timers.armed).toBe(1)
  await results(3)
  expect(got.every((result) => result.ok)).toBe(true)
})

// ---- what is dialled ----

test('K4: failed dials are told by endpoint, in batches, and the first success after them', async () => {
  const dead = await free()
  const alive = await echo()
  const bench = await open([route('r', { action: forward([target(dead), target(alive)]) })])
  for (let i = 0; i < 4; i++) {
    const socket = client(bench.port)
    socket.end('x')
    expect(String((await readAll(socket)).bytes)).toBe('x')
  }
  bench.plane.dials.flush()
  const failures = bench.dials.filter((dial) => dial.endpoint === `127.0.0.1:${dead}`)
  expect(failures.reduce((sum, dial) => sum + dial.failures, 0)).toBe(2)
  expect(failures[0]).toMatchObject({ route: 'r', reason: 'target_refused', failedAt: expect.any(String) })
  expect(bench.dials.length).toBe(failures.length)

  const listening = net.createServer((socket) => void socket.pipe(socket)).listen(dead, '127.0.0.1')
  await new Promise((resolve) => listening.once('listening', resolve))
  later(() => listening.close())
  bench.dials.length = 0
  for (let i = 0; i < 4; i++) {
    const socket = client(bench.port)
    socket.end('x')
    await readAll(socket)
  }
  bench.plane.dials.flush()
  expect(bench.dials).toEqual([
    { route: 'r', endpoint: `127.0.0.1:${dead}`, failures: 0, succeededAt: expect.any(String) },
  ])
})

test('K4: a target that does not answer is told as such', async () => {
  const hole = await blackHole()
  const bench = await open([route('r', { action: forward(hole), timeoutsMs: { connect: 200 } })])
  await gone(client(bench.port))
  bench.plane.dials.flush()
  expect(bench.dials).toMatchObject([{ endpoint: `127.0.0.1:${hole}`, failures: 1, reason: 'connect_timeout' }])
})

// ---- targets that take none ----

test('E7: weights change in place: live connections, turns and counters stay, and weight 0 takes none', async () => {
  const servers = await Promise.all([1, 2, 3].map((n) => server((socket) => void socket.end(String(n)))))
  const weighted = (...weights: number[]) =>
    route('r', {
      action: forward(servers.map((port, i) => target(port, weights[i]))),
      security: { maxConnections: 50 },
    })
  const bench = await open([weighted(1, 1, 1)])
  const take = async (count: number) => {
    const seen: Record<string, number> = {}
    for (let i = 0; i < count; i++) {
      const { bytes } = await readAll(client(bench.port))
      seen[String(bytes)] = (seen[String(bytes)] ?? 0) + 1
    }
    return seen
  }
  expect(await take(6)).toEqual({ 1: 2, 2: 2, 3: 2 })
  expect(await bench.plane.updateRoutes([weighted(1, 0, 3)])).toEqual([])
  expect(await take(8)).toEqual({ 1: 2, 3: 6 })
  await bench.plane.updateRoutes([weighted(0, 0, 0)])
  for (let i = 0; i < 3; i++) expect((await readAll(client(bench.port))).error).toBe('ECONNRESET')
  bench.plane.reporter.flush()
  expect(bench.refused).toEqual(new Map([['no_target', 3]]))
  await bench.plane.updateRoutes([weighted(0, 1, 0)])
  expect(await take(2)).toEqual({ 2: 2 })
  // A whole plan says the same again; a route it does not know is none.
  await bench.apply([weighted(1, 1, 0)])
  expect(await take(4)).toEqual({ 1: 2, 2: 2 })
  expect(await bench.plane.updateRoutes([{ ...weighted(1, 1, 1), name: 'unknown' }])).toEqual([])
  expect(await take(2)).toEqual({ 1: 1, 2: 1 })
})

test('E7: what is more than weights makes the route anew', async () => {
  const bench = await open([route('r', { action: forward(await echo()) })])
  const kept = client(bench.port)
  await connected(kept)
  while (bench.plane.size === 0) await Bun.sleep(1)
  await bench.plane.updateRoutes([route('r', { action: forward(await echo()), security: { block: ['127.0.0.0/8'] } })])
  await gone(client(bench.port))
  kept.end('still')
  expect(String((await readAll(kept)).bytes)).toBe('still')
  bench.plane.reporter.flush()
  expect(bench.refused).toEqual(new Map([['route_ip_blocked', 1]]))
})

test('H12: a route that is drained refuses new connections, live ones go on', async () => {
  const port = await echo()
  const bench = await open([route('r', { action: forward(port) })])
  const live = client(bench.port)
  await connected(live)
  live.write('a')
  await new Promise((resolve) => live.once('data', resolve))
  await bench.plane.updateRoutes([route('r', { action: forward(port), draining: true })])
  expect((await readAll(client(bench.port))).error).toBe('ECONNRESET')
  live.end('b')
  expect(String((await readAll(live)).bytes)).toBe('b')
  await bench.plane.updateRoutes([route('r', { action: forward(port) })])
  const again = client(bench.port)
  again.end('c')
  expect(String((await readAll(again)).bytes)).toBe('c')
  bench.plane.reporter.flush()
  expect(bench.refused).toEqual(new Map([['draining', 1]]))
})

test('E7: connections to a dead target are closed, those that dial it go on to another', async () => {
  const [a, b] = await Promise.all([echo(), echo()])
  const hole = await blackHole()
  const before = synSent(hole)
  const bench = await open([
    route('r', { action: forward([target(a), target(b)]) }),
    route('dialling', { action: forward([target(hole), target(b)]) }),
    route('alone', { action: forward(hole) }),
  ], { listeners: ['r', 'dialling', 'alone'].map((name) => ({ routes: [name], peek: false })) }) // prettier-ignore
  const sockets = [client(bench.ports[0]!), client(bench.ports[0]!)]
  const ends = sockets.map(readAll)
  for (const socket of sockets) {
    socket.write('x')
    await new Promise((resolve) => socket.once('data', resolve))
  }
  bench.plane.closeTarget('other', `127.0.0.1:${a}`, 'target_down')
  bench.plane.closeTarget('r', `127.0.0.1:${a}`, 'target_down')
  expect(await ends[0]).toMatchObject({ error: 'ECONNRESET' })
  sockets[1]!.end('still')
  expect(String((await ends[1]!).bytes)).toBe('xstill')

  const dialling = client(bench.ports[1]!)
  dialling.end('y')
  const alone = readAll(client(bench.ports[2]!))
  while (synSent(hole) < before + 2) await Bun.sleep(5)
  for (const name of ['dialling', 'alone']) bench.plane.closeTarget(name, `127.0.0.1:${hole}`, 'target_down')
  expect(String((await readAll(dialling)).bytes)).toBe('y')
  expect((await alone).error).toBe('ECONNRESET')
  expect(synSent(hole)).toBe(before)
  expect(reasons(await bench.settle(4)).toSorted()).toEqual(['finished', 'finished', 'target_down', 'target_down'])
  expect(bench.dials).toEqual([])
})
