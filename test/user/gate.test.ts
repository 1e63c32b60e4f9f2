// The output gate: while it is closed nothing leaves, when it opens all of it does, in order, and when it is rejected nothing
// ever has. Gates are opened by the tests, never by a clock.
import { describe, expect, test } from 'bun:test'
import type net from 'node:net'
import { connect, type Context, type Socket } from '../../src/sockets.ts'
import { Gate } from '../../src/user/gate.ts'
import { given } from './fixtures/given.ts'
import { bytes, failureOf, handled, handling, nothingLeft, textOf } from './handling.ts'
import { blackHole, client, later, readAll, reasons, server, synSent } from './plane.ts'

describe('the gate by itself', () => {
  const rejections: unknown[] = []
  const gate = () => new Gate((error) => void rejections.push(error))

  test('open from the start, closed while any promise is pending', async () => {
    const one = gate()
    expect(one.closed).toBe(false)
    const [a, b] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    one.add(a.promise)
    one.add(b.promise)
    const seen: number[] = []
    for (const i of [1, 2, 3]) one.wait(() => void seen.push(i))
    a.resolve()
    await a.promise
    expect([one.closed, seen]).toEqual([true, []])
    b.resolve()
    await b.promise
    expect([one.closed, seen]).toEqual([false, [1, 2, 3]])
  })

  test('one that closes it again lets the others wait, in their order', async () => {
    const one = gate()
    const [a, b] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const seen: number[] = []
    one.add(a.promise)
    one.wait(() => {
      seen.push(1)
      one.add(b.promise)
    })
    one.wait(() => void seen.push(2))
    one.wait(() => void seen.push(3))
    a.resolve()
    await a.promise
    expect(seen).toEqual([1])
    b.resolve()
    await b.promise
    expect(seen).toEqual([1, 2, 3])
  })

  test('rejected: closed for good, told once', async () => {
    const one = gate()
    const [a, b, c] = [Promise.withResolvers<void>(), Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    let called = false
    for (const { promise } of [a, b, c]) one.add(promise)
    one.wait(() => (called = true))
    a.reject(new Error('first'))
    b.reject(new Error('second'))
    c.resolve()
    await Promise.allSettled([a.promise, b.promise, c.promise])
    expect([one.closed, called]).toEqual([true, false])
    expect(rejections).toEqual([new Error('first')])
  })
})

/** A server that tells who came and what they said; it answers at once. */
async function witness() {
  const seen = { accepted: 0, heard: '' }
  const port = await server((socket) => {
    seen.accepted++
    socket.on('data', (chunk: Buffer) => (seen.heard += chunk.toString()))
    socket.on('end', () => socket.end('answer'))
  })
  return { port, seen }
}

/** What reached the client of a handler. */
function receiving(port: number) {
  const socket = client(port)
  const seen = { heard: '' }
  socket.on('data', (chunk: Buffer) => (seen.heard += chunk.toString()))
  return { socket, seen }
}

/** A loop through the kernel: what had been sent before it is there by then. */
async function aRoundTrip() {
  const port = await server((socket: net.Socket) => void socket.pipe(socket))
  const socket = client(port)
  socket.end('x')
  await readAll(socket)
}

/** Runs a handler for a client that can be looked at. */
function serving<T>(port: number, handler: (socket: Socket, ctx: Context) => T | Promise<T>) {
  const done = Promise.withResolvers<T>()
  given.connect = async (socket, _env, ctx) => {
    try {
      done.resolve(await handler(socket, ctx))
    } catch (error) {
      done.reject(error as Error)
    }
  }
  return { ...receiving(port), done: done.promise }
}

for (const gated of [false, true])
  test(`C1 C7: ${gated ? 'held: no SYN, no byte, for anyone; released: everything' : 'without a gate: everything'}, in order`, async () => {
    const { port, seen } = await witness()
    const silent = await blackHole()
    const before = synSent(silent)
    const bench = await handling()
    const gate = Promise.withResolvers<void>()
    const ready = Promise.withResolvers<void>()
    const one = serving(bench.port, async (socket, ctx) => {
      if (gated) void ctx.gate(gate.promise)
      const out = connect(`127.0.0.1:${port}`)
      void connect(`127.0.0.1:${silent}`)
      const [toClient, toServer] = [socket.writable.getWriter(), out.writable.getWriter()]
      for (const i of [1, 2, 3]) {
        void toClient.write(bytes(`c${i} `))
        void toServer.write(bytes(`s${i} `))
      }
      void toServer.close()
      ready.resolve()
      const answer = await textOf(out.readable)
      await toClient.close()
      return answer
    })
    await ready.promise
    if (gated) {
      await aRoundTrip()
      expect([seen, one.seen.heard, synSent(silent) - before]).toEqual([{ accepted: 0, heard: '' }, '', 0])
      gate.resolve()
    }
    expect(await one.done).toBe('answer')
    expect(seen).toEqual({ accepted: 1, heard: 's1 s2 s3 ' })
    one.socket.end()
    await bench.settle(1)
    expect(one.seen.heard).toBe('c1 c2 c3 ')
    await nothingLeft(bench)
  })

test('C2: with nothing pending connect() has begun when it returns', async () => {
  const port = await blackHole()
  const before = synSent(port)
  const bench = await handling()
  const sent = await handled(bench, (socket) => {
    void connect(`127.0.0.1:${port}`)
    const sent = synSent(port) - before
    void socket.close()
    return sent
  })
  expect(sent).toBe(1)
})

test('C1: a gate within a conversation holds what is written after it, on open sockets, and the FIN', async () => {
  const { port, seen } = await witness()
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const ready = Promise.withResolvers<void>()
  const one = serving(bench.port, async (socket, ctx) => {
    const out = connect(`127.0.0.1:${port}`)
    await out.opened
    const [toClient, toServer] = [socket.writable.getWriter(), out.writable.getWriter()]
    await Promise.all([toClient.write(bytes('before ')), toServer.write(bytes('before '))])
    void ctx.gate(gate.promise)
    void toClient.write(bytes('after'))
    void toServer.write(bytes('after'))
    void out.close()
    ready.resolve()
    await out.closed
    await socket.close()
  })
  await ready.promise
  while (seen.heard === '' || one.seen.heard === '') await Bun.sleep(1)
  await aRoundTrip()
  expect([seen.heard, one.seen.heard]).toEqual(['before ', 'before '])
  gate.resolve()
  one.socket.once('end', () => one.socket.end())
  await one.done
  await bench.settle(1)
  expect([seen.heard, one.seen.heard]).toEqual(['before after', 'before after'])
})

test('C3: rejected: nobody ever saw anything, everything is rejected, the connection ends', async () => {
  const { port, seen } = await witness()
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const errors = Promise.withResolvers<any[]>()
  const one = serving(bench.port, async (socket, ctx) => {
    void ctx.gate(gate.promise)
    const out = connect(`127.0.0.1:${port}`)
    const all = [
      out.opened,
      out.closed,
      out.writable.getWriter().write(bytes('x')),
      out.readable.getReader().read(),
      socket.closed,
      socket.writable.getWriter().write(bytes('x')),
    ]
    errors.resolve(Promise.all(all.map(failureOf)))
    gate.reject(new Error('not stored'))
    await socket.closed.catch(() => {})
  })
  for (const error of await errors.promise) expect(error).toMatchObject({ code: 'gate_rejected' })
  expect(reasons(await bench.settle(1))).toEqual(['handler_failed'])
  await aRoundTrip()
  expect([seen, one.seen.heard]).toEqual([{ accepted: 0, heard: '' }, ''])
  expect(bench.logged.join()).toContain('not stored')
  await nothingLeft(bench)
})

test('C4: what a handler throws waits for the gate, too', async () => {
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const thrown = Promise.withResolvers<void>()
  given.connect = async (_socket, _env, ctx) => {
    void ctx.gate(gate.promise)
    thrown.resolve()
    throw new Error('too early')
  }
  const { socket } = receiving(bench.port)
  let over = false
  socket.once('close', () => (over = true))
  await thrown.promise
  await aRoundTrip()
  expect([over, bench.logged]).toEqual([false, []])
  gate.resolve()
  expect(reasons(await bench.settle(1))).toEqual(['handler_failed'])
  expect(bench.logged.join()).toContain('too early')
})

const cancels: [string, (out: Socket, abort: AbortController, ctx: Context) => unknown][] = [
  ['close()', (out) => out.close()],
  ['a signal', (_, abort) => abort.abort()],
  ['writable.abort()', (out) => out.writable.abort()],
]
for (const [name, cancel] of cancels)
  test(`C5: ${name} before the release: no late connect`, async () => {
    const { port, seen } = await witness()
    const bench = await handling()
    const gate = Promise.withResolvers<void>()
    const error = await handled(bench, async (_socket, ctx) => {
      void ctx.gate(gate.promise)
      const abort = new AbortController()
      const out = connect(`127.0.0.1:${port}`, { signal: abort.signal })
      void cancel(out, abort, ctx)
      const error = await failureOf(out.opened)
      gate.resolve()
      return error
    })
    expect(error).toBeInstanceOf(Error)
    await aRoundTrip()
    expect(seen.accepted).toBe(0)
    await nothingLeft(bench)
  })

test('C5: the connection ends before the release: no late connect', async () => {
  const { port, seen } = await witness()
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const ready = Promise.withResolvers<void>()
  const failure = handled(bench, (_socket, ctx) => {
    void ctx.gate(gate.promise)
    const out = connect(`127.0.0.1:${port}`)
    ready.resolve()
    return failureOf(out.opened)
  })
  await ready.promise
  for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
  expect((await failure).code).toBe('client_disconnected')
  gate.resolve()
  await aRoundTrip()
  expect(seen.accepted).toBe(0)
  await nothingLeft(bench)
})

test('C5 C6: what is decided at the call stays, however long it is held', async () => {
  const { port, seen } = await witness()
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  await handled(bench, async (_socket, ctx) => {
    void ctx.gate(gate.promise)
    const address = { hostname: '127.0.0.1', port }
    const out = connect(address)
    address.port = 1
    gate.resolve()
    await out.opened
  })
  while (seen.accepted === 0) await Bun.sleep(1)
})

test("C1: the module's own gate holds from the start", async () => {
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const ready = Promise.withResolvers<void>()
  given.gate = () => gate.promise
  later(() => (given.gate = undefined))
  const one = serving(bench.port, async (socket) => {
    const writer = socket.writable.getWriter()
    void writer.write(bytes('hello'))
    ready.resolve()
    await writer.close()
  })
  await ready.promise
  await aRoundTrip()
  expect(one.seen.heard).toBe('')
  gate.resolve()
  await one.done
  one.socket.end()
  await bench.settle(1)
  expect(one.seen.heard).toBe('hello')
})

test('A4 C1: while it is held, writing has backpressure', async () => {
  const { port, seen } = await witness()
  const bench = await handling()
  const gate = Promise.withResolvers<void>()
  const sizes = await handled(bench, async (_socket, ctx) => {
    void ctx.gate(gate.promise)
    const writer = connect(`127.0.0.1:${port}`, { highWaterMark: 8 }).writable.getWriter()
    const written = writer.write(bytes('12345678'))
    const held = writer.desiredSize
    gate.resolve()
    await written
    await writer.ready
    return [held, writer.desiredSize]
  })
  expect(sizes).toEqual([0, 8])
  while (seen.heard !== '12345678') await Bun.sleep(1)
})
