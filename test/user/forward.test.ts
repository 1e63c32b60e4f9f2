// Forwarding in TypeScript: bytes, ends, errors, and what is left afterwards (nothing).
import { expect, test } from 'bun:test'
import { createHash, randomBytes } from 'node:crypto'
import net from 'node:net'
import {
  blackHole,
  client,
  connected,
  descriptors,
  echo,
  forward,
  gone,
  open,
  readAll,
  reasons,
  route,
  server,
  synSent,
  target,
} from './plane.ts'

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const MIB = 1024 * 1024

test('G19 B10: 64 MiB each way arrive whole, and are counted exactly', async () => {
  const bench = await open([route('r', { action: forward(await echo()) })])
  const sent = createHash('sha256')
  const got = createHash('sha256')
  const socket = client(bench.port)
  let received = 0
  socket.on('data', (bytes) => {
    received += bytes.length
    got.update(bytes)
  })
  const block = randomBytes(MIB)
  for (let i = 0; i < 64; i++) {
    block.writeUInt32LE(i)
    sent.update(block)
    if (!socket.write(Buffer.from(block))) await new Promise((resolve) => socket.once('drain', resolve))
  }
  socket.end()
  await gone(socket)
  expect(received).toBe(64 * MIB)
  expect(got.digest('hex')).toBe(sent.digest('hex'))
  const [record] = await bench.settle(1)
  expect(record).toMatchObject({
    bytesIn: 64 * MIB,
    bytesOut: 64 * MIB,
    reason: 'finished',
    state: 'closed',
    route: 'r',
  })
  expect(bench.plane.size).toBe(0)
}, 30_000)

test('B10: a client that does not read stops the target; all arrives once it reads', async () => {
  const total = 48 * MIB
  const sent = createHash('sha256')
  let written = 0
  const port = await server((socket) => {
    const block = Buffer.alloc(MIB)
    const more = () => {
      while (written < total) {
        block.writeUInt32LE(written)
        sent.update(block)
        written += MIB
        if (!socket.write(Buffer.from(block))) return void socket.once('drain', more)
      }
      socket.end()
    }
    more()
  })
  const bench = await open([route('r', { action: forward(port) })])
  const socket = client(bench.port)
  socket.pause()
  await connected(socket)
  let before = -1
  // Until nothing moves any more: the buffers of both kernels and ours are full.
  while (before !== written) {
    before = written
    await Bun.sleep(150)
  }
  expect(written).toBeLessThan(total)
  const got = createHash('sha256')
  let received = 0
  socket.on('data', (bytes) => {
    received += bytes.length
    got.update(bytes)
  })
  socket.resume()
  await new Promise((resolve) => socket.once('end', resolve))
  expect(received).toBe(total)
  expect(got.digest('hex')).toBe(sent.digest('hex'))
  socket.end()
  expect((await bench.settle(1))[0]).toMatchObject({ bytesOut: total, reason: 'finished' })
}, 30_000)

test('Q1: after the client FIN the target may still answer', async () => {
  const port = await server((socket) => {
    socket.resume().on('end', () => setTimeout(() => socket.end('the answer'), 50))
  })
  const bench = await open([route('r', { action: forward(port) })])
  const socket = client(bench.port)
  socket.end('the request')
  expect((await readAll(socket)).bytes.toString()).toBe('the answer')
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'finished', bytesIn: 11, bytesOut: 10 })
})

test('Q1 G7: a target that does not follow the client FIN is left after halfClosed', async () => {
  const bench = await open([
    route('r', { action: forward(await server((socket) => void socket.resume())), timeoutsMs: { halfClosed: 300 } }),
  ])
  const socket = client(bench.port)
  socket.end('x')
  const began = performance.now()
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'half_closed_timeout' })
  expect(performance.now() - began).toBeWithin(290, 900)
  expect(bench.plane.size).toBe(0)
})

test('G8: with allowHalfOpen the reverse direction goes on past halfClosed', async () => {
  const port = await server((socket) => {
    socket.resume().on('end', () => setTimeout(() => socket.end('late'), 700))
  })
  const bench = await open([
    route('r', { action: forward(port, { allowHalfOpen: true }), timeoutsMs: { halfClosed: 200 } }),
  ])
  const socket = client(bench.port)
  socket.end('x')
  expect((await readAll(socket)).bytes.toString()).toBe('late')
  expect(reasons(await bench.settle(1))).toEqual(['finished'])
})

test('Q1: EOF does not overtake what is queued before it', async () => {
  const bytes = randomBytes(20 * MIB)
  const port = await server((socket) => void socket.end(bytes))
  const bench = await open([route('r', { action: forward(port), timeoutsMs: { halfClosed: 400 } })])
  const socket = client(bench.port)
  await connected(socket)
  socket.pause()
  // Far longer than halfClosed: the direction that still delivers is not the one that is bounded.
  await Bun.sleep(1000)
  const all = readAll(socket)
  socket.resume()
  expect(sha((await all).bytes)).toBe(sha(bytes))
  socket.end()
  await bench.settle(1)
}, 15_000)

for (const side of ['client', 'target'] as const)
  test(`Q2 B3: RST from the ${side} ends the other side at once`, async () => {
    let atTarget!: net.Socket
    const accepted = Promise.withResolvers<void>()
    const port = await server((socket) => {
      atTarget = socket
      socket.on('data', () => accepted.resolve())
    })
    const bench = await open([route('r', { action: forward(port) })])
    const socket = client(bench.port)
    socket.write('x')
    await accepted.promise
    const [from, to] = side === 'client' ? [socket, atTarget] : [atTarget, socket]
    const over = gone(to)
    const began = performance.now()
    from.resetAndDestroy()
    await over
    expect(performance.now() - began).toBeLessThan(100)
    expect(reasons(await bench.settle(1))).toEqual([`${side}_reset`])
  })

test('G2 G3 G4: a refused target 200 times leaves nothing', async () => {
  const free = await server(() => {})
  const bench = await open([route('r', { action: forward(1) })])
  void free
  const before = descriptors()
  const all = Array.from({ length: 200 }, async () => {
    const socket = client(bench.port)
    await gone(socket)
  })
  await Promise.all(all)
  const records = await bench.settle(200)
  expect(new Set(reasons(records))).toEqual(new Set(['target_refused']))
  expect(new Set(records.map((record) => record.id)).size).toBe(200)
  expect(records[0]).toMatchObject({ target: '127.0.0.1:1', bytesIn: 0 })
  expect(bench.plane.size).toBe(0)
  expect(bench.plane.timers.armed).toBe(0)
  while (descriptors() > before) await Bun.sleep(5)
})

test('G6: a client that leaves while the target is dialled takes the SYN with it', async () => {
  const hole = await blackHole()
  const bench = await open([route('r', { action: forward(hole) })])
  const filling = synSent(hole)
  const sockets = [client(bench.port), client(bench.port)]
  await Promise.all(sockets.map(connected))
  while (synSent(hole) < filling + 2) await Bun.sleep(5)
  sockets[0]!.destroy() // FIN
  sockets[1]!.resetAndDestroy()
  expect(reasons(await bench.settle(2))).toEqual(['closed_before_data', 'closed_before_data'])
  expect(synSent(hole)).toBe(filling)
  expect(bench.plane.size).toBe(0)
})

test('G6: one that has sent something and reset is client_reset; one that half-closed waits no longer than halfClosed', async () => {
  const hole = await blackHole()
  const bench = await open([route('r', { action: forward(hole), timeoutsMs: { halfClosed: 300 } })])
  const reset = client(bench.port)
  reset.write('x')
  await connected(reset)
  while (bench.plane.sample().length === 0) await Bun.sleep(5)
  reset.resetAndDestroy()
  expect(reasons(await bench.settle(1))).toEqual(['client_reset'])
  client(bench.port).end('x')
  expect((await bench.settle(2))[1]!.reason).toBe('connect_timeout')
})

test('G20: what a client sends before the target is open is held up to a cap, and dropped with the connection', async () => {
  const bench = await open([route('r', { action: forward(await blackHole()), timeoutsMs: { connect: 400 } })])
  const socket = client(bench.port)
  socket.write(Buffer.alloc(8 * MIB))
  const [record] = await bench.settle(1)
  expect(record!.reason).toBe('connect_timeout')
  expect(record!.bytesIn).toBeLessThan(MIB)
})

test('E6: refused and silent targets are passed over; the next one answers', async () => {
  const good = await server((socket) => void socket.end('here'))
  const bench = await open([
    route('r', { action: forward([target(1), target(await blackHole()), target(good)]), timeoutsMs: { connect: 300 } }),
  ])
  const socket = client(bench.port)
  expect((await readAll(socket)).bytes.toString()).toBe('here')
  socket.end()
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'finished', target: `127.0.0.1:${good}` })
})

test('E6: names, unix sockets and the preserved port', async () => {
  const path = `/tmp/sluice-test-${process.pid}.sock`
  const unix = net.createServer((socket) => void socket.end('unix')).listen(path)
  await new Promise((resolve) => unix.once('listening', resolve))
  const named = await server((socket) => void socket.end('named'))
  const bench = await open(
    [
      route('unix', { action: forward([{ host: { kind: 'unix', path }, port: null, name: null, weight: 1 }]) }),
      route('name', {
        action: forward([{ host: { kind: 'name', name: 'localhost' }, port: named, name: null, weight: 1 }]),
      }),
      route('nowhere', {
        action: forward([{ host: { kind: 'name', name: 'nowhere.invalid' }, port: 1, name: null, weight: 1 }]),
      }),
    ],
    { listeners: ['unix', 'name', 'nowhere'].map((name) => ({ routes: [name], peek: false })) },
  )
  const texts = []
  for (const port of bench.ports) {
    const socket = client(port)
    texts.push((await readAll(socket)).bytes.toString())
    socket.end()
  }
  unix.close()
  expect(texts).toEqual(['unix', 'named', ''])
  expect(reasons(await bench.settle(3)).sort()).toEqual(['finished', 'finished', 'target_unreachable'])
})

test('E7: round-robin is exact, also with weights; weight 0 takes none', async () => {
  const counts = [0, 0, 0]
  const ports = await Promise.all(counts.map((_, i) => server((socket) => (counts[i]!++, void socket.end()))))
  const bench = await open([
    route('r', { action: forward([target(ports[0]!, 1), target(ports[1]!, 3), target(ports[2]!, 0)]) }),
  ])
  for (let i = 0; i < 40; i++) {
    const socket = client(bench.port)
    await readAll(socket)
    socket.end()
  }
  expect(counts).toEqual([10, 30, 0])
})

test('G15 D1 idle: no byte for too long ends it; bytes keep it', async () => {
  const bench = await open([route('r', { action: forward(await echo()), timeoutsMs: { idle: 500 } })])
  const quiet = client(bench.port)
  const busy = client(bench.port)
  busy.resume()
  const beat = setInterval(() => busy.write('x'), 100)
  const over = gone(quiet)
  await over
  await Bun.sleep(600)
  expect(reasons(bench.settled)).toEqual(['idle_timeout'])
  expect(bench.plane.size).toBe(1)
  clearInterval(beat)
  busy.destroy()
})

test('close, drain and stop: at once, after a deadline, and with the bytes that were on their way', async () => {
  const bytes = randomBytes(5 * MIB)
  const port = await server((socket) => {
    socket.on('data', (data) => {
      if (data.toString() === 'big') socket.end(bytes)
    })
  })
  const bench = await open([route('a', { action: forward(port) }), route('b', { action: forward(port) })], {
    listeners: [
      { routes: ['a'], peek: false },
      { routes: ['b'], peek: false },
    ],
  })
  const [one, two, three] = [client(bench.ports[0]!), client(bench.ports[0]!), client(bench.ports[1]!)]
  await Promise.all([one, two, three].map(connected))
  while (bench.opened.length < 3) await Bun.sleep(1)
  const over = gone(one)
  const first = bench.opened.find((record) => record.client === `127.0.0.1:${one!.localPort}`)!
  expect(bench.plane.close(first.id, 'killed')).toBe(true)
  expect(bench.plane.close('nobody', 'killed')).toBe(false)
  await over
  const began = performance.now()
  bench.plane.drain('a', 300)
  await gone(two)
  expect(performance.now() - began).toBeWithin(290, 800)
  expect(reasons(await bench.settle(2))).toEqual(['killed', 'drained'])
  three.pause()
  three.write('big')
  const all = readAll(three)
  const stopped = bench.plane.stop(5000)
  three.resume()
  expect(sha((await all).bytes)).toBe(sha(bytes))
  three.end()
  await stopped
  expect(reasons(bench.settled)).toEqual(['killed', 'drained', 'finished'])
  expect(bench.plane.timers.armed).toBe(0)
  const late = client(bench.ports[1]!)
  await gone(late)
})

test('G17 G10: stop cuts a stalled connection after its grace', async () => {
  const port = await server((socket) => void socket.write(Buffer.alloc(8 * MIB)))
  const bench = await open([route('r', { action: forward(port) })])
  const socket = client(bench.port)
  socket.pause()
  await connected(socket)
  while (bench.opened.length < 1) await Bun.sleep(1)
  const began = performance.now()
  await bench.plane.stop(400)
  expect(performance.now() - began).toBeWithin(390, 900)
  expect(reasons(bench.settled)).toEqual(['drained'])
})

test('E9: a plan that repeats itself touches nothing; one without a listener closes it and leaves its connections', async () => {
  const port = await echo()
  const routes = [route('r', { action: forward(port) })]
  const bench = await open(routes)
  const socket = client(bench.port)
  socket.write('one')
  await new Promise((resolve) => socket.once('data', resolve))
  await bench.apply([route('r', { action: forward(port), security: { maxConnections: 1 } })])
  // The limit counts what the route carried before it had one.
  await gone(client(bench.port))
  expect(bench.refused.get('route_limit') ?? (await Bun.sleep(20), bench.refused.get('route_limit'))).toBe(1)
  await bench.plane.apply(
    { generation: 9, listeners: [], routes: [], listens: [], limits: null, durable: false, certificates: {} },
    new Map(),
  )
  const refused = client(bench.port)
  await gone(refused)
  socket.write('two')
  expect(String(await new Promise((resolve) => socket.once('data', resolve)))).toBe('two')
})

test('G4 G5 G18: 2,000 clients that come and go at random moments leave nothing', async () => {
  const bench = await open([route('r', { action: forward(await echo()) })])
  const port = bench.port
  let running = 0
  const before = descriptors()
  const one = async (i: number) => {
    running++
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: i % 5 === 0 })
    socket.on('error', () => {})
    socket.on('data', () => {})
    const over = gone(socket)
    const kind = i % 4
    if (kind > 0) socket.write(Buffer.alloc((i * 7919) % 100_000))
    const leave = () => (kind === 1 ? socket.end() : kind === 2 ? socket.resetAndDestroy() : socket.destroy())
    if (i % 3 === 0) leave()
    else setTimeout(leave, (i * 31) % 20)
    if (kind === 1) socket.on('end', () => socket.destroy())
    await over
    running--
  }
  for (let i = 0; i < 2000; i++) {
    void one(i)
    if (running > 100) await Bun.sleep(1)
  }
  while (running > 0 || bench.plane.size > 0) await Bun.sleep(5)
  expect(new Set(bench.settled.map((record) => record.id)).size).toBe(bench.settled.length)
  bench.plane.reporter.flush()
  expect(reasons(bench.settled)).not.toContain('internal_error')
  expect(bench.logged).toEqual([])
  expect(bench.plane.timers.armed).toBe(0)
  // The relay keeps a few pipes.
  while (descriptors() > before + 2 * 8) await Bun.sleep(5)
}, 30_000)
