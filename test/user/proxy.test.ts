// proxy(a, b): one suite over every way in which two sockets can be carried, since a handler must not be able to tell them apart.
import { beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { createHash, randomBytes } from 'node:crypto'
import net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { heapStats } from 'bun:jsc'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import type { UserRoute } from '../../src/plan/types.ts'
import { proxy } from '../../src/sockets.ts'
import { signed } from '../certificates/tools.ts'
import * as fixture from './fixtures/proxy.ts'
import { client as connectTo, descriptors, gone, later, open, route, type Bench } from './plane.ts'

const MIB = 1024 * 1024

interface Path {
  name: string
  carrier: 'splice' | 'user'
  /** false: as on a machine where the relay thread does not start. */
  relay?: boolean
  clientTls?: boolean
  targetTls?: boolean
  /** Two sockets of connect(); the first is called the client here. */
  outbound?: boolean
}

const PATHS: Path[] = [
  { name: 'plain and plain, in the relay thread', carrier: 'splice' },
  { name: 'plain and plain, pumped', carrier: 'user', relay: false },
  { name: 'TLS and plain', carrier: 'user', clientTls: true },
  { name: 'plain and TLS', carrier: 'user', targetTls: true },
  { name: 'two outbound, in the relay thread', carrier: 'splice', outbound: true },
  { name: 'two outbound, pumped', carrier: 'user', outbound: true, relay: false },
]
const [NATIVE, PUMPED] = PATHS as [Path, Path]

let pem: { cert: string; key: string }
beforeAll(async () => void (pem = await signed(['a.test', '127.0.0.1'])))
beforeEach(fixture.fresh)

// ---- peers ----

/** One side: what it says and hears, and the TCP socket under it. */
interface Peer {
  socket: net.Socket
  raw: net.Socket
}

const quiet = (socket: net.Socket) => {
  socket.on('error', () => {})
  later(() => socket.destroy())
  return socket
}

/** A server that hands out the one connection it gets. */
async function lonely(secure = false): Promise<{ port: number; accepted: Promise<Peer>; close(): void }> {
  const { promise, resolve } = Promise.withResolvers<Peer>()
  const listening = net.createServer({ allowHalfOpen: true, pauseOnConnect: secure }, (raw) => {
    quiet(raw)
    if (!secure) return resolve({ socket: raw, raw })
    const socket = new tls.TLSSocket(raw, { isServer: true, ...pem, allowHalfOpen: true } as tls.TLSSocketOptions)
    quiet(socket)
    socket.once('secure', () => resolve({ socket, raw }))
  })
  await new Promise<void>((done) => listening.listen(0, '127.0.0.1', done))
  later(() => listening.close())
  return { port: (listening.address() as net.AddressInfo).port, accepted: promise, close: () => listening.close() }
}

async function visitor(port: number, secure = false): Promise<Peer> {
  const raw = connectTo(port)
  if (!secure) return { socket: raw, raw }
  const options = { socket: raw, ca: pem.cert, servername: 'a.test', allowHalfOpen: true }
  const socket = quiet(tls.connect(options as tls.ConnectionOptions))
  await new Promise((resolve) => socket.once('secureConnect', resolve))
  return { socket, raw }
}

const action = (env: object, secure = false): UserRoute['action'] =>
  ({
    type: 'handler',
    module: join(import.meta.dir, 'fixtures/proxy.ts'),
    inline: null,
    env,
    tls: secure
      ? {
          mode: 'terminate',
          alpn: [],
          minVersion: 'TLSv1.2',
          clientCa: null,
          upstream: { serverName: null, ca: null, insecure: false },
        }
      : null,
    reach: { private: true, ports: null },
  }) as unknown as UserRoute['action']

interface Joined {
  bench: Bench
  client: Peer
  target: Peer
  /** Of the pair, when it has ended. */
  record(): Promise<ConnectionRecord>
  live(): ConnectionRecord | undefined
  /** Who made the handler run. */
  visiting: Promise<Peer>
}

async function joined(
  path: Path,
  env: Partial<fixture.Env> = {},
  timeoutsMs: Partial<UserRoute['timeoutsMs']> = {},
): Promise<Joined> {
  const server = await lonely(path.targetTls)
  const other = path.outbound ? await lonely() : undefined
  const all: fixture.Env = { kind: 'at_once', target: server.port, ...env }
  if (path.targetTls) all.ca = pem.cert
  if (other) all.client = other.port
  const bench = await open([route('p', { action: action(all, path.clientTls), timeoutsMs })], {
    relay: path.relay ?? true,
    certificates: path.clientTls ? { p: pem } : {},
  })
  expect(bench.problems).toEqual([])
  const visiting = visitor(bench.port, path.clientTls)
  const target = await server.accepted
  const client = other ? await other.accepted : await visiting
  const names = [server.port, other?.port].map((port) => `127.0.0.1:${port}`)
  const ofPair = ({ target: name }: ConnectionRecord) => names.includes(name!)
  return {
    bench,
    client,
    target,
    record: async () => {
      for (let n = 1; !bench.settled.some(ofPair); n++) await bench.settle(bench.settled.length + 1)
      return bench.settled.find(ofPair)!
    },
    visiting,
    live: () => [...bench.plane.table.values()].map((one) => one.record()).find(ofPair),
  }
}

/** Resolves when it is so. */
async function until(condition: () => boolean) {
  while (!condition()) await Bun.sleep(1)
}

const heard = (socket: net.Socket) => new Promise<string>((resolve) => socket.once('data', (b) => resolve(String(b))))

/** Everything up to the FIN. */
async function everything(socket: net.Socket): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const bytes of socket.iterator({ destroyOnReturn: false })) chunks.push(bytes as Buffer)
  return Buffer.concat(chunks)
}

/** Says `mib` megabytes, as fast as they are taken; resolves to their hash. */
async function say(socket: net.Socket, mib: number, sent = { bytes: 0 }): Promise<string> {
  const hash = createHash('sha256')
  const block = randomBytes(MIB)
  for (let i = 0; i < mib; i++) {
    block.writeUInt32LE(i)
    hash.update(block)
    // Copied: the block is changed while this one may still wait.
    if (!socket.write(Buffer.from(block))) await new Promise((resolve) => socket.once('drain', resolve))
    sent.bytes += block.length
  }
  return hash.digest('hex')
}

async function hear(socket: net.Socket, mib: number): Promise<string> {
  const hash = createHash('sha256')
  let left = mib * MIB
  const { promise, resolve } = Promise.withResolvers<void>()
  const listen = (bytes: Buffer) => {
    hash.update(bytes)
    if ((left -= bytes.length) <= 0) resolve()
  }
  socket.on('data', listen)
  await promise
  socket.off('data', listen)
  return hash.digest('hex')
}

const closedBoth = () => Promise.all(fixture.seen.closed)

// ---- the suite ----

for (const path of PATHS)
  describe(path.name, () => {
    for (const turn of [{}, { swap: true }, { method: true }, { swap: true, method: true }])
      test(`B1 B4 B6: a talk in which each side waits for the other ${JSON.stringify(turn)}`, async () => {
        const { bench, client, target, record, live } = await joined(path, turn)
        for (let i = 0; i < 20; i++) {
          const [from, to] = i % 2 ? [client, target] : [target, client]
          const said = heard(to.socket)
          from.socket.write(`word ${i}`)
          expect(await said).toBe(`word ${i}`)
        }
        expect(fixture.seen).toMatchObject({ returned: undefined, thrown: undefined })
        expect(live()).toMatchObject({ carrier: path.carrier, state: 'open' })
        expect(bench.plane.spliced).toBe(path.carrier === 'splice' ? 1 : 0)
        client.socket.end()
        target.socket.end()
        const counts = { bytesIn: 65, bytesOut: 65 }
        expect(await record()).toMatchObject({ reason: 'finished', carrier: path.carrier, ...counts })
        expect(await closedBoth()).toEqual([undefined, undefined])
      })

    for (const first of ['client', 'target'] as const)
      test(`B2 Q1: the ${first}'s FIN does not end the other direction`, async () => {
        const pair = await joined(path)
        const [from, to] = first === 'client' ? [pair.client, pair.target] : [pair.target, pair.client]
        const [asked, answered] = [everything(to.socket), everything(from.socket)]
        from.socket.end('question')
        expect(String(await asked)).toBe('question')
        const answer = randomBytes(MIB)
        to.socket.end(answer)
        expect((await answered).equals(answer)).toBe(true)
        expect(await pair.record()).toMatchObject({ reason: 'finished', carrier: path.carrier })
        expect(await closedBoth()).toEqual([undefined, undefined])
      })

    for (const side of ['client', 'target'] as const)
      test(`B3 Q2: a RST of the ${side} ends the other side at once; both report the same`, async () => {
        const pair = await joined(path)
        const [from, to] = side === 'client' ? [pair.client, pair.target] : [pair.target, pair.client]
        const said = heard(to.socket)
        from.socket.write('a word')
        await said
        const over = gone(to.raw)
        const began = performance.now()
        from.raw.resetAndDestroy()
        await over
        console.log(`${path.name}: the other side had it after ${(performance.now() - began).toFixed(1)} ms`)
        expect(await pair.record()).toMatchObject({ reason: `${side}_reset` })
        const [one, other] = await closedBoth()
        expect(one).toBeInstanceOf(TypeError)
        expect(one).toBe(other)
        expect((one as { code?: string }).code).toBe('reset')
      })

    test('B5: one signal ends both directions, and the record', async () => {
      const { bench, client, target, record } = await joined(path)
      const said = heard(target.socket)
      client.socket.write('a word')
      await said
      const over = [gone(client.raw), gone(target.raw)]
      fixture.seen.abort.abort(new Error('enough'))
      await Promise.all(over)
      expect(await record()).toMatchObject({ reason: 'handler_closed' })
      expect((await closedBoth()).map(String)).toEqual(['Error: enough', 'Error: enough'])
      if (!path.outbound) expect([bench.plane.size, bench.plane.timers.armed]).toEqual([0, 0])
    })

    test('B10: a reader that stalls stops the writer; nothing is lost when it goes on', async () => {
      const mib = path === NATIVE ? 256 : 48
      const { client, target, record } = await joined(path)
      target.socket.pause()
      const rss = process.memoryUsage.rss()
      const sent = { bytes: 0 }
      const saying = say(client.socket, mib, sent)
      for (let last = -1; last !== sent.bytes; await Bun.sleep(200)) last = sent.bytes
      console.log(
        `${path.name}: stopped after ${sent.bytes / MIB} MiB, RSS +${((process.memoryUsage.rss() - rss) / MIB).toFixed(0)} MiB`,
      )
      expect(sent.bytes).toBeLessThan(mib * MIB)
      const hearing = hear(target.socket, mib)
      target.socket.resume()
      expect(await hearing).toBe(await saying)
      client.socket.end()
      target.socket.end()
      expect(await record()).toMatchObject({ reason: 'finished', bytesIn: mib * MIB })
    }, 60_000)

    test('B7: the handler has returned and all it had is collected; bytes flow, the heap stays as it is', async () => {
      const mib = path === NATIVE ? 256 : 32
      const { client, target, record } = await joined(path)
      await until(() => fixture.seen.returned === undefined)
      const alive = () => fixture.seen.refs.filter((ref) => ref.deref()).length
      await until(() => (Bun.gc(true), alive() === 0))
      const heap = heapStats().heapSize
      const hearing = [hear(target.socket, mib), hear(client.socket, mib)]
      const said = await Promise.all([say(client.socket, mib), say(target.socket, mib)])
      expect(await Promise.all(hearing)).toEqual(said)
      Bun.gc(true)
      const grown = heapStats().heapSize - heap
      console.log(`${path.name}: ${mib} MiB each way, heap ${(grown / 1024).toFixed(0)} KiB more`)
      expect(grown).toBeLessThan(4 * MIB)
      client.socket.end()
      target.socket.end()
      const counts = { bytesIn: mib * MIB, bytesOut: mib * MIB }
      expect(await record()).toMatchObject({ reason: 'finished', carrier: path.carrier, ...counts })
      expect(await closedBoth()).toEqual([undefined, undefined])
    }, 60_000)

    test('what was read and answered before is the handler’s; what it left goes first, in order, once', async () => {
      const { bench, client, target, record, live } = await joined(path, { kind: 'queued' })
      client.socket.pause()
      client.socket.write('first')
      target.socket.write('hello')
      const theirs = () => [...bench.plane.table.values()].at(-1)!
      await Bun.sleep(20)
      client.socket.write('unread of the client')
      target.socket.write('unread of the target')
      if (!path.outbound) await until(() => theirs().client.received === 25)
      fixture.seen.go.resolve()
      const both = [everything(client.socket), everything(target.socket)]
      await until(() => live()?.carrier === path.carrier)
      client.socket.end(' and more')
      target.socket.end(' and more')
      const [toClient, toTarget] = await Promise.all(both)
      expect(String(toClient)).toBe(`to the client ${'a'.repeat(8_000_000)}unread of the target and more`)
      expect(String(toTarget)).toBe('to the target unread of the client and more')
      // In: all that the client said. Out: all that it was sent.
      const counts = { bytesIn: 34, bytesOut: toClient!.length }
      expect(await record()).toMatchObject({ reason: 'finished', carrier: path.carrier, ...counts })
    })

    test('a FIN that came before the hand-over is passed on after every byte', async () => {
      const { client, target, record } = await joined(path, { kind: 'waits' })
      const [asked, answered] = [everything(target.socket), everything(client.socket)]
      client.socket.end('question')
      await Bun.sleep(50)
      fixture.seen.go.resolve()
      expect(String(await asked)).toBe('question')
      target.socket.end('answer')
      expect(String(await answered)).toBe('answer')
      expect(await record()).toMatchObject({ reason: 'finished', bytesIn: 8, bytesOut: 6 })
    })

    test('idle, kill and stop reach it; the sweep finds nothing wrong with it', async () => {
      const idle = await joined(path, {}, { idle: 300 })
      expect(await idle.record()).toMatchObject({ reason: 'idle_timeout' })
      const killed = await joined(path)
      await until(() => killed.live() !== undefined)
      await killed.bench.plane.sweep.look(0)
      expect(await killed.bench.plane.sweep.look(1e9)).toBe(0)
      killed.bench.plane.close(killed.live()!.id, 'killed')
      expect(await killed.record()).toMatchObject({ reason: 'killed' })
      const stopped = await joined(path)
      await until(() => stopped.live() !== undefined)
      const over = [gone(stopped.client.raw), gone(stopped.target.raw)]
      await stopped.bench.plane.stop(0)
      await Promise.all(over)
      expect(await stopped.record()).toMatchObject({ reason: 'drained' })
    })
  })

// ---- what is true of one of them, or before they are joined ----

test('design 5: read and answered, then handed over: one record, from user to splice, every byte counted once', async () => {
  const { bench, client, target, record, live } = await joined(NATIVE, { kind: 'answered' })
  await until(() => live() === undefined && bench.plane.size === 1)
  expect([...bench.plane.table.values()][0]!.record()).toMatchObject({ carrier: 'user', target: null })
  const answer = heard(client.socket)
  client.socket.write('password')
  expect(await answer).toBe('password?')
  const said = heard(target.socket)
  client.socket.write('query')
  expect(await said).toBe('query')
  expect(live()).toMatchObject({ carrier: 'splice', state: 'open' })
  target.socket.end('rows')
  client.socket.end()
  client.socket.resume()
  expect(await record()).toMatchObject({ carrier: 'splice', bytesIn: 13, bytesOut: 13, reason: 'finished' })
  expect(bench.settled).toHaveLength(1)
})

for (const path of [NATIVE, PUMPED])
  test(`B1: what the client does not read yet holds up its own direction only (${path.name})`, async () => {
    const { bench, client, target, record, live } = await joined(path, { kind: 'queued' })
    client.socket.write('first')
    target.socket.write('hello')
    client.socket.pause()
    await until(() => [...bench.plane.table.values()][0]!.client.sent > 100_000)
    fixture.seen.go.resolve()
    await until(() => live() !== undefined)
    let asked = ''
    target.socket.on('data', (bytes) => void (asked += bytes))
    client.socket.write('go on')
    await until(() => asked === 'to the target go on')
    expect(live()!.carrier).toBe('user')
    const answered = everything(client.socket)
    await until(() => live()!.carrier === path.carrier)
    target.socket.end('answer')
    expect(String(await answered)).toBe(`to the client ${'a'.repeat(8_000_000)}answer`)
    client.socket.end()
    expect(await record()).toMatchObject({
      carrier: path.carrier,
      bytesIn: 10,
      bytesOut: 8_000_020,
      reason: 'finished',
    })
  })

for (const path of [NATIVE, PUMPED])
  test(`a read that was given up loses nothing (${path.name})`, async () => {
    const { bench, client, target, record } = await joined(path, { kind: 'given_up' })
    client.socket.write('one ')
    await until(() => [...bench.plane.table.values()][0]!.client.received === 4)
    client.socket.write('two ')
    await until(() => [...bench.plane.table.values()][0]!.client.received === 8)
    fixture.seen.go.resolve()
    const all = everything(target.socket)
    client.socket.end('three')
    expect(String(await all)).toBe('one two three')
    target.socket.end()
    expect(await record()).toMatchObject({ bytesIn: 13, bytesOut: 0 })
  })

test('B6: what cannot be joined is a TypeError at once, and changes nothing', async () => {
  const sayings = {
    locked_readable: 'locked',
    locked_writable: 'locked',
    closed: 'closed',
    half: 'its writable is closed',
    cancelled: 'its readable was cancelled',
    twice: 'handed over already',
  }
  for (const [kind, saying] of Object.entries(sayings)) {
    fixture.fresh()
    // The closed one may be gone before its server has heard of it.
    const server = await lonely()
    const bench = await open([route('p', { action: action({ kind, target: server.port }) })])
    const visiting = await visitor(bench.port)
    await until(() => fixture.seen.thrown !== undefined)
    expect(fixture.seen.thrown).toBeInstanceOf(TypeError)
    expect(String(fixture.seen.thrown)).toContain(saying)
    expect(fixture.seen.returned).toBe('nothing yet')
    if (kind !== 'twice') expect(bench.plane.spliced).toBe(0)
    visiting.raw.resetAndDestroy()
    await bench.settle(1)
  }
  const streams = { readable: new ReadableStream(), writable: new WritableStream() }
  for (const wrong of [undefined, null, 5, {}, streams])
    expect(() => proxy(wrong as never, wrong as never)).toThrow(TypeError)
})

test('B3: a target that cannot be reached ends the client, with its reason; both say the same', async () => {
  const server = await lonely()
  server.close()
  const bench = await open([route('p', { action: action({ kind: 'at_once', target: server.port }) })])
  const { raw } = await visitor(bench.port)
  await gone(raw)
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'target_refused', bytesIn: 0, bytesOut: 0 })
  const [one, other] = await closedBoth()
  expect(one).toBe(other)
  expect((one as { code?: string }).code).toBe('connect_refused')
  expect([bench.plane.size, bench.plane.timers.armed]).toEqual([0, 0])
})

for (const kind of ['fails', 'fails_later'])
  test(`D4: a handler that fails after the hand-over ends nothing, also while the target is still being connected (${kind})`, async () => {
    const { bench, client, target, record } = await joined(NATIVE, { kind })
    const said = heard(target.socket)
    client.socket.write('a word')
    expect(await said).toBe('a word')
    await until(() => bench.logged.length > 0)
    expect(bench.logged.join()).toContain('after the hand-over')
    client.socket.end()
    target.socket.end()
    expect(await record()).toMatchObject({ reason: 'finished', bytesIn: 6 })
  })

test('B5: a signal that was aborted before: nobody hears anything', async () => {
  const server = await lonely()
  const bench = await open([route('p', { action: action({ kind: 'aborted', target: server.port }) })])
  await gone((await visitor(bench.port)).raw)
  expect((await bench.settle(1))[0]).toMatchObject({ reason: 'handler_closed' })
  expect((await closedBoth()).map(String)).toEqual(['Error: enough', 'Error: enough'])
})

test('C1: a pair waits behind the gate; C3: one that is rejected never begins', async () => {
  for (const ok of [true, false]) {
    fixture.fresh()
    const server = await lonely()
    const bench = await open([route('p', { action: action({ kind: 'gated', target: server.port }) })])
    const { raw } = await visitor(bench.port)
    raw.write('early')
    await until(() => [...bench.plane.table.values()][0]?.client.received === 5)
    expect(bench.plane.spliced).toBe(0)
    if (ok) fixture.seen.go.resolve()
    else fixture.seen.go.reject(new Error('no'))
    if (ok) expect(await heard((await server.accepted).socket)).toBe('early')
    else await gone(raw)
    raw.resetAndDestroy()
    expect((await bench.settle(1))[0]).toMatchObject({ reason: ok ? 'client_reset' : 'handler_failed' })
  }
})

test('A21: a socket that was not handed over ends with the connection, the pair with its own', async () => {
  const third = await lonely()
  const { client, record } = await joined(NATIVE, { kind: 'third', third: third.port })
  const { raw } = await third.accepted
  const over = gone(raw.resume())
  client.raw.resetAndDestroy()
  await over
  expect(await record()).toMatchObject({ reason: 'client_reset' })
})

for (const path of PATHS.filter(({ outbound }) => outbound))
  test(`B7 B8: a pair of outbound sockets outlives the connection whose handler joined it (${path.name})`, async () => {
    const { bench, client, target, record, visiting } = await joined(path)
    await until(() => bench.plane.size === 2)
    ;(await visiting).raw.resetAndDestroy()
    await bench.settle(1)
    const said = heard(target.socket)
    client.socket.write('still here')
    expect(await said).toBe('still here')
    client.socket.end()
    target.socket.end()
    expect(await record()).toMatchObject({ reason: 'finished', route: 'p', bytesIn: 10 })
    expect([bench.plane.size, bench.plane.timers.armed]).toEqual([0, 0])
  })

test('Q1: half-closed is bounded, also when the route’s handler has gone', async () => {
  for (const path of [NATIVE, PUMPED]) {
    const { client, record } = await joined(path, {}, { halfClosed: 200, grace: 100 })
    client.socket.end('question')
    expect(await record()).toMatchObject({ reason: 'half_closed_timeout', bytesIn: 8 })
    fixture.fresh()
  }
})

test('B5: preventClose, preventAbort, preventCancel leave the sockets with the handler', async () => {
  const text = (words: string) => new TextEncoder().encode(words)
  const { client, target, bench } = await joined(NATIVE, { kind: 'at_once preventClose' })
  let said = heard(target.socket)
  client.socket.end('question')
  expect(await said).toBe('question')
  const [, b] = fixture.seen.sockets
  await until(() => !b!.writable.locked)
  said = heard(target.socket)
  const writer = b!.writable.getWriter()
  await writer.write(text('and one more'))
  expect(await said).toBe('and one more')
  expect(target.socket.readableEnded).toBe(false)
  const answer = everything(client.socket)
  target.socket.end('answer')
  await until(() => !fixture.seen.sockets[0]!.writable.locked)
  await fixture.seen.sockets[0]!.close()
  expect(String(await answer)).toBe('answer')
  await bench.settle(1)

  fixture.fresh()
  const failing = await joined(NATIVE, { kind: 'at_once preventAbort' })
  said = heard(failing.target.socket)
  failing.client.socket.write('a word')
  expect(await said).toBe('a word')
  const over = heard(failing.client.socket)
  failing.target.raw.resetAndDestroy()
  // Its writable was spared: the handler can still say why.
  const spared = fixture.seen.sockets[0]!
  await until(() => !spared.writable.locked)
  await spared.writable.getWriter().write(text('sorry'))
  expect(await over).toBe('sorry')
  failing.client.raw.resetAndDestroy()
  await failing.bench.settle(1)
})

test('G18: 1,500 pairs that end in every way leave no object, descriptor or timer', async () => {
  // Not the peers of the suite: those are kept until the end of the test.
  const echo = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    allowHalfOpen: true,
    socket: { data: (socket, bytes) => void socket.write(bytes), end: (socket) => void socket.end(), error: () => {} },
  })
  later(() => echo.stop(true))
  const bench = await open([route('p', { action: action({ kind: 'at_once', target: echo.port }) })])
  const visit = async (leave: 'end' | 'terminate', talks: boolean) => {
    const { promise, resolve } = Promise.withResolvers<void>()
    await Bun.connect({
      hostname: '127.0.0.1',
      port: bench.port,
      socket: {
        open: (socket) => void (talks ? socket.write('word') : socket[leave]()),
        data: (socket) => void socket[leave](),
        close: () => resolve(),
        error: () => {},
      },
    })
    await promise
  }
  const run = async (count: number) => {
    for (let i = 0; i < count; i += 25)
      await Promise.all(Array.from({ length: 25 }, (_, j) => visit(j % 2 ? 'end' : 'terminate', j % 3 > 0)))
    await bench.settle(count)
    bench.settled.length = bench.opened.length = 0
    await until(() => bench.plane.size === 0)
  }
  const objects = async () => {
    for (let i = 0; i < 5; i++) {
      await Bun.sleep(20)
      Bun.gc(true)
    }
    return { ...heapStats().objectTypeCounts }
  }
  await run(400)
  const [before, held] = [await objects(), descriptors()]
  await run(1500)
  const after = await objects()
  const grown = Object.entries(after).filter(([kind, count]) => count - (before[kind] ?? 0) > 500)
  expect(grown).toEqual([])
  expect(descriptors()).toBeLessThan(held + 30)
  expect([bench.plane.size, bench.plane.spliced, bench.plane.timers.armed]).toEqual([0, 0, 0])
}, 30_000)
