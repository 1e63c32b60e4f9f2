// Handlers that do anything, in any order, with peers that do anything: every failure is an Error that the handler can catch,
// nothing of ours throws, and nothing stays behind.
import { expect, test } from 'bun:test'
import net from 'node:net'
import { connect, type Socket } from '../../src/sockets.ts'
import { given } from './fixtures/given.ts'
import { handling, nothingLeft } from './handling.ts'
import { blackHole, client, descriptors, later, server } from './plane.ts'

const ROUNDS = 300

/** Numbers that come again with the seed (mulberry32). */
function random(seed: number) {
  return (below: number) => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

test(`A22 D5: ${ROUNDS} handlers that misuse their sockets`, async () => {
  const seed = (Math.random() * 2 ** 32) >>> 0
  console.log(`seed ${seed}`)
  const pick = random(seed)
  const peers = [
    (socket: net.Socket) => void socket.pipe(socket),
    (socket: net.Socket) => socket.resetAndDestroy(),
    (socket: net.Socket) => socket.end('bye'),
    (socket: net.Socket) => void socket.once('data', () => socket.resetAndDestroy()),
    (socket: net.Socket) => void socket.pause(),
    (socket: net.Socket) => void socket.write(Buffer.alloc(200_000)),
  ]
  // They would not all notice that the other side has gone.
  const accepted = new Set<net.Socket>()
  const serve = (peer: (socket: net.Socket) => void, socket: net.Socket) => {
    accepted.add(socket)
    peer(socket)
  }
  const ports = [
    ...(await Promise.all(peers.map((peer) => server((socket) => serve(peer, socket))))),
    await blackHole(),
  ]
  const bench = await handling({
    timeoutsMs: { connect: 100, handshake: 100, halfClosed: 100, grace: 100, idle: 1000 },
  })
  const wrong: unknown[] = []
  const caught = async (what: () => unknown) => {
    try {
      await what()
    } catch (error) {
      if (!(error instanceof Error)) wrong.push(error)
    }
  }
  const unhandled = (error: unknown) => void (error instanceof Error || wrong.push(error))
  process.on('unhandledRejection', unhandled)
  later(() => process.off('unhandledRejection', unhandled))
  const steps: ((socket: Socket, all: Socket[]) => unknown)[] = [
    (socket) => socket.writable.getWriter().write(new Uint8Array(pick(300_000))),
    (socket) => socket.writable.getWriter().write('text' as never),
    (socket) => socket.writable.close(),
    (socket) => socket.writable.abort(new Error('why')),
    (socket) => socket.readable.cancel(new Error('why')),
    (socket) => socket.readable.getReader().read(),
    (socket) => {
      const reader = socket.readable.getReader()
      void caught(() => reader.read())
      reader.releaseLock()
    },
    (socket) => {
      const writer = socket.writable.getWriter()
      void caught(() => writer.write(new Uint8Array(1000)))
      writer.releaseLock()
    },
    (socket) => socket.close(new Error('why')),
    (socket, all) => void all.push(socket.startTls()),
    (socket) => socket.opened,
    (socket, all) => socket.readable.pipeTo(all[pick(all.length)]!.writable),
    (_, all) =>
      void all.push(
        connect(`127.0.0.1:${ports[pick(ports.length)]}`, {
          secureTransport: (['on', 'off', 'starttls', 'starttls'] as const)[pick(4)]!,
          allowHalfOpen: pick(2) === 0,
          highWaterMark: pick(1000),
          ...(pick(4) === 0 ? { signal: AbortSignal.timeout(pick(50)) } : {}),
        }),
      ),
    () => new Promise((resolve) => setImmediate(resolve)),
    () => Bun.sleep(pick(5)),
  ]
  given.connect = async (socket, _env, ctx) => {
    const all = [socket]
    for (let i = 0; i < 12; i++) {
      if (pick(12) === 0)
        void caught(() => ctx.gate(pick(3) === 0 ? Promise.reject(new Error('no')) : Bun.sleep(pick(20))))
      // Mostly not awaited: one thing begins while others go on.
      const step = steps[pick(steps.length)]!
      const doing = caught(() => step(all[pick(all.length)]!, all))
      if (pick(3) === 0) await Promise.race([doing, Bun.sleep(5)])
    }
    if (pick(2) === 0) throw new Error('enough')
  }
  const run = async (rounds: number) => {
    let running = 0
    for (let i = 0; i < rounds; i++) {
      running++
      const socket = client(bench.port)
      if (pick(2) === 0) socket.write(Buffer.alloc(pick(100_000)))
      if (pick(2) === 0) setTimeout(() => (pick(2) === 0 ? socket.end() : socket.resetAndDestroy()), pick(50))
      socket.resume()
      setTimeout(() => socket.destroy(), 300)
      socket.once('close', () => running--)
      if (running > 50) await Bun.sleep(5)
    }
    while (running > 0 || bench.plane.size > 0) await Bun.sleep(10)
    await nothingLeft(bench)
    for (const socket of accepted) socket.destroy()
    accepted.clear()
  }
  await run(ROUNDS / 10)
  const before = descriptors()
  await run(ROUNDS)
  bench.plane.reporter.flush()
  expect(wrong).toEqual([])
  expect(bench.logged.filter((line) => line.includes('mistake'))).toEqual([])
  expect(bench.settled.map((record) => record.reason)).not.toContain('internal_error')
  expect(bench.plane.timers.armed).toBe(0)
  // A few are the runtime's own, which come and go; a leak would be hundreds.
  while (descriptors() > before + 8) await Bun.sleep(10)
}, 30_000)
