// What the relay's tests stand on: real TCP connections over loopback whose far ends belong to the native relay, peers
// that count and hash what they get, and the relay's own events as promises.
import { native, ptr } from '../../src/base/native.ts'

const c = native()

export const CLIENT = 0
export const TARGET = 1
export const HALF_CLOSED = 1
export const CLOSED = 2
/** errno values of Linux. */
export const E = {
  NOENT: 2,
  EXIST: 17,
  PIPE: 32,
  MSGSIZE: 90,
  CONNRESET: 104,
  SHUTDOWN: 108,
  ALREADY: 114,
  CANCELED: 125,
}

export interface RelayEvent {
  kind: number
  side: number
  error: number
  idleMs: number
  bytesIn: number
  bytesOut: number
}

const RECORD_BYTES = 48
const SOCK_SEQPACKET = 5

function decode(view: DataView, at: number): RelayEvent {
  return {
    kind: view.getUint8(at + 8),
    side: view.getUint8(at + 9),
    error: view.getUint16(at + 10, true),
    idleMs: view.getUint32(at + 12, true),
    bytesIn: Number(view.getBigUint64(at + 16, true)),
    bytesOut: Number(view.getBigUint64(at + 24, true)),
  }
}

/** The event without how long ago the last byte was, which no test can know. */
export const essence = ({ kind, side, error, bytesIn, bytesOut }: RelayEvent) => ({
  kind,
  side,
  error,
  bytesIn,
  bytesOut,
})

export const hashOf = (...parts: Uint8Array[]) => {
  const hash = new Bun.CryptoHasher('sha1')
  for (const part of parts) hash.update(part)
  return hash.digest('hex')
}

/** Bytes that no other seed and no shifted copy would give: a transfer that loses, repeats or mixes bytes shows. */
export function noise(seed: number, size: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(size / 4))
  let state = (seed + 1) * 2654435769
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[i] = state
  }
  return new Uint8Array(words.buffer, 0, size)
}

/** Waits until a condition holds. There is no time limit but the test's own. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(1)
}

/** Waits until a number has stopped changing: for what must come to rest and has no event that says so. */
export async function atRest(value: () => number): Promise<number> {
  let last = -1
  for (let same = 0; same < 20;) {
    const now = value()
    same = now === last ? same + 1 : 0
    last = now
    await Bun.sleep(10)
  }
  return last
}

/** The outer end of a connection: what a client or a target is to the gateway. */
export class Peer {
  received = 0
  accepted = 0
  readonly ended: Promise<void>
  readonly closed: Promise<string | undefined>
  socket!: Bun.Socket<Peer>
  #hash = new Bun.CryptoHasher('sha1')
  #queue: Uint8Array[] = []
  #finishing = false
  #onEnd!: () => void
  #onClose!: (code: string | undefined) => void

  constructor() {
    this.ended = new Promise((resolve) => (this.#onEnd = resolve))
    this.closed = new Promise((resolve) => (this.#onClose = resolve))
  }

  static async connect(port: number): Promise<Peer> {
    const peer = new Peer()
    peer.socket = await Bun.connect<Peer>({
      hostname: '127.0.0.1',
      port,
      allowHalfOpen: true,
      data: peer,
      socket: {
        data: (_, bytes) => peer.#take(bytes),
        drain: () => peer.#flush(),
        end: () => peer.#onEnd(),
        error: () => {},
        close: (_, error) => peer.#close(error as NodeJS.ErrnoException | undefined),
      },
    })
    return peer
  }

  #take(bytes: Uint8Array) {
    this.received += bytes.length
    this.#hash.update(bytes)
  }

  // A peer that has sent its FIN gets no `end` of its own for the other's: a close without error is one.
  #close(error: NodeJS.ErrnoException | undefined) {
    if (!error) this.#onEnd()
    this.#onClose(error?.code)
  }

  #flush() {
    for (let next = this.#queue[0]; next; next = this.#queue[0]) {
      const written = this.socket.write(next)
      if (written < 0) return
      this.accepted += written
      if (written < next.length) {
        this.#queue[0] = next.subarray(written)
        return
      }
      this.#queue.shift()
    }
    if (this.#finishing) this.socket.shutdown()
  }

  send(bytes: Uint8Array) {
    this.#queue.push(bytes)
    if (this.#queue.length === 1) this.#flush()
  }

  /** FIN, after everything that was sent. */
  finish() {
    this.#finishing = true
    if (this.#queue.length === 0) this.socket.shutdown()
  }

  reset() {
    this.socket.terminate()
  }

  got(bytes: number) {
    return until(() => this.received >= bytes)
  }

  /** Of everything received. Once. */
  digest() {
    return this.#hash.digest('hex')
  }
}

const arrivals = new Map<number, PromiseWithResolvers<number>>()

/** The accepted descriptor of the connection from that port; either end may be first to ask for it. */
function arrival(port: number): PromiseWithResolvers<number> {
  if (!arrivals.has(port)) arrivals.set(port, Promise.withResolvers())
  return arrivals.get(port)!
}

/** Accepts the far ends and gives their descriptors away: a paused socket has read nothing, and `end` on it only closes. */
const hub = Bun.listen({
  hostname: '127.0.0.1',
  port: 0,
  pauseOnConnect: true,
  socket: {
    open(socket) {
      const fd = c.sluice_dup((socket as unknown as { fd: number }).fd)
      const port = socket.remotePort
      socket.end()
      arrival(port).resolve(fd)
    },
    data() {},
  },
} as Bun.TCPSocketListenOptions<undefined>)
hub.unref()

/** A connected peer and the descriptor of its other end. */
export async function connected(): Promise<{ peer: Peer; fd: number }> {
  const peer = await Peer.connect(hub.port)
  const fd = await arrival(peer.socket.localPort).promise
  arrivals.delete(peer.socket.localPort)
  return { peer, fd }
}

export interface Pair {
  id: bigint
  client: Peer
  target: Peer
}

const none = new Uint8Array(0)

/** The native relay, running for as long as this object is not stopped. */
export class Relay {
  #inbox = new Map<bigint, RelayEvent[]>()
  #events!: Bun.Socket<undefined>
  #nextId = 1n

  static async start(): Promise<Relay> {
    const fds = new Int32Array(2)
    if (c.sluice_socketpair(SOCK_SEQPACKET, ptr(fds)) < 0) throw new Error('Cannot make a socket pair')
    const started = c.sluice_relay_start(fds[1]!)
    if (started < 0) throw new Error(`Cannot start the relay: ${started}`)
    const relay = new Relay()
    relay.#events = await Bun.connect({
      fd: fds[0]!,
      socket: { data: (_: unknown, message: Uint8Array) => relay.#read(message) },
    } as unknown as Bun.UnixSocketOptions<undefined>)
    return relay
  }

  #read(message: Uint8Array) {
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength)
    for (let at = 0; at + RECORD_BYTES <= view.byteLength; at += RECORD_BYTES)
      this.#eventsOf(view.getBigUint64(at, true)).push(decode(view, at))
  }

  #eventsOf(id: bigint): RelayEvent[] {
    if (!this.#inbox.has(id)) this.#inbox.set(id, [])
    return this.#inbox.get(id)!
  }

  add(id: bigint, client: number, target: number, toTarget: Uint8Array = none, toClient: Uint8Array = none): number {
    const address = (bytes: Uint8Array) => (bytes.length > 0 ? ptr(bytes) : null)
    return c.sluice_relay_add(
      id,
      client,
      target,
      address(toTarget),
      toTarget.length,
      address(toClient),
      toClient.length,
    )
  }

  /** Two peers with the relay between them. */
  async join(toTarget?: Uint8Array, toClient?: Uint8Array, prepare: (pair: Pair) => void = () => {}): Promise<Pair> {
    const [client, target] = await Promise.all([connected(), connected()])
    const pair = { id: this.#nextId++, client: client.peer, target: target.peer }
    prepare(pair)
    const added = this.add(pair.id, client.fd, target.fd, toTarget, toClient)
    if (added < 0) throw new Error(`Cannot add a pair: ${added}`)
    return pair
  }

  close({ id }: Pair, how: 'reset' | { graceMs: number }): number {
    return how === 'reset' ? c.sluice_relay_close(id, 1, 0) : c.sluice_relay_close(id, 0, how.graceMs)
  }

  /** Undefined: no such pair. */
  stats({ id }: Pair): RelayEvent | undefined {
    const record = new Uint8Array(RECORD_BYTES)
    return c.sluice_relay_stats(id, ptr(record)) < 0 ? undefined : decode(new DataView(record.buffer), 0)
  }

  async event({ id }: Pair, kind: number): Promise<RelayEvent> {
    const events = this.#eventsOf(id)
    await until(() => events.some((event) => event.kind === kind))
    return events.find((event) => event.kind === kind)!
  }

  halfClosed = (pair: Pair) => this.event(pair, HALF_CLOSED)
  closed = (pair: Pair) => this.event(pair, CLOSED)
  /** Every event of the pair so far, in the order they came. */
  eventsOf = ({ id }: Pair) => [...this.#eventsOf(id)]

  stopReading() {
    this.#events.pause()
  }

  readAgain() {
    this.#events.resume()
  }

  stop(): number {
    return c.sluice_relay_stop()
  }
}
