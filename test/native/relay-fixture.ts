// What the relay's tests stand on: real TCP connections over loopback whose far ends belong to the native relay, peers
// that count and hash what they get, and the relay's own events as promises.
import { dlopen } from 'bun:ffi'
import { cString, native, ptr } from '../../src/base/native.ts'
import { formatIp } from '../../src/base/addresses.ts'

const c = native()
const { symbols: libc } = dlopen('libc.so.6', {
  recv: { args: ['i32', 'ptr', 'u64', 'i32'], returns: 'i64' },
  send: { args: ['i32', 'ptr', 'u64', 'i32'], returns: 'i64' },
  setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  getsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'ptr'], returns: 'i32' },
})

export const CLIENT = 0
export const TARGET = 1
export const HALF_CLOSED = 1
export const CLOSED = 2
export const ACCEPTED = 3
export const BYTES = 4
export const CONNECTED = 5
export const REFUSED = 6
export const UNLISTENED = 7
/** errno values of Linux. */
export const E = {
  NOENT: 2,
  AGAIN: 11,
  BUSY: 16,
  EXIST: 17,
  PIPE: 32,
  MSGSIZE: 90,
  ADDRNOTAVAIL: 99,
  CONNRESET: 104,
  SHUTDOWN: 108,
  ALREADY: 114,
  CONNREFUSED: 111,
  CANCELED: 125,
}

export interface RelayEvent {
  id: bigint
  kind: number
  side: number
  error: number
  idleMs: number
  bytesIn: number
  bytesOut: number
  tag: number
  descriptor: number
  /** What the client said; without the addresses. */
  bytes: Uint8Array
  ends?: Ends
}

export interface Ends {
  family: number
  client: string
  local: string
  clientPort: number
  localPort: number
}

const RECORD_BYTES = 48
const ENDS_BYTES = 40
const SOCK_SEQPACKET = 5

function readEnds(view: DataView, at: number): Ends {
  const family = view.getUint8(at)
  const ip = (from: number) => formatIp(new Uint8Array(view.buffer, view.byteOffset + from, family === 4 ? 4 : 16))
  return {
    family,
    client: ip(at + 8),
    local: ip(at + 24),
    clientPort: view.getUint16(at + 4, true),
    localPort: view.getUint16(at + 6, true),
  }
}

const lengthOf = (view: DataView, at: number) => view.getUint32(at + 36, true)

function decode(view: DataView, at: number): RelayEvent {
  const accepted = view.getUint8(at + 8) === ACCEPTED
  const from = at + RECORD_BYTES + (accepted ? ENDS_BYTES : 0)
  return {
    id: view.getBigUint64(at, true),
    kind: view.getUint8(at + 8),
    side: view.getUint8(at + 9),
    error: view.getUint16(at + 10, true),
    idleMs: view.getUint32(at + 12, true),
    bytesIn: Number(view.getBigUint64(at + 16, true)),
    bytesOut: Number(view.getBigUint64(at + 24, true)),
    tag: view.getUint32(at + 32, true),
    descriptor: view.getUint32(at + 40, true),
    bytes: new Uint8Array(view.buffer, view.byteOffset).slice(
      Math.min(from, view.byteLength),
      at + RECORD_BYTES + lengthOf(view, at),
    ),
    ...(accepted && { ends: readEnds(view, at + RECORD_BYTES) }),
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
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await Bun.sleep(1)
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
  #echoing = false
  #onEnd!: () => void
  #onClose!: (code: string | undefined) => void

  constructor() {
    this.ended = new Promise((resolve) => (this.#onEnd = resolve))
    this.closed = new Promise((resolve) => (this.#onClose = resolve))
  }

  static readonly #handlers: Bun.SocketHandler<Peer> = {
    data: ({ data: peer }, bytes) => peer.#take(bytes),
    drain: ({ data: peer }) => peer.#flush(),
    end: ({ data: peer }) => peer.#onEnd(),
    error: () => {},
    close: ({ data: peer }, error) => peer.#close(error as NodeJS.ErrnoException | undefined),
  }

  static async connect(port: number, hostname = '127.0.0.1'): Promise<Peer> {
    const peer = new Peer()
    peer.socket = await Bun.connect<Peer>({
      hostname,
      port,
      allowHalfOpen: true,
      data: peer,
      socket: Peer.#handlers,
    })
    return peer
  }

  /** Peers that are connected to. `greet` is called in the moment in which one is. */
  static serve(at: { hostname: string; port: number } | { unix: string }, greet: (peer: Peer) => void = () => {}) {
    const peers: Peer[] = []
    const open = (socket: Bun.Socket<Peer>) => {
      const peer = (socket.data = new Peer())
      peer.socket = socket
      peers.push(peer)
      greet(peer)
    }
    const listener = Bun.listen<Peer>({
      ...at,
      allowHalfOpen: true,
      socket: { ...Peer.#handlers, open },
    } as Bun.TCPSocketListenOptions<Peer>)
    listener.unref()
    return {
      peers,
      port: listener.port,
      async peer(n = 0): Promise<Peer> {
        await until(() => peers.length > n)
        return peers[n]!
      },
      stop: () => listener.stop(true),
    }
  }

  get fd(): number {
    return (this.socket as unknown as { fd: number }).fd
  }

  /** One byte of what TCP calls urgent: it is in no stream, but a mark in it. */
  sendUrgent() {
    libc.send(this.fd, ptr(new Uint8Array([33])), 1n, MSG_OOB)
  }

  #take(bytes: Uint8Array) {
    this.received += bytes.length
    this.#hash.update(bytes)
    if (this.#echoing) this.send(Uint8Array.from(bytes))
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

  /** Sends back all that comes, the FIN too. */
  echo() {
    this.#echoing = true
    this.ended.then(() => this.finish())
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

const MSG_OOB = 1
const MSG_DONTWAIT = 0x40

/** Everything that waits in a socket. */
export function drain(fd: number): Uint8Array {
  const parts: Uint8Array[] = []
  for (;;) {
    const part = new Uint8Array(64 << 10)
    const n = Number(libc.recv(fd, ptr(part), BigInt(part.length), MSG_DONTWAIT))
    if (n <= 0) return Buffer.concat(parts)
    parts.push(part.subarray(0, n))
  }
}

export function socketOption(fd: number, level: number, name: number): number {
  const value = new Int32Array(1)
  return libc.getsockopt(fd, level, name, ptr(value), ptr(new Uint32Array([4]))) < 0 ? -1 : value[0]!
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

/** What a call is about: a pair, or an event of it. */
export interface Id {
  id: bigint
}

export interface Pair extends Id {
  client: Peer
  target: Peer
}

const none = new Uint8Array(0)
const BACKLOG = 4096
const SOL_SOCKET = 1
const SO_SNDBUF = 7

/** The native relay, running for as long as this object is not stopped. */
export class Relay {
  #inbox = new Map<bigint, RelayEvent[]>()
  #arrivals = new Map<string, RelayEvent>()
  #events!: Bun.Socket<undefined>
  #nextId = 1n
  #nextTag = 1
  /** Every event, in the order they came. */
  readonly events: RelayEvent[] = []

  /** @param sendBuffer as small as that: what the thread can write before somebody reads. */
  static async start(sendBuffer?: number): Promise<Relay> {
    const fds = new Int32Array(2)
    if (c.sluice_socketpair(SOCK_SEQPACKET, ptr(fds)) < 0) throw new Error('Cannot make a socket pair')
    if (sendBuffer) libc.setsockopt(fds[1]!, SOL_SOCKET, SO_SNDBUF, ptr(new Int32Array([sendBuffer])), 4)
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
    for (let at = 0; at + RECORD_BYTES <= view.byteLength; at += RECORD_BYTES + ((lengthOf(view, at) + 7) & ~7)) {
      const event = decode(view, at)
      this.events.push(event)
      this.#eventsOf(event.id).push(event)
      if (event.ends) this.#arrivals.set(`${event.ends.clientPort} ${event.ends.localPort}`, event)
      this.heard?.(event)
    }
  }
  heard: ((event: RelayEvent) => void) | undefined

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

  close({ id }: Id, how: 'reset' | { graceMs: number }): number {
    return how === 'reset' ? c.sluice_relay_close(id, 1, 0) : c.sluice_relay_close(id, 0, how.graceMs)
  }

  /** Undefined: no such pair. */
  stats({ id }: Id): RelayEvent | undefined {
    const record = new Uint8Array(RECORD_BYTES)
    return c.sluice_relay_stats(id, ptr(record)) < 0 ? undefined : decode(new DataView(record.buffer), 0)
  }

  /** The nth event of that kind. */
  async event({ id }: Id, kind: number, nth = 0): Promise<RelayEvent> {
    const events = this.#eventsOf(id)
    await until(() => events.filter((event) => event.kind === kind).length > nth)
    return events.filter((event) => event.kind === kind)[nth]!
  }

  halfClosed = (pair: Id) => this.event(pair, HALF_CLOSED)
  closed = (pair: Id) => this.event(pair, CLOSED)
  /** Every event of the pair so far, in the order they came. */
  eventsOf = ({ id }: Id) => [...this.#eventsOf(id)]

  /** Accepts on a port of the kernel's choice. */
  listen(reads: boolean, address = '127.0.0.1'): { tag: number; port: number } {
    const name = cString(address)
    const fd = c.sluice_listen(ptr(name), 0, BACKLOG)
    const port = c.sluice_port(fd)
    const tag = this.#nextTag++
    const listening = c.sluice_relay_listen(tag, fd, reads ? 1 : 0)
    if (listening < 0) throw new Error(`Cannot listen: ${listening}`)
    return { tag, port }
  }

  unlisten(tag: number): number {
    return c.sluice_relay_unlisten(tag)
  }

  arrivals(tag: number): RelayEvent[] {
    return this.events.filter((event) => event.kind === ACCEPTED && event.tag === tag)
  }

  /** The arrival of that client. Once: another one may have its port later. */
  async arrival({ socket: { localPort, remotePort } }: Peer): Promise<RelayEvent & { ends: Ends }> {
    const name = `${localPort} ${remotePort}`
    await until(() => this.#arrivals.has(name))
    const arrived = this.#arrivals.get(name)!
    this.#arrivals.delete(name)
    return arrived as RelayEvent & { ends: Ends }
  }

  /** The defaults are those of a library that nobody has told anything. */
  accept(pairs = 1 << 18, descriptorsBelow = 2 ** 31 - 1): number {
    return c.sluice_relay_accept(pairs, descriptorsBelow)
  }

  more({ id }: Id): number {
    return c.sluice_relay_more(id)
  }

  dial(
    { id }: Id,
    attempt: number,
    to: { address: string; port?: number; from?: string },
    first: Uint8Array = none,
  ): number {
    const [address, from] = [cString(to.address), to.from === undefined ? null : cString(to.from)]
    const bytes = first.length > 0 ? ptr(first) : null
    return c.sluice_relay_dial(id, attempt, ptr(address), to.port ?? 0, from && ptr(from), bytes, first.length)
  }

  /** The client's descriptor. */
  take({ id }: Id): number {
    return c.sluice_relay_take(id)
  }

  keepAlive({ id }: Id, idleS: number, intervalS: number, count: number): number {
    return c.sluice_relay_keepalive(id, idleS, intervalS, count)
  }

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
