// Connections that are handed to the native relay after the peek: nothing lost at the hand-over, and the same ends, counts
// and deadlines as where TypeScript forwards.
import { expect, test } from 'bun:test'
import { createHash, randomBytes } from 'node:crypto'
import type net from 'node:net'
import type { UserRoute } from '../../src/plan/types.ts'
import { client, descriptors, echo, forward, gone, open, readAll, reasons, route, server } from './plane.ts'

const MIB = 1024 * 1024

/** Peeked, and what is no TLS goes to the one route: so any bytes can be spliced. */
const splice = (action: UserRoute['action'], timeoutsMs: Partial<UserRoute['timeoutsMs']> = {}) =>
  open([route('s', { carrier: 'splice', action, timeoutsMs })], { peek: true })

test('B9 G9 G19: 64 MiB each way, whole and counted, with the first bytes counted once', async () => {
  const bench = await splice(forward(await echo()))
  const before = descriptors()
  const socket = client(bench.port)
  const sent = createHash('sha256')
  const got = createHash('sha256')
  socket.on('data', (bytes) => got.update(bytes))
  const block = randomBytes(MIB)
  block.write('no TLS ')
  for (let i = 0; i < 64; i++) {
    sent.update(block)
    if (!socket.write(block)) await new Promise((resolve) => socket.once('drain', resolve))
  }
  socket.end()
  await gone(socket)
  expect(got.digest('hex')).toBe(sent.digest('hex'))
  expect((await bench.settle(1))[0]).toMatchObject({
    bytesIn: 64 * MIB,
    bytesOut: 64 * MIB,
    carrier: 'splice',
    reason: 'finished',
  })
  expect(bench.plane.timers.armed).toBe(0)
  expect(descriptors()).toBeLessThan(before + 30) // the relay keeps some pipes
}, 30_000)

test('a client that said all before the target was open is answered', async () => {
  const port = await server((socket) => {
    const chunks: Buffer[] = []
    socket.on('data', (bytes: Buffer) => chunks.push(bytes))
    socket.on('end', () => socket.end(Buffer.concat(chunks)))
  })
  const bench = await splice(forward(port))
  const socket = client(bench.port)
  socket.end('request and FIN')
  expect((await readAll(socket)).bytes.toString()).toBe('request and FIN')
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'finished', bytesIn: 15, bytesOut: 15 })
})

for (const side of ['client', 'target'] as const)
  test(`Q2: RST from the ${side} ends the other side at once`, async () => {
    let atTarget!: net.Socket
    const accepted = Promise.withResolvers<void>()
    const port = await server((socket) => {
      atTarget = socket
      socket.on('data', () => accepted.resolve())
    })
    const bench = await splice(forward(port))
    const socket = client(bench.port)
    socket.write('no TLS')
    await accepted.promise
    const [from, to] = side === 'client' ? [socket, atTarget] : [atTarget, socket]
    const over = gone(to)
    const began = performance.now()
    from.resetAndDestroy()
    await over
    expect(performance.now() - began).toBeLessThan(100)
    expect((await bench.settle(1))[0]).toMatchObject({ reason: `${side}_reset`, bytesIn: 6 })
  })

test('Q1 G8: half-closed is bounded, unless the route allows it', async () => {
  const late = await server((socket) => void socket.resume().on('end', () => setTimeout(() => socket.end('late'), 700)))
  const bounded = await splice(forward(late), { halfClosed: 200, grace: 100 })
  client(bounded.port).end('no TLS')
  expect(reasons(await bounded.settle(1))).toEqual(['half_closed_timeout'])
  const allowed = await splice(forward(late, { allowHalfOpen: true }), { halfClosed: 200 })
  const socket = client(allowed.port)
  socket.end('no TLS')
  expect((await readAll(socket)).bytes.toString()).toBe('late')
  expect(reasons(await allowed.settle(1))).toEqual(['finished'])
})

test('idle, drain and stop reach a spliced connection, with final counts', async () => {
  const port = await echo()
  const idle = await splice(forward(port), { idle: 400 })
  const drained = await splice(forward(port))
  const stopped = await splice(forward(port))
  const sockets = [idle, drained, stopped].map((bench) => client(bench.port))
  for (const socket of sockets) {
    socket.write('no TLS')
    await new Promise((resolve) => socket.once('data', resolve))
  }
  drained.plane.drain('s', 0)
  const over = sockets.map(gone)
  await stopped.plane.stop(0)
  await Promise.all(over)
  const records = await Promise.all([idle, drained, stopped].map(async (bench) => (await bench.settle(1))[0]!))
  expect(reasons(records)).toEqual(['idle_timeout', 'drained', 'drained'])
  for (const record of records) expect(record).toMatchObject({ bytesIn: 6, bytesOut: 6, carrier: 'splice' })
})

test('G4: 500 clients that come and go at random moments leave nothing', async () => {
  const bench = await splice(forward(await echo()))
  let running = 0
  for (let i = 0; i < 500; i++) {
    const socket = client(bench.port)
    running++
    socket.on('close', () => running--)
    socket.on('data', () => {})
    socket.on('end', () => socket.destroy())
    socket.write(Buffer.alloc(1 + ((i * 7919) % 50_000), 'x'))
    setTimeout(
      () => (i % 3 === 0 ? socket.end() : i % 3 === 1 ? socket.destroy() : socket.resetAndDestroy()),
      (i * 31) % 15,
    )
    if (running > 60) await Bun.sleep(1)
  }
  while (running > 0 || bench.plane.size > 0) await Bun.sleep(5)
  bench.plane.reporter.flush()
  expect(reasons(bench.settled)).not.toContain('internal_error')
  expect(new Set(bench.settled.map((record) => record.id)).size).toBe(bench.settled.length)
  expect(bench.plane.timers.armed).toBe(0)
}, 20_000)
