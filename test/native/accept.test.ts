// Clients that the relay thread accepts: what is told of them, what each verdict (more, dial, take, close) does in each phase,
// and that none is lost or told twice, whoever is slow, gone or out of descriptors.
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cString, native, ptr } from '../../src/base/native.ts'
import {
  ACCEPTED,
  BYTES,
  CLIENT,
  CLOSED,
  CONNECTED,
  E,
  HALF_CLOSED,
  Peer,
  REFUSED,
  Relay,
  TARGET,
  UNLISTENED,
  atRest,
  drain,
  hashOf,
  noise,
  socketOption,
  until,
  type Ends,
  type Id,
  type RelayEvent,
} from './relay-fixture.ts'

const KiB = 1024
const MiB = 1024 * KiB
const c = native()

let relay: Relay
const servers: { stop(): void }[] = []
beforeEach(async () => {
  relay = await Relay.start()
})
afterEach(() => {
  relay.stop()
  relay.accept()
  for (const server of servers.splice(0)) server.stop()
})

/** Where targets are; its peers are the targets. */
function serve(greet?: (peer: Peer) => void, hostname = '127.0.0.1') {
  const server = Peer.serve({ hostname, port: 0 }, greet)
  servers.push(server)
  return { ...server, address: hostname }
}

const echoing = (peer: Peer) => peer.echo()

/** An address that answers nothing: a listening socket whose backlog is full drops what comes. */
async function blackHole() {
  const name = cString('127.0.0.1')
  const listening = c.sluice_listen(ptr(name), 0, 0)
  const port = c.sluice_port(listening)
  const fds = [listening]
  servers.push({ stop: () => fds.forEach((fd) => c.sluice_close(fd)) })
  do fds.push(c.sluice_connect(ptr(name), port))
  while ((await synsTo(port)) === 0)
  /** syns: of those who dial; the one that fills it is not counted. */
  return { address: '127.0.0.1', port, syns: async () => (await synsTo(port)) - 1 }
}

/** Connections in SYN_SENT to a port of 127.0.0.1. */
async function synsTo(port: number): Promise<number> {
  const to = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')} 02 `
  return (await Bun.file('/proc/net/tcp').text()).split('\n').filter((line) => line.includes(to)).length
}

/** A port of which nobody is there any more. */
function nobody() {
  const name = cString('127.0.0.1')
  const fd = c.sluice_listen(ptr(name), 0, 1)
  const port = c.sluice_port(fd)
  c.sluice_close(fd)
  return { address: '127.0.0.1', port }
}

/** A client and what was told of it. */
async function guest(reads = false): Promise<{ peer: Peer; id: bigint; arrived: RelayEvent & { ends: Ends } }> {
  const peer = await Peer.connect(relay.listen(reads).port)
  const arrived = await relay.arrival(peer)
  return { peer, id: arrived.id, arrived }
}

const kinds = (of: Id) => relay.eventsOf(of).map(({ kind }) => kind)

/** What the client has said so far, as it was told. */
const told = (of: Id) => Buffer.concat(relay.eventsOf(of).map(({ bytes }) => bytes))

const openDescriptors = () => readdirSync('/proc/self/fd').length

/** Without the pipes that the thread keeps. */
const openSockets = () => readdirSync('/proc/self/fd').filter(isSocket).length

function isSocket(fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:')
  } catch {
    return false // the directory's own
  }
}

/** The descriptors of this process that are connections from, or listeners on, that local port. */
const descriptorsOf = (port: number) =>
  readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => c.sluice_port(fd) === port)

describe('who comes', () => {
  const families = [
    ['127.0.0.1', '127.0.0.1', 4],
    ['::1', '::1', 6],
    ['::', '::1', 6],
    ['::', '127.0.0.1', 4],
  ] as const

  test.each(families)('at %s from %s is told with both ends', async (listening, from, family) => {
    const { tag, port } = relay.listen(false, listening)
    const peer = await Peer.connect(port, from)
    const { ends, tag: toldTag, descriptor, bytes } = await relay.arrival(peer)
    const expected = { family, client: from, local: from, clientPort: peer.socket.localPort, localPort: port }
    expect(ends).toEqual(expected)
    expect({ toldTag, bytes: bytes.length }).toEqual({ toldTag: tag, bytes: 0 })
    // Both the client's and the thread's end have the port: the descriptor is the thread's.
    expect(descriptorsOf(port)).toContain(descriptor)
  })

  test('ids begin at 2^48 and are never used again', async () => {
    const first = await guest()
    const second = await guest()
    expect(first.id).toBeGreaterThanOrEqual(1n << 48n)
    expect(second.id).toBeGreaterThan(first.id)
  })

  test('unread: what it says is not told until it is asked for', async () => {
    const { peer, id } = await guest()
    const bytes = noise(1, 3000)
    peer.send(bytes)
    await atRest(() => peer.accepted)
    expect(kinds({ id })).toEqual([ACCEPTED])
    relay.more({ id })
    await until(() => told({ id }).length === 3000)
    expect(hashOf(told({ id }))).toBe(hashOf(bytes))
  })

  test('read: its first bytes are told once, and the next when they are asked for', async () => {
    const { peer, id } = await guest(true)
    peer.send(noise(2, 500))
    await until(() => told({ id }).length === 500)
    peer.send(noise(3, 700))
    await atRest(() => peer.accepted)
    expect(told({ id })).toHaveLength(500)
    relay.more({ id })
    await until(() => told({ id }).length === 1200)
    expect(hashOf(told({ id }))).toBe(hashOf(noise(2, 500), noise(3, 700)))
  })

  test('read: bytes that are there when it is accepted come with it', async () => {
    relay.accept(0)
    const { port } = relay.listen(true)
    const peer = await Peer.connect(port)
    peer.send(noise(4, 1000))
    await atRest(() => peer.accepted)
    relay.accept()
    const arrived = await relay.arrival(peer)
    expect(hashOf(arrived.bytes)).toBe(hashOf(noise(4, 1000)))
    expect(kinds(arrived)).toEqual([ACCEPTED])
  })

  test('byte by byte, each asked for', async () => {
    const { peer, id } = await guest(true)
    const bytes = noise(5, 200)
    for (let i = 0; i < bytes.length; i++) {
      peer.send(bytes.subarray(i, i + 1))
      await until(() => told({ id }).length === i + 1)
      relay.more({ id })
    }
    expect(hashOf(told({ id }))).toBe(hashOf(bytes))
  })

  test('more than many messages hold: nothing lost, nothing twice', async () => {
    relay.heard = (event) => event.bytes.length > 0 && relay.more(event)
    const { peer, id } = await guest(true)
    const bytes = noise(6, 8 * MiB)
    peer.send(bytes)
    peer.finish()
    await relay.halfClosed({ id })
    await until(() => told({ id }).length >= bytes.length)
    expect(told({ id })).toHaveLength(bytes.length)
    expect(hashOf(told({ id }))).toBe(hashOf(bytes))
    expect(Math.max(...relay.eventsOf({ id }).map((event) => event.bytes.length))).toBeLessThanOrEqual(16 * KiB)
  }, 30_000)

  test('urgent data does not hide what comes behind it', async () => {
    relay.heard = (event) => event.bytes.length > 0 && relay.more(event)
    relay.accept(0)
    const peer = await Peer.connect(relay.listen(true).port)
    peer.send(noise(7, 100))
    peer.sendUrgent()
    peer.send(noise(8, 100))
    await atRest(() => peer.accepted)
    relay.accept()
    const { id } = await relay.arrival(peer)
    await until(() => told({ id }).length === 200)
    expect(hashOf(told({ id }))).toBe(hashOf(noise(7, 100), noise(8, 100)))
  })
})

describe('who goes while it waits', () => {
  test('FIN before any byte', async () => {
    const { peer, id } = await guest(true)
    peer.finish()
    expect(await relay.halfClosed({ id })).toMatchObject({ side: CLIENT, bytesIn: 0 })
    relay.close({ id }, 'reset')
    expect(await relay.closed({ id })).toMatchObject({ error: E.CANCELED })
  })

  test('FIN before it is accepted', async () => {
    relay.accept(0)
    const peer = await Peer.connect(relay.listen(true).port)
    peer.send(noise(10, 300))
    peer.finish()
    await atRest(() => peer.accepted)
    relay.accept()
    const arrived = await relay.arrival(peer)
    expect(hashOf(arrived.bytes)).toBe(hashOf(noise(10, 300)))
    expect(await relay.halfClosed(arrived)).toMatchObject({ side: CLIENT, bytesIn: 0 })
  })

  test('FIN behind bytes that are unread: how many those are is told, and they can be read', async () => {
    const { peer, id } = await guest()
    peer.send(noise(11, 20 * KiB))
    peer.finish()
    await until(() => relay.eventsOf({ id }).some(({ bytesIn }) => bytesIn === 20 * KiB))
    relay.heard = (event) => event.kind === BYTES && relay.more(event)
    relay.more({ id })
    await until(() => told({ id }).length === 20 * KiB)
    expect(hashOf(told({ id }))).toBe(hashOf(noise(11, 20 * KiB)))
    await until(() => relay.eventsOf({ id }).at(-1)!.kind === HALF_CLOSED)
    expect(relay.eventsOf({ id }).at(-1)).toMatchObject({ side: CLIENT, bytesIn: 0 })
  })

  test('FIN in one piece with the first bytes is told as well', async () => {
    for (let i = 0; i < 50; i++) {
      const { peer, id } = await guest(true)
      peer.send(noise(12, 100))
      peer.finish()
      expect(await relay.halfClosed({ id })).toMatchObject({ bytesIn: 0 })
      expect(kinds({ id })).toEqual([ACCEPTED, BYTES, HALF_CLOSED])
      relay.close({ id }, 'reset')
    }
  })

  test.each([true, false])('RST, read: %p', async (reads) => {
    const { peer, id } = await guest(reads)
    peer.reset()
    const error = { side: CLIENT, error: E.CONNRESET, bytesIn: 0, bytesOut: 0 }
    expect(await relay.closed({ id })).toMatchObject(error)
    expect(kinds({ id })).toEqual([ACCEPTED, CLOSED])
    for (const gone of [
      relay.more({ id }),
      relay.take({ id }),
      relay.close({ id }, 'reset'),
      relay.dial({ id }, 1, nobody()),
    ])
      expect(gone).toBe(-E.NOENT)
  })

  test('RST behind a FIN', async () => {
    const { peer, id } = await guest()
    peer.send(noise(13, 10))
    peer.finish()
    await relay.halfClosed({ id })
    peer.reset()
    expect(await relay.closed({ id })).toMatchObject({ side: CLIENT, error: E.PIPE })
  })

  test('RST while its target is dialled: no SYN stays', async () => {
    const { peer, id } = await guest()
    const hole = await blackHole()
    relay.dial({ id }, 1, hole)
    await until(async () => (await hole.syns()) === 1)
    peer.reset()
    expect(await relay.closed({ id })).toMatchObject({ side: CLIENT, error: E.CONNRESET })
    expect(await hole.syns()).toBe(0)
  })

  test('RST while it is carried', async () => {
    const { peer, id } = await guest()
    const server = serve()
    relay.dial({ id }, 1, server)
    const target = await server.peer()
    await relay.event({ id }, CONNECTED)
    peer.reset()
    expect(await relay.closed({ id })).toMatchObject({ side: CLIENT, error: E.CONNRESET })
    expect(await target.closed).toBe('ECONNRESET')
  })
})

describe('a target is dialled', () => {
  test('first bytes go first and once, then what the client says meanwhile', async () => {
    const { peer, id } = await guest(true)
    const hello = noise(20, 5000)
    const rest = noise(21, 1 * MiB)
    const answer = noise(22, 1 * MiB)
    peer.send(hello)
    await until(() => told({ id }).length === hello.length)
    peer.send(rest)
    const server = serve()
    expect(relay.dial({ id }, 7, server, Buffer.concat([noise(23, 50), hello]))).toBe(0)
    expect(await relay.event({ id }, CONNECTED)).toMatchObject({ tag: 7 })
    const target = await server.peer()
    target.send(answer)
    target.finish()
    peer.finish()
    await Promise.all([peer.ended, target.ended])
    expect(target.digest()).toBe(hashOf(noise(23, 50), hello, rest))
    expect(peer.digest()).toBe(hashOf(answer))
    const bytesIn = 50 + hello.length + rest.length
    expect(await relay.closed({ id })).toMatchObject({ error: 0, bytesIn, bytesOut: answer.length })
    expect(relay.dial({ id }, 8, server)).toBe(-E.NOENT)
  })

  test('IPv6', async () => {
    const { peer, id } = await guest()
    const server = serve(echoing, '::1')
    relay.dial({ id }, 1, server)
    peer.send(noise(24, 1000))
    await peer.got(1000)
    expect(peer.digest()).toBe(hashOf(noise(24, 1000)))
  })

  test('refused, then the next: the first bytes are kept', async () => {
    const { peer, id } = await guest(true)
    const hello = noise(25, 100 * KiB)
    relay.dial({ id }, 1, nobody(), hello)
    expect(await relay.event({ id }, REFUSED)).toMatchObject({ tag: 1, error: E.CONNREFUSED })
    relay.dial({ id }, 2, nobody())
    expect(await relay.event({ id }, REFUSED, 1)).toMatchObject({ tag: 2, error: E.CONNREFUSED })
    const server = serve()
    relay.dial({ id }, 3, server)
    expect(await relay.event({ id }, CONNECTED)).toMatchObject({ tag: 3 })
    const target = await server.peer()
    peer.send(noise(26, 10))
    peer.finish()
    await target.ended
    expect(target.digest()).toBe(hashOf(hello, noise(26, 10)))
  })

  test('abandoned: the SYN is taken back, the client stays, and the next target gets the first bytes', async () => {
    const { id } = await guest()
    const hole = await blackHole()
    const hello = noise(27, 100)
    relay.dial({ id }, 1, hole, hello)
    await until(async () => (await hole.syns()) === 1)
    relay.dial({ id }, 2, { address: '' })
    await until(async () => (await hole.syns()) === 0)
    expect(relay.stats({ id })).toBeDefined()
    const server = serve()
    relay.dial({ id }, 3, server)
    const target = await server.peer()
    await target.got(100)
    expect(target.digest()).toBe(hashOf(hello))
    expect(kinds({ id })).not.toContain(REFUSED)
  })

  test('superseded: only the last one is told, and only it gets the first bytes', async () => {
    const { peer, id } = await guest()
    const [hole, server] = [await blackHole(), serve()]
    const hello = noise(28, 100)
    // The thread may see all of them or the last alone.
    relay.dial({ id }, 1, hole, noise(29, 5000))
    relay.dial({ id }, 2, hole, hello)
    relay.dial({ id }, 3, server)
    expect(await relay.event({ id }, CONNECTED)).toMatchObject({ tag: 3 })
    const target = await server.peer()
    peer.finish()
    await target.ended
    expect(target.digest()).toBe(hashOf(hello))
    await until(async () => (await hole.syns()) === 0)
    await relay.event({ id }, HALF_CLOSED)
    expect(kinds({ id })).toEqual([ACCEPTED, CONNECTED, HALF_CLOSED])
  })

  test('a dial of one that is connected changes nothing', async () => {
    const { peer, id } = await guest()
    const [server, other] = [serve(echoing), serve()]
    relay.dial({ id }, 1, server)
    await relay.event({ id }, CONNECTED)
    expect(relay.dial({ id }, 2, other, noise(30, 100))).toBe(0)
    expect(relay.dial({ id }, 3, { address: '' })).toBe(0)
    expect(relay.more({ id })).toBe(0)
    peer.send(noise(31, 1000))
    await peer.got(1000)
    expect(peer.digest()).toBe(hashOf(noise(31, 1000)))
    expect(other.peers).toHaveLength(0)
    expect(kinds({ id })).toEqual([ACCEPTED, CONNECTED])
  })

  test('a black hole, then close: no SYN stays', async () => {
    const { peer, id } = await guest()
    const hole = await blackHole()
    relay.dial({ id }, 1, hole)
    await until(async () => (await hole.syns()) === 1)
    relay.close({ id }, { graceMs: 3_600_000 })
    expect(await relay.closed({ id })).toMatchObject({ error: E.CANCELED })
    expect(await peer.closed).toBe('ECONNRESET')
    expect(await hole.syns()).toBe(0)
  })

  test('from a source address; one that is not ours is refused', async () => {
    const { id } = await guest()
    const server = serve()
    relay.dial({ id }, 1, { ...server, from: '203.0.113.9' }, noise(32, 10))
    expect(await relay.event({ id }, REFUSED)).toMatchObject({ tag: 1, error: E.ADDRNOTAVAIL })
    relay.dial({ id }, 2, { ...server, from: '127.0.0.9' })
    const target = await server.peer()
    expect(target.socket.remoteAddress).toBe('127.0.0.9')
    await target.got(10)
  })

  test('no address at all, or one that is too long', async () => {
    const { id } = await guest()
    relay.dial({ id }, 1, { address: 'example.test', port: 80 })
    expect(await relay.event({ id }, REFUSED)).toMatchObject({ tag: 1, error: 22 })
    expect(relay.dial({ id }, 2, { address: '/'.repeat(108) })).toBe(-E.MSGSIZE)
    expect(relay.dial({ id }, 2, nobody(), new Uint8Array(16 * MiB + 1))).toBe(-E.MSGSIZE)
    expect(relay.stats({ id })).toBeDefined()
  })

  test('a target that speaks first', async () => {
    const { peer, id } = await guest()
    const server = serve((target) => target.send(noise(33, 70)))
    relay.dial({ id }, 1, server)
    await peer.got(70)
    peer.send(noise(34, 30))
    await (await server.peer()).got(30)
    expect(relay.stats({ id })).toMatchObject({ bytesIn: 30, bytesOut: 70 })
  })

  test('a target that says all and goes at once', async () => {
    const { peer, id } = await guest()
    const server = serve((target) => {
      target.send(noise(35, 70))
      target.finish()
    })
    relay.dial({ id }, 1, server)
    await peer.ended
    expect(peer.digest()).toBe(hashOf(noise(35, 70)))
    peer.finish()
    expect(await relay.closed({ id })).toMatchObject({ error: 0, bytesOut: 70 })
  })

  test('a target that resets at once has refused, or ended what was carried', async () => {
    const server = serve((target) => target.reset())
    for (let i = 0; i < 50; i++) {
      const { peer, id } = await guest()
      relay.dial({ id }, 1, server, noise(36, 10))
      await until(() => kinds({ id }).some((kind) => kind === REFUSED || kind === CLOSED))
      const refused = relay.eventsOf({ id }).find(({ kind }) => kind === REFUSED)
      if (refused) {
        expect(refused).toMatchObject({ tag: 1, error: E.CONNRESET })
        relay.close({ id }, 'reset')
      } else expect(await relay.closed({ id })).toMatchObject({ side: TARGET })
      expect(await peer.closed).toBe('ECONNRESET')
    }
  })

  test('a client that has sent its FIN before the target was connected gets all of the answer', async () => {
    const { peer, id } = await guest(true)
    const hello = noise(37, 1000)
    peer.send(hello)
    await until(() => told({ id }).length === hello.length)
    peer.send(noise(38, 50 * KiB))
    peer.finish()
    await relay.halfClosed({ id })
    const server = serve()
    relay.dial({ id }, 1, server, hello)
    const target = await server.peer()
    await target.ended
    expect(target.digest()).toBe(hashOf(hello, noise(38, 50 * KiB)))
    target.send(noise(39, 2 * MiB))
    target.finish()
    await peer.ended
    expect(peer.digest()).toBe(hashOf(noise(39, 2 * MiB)))
    expect(await relay.closed({ id })).toMatchObject({ error: 0, bytesIn: 1000 + 50 * KiB, bytesOut: 2 * MiB })
  })

  test('16 MiB of first bytes, and a target that is slow to read them', async () => {
    const { id } = await guest()
    const server = serve((target) => target.socket.pause())
    const first = noise(40, 16 * MiB)
    relay.dial({ id }, 1, server, first)
    const target = await server.peer()
    await relay.event({ id }, CONNECTED)
    expect(await atRest(() => relay.stats({ id })!.bytesIn)).toBeLessThan(16 * MiB)
    target.socket.resume()
    await target.got(16 * MiB)
    expect(target.digest()).toBe(hashOf(first))
  }, 30_000)

  test('with keepalive: on both sockets', async () => {
    const { id, arrived } = await guest()
    const server = serve()
    relay.dial({ id }, 1, server)
    const target = await server.peer()
    await relay.event({ id }, CONNECTED)
    const ours = [arrived.descriptor, ...descriptorsOf(target.socket.remotePort)]
    expect(ours).toHaveLength(2)
    const SOL_SOCKET = 1
    const SO_KEEPALIVE = 9
    const TCP = 6
    const settings = (fd: number) => [
      socketOption(fd, SOL_SOCKET, SO_KEEPALIVE),
      ...[4, 5, 6].map((name) => socketOption(fd, TCP, name)),
    ]
    for (const fd of ours) expect(settings(fd)[0]).toBe(0)
    expect(relay.keepAlive({ id }, 77, 11, 5)).toBe(0)
    for (const fd of ours) expect(settings(fd)).toEqual([1, 77, 11, 5])
    expect(relay.keepAlive({ id: 1n }, 77, 11, 5)).toBe(-E.NOENT)
  })
})

describe('a target on a unix socket', () => {
  let folder: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'relay-accept-'))
  })
  afterEach(() => rm(folder, { recursive: true }))

  test('carries both ways, and both FINs', async () => {
    const { peer, id } = await guest()
    const path = join(folder, 'target')
    const server = Peer.serve({ unix: path })
    servers.push(server)
    relay.dial({ id }, 4, { address: path }, noise(50, 1000))
    expect(await relay.event({ id }, CONNECTED)).toMatchObject({ tag: 4 })
    const target = await server.peer()
    peer.send(noise(51, 1 * MiB))
    peer.finish()
    await target.ended
    expect(target.digest()).toBe(hashOf(noise(50, 1000), noise(51, 1 * MiB)))
    target.send(noise(52, 1 * MiB))
    target.finish()
    await peer.ended
    expect(peer.digest()).toBe(hashOf(noise(52, 1 * MiB)))
    expect(await relay.closed({ id })).toMatchObject({ error: 0 })
  })

  test('that is not there, or whose backlog is full: refused, and the next gets the first bytes', async () => {
    const { id } = await guest()
    relay.dial({ id }, 1, { address: join(folder, 'none') }, noise(53, 100))
    expect(await relay.event({ id }, REFUSED)).toMatchObject({ tag: 1, error: E.NOENT })
    // A listener whose process does not accept.
    const path = join(folder, 'full')
    const stopped = Bun.spawn([process.execPath, join(import.meta.dir, 'unix-fixture.ts'), path], { stdout: 'pipe' })
    try {
      for await (const _ of stopped.stdout) break
      const name = cString(path)
      const fillers: number[] = []
      let filler: number
      while ((filler = c.sluice_connect_unix(ptr(name))) >= 0) fillers.push(filler)
      expect(filler).toBe(-E.AGAIN)
      relay.dial({ id }, 2, { address: path })
      expect(await relay.event({ id }, REFUSED, 1)).toMatchObject({ tag: 2, error: E.AGAIN })
      for (const fd of fillers) c.sluice_close(fd)
    } finally {
      stopped.kill('SIGKILL')
      await stopped.exited
    }
    const server = serve()
    relay.dial({ id }, 3, server)
    const target = await server.peer()
    await target.got(100)
    expect(target.digest()).toBe(hashOf(noise(53, 100)))
  })
})

describe('a client is taken', () => {
  test('what it said beyond what was told is still in the socket, and nothing more is told of it', async () => {
    const { peer, id, arrived } = await guest(true)
    peer.send(noise(60, 1000))
    await until(() => told({ id }).length === 1000)
    peer.send(noise(61, 2000))
    await atRest(() => peer.accepted)
    const fd = relay.take({ id })
    expect(fd).toBe(arrived.descriptor)
    for (const gone of [relay.take({ id }), relay.more({ id }), relay.close({ id }, 'reset')])
      expect(gone).toBe(-E.NOENT)
    expect(hashOf(drain(fd))).toBe(hashOf(noise(61, 2000)))
    const before = kinds({ id })
    peer.send(noise(62, 10))
    peer.finish()
    await atRest(() => relay.eventsOf({ id }).length)
    expect(kinds({ id })).toEqual(before)
    expect(hashOf(drain(fd))).toBe(hashOf(noise(62, 10)))
    c.sluice_close(fd)
    await peer.closed
  })

  test('not after a dial: its target would stay behind', async () => {
    const { id } = await guest()
    relay.dial({ id }, 1, nobody())
    expect(relay.take({ id })).toBe(-E.BUSY)
    await relay.event({ id }, REFUSED)
    expect(relay.take({ id })).toBe(-E.BUSY)
    const pair = await relay.join()
    expect(relay.take(pair)).toBe(-E.BUSY)
  })

  test('in the moment in which it goes, sends or ends: it is either ours or theirs', async () => {
    const { port } = relay.listen(true)
    const open = openSockets()
    let taken = 0
    let gone = 0
    for (let round = 0; round < 20; round++) {
      const peers = await Promise.all(Array.from({ length: 50 }, () => Peer.connect(port)))
      const ids = (await Promise.all(peers.map((peer) => relay.arrival(peer)))).map(({ id }) => ({ id }))
      for (const peer of peers) peer.send(noise(63, 10))
      await until(() => ids.every((id) => kinds(id).includes(BYTES)))
      // Every third ends its stream and every third is gone; the thread hears of both while they are taken.
      peers.forEach((peer, i) => (i % 3 === 0 ? peer.reset() : i % 3 === 1 ? peer.finish() : peer.send(noise(64, 10))))
      if (round % 2) await Promise.resolve()
      const fds = ids.map((id) => relay.take(id))
      for (const fd of fds) if (fd >= 0) c.sluice_close(fd)
      for (const [i, fd] of fds.entries()) {
        if (fd >= 0) taken++
        else {
          gone++
          expect(fd).toBe(-E.NOENT)
          expect(i % 3).toBe(0)
          expect(await relay.closed(ids[i]!)).toMatchObject({ error: E.CONNRESET })
        }
      }
      await Promise.all(peers.map((peer) => peer.closed))
      for (const [i, fd] of fds.entries()) if (fd >= 0) expect(kinds(ids[i]!)).not.toContain(CLOSED)
    }
    console.log(`${taken} taken, ${gone} were gone`)
    expect(taken + gone).toBe(1000)
    await until(() => openSockets() <= open)
  }, 30_000)

  test('with verdicts that are still on their way: they are dropped with it', async () => {
    const { port } = relay.listen(false)
    for (let i = 0; i < 500; i++) {
      const peer = await Peer.connect(port)
      const { id } = await relay.arrival(peer)
      relay.more({ id })
      const fd = relay.take({ id })
      expect(fd).toBeGreaterThanOrEqual(0)
      c.sluice_close(fd)
      await peer.ended
      peer.reset()
    }
  }, 30_000)
})

describe('closing, in each phase', () => {
  const ways = [['reset' as const], [{ graceMs: 3_600_000 }]] as const

  test.each(ways)('unread and read, %p', async (way) => {
    for (const reads of [false, true]) {
      const { peer, id } = await guest(reads)
      peer.send(noise(70, 10))
      if (reads) await until(() => told({ id }).length === 10)
      expect(relay.close({ id }, way)).toBe(0)
      expect(await peer.closed).toBe('ECONNRESET')
      expect(await relay.closed({ id })).toMatchObject({ side: CLIENT, error: E.CANCELED })
    }
  })

  test('together with a dial: the target sees nothing of it, or a RST', async () => {
    const server = serve()
    const { peer, id } = await guest()
    relay.dial({ id }, 1, server, noise(71, 10))
    relay.close({ id }, 'reset')
    expect(await relay.closed({ id })).toMatchObject({ error: E.CANCELED })
    expect(await peer.closed).toBe('ECONNRESET')
    for (const target of server.peers) expect(await target.closed).toBe('ECONNRESET')
  })

  test('carried, with grace: what is in flight is delivered, then the FIN', async () => {
    const { peer, id } = await guest()
    const server = serve((target) => target.socket.pause())
    relay.dial({ id }, 1, server, noise(72, 1000))
    const target = await server.peer()
    await relay.event({ id }, CONNECTED)
    const bytes = noise(73, 32 * MiB)
    peer.send(bytes)
    await atRest(() => peer.accepted)
    relay.close({ id }, { graceMs: 3_600_000 })
    target.socket.resume()
    await target.ended
    target.finish()
    const { bytesIn, error } = await relay.closed({ id })
    expect(error).toBe(E.CANCELED)
    expect(target.received).toBe(bytesIn)
    expect(target.digest()).toBe(hashOf(noise(72, 1000), bytes.subarray(0, bytesIn - 1000)))
  }, 30_000)
})

describe('listeners', () => {
  test('UNLISTENED comes last, and whoever was accepted before is told of and stays', async () => {
    const { tag, port } = relay.listen(true)
    const peers = await Promise.all(Array.from({ length: 100 }, () => Peer.connect(port)))
    await Promise.all(peers.map((peer) => relay.arrival(peer)))
    expect(relay.unlisten(tag)).toBe(0)
    expect(relay.unlisten(tag)).toBe(-E.NOENT)
    await until(() => relay.events.some(({ kind }) => kind === UNLISTENED))
    expect(relay.events.find(({ kind }) => kind === UNLISTENED)).toMatchObject({ tag, id: 0n })
    expect(relay.events.at(-1)!.kind).toBe(UNLISTENED)
    expect(relay.arrivals(tag)).toHaveLength(100)
    expect(await Peer.connect(port).catch(({ code }) => code)).toBe('ECONNREFUSED')
    const server = serve(echoing)
    relay.dial(relay.arrivals(tag)[0]!, 1, server)
    const peer = peers.find(({ socket }) => socket.localPort === relay.arrivals(tag)[0]!.ends!.clientPort)!
    peer.send(noise(80, 10))
    await peer.got(10)
  })

  test('who comes while a listener is closed is told of before UNLISTENED, or refused', async () => {
    for (let round = 0; round < 20; round++) {
      const { tag, port } = relay.listen(false)
      const coming = Array.from({ length: 50 }, () => Peer.connect(port).catch(() => undefined))
      if (round % 2) await coming[0]
      relay.unlisten(tag)
      await until(() => relay.events.some((event) => event.kind === UNLISTENED && event.tag === tag))
      const last = relay.events.findIndex((event) => event.kind === UNLISTENED && event.tag === tag)
      expect(relay.events.findLastIndex((event) => event.kind === ACCEPTED && event.tag === tag)).toBeLessThan(last)
      for (const arrived of relay.arrivals(tag)) relay.close(arrived, 'reset')
      for (const peer of await Promise.all(coming)) peer?.reset()
    }
  })

  test('several at once keep their tags apart', async () => {
    const listeners = Array.from({ length: 20 }, () => relay.listen(true))
    for (const { port } of listeners) for (let i = 0; i < 5; i++) await Peer.connect(port)
    for (const { tag, port } of listeners) {
      await until(() => relay.arrivals(tag).length === 5)
      expect(new Set(relay.arrivals(tag).map(({ ends }) => ends!.localPort))).toEqual(new Set([port]))
    }
  })

  test('what is no listening socket is refused and closed', async () => {
    const name = cString('127.0.0.1')
    const { port } = serve()
    const fd = c.sluice_connect(ptr(name), port)
    expect(c.sluice_relay_listen(999, fd, 0)).toBe(-22)
    expect(c.sluice_close(fd)).toBe(-9)
  })

  test('while nothing is accepted the kernel queues, and none is lost', async () => {
    relay.accept(0)
    const { tag, port } = relay.listen(true)
    const peers = await Promise.all(Array.from({ length: 300 }, () => Peer.connect(port)))
    peers.forEach((peer, i) => peer.send(noise(i, 20)))
    await atRest(() => relay.events.length)
    expect(relay.arrivals(tag)).toHaveLength(0)
    relay.accept()
    await until(() => relay.arrivals(tag).length === 300)
    for (const [i, peer] of peers.entries()) {
      const arrived = await relay.arrival(peer)
      await until(() => told(arrived).length === 20)
      expect(hashOf(told(arrived))).toBe(hashOf(noise(i, 20)))
    }
  })

  test('so many and no more are accepted, and one more for each that goes', async () => {
    relay.accept(10)
    const { tag, port } = relay.listen(false)
    const peers = await Promise.all(Array.from({ length: 15 }, () => Peer.connect(port)))
    await until(() => relay.arrivals(tag).length === 10)
    await atRest(() => relay.arrivals(tag).length)
    expect(relay.arrivals(tag)).toHaveLength(10)
    for (let i = 0; i < 5; i++) {
      relay.close(relay.arrivals(tag)[i]!, 'reset')
      await until(() => relay.arrivals(tag).length === 11 + i)
    }
    expect(peers).toHaveLength(15)
  }, 20_000)
})

/** utime and stime of the relay thread, in ticks of 10 ms. */
function ticks(pid: number | 'self'): number {
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const [name, rest] = readFileSync(`/proc/${pid}/task/${task}/stat`, 'latin1').split(') ') as [string, string]
    if (!name.endsWith('(sluice-relay')) continue
    const fields = rest.split(' ')
    return Number(fields[11]) + Number(fields[12])
  }
  return NaN
}

describe('under pressure', () => {
  test('a reader that is behind: clients wait in the kernel, and all are told of in the end', async () => {
    const { tag, port } = relay.listen(true)
    relay.stopReading()
    const before = process.memoryUsage().rss
    const descriptors = openDescriptors()
    const peers: Peer[] = []
    while (peers.length < 3000)
      peers.push(...(await Promise.all(Array.from({ length: 250 }, () => Peer.connect(port)))))
    peers.forEach((peer, i) => peer.send(noise(i, 500)))
    const accepted = (await atRest(() => openDescriptors())) - descriptors - peers.length
    const spent = ticks('self')
    await Bun.sleep(1000) // measures how busy the thread is with waiting
    const busy = ticks('self') - spent
    console.log(
      `${accepted} of 3,000 accepted, ${((process.memoryUsage().rss - before) / MiB).toFixed(1)} MiB more, ${busy * 10} ms of CPU in a second of waiting`,
    )
    expect(accepted).toBeLessThan(3000)
    expect(busy).toBeLessThan(50)
    relay.readAgain()
    await until(() => relay.arrivals(tag).length === 3000)
    await until(() => relay.events.reduce((sum, { bytes }) => sum + bytes.length, 0) === 3000 * 500)
    const byPort = new Map(relay.arrivals(tag).map((event) => [event.ends!.clientPort, event]))
    expect(byPort.size).toBe(3000)
    peers.forEach((peer, i) => expect(hashOf(told(byPort.get(peer.socket.localPort)!))).toBe(hashOf(noise(i, 500))))
  }, 60_000)

  test('no descriptor left: accepting waits without spinning, and goes on as others leave', async () => {
    const LIMIT = 100
    const child = Bun.spawn(
      ['prlimit', `--nofile=${LIMIT}:${LIMIT}`, process.execPath, join(import.meta.dir, 'accept-fixture.ts')],
      { stdin: 'pipe', stdout: 'pipe', stderr: 'inherit' },
    )
    try {
      const lines = linesOf(child.stdout)
      const port = Number(await lines.next())
      const peers = await Promise.all(Array.from({ length: 300 }, () => Peer.connect(port)))
      peers.forEach((peer, i) => peer.send(noise(i, 10)))
      const gone = new Set<Peer>()
      for (const peer of peers) peer.closed.then(() => gone.add(peer))
      let last = 0
      let spent: number | undefined
      for (let told = 0; told < 300; told = last) {
        last = Number((await lines.next())!.split(' ')[0])
        if (last > told && spent === undefined) {
          // As many as there were descriptors for; the rest waits in the kernel.
          const before = ticks(child.pid)
          await Bun.sleep(1000) // measures how busy the thread is with waiting
          spent = ticks(child.pid) - before
          console.log(`${last} accepted of 300, ${spent * 10} ms of CPU in a second without descriptors`)
          expect(last).toBeLessThan(LIMIT)
          expect(spent).toBeLessThan(50)
        }
        child.stdin.write('close\n')
        child.stdin.flush()
      }
      await until(() => gone.size === 300)
      expect(last).toBe(300)
    } finally {
      child.kill('SIGKILL')
      await child.exited
    }
  }, 60_000)
})

/** The lines of a stream, one for each call. */
function linesOf(stream: ReadableStream<Uint8Array>) {
  const reader = stream.getReader()
  const decoder = new TextDecoder()
  let text = ''
  return {
    async next(): Promise<string | undefined> {
      for (;;) {
        const end = text.indexOf('\n')
        if (end >= 0) {
          const line = text.slice(0, end)
          text = text.slice(end + 1)
          return line
        }
        const { value, done } = await reader.read()
        if (done) return undefined
        text += decoder.decode(value)
      }
    },
  }
}

describe('stopping', () => {
  test('with clients in every phase: all are reset, every descriptor is closed, and it starts again', async () => {
    const hole = await blackHole()
    const server = serve()
    const open = openDescriptors()
    const unread = await guest()
    const read = await guest(true)
    const dialing = await guest()
    const carried = await guest()
    relay.dial(dialing, 1, hole)
    relay.dial(carried, 1, server, noise(90, 10))
    const target = await server.peer()
    await relay.event(carried, CONNECTED)
    const refused = await guest()
    relay.dial(refused, 1, nobody(), noise(91, 10))
    await relay.event(refused, REFUSED)
    const taken = await guest()
    const fd = relay.take(taken)
    const commanded = await guest()
    const waiting = await Peer.connect(relay.listen(true).port)
    await relay.arrival(waiting)
    relay.more(commanded)
    relay.dial(commanded, 1, server, noise(92, 10))
    const { tag, port } = relay.listen(true)
    relay.unlisten(tag)
    expect(relay.stop()).toBe(0)
    const peers = [unread, read, dialing, carried, refused, commanded].map(({ peer }) => peer)
    for (const peer of [...peers, waiting]) expect(await peer.closed).toBe('ECONNRESET')
    expect(await target.closed).toBe('ECONNRESET')
    expect(await hole.syns()).toBe(0)
    for (const guest of [unread, read, dialing, carried, refused, commanded])
      expect(await relay.closed(guest)).toMatchObject({ error: E.CANCELED })
    expect(await Peer.connect(port).catch(({ code }) => code)).toBe('ECONNREFUSED')
    for (const refusal of [relay.more(read), relay.take(read), relay.dial(read, 2, server), relay.unlisten(tag)])
      expect(refusal).toBe(-E.NOENT)
    taken.peer.send(noise(93, 10))
    await until(() => drain(fd).length === 10)
    taken.peer.reset()
    c.sluice_close(fd)
    await until(() => openDescriptors() <= open)
    relay = await Relay.start()
    const again = await guest(true)
    again.peer.send(noise(94, 10))
    await until(() => told(again).length === 10)
  })

  test('while a reader is behind', async () => {
    const { port } = relay.listen(true)
    relay.stopReading()
    const peers: Peer[] = []
    while (peers.length < 1000)
      peers.push(...(await Promise.all(Array.from({ length: 250 }, () => Peer.connect(port)))))
    peers.forEach((peer, i) => peer.send(noise(i, 500)))
    await atRest(() => openDescriptors())
    expect(relay.stop()).toBe(0)
    for (const peer of peers) expect(await peer.closed).toBe('ECONNRESET')
  }, 30_000)
})

test('5,000 clients with random verdicts: each ends once, or is taken, and every descriptor is given back', async () => {
  const random = randomOf(4711)
  const chance = (share: number) => random() < share
  const hole = await blackHole()
  const server = serve(echoing)
  const rude = serve((target) => target.reset())
  const brief = serve((target) => target.finish())
  const read = relay.listen(true)
  const unread = relay.listen(false)
  const open = openSockets()
  const taken = new Set<bigint>()
  const ids: bigint[] = []
  const targets = () =>
    [server, server, server, rude, brief, nobody(), hole, { address: '/nowhere' }][Math.floor(random() * 8)]!

  async function visit() {
    const peer = await Peer.connect((chance(0.7) ? read : unread).port)
    const size = Math.floor(random() * (chance(0.1) ? 100_000 : 2000))
    peer.send(noise(1, size))
    if (chance(0.3)) peer.finish()
    const arrived = await relay.arrival(peer)
    const { id } = arrived
    ids.push(id)
    if (chance(0.1)) peer.reset()
    for (let attempt = 1; chance(0.9); attempt++) {
      if (chance(0.3)) relay.more({ id })
      else if (chance(0.1) && attempt === 1) {
        const fd = relay.take({ id })
        if (fd < 0) continue
        taken.add(id)
        c.sluice_close(fd)
        break
      } else if (chance(0.5)) relay.dial({ id }, attempt, targets(), noise(attempt, Math.floor(random() * 3000)))
      else if (chance(0.1)) relay.dial({ id }, attempt, { address: '' })
      else if (chance(0.2)) relay.close({ id }, chance(0.5) ? 'reset' : { graceMs: Math.floor(random() * 20) })
      if (chance(0.3)) peer.send(noise(2, 500))
      if (chance(0.5)) await Bun.sleep(random() * 3)
    }
    if (chance(0.5)) relay.close({ id }, chance(0.5) ? 'reset' : { graceMs: 10 })
    else peer.reset()
    await until(() => taken.has(id) || kinds({ id }).includes(CLOSED))
    peer.reset()
  }

  // A take needs that nothing was asked for before: whoever is read at that moment may lose what is read.
  for (let i = 0; i < 25; i++) await Promise.all(Array.from({ length: 200 }, visit))
  expect(new Set(ids).size).toBe(5000)
  await until(() => ids.every((id) => taken.has(id) || kinds({ id }).includes(CLOSED)))
  await until(() => openSockets() <= open)
  for (const id of ids) {
    const closings = kinds({ id }).filter((kind) => kind === CLOSED).length
    expect(closings).toBe(taken.has(id) ? 0 : 1)
    expect(kinds({ id }).filter((kind) => kind === ACCEPTED)).toHaveLength(1)
    expect(kinds({ id }).filter((kind) => kind === CONNECTED).length).toBeLessThanOrEqual(1)
    if (closings) expect(kinds({ id }).at(-1)).toBe(CLOSED)
    expect(relay.stats({ id })).toBeUndefined()
  }
  expect(await hole.syns()).toBe(0)
  const count = (wanted: number) => relay.events.filter(({ kind }) => kind === wanted).length
  console.log(
    `${taken.size} taken, ${count(CONNECTED)} connected, ${count(REFUSED)} refusals, ${count(BYTES)} pieces told`,
  )
}, 120_000)

/** A linear congruential generator (Numerical Recipes): the same sequence each time. */
function randomOf(seed: number) {
  let state = seed
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32
}
