// What the sweep takes for a connection that nothing would end any more, on invented ones, and on real ones that are broken by hand.
import { describe, expect, test } from 'bun:test'
import { SWEEP_MS } from '../../src/base/limits.ts'
import type { Connection } from '../../src/user/connection.ts'
import { wrongWith, type Swept } from '../../src/user/sweep.ts'
import { client, connected, echo, forward, gone, open, reasons, route, server, type Bench } from './plane.ts'

const HOUR = 3_600_000

describe('G16: what is wrong with a connection', () => {
  const timeoutsMs = {
    connect: 10_000,
    firstByte: 30_000,
    handshake: 10_000,
    idle: 4 * HOUR,
    halfClosed: 5000,
    parity: HOUR,
    grace: 5000,
  }
  const fine: Swept = {
    settled: false,
    state: 'open',
    client: 'there',
    target: 'there',
    held: undefined,
    armed: true,
    overdueMs: 0,
    openMs: 1000,
    idleMs: 0,
    timeoutsMs,
  }
  const what = (view: Partial<Swept>) => wrongWith({ ...fine, ...view })?.what

  test('nothing, while it lives as it should', () => {
    const healthy: Partial<Swept>[] = [
      {},
      { state: 'opening', target: 'none', openMs: 100_000 },
      { state: 'opening', target: 'none', timeoutsMs: null },
      { state: 'open', target: 'none' },
      { state: 'open', idleMs: 4 * HOUR - 1, openMs: 90 * HOUR },
      // One side is through, and the other may still be taking what is left.
      { state: 'half-closed', target: 'over' },
      { state: 'open', client: 'over' },
      { held: true, client: 'gone', target: 'gone' },
      // Only native code knows when its last byte was.
      { held: true, client: 'gone', target: 'gone', idleMs: 90 * HOUR },
      { overdueMs: 500 },
      { state: 'half-closed', idleMs: 5 * HOUR },
    ]
    for (const view of healthy) expect(what(view), JSON.stringify(view)).toBeUndefined()
  })

  test.each([
    [{ settled: true }, 'it has settled, and is still listed'],
    [{ client: 'gone', target: 'none' }, 'no socket of it is left'],
    [{ client: 'over', target: 'over' }, 'no socket of it is left'],
    [{ client: 'gone', target: 'gone' }, 'no socket of it is left'],
    [{ client: 'gone' }, 'the socket of the client is gone'],
    [{ target: 'gone' }, 'the socket of the target is gone'],
    [{ held: false, client: 'gone', target: 'gone' }, 'native code does not know it'],
    [{ armed: false }, 'it has no deadline'],
    [{ armed: false, held: true, client: 'gone', target: 'gone' }, 'it has no deadline'],
    [{ overdueMs: SWEEP_MS + 1 }, 'its deadline has passed, and nothing happened'],
    [{ state: 'opening', target: 'none', openMs: 190_000 }, 'it opens for longer than all its limits'],
    [{ idleMs: 4 * HOUR + SWEEP_MS + 1 }, 'it has been silent for longer than it may'],
  ] as [Partial<Swept>, string][])('%j', (view, finding) => expect(what(view)).toBe(finding))

  test('one that is being closed in native code has its grace time', () => {
    const closing = wrongWith({ ...fine, armed: false, held: true, state: 'closing' })
    expect(closing).toEqual({ what: 'it has no deadline', patienceMs: 5000 + SWEEP_MS })
    expect(wrongWith({ ...fine, armed: false })!.patienceMs).toBe(SWEEP_MS)
  })
})

/** Two sweeps, as far apart as they are. */
async function twice(bench: Bench): Promise<number> {
  expect(await bench.plane.sweep.look(0)).toBe(0)
  return bench.plane.sweep.look(SWEEP_MS)
}

const only = (bench: Bench): Connection => [...bench.plane.table.values()][0]!

for (const carrier of ['user', 'splice'] as const)
  describe(`G16: the sweep of connections in ${carrier}`, () => {
    const bench = async () => {
      const bench = await open([route('f', { carrier, action: forward(await echo()) })], { peek: carrier === 'splice' })
      const socket = client(bench.port)
      await connected(socket)
      const heard = new Promise((resolve) => socket.once('data', resolve))
      socket.write('no TLS')
      await heard
      return { bench, socket, connection: only(bench) }
    }

    test('leaves a healthy one alone', async () => {
      const { bench: one, socket } = await bench()
      expect(await twice(one)).toBe(0)
      expect(one.settled).toEqual([])
      socket.destroy()
      await one.settle(1)
      expect(one.swept).toBe(0)
    })

    test('ends one without a deadline', async () => {
      const { bench: one, socket, connection } = await bench()
      connection.disarm()
      const left = gone(socket)
      expect(await twice(one)).toBe(1)
      await left
      expect(reasons(await one.settle(1))).toEqual(['internal_error'])
      expect(one.swept).toBe(1)
      expect(one.plane.size).toBe(0)
      expect(one.plane.timers.armed).toBe(0)
      const line = one.logged.find((line) => line.startsWith('error The sweep ended a connection: it has no deadline'))
      expect(line).toContain(`"id":"${connection.id}"`)
      expect(line).toContain('"route":"f"')
    })

    test('forgets one that has settled and was not forgotten, once', async () => {
      const { bench: one, socket, connection } = await bench()
      socket.destroy()
      await one.settle(1)
      one.plane.table.set(connection.id, connection)
      expect(await twice(one)).toBe(1)
      expect(one.plane.size).toBe(0)
      expect(one.settled.length).toBe(1)
      expect(connection.route!.counters.total).toBe(0)
    })

    test('a suspect that is well again is none', async () => {
      const { bench: one, connection } = await bench()
      connection.disarm()
      expect(await one.plane.sweep.look(0)).toBe(0)
      connection.arm(60_000, () => {})
      expect(await one.plane.sweep.look(SWEEP_MS)).toBe(0)
      connection.disarm()
      expect(await one.plane.sweep.look(2 * SWEEP_MS)).toBe(0)
      expect(await one.plane.sweep.look(3 * SWEEP_MS)).toBe(1)
    })
  })

test('G16: a client whose first bytes the relay thread waits for is left alone', async () => {
  const bench = await open([route('f', { carrier: 'splice', action: forward(await echo()) })], { peek: true })
  const socket = client(bench.port)
  await connected(socket)
  while (bench.plane.size === 0) await Bun.sleep(1)
  expect(await twice(bench)).toBe(0)
  expect(bench.plane.size).toBe(1)
  const heard = new Promise((resolve) => socket.once('data', resolve))
  socket.write('no TLS')
  await heard
  socket.destroy()
  await bench.settle(1)
})

for (const side of ['client', 'target'] as const)
  test(`G16: the socket of the ${side} is torn out by hand: the sweep ends the other`, async () => {
    const over = Promise.withResolvers<void>()
    const port = await server((socket) => {
      socket.pipe(socket)
      socket.on('close', () => over.resolve())
    })
    const bench = await open([route('f', { action: forward(port) })], { relay: false })
    const socket = client(bench.port)
    const heard = new Promise((resolve) => socket.once('data', resolve))
    socket.write('hello')
    await heard
    const left = gone(socket)
    only(bench)[side]!.detach()!.terminate()
    expect(await twice(bench)).toBe(1)
    await Promise.all([left, over.promise])
    expect(reasons(await bench.settle(1))).toEqual(['internal_error'])
    expect(bench.logged.some((line) => line.includes(`the socket of the ${side} is gone`))).toBe(true)
  })

test('G16: the relay loses a connection: the sweep ends it', async () => {
  const bench = await open([route('f', { carrier: 'splice', action: forward(await echo()) })], { peek: true })
  const socket = client(bench.port)
  const heard = new Promise((resolve) => socket.once('data', resolve))
  socket.write('no TLS')
  await heard
  const connection = only(bench)
  while (connection.state !== 'open') await Bun.sleep(1)
  expect(connection.attachment!.held!()).toBe(true)
  // As if its last event had never come.
  const { attachment } = connection
  connection.attachment = { release: () => attachment!.release('internal_error'), held: () => false }
  expect(await twice(bench)).toBe(1)
  await gone(socket)
  expect(reasons(await bench.settle(1))).toEqual(['internal_error'])
})
