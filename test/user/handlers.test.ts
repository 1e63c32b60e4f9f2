// Handlers: what they are given, how long they may wait, and what they cannot break.
import { expect, test } from 'bun:test'
import { join } from 'node:path'
import type { UserRoute } from '../../src/plan/types.ts'
import { seen } from './fixtures/handlers.ts'
import { client, connected, gone, open, readAll, reasons, route } from './plane.ts'

const fixture = (name: string) => join(import.meta.dir, 'fixtures', name)
const handler = (
  env: Record<string, unknown>,
  module = fixture('handlers.ts'),
  inline: string | null = null,
): UserRoute['action'] => ({
  type: 'handler',
  module,
  inline,
  env,
  reach: { private: true, ports: null },
  tls: null,
})
const serve = (kind: string, timeoutsMs = {}) => open([route('h', { action: handler({ kind }), timeoutsMs })])

test('D1 D10: an echo handler gives back 8 MiB and ends with the client', async () => {
  const bench = await serve('echo')
  const bytes = Buffer.alloc(8 << 20, 'sluice ')
  const socket = client(bench.port)
  socket.end(bytes)
  expect((await readAll(socket)).bytes.equals(bytes)).toBe(true)
  expect((await bench.settle(1))[0]).toMatchObject({
    reason: 'finished',
    bytesIn: bytes.length,
    bytesOut: bytes.length,
    target: null,
  })
})

test('D2 Q7: a handler may speak first', async () => {
  const bench = await serve('greeting')
  const socket = client(bench.port)
  expect((await readAll(socket)).bytes.toString()).toBe('welcome')
  socket.end()
  expect(reasons(await bench.settle(1))).toEqual(['finished'])
})

for (const kind of ['throws', 'rejects', 'string'])
  test(`D4 Q13: a handler that fails (${kind}) ends its connection and no other`, async () => {
    const bench = await serve(kind)
    const socket = client(bench.port)
    await gone(socket)
    expect(reasons(await bench.settle(1))).toEqual(['handler_failed'])
    expect(bench.logged).toHaveLength(1)
    expect(bench.logged[0]).toContain(kind === 'string' ? 'bytes only' : kind === 'throws' ? 'at once' : 'later')
    await gone(client(bench.port))
    expect(reasons(await bench.settle(2))).toEqual(['handler_failed', 'handler_failed'])
    expect(bench.logged).toHaveLength(1) // the second within a second is counted only
  })

test('D7 Q17: what came before the handler reads is there, once and first', async () => {
  const bench = await serve('sleeper')
  const socket = client(bench.port)
  socket.write('early')
  expect((await readAll(socket)).bytes.toString()).toBe('early')
  socket.end()
  await bench.settle(1)
})

test('A12 Q6: close() sends what was written, then FIN; a second call is the same', async () => {
  const bench = await serve('close')
  const socket = client(bench.port)
  expect((await readAll(socket)).bytes.length).toBe(100_005)
  socket.end()
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'handler_closed', bytesOut: 100_005 })
  expect(bench.plane.timers.armed).toBe(0)
})

test('A12: close() does not wait for a client longer than grace', async () => {
  const bench = await serve('close', { grace: 200 })
  client(bench.port).resume()
  expect(reasons(await bench.settle(1))).toEqual(['handler_closed'])
})

test('A6 D3 D6: addresses and context', async () => {
  const bench = await serve('info')
  const socket = client(bench.port)
  const info = JSON.parse((await readAll(socket)).bytes.toString())
  expect(info).toEqual({
    remoteAddress: `127.0.0.1:${socket.localPort}`,
    localAddress: `127.0.0.1:${bench.port}`,
    alpn: null,
  })
  expect(seen.ctx).toMatchObject({
    clientIp: '127.0.0.1',
    clientPort: socket.localPort,
    serverIp: '127.0.0.1',
    port: bench.port,
    routeName: 'h',
    isTls: false,
    domain: null,
  })
  socket.end()
  expect((await bench.settle(1))[0]!.id).toBe(seen.ctx!.connectionId)
})

test('A8 D5 Q5: after a reset `closed` rejects with an Error, and writing fails cleanly', async () => {
  const bench = await serve('idle')
  const socket = client(bench.port)
  await connected(socket)
  while (bench.plane.size === 0) await Bun.sleep(1)
  socket.resetAndDestroy()
  expect(reasons(await bench.settle(1))).toEqual(['client_reset'])
  await Bun.sleep(20)
  expect(seen.closed).toBeInstanceOf(Error)
  expect(seen.late).toBeInstanceOf(Error)
  expect(bench.logged).toEqual([])
})

test('B10 A4: a client that does not read makes the handler wait', async () => {
  const bench = await serve('flood')
  const socket = client(bench.port)
  socket.pause()
  await connected(socket)
  let before = -1
  while (before !== seen.stalled || before === 0) {
    before = seen.stalled ?? 0
    await Bun.sleep(100)
  }
  expect(seen.stalled).toBeLessThan(64)
  const all = readAll(socket)
  socket.resume()
  expect((await all).bytes.length).toBe(64 << 20)
  socket.end()
  expect(reasons(await bench.settle(1))).toEqual(['finished'])
}, 15_000)

test('B10: a handler that does not read stops the client; Q5: its return ends nothing', async () => {
  const bench = await serve('nothing')
  const socket = client(bench.port)
  let sent = 0
  for (; sent < 64; sent++) {
    const drained = Promise.withResolvers<boolean>()
    if (socket.write(Buffer.alloc(1 << 20))) continue
    socket.once('drain', () => drained.resolve(true))
    if (!(await Promise.race([drained.promise, Bun.sleep(300).then(() => false)]))) break
  }
  expect(sent).toBeLessThan(64)
  expect(bench.plane.sample()[0]).toMatchObject({ state: 'open' })
  expect(bench.plane.sample()[0]!.bytesIn).toBeLessThan(4 << 20)
  socket.resetAndDestroy()
  expect(reasons(await bench.settle(1))).toEqual(['client_reset'])
})

test('D1: a class, an inline handler, and modules that cannot serve', async () => {
  const configFile = fixture('config.ts')
  const bench = await open(
    [
      route('class', { action: handler({ word: 'from a class' }, fixture('class.ts')) }),
      route('inline', { action: handler({}, configFile, 'inline') }),
      route('none', { action: handler({}, fixture('nothing.ts')) }),
      route('missing', { action: handler({}, fixture('missing.ts')) }),
    ],
    { listeners: ['class', 'inline', 'none', 'missing'].map((name) => ({ routes: [name], peek: false })), configFile },
  )
  expect(bench.problems.map((problem) => problem.route).sort()).toEqual(['missing', 'none'])
  expect(bench.problems.find((problem) => problem.route === 'none')!.message).toContain(
    'Handler does not export a connect() function.',
  )
  const sockets = bench.ports.map(client)
  expect((await readAll(sockets[0]!)).bytes.toString()).toBe('from a class')
  for (const socket of sockets) socket.end()
  const records = await bench.settle(4)
  expect(Object.fromEntries(records.map((record) => [record.route, record.reason]))).toEqual({
    class: 'finished',
    inline: 'handler_closed',
    none: 'handler_failed',
    missing: 'handler_failed',
  })
})
