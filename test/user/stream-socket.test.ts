// The streams of a socket that a handler has opened: backpressure both ways, FIN in each order, close() with much to send, and
// what may not be taken for something else. The client's socket is the same class; its tests are in handlers.test.ts.
import { expect, test } from 'bun:test'
import net from 'node:net'
import { connect, type Socket } from '../../src/sockets.ts'
import { bytes, failureOf, handled, handling, nothingLeft, textOf } from './handling.ts'
import { later, readAll, reasons, server } from './plane.ts'

const CHUNK = new Uint8Array(1 << 20).fill(97)

/** Writes until the peer takes no more. */
async function fill(socket: Socket): Promise<{ writer: WritableStreamDefaultWriter<Uint8Array>; written: number }> {
  const writer = socket.writable.getWriter()
  let written = 0
  for (; written < 256; written++) {
    const taken = writer.write(CHUNK).then(() => true)
    if (!(await Promise.race([taken, Bun.sleep(300).then(() => false)]))) return { writer, written: written + 1 }
  }
  return { writer, written }
}

test('A4 B10: a peer that does not read makes the handler wait; what it reads later is all there', async () => {
  const reader = Promise.withResolvers<net.Socket>()
  const port = await server((socket) => {
    socket.pause()
    reader.resolve(socket)
  })
  const bench = await handling()
  const { written, desiredSize, total } = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    const { writer, written } = await fill(socket)
    const { desiredSize } = writer
    const all = readAll(await reader.promise)
    ;(await reader.promise).resume()
    await writer.close()
    return { written, desiredSize, total: (await all).bytes.length }
  })
  expect(written).toBeLessThan(64)
  expect(desiredSize).toBeLessThanOrEqual(0)
  expect(total).toBe(written << 20)
}, 15_000)

test('B10: a handler that does not read stops the server, and then gets every byte', async () => {
  let sent = 0
  const stalled = Promise.withResolvers<void>()
  const port = await server((socket) => {
    const more = () => {
      while (sent < 64) {
        sent++
        if (!socket.write(CHUNK)) return void socket.once('drain', more)
      }
      socket.end()
    }
    more()
    let before = -1
    const look = setInterval(() => {
      if (sent === before) stalled.resolve()
      before = sent
    }, 100)
    later(() => clearInterval(look))
  })
  const bench = await handling()
  const [atMost, total] = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    await stalled.promise
    const atMost = sent
    let total = 0
    for await (const chunk of socket.readable) total += chunk.length
    return [atMost, total]
  })
  expect(atMost).toBeLessThan(64)
  expect(total).toBe(64 << 20)
}, 15_000)

test('A12: close() sends all that was written, however much, and its FIN comes behind it', async () => {
  const all = Promise.withResolvers<number>()
  const port = await server(async (socket) => {
    const { bytes, error } = await readAll(socket)
    all.resolve(error === undefined ? bytes.length : -1)
    socket.end()
  })
  const bench = await handling()
  await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    const writer = socket.writable.getWriter()
    for (let i = 0; i < 8; i++) void writer.write(CHUNK)
    await socket.close('done')
  })
  expect(await all.promise).toBe(8 << 20)
  await nothingLeft(bench)
})

test('A12 A21: what is being closed may finish after its connection; what is not is over with it', async () => {
  const reader = Promise.withResolvers<net.Socket>()
  const port = await server((socket) => {
    socket.pause()
    reader.resolve(socket)
  })
  const bench = await handling({ timeoutsMs: { grace: 10_000 } })
  const closed = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    const writer = socket.writable.getWriter()
    for (let i = 0; i < 8; i++) void writer.write(CHUNK)
    await socket.opened
    return [socket.close()]
  })
  for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
  await bench.settle(1)
  expect(bench.plane.opened).toBe(1)
  const socket = await reader.promise
  socket.once('end', () => socket.end())
  const all = readAll(socket)
  socket.resume()
  expect((await all).bytes.length).toBe(8 << 20)
  await closed[0]
  await nothingLeft(bench)
})

test('A12: a peer that neither takes nor leaves gets the grace time', async () => {
  const port = await server((socket) => void socket.pause())
  const bench = await handling({ timeoutsMs: { grace: 200 } })
  await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    await socket.opened
    await socket.close()
  })
  await nothingLeft(bench)
})

test('A3: after our FIN the answer may come, for as long as halfClosed says', async () => {
  const answering = await server((socket) => socket.once('end', () => socket.end('answer')))
  const silent = await server(() => {})
  const bench = await handling({ timeoutsMs: { halfClosed: 200 } })
  const [answer, late] = await handled(bench, async () => {
    const [one, other] = [connect(`127.0.0.1:${answering}`), connect(`127.0.0.1:${silent}`)]
    await Promise.all([one.writable.close(), other.writable.close()])
    return [await textOf(one.readable), await failureOf(other.closed)]
  })
  expect(answer).toBe('answer')
  expect(late.code).toBe('half_closed_timeout')
  await nothingLeft(bench)
})

test('A3: with allowHalfOpen nothing but the connection itself bounds the wait for an answer', async () => {
  const asked = Promise.withResolvers<net.Socket>()
  const port = await server((socket) => void socket.once('end', () => asked.resolve(socket)))
  const bench = await handling({ timeoutsMs: { halfClosed: 50 } })
  const answer = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`, { allowHalfOpen: true })
    await socket.writable.close()
    const peer = await asked.promise
    // Many times halfClosed.
    setTimeout(() => peer.end('answer'), 500)
    return textOf(socket.readable)
  })
  expect(answer).toBe('answer')
})

test('A8: a readable that was cancelled still sees the end', async () => {
  const port = await server((socket) => socket.end(Buffer.alloc(1 << 20)))
  const bench = await handling()
  await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    await socket.readable.cancel()
    await socket.closed
  })
  await nothingLeft(bench)
})

test('A10: the first bytes of a server that speaks first are not lost, whenever they are read', async () => {
  const spoke = Promise.withResolvers<void>()
  const port = await server((socket) => void socket.end('220 hello\r\n', () => spoke.resolve()))
  const bench = await handling()
  const text = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    await socket.opened
    await spoke.promise
    return textOf(socket.readable)
  })
  expect(text).toBe('220 hello\r\n')
})

test('A15: after startTls() the old streams give nothing more, and what is no TLS is not taken for it', async () => {
  const port = await server((socket) => void socket.write('220 ready\r\n250 injected\r\n'))
  const bench = await handling({ timeoutsMs: { handshake: 200 } })
  const [first, then, secure] = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`, { secureTransport: 'starttls' })
    const reader = socket.readable.getReader()
    const first = await reader.read()
    reader.releaseLock()
    const secure = socket.startTls()
    const then = await socket.readable.getReader().read()
    return [first, then, await failureOf(secure.readable.getReader().read())] as const
  })
  expect(Buffer.from(first.value!).toString()).toBe('220 ready\r\n250 injected\r\n')
  expect(then.done).toBe(true)
  expect(secure.code).toBe('tls_failed')
})

test('D5: a handler that goes on after its client has gone is told so, by everything', async () => {
  const port = await server(() => {})
  const bench = await handling()
  const gone = Promise.withResolvers<void>()
  const errors = handled(bench, async (socket, ctx) => {
    await gone.promise
    ctx.waitUntil(Promise.resolve())
    const out = connect(`127.0.0.1:${port}`)
    return Promise.all([
      failureOf(socket.writable.getWriter().write(bytes('x'))),
      failureOf(socket.readable.getReader().read()),
      failureOf(out.opened),
      failureOf(out.closed),
      failureOf(out.writable.getWriter().write(bytes('x'))),
      socket.close().then(
        () => ({ code: 'resolved' }),
        (error) => error,
      ),
    ])
  })
  while (bench.plane.size === 0) await Bun.sleep(1)
  for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
  gone.resolve()
  expect((await errors).map((error) => error.code)).toEqual(Array(6).fill('client_disconnected'))
  expect(reasons(await bench.settle(1))).toEqual(['killed'])
  expect(bench.logged).toEqual([])
})

test('D5 A21: what waitUntil() was given may be brought to an end after the client has left, for the grace time at most', async () => {
  const heard = Promise.withResolvers<string>()
  const port = await server((socket) => {
    void readAll(socket).then(({ bytes }) => heard.resolve(bytes.toString()))
    socket.once('end', () => socket.end())
  })
  const bench = await handling({ timeoutsMs: { grace: 300 } })
  const gone = Promise.withResolvers<void>()
  const never = await handled(bench, (socket, ctx) => {
    const audit = async () => {
      await gone.promise
      const out = connect(`127.0.0.1:${port}`)
      await out.writable.getWriter().write(bytes(`${ctx.record.id} ${ctx.record.reason}`))
      await out.close()
      return connect(`127.0.0.1:${port}`).closed
    }
    const never = failureOf(audit())
    ctx.waitUntil(never)
    void socket.close()
    return [never]
  })
  // The client does not follow, so the grace time of close() passes; then the one of waitUntil() begins.
  await bench.settle(1)
  expect(bench.plane.size).toBe(0)
  gone.resolve()
  expect(await heard.promise).toBe(`${bench.settled[0]!.id} handler_closed`)
  expect((await never[0])!).toMatchObject({ code: 'client_disconnected' })
  await nothingLeft(bench)
  expect(bench.plane.timers.armed).toBe(0)
})
