// The carriers as a client and a target see them: how a route of each is written, how a client comes to it, and one kind of
// end for all of them, so that a test says once what has to hold whichever carries the bytes.
import type { Socket } from 'bun'
import { readdir, readlink } from 'node:fs/promises'
import { signed } from '../certificates/tools.ts'
import { slowness } from '../support.ts'
import { captureHello } from '../user/hellos.ts'
import { forward } from './gateway.ts'
import type { Namespace } from './lab.ts'
import { streamFrom } from './traffic.ts'

const NAME = 'carrier.test'
/** This very process is the client of all of them: the engine serves few handshakes in a turn, and the newest first. */
const HANDSHAKE_MS_MAX = 30_000 * slowness
const HEARD_CHARACTERS_MAX = 4096

type Bytes = Uint8Array<ArrayBuffer> | Buffer

/** One end of a connection, at the client or at the target, plain or inside TLS. It closes when both sides have finished,
 *  and not before; it keeps what it was told of the end of it. */
export class Peer {
  socket: Socket<any> | null = null
  /** Payload, without what was skipped. */
  received = 0
  /** Accepted by the kernel. */
  sent = 0
  /** The first of what was received, as text. */
  heard = ''
  /** The other side has sent its FIN. */
  ended = false
  /** How it ended; null while it lives. */
  over: Error | 'closed' | null = null
  readonly #over = Promise.withResolvers<Error | 'closed'>()
  readonly #hash = new Bun.CryptoHasher('sha256')
  readonly #queue: Bytes[] = []
  #stream: { direction: 'up' | 'down'; at: number; end: number } | null = null
  #finishing = false
  #finished = false
  onData: ((peer: Peer, bytes: Buffer) => void) | undefined
  onEnd: (peer: Peer) => void = (peer) => peer.finish()

  /** @param skip bytes that come before the payload. */
  constructor(private skip = 0) {}

  get gone(): Promise<Error | 'closed'> {
    return this.#over.promise
  }

  /** ECONNRESET and its like; undefined for an orderly end. */
  get errorCode(): string | undefined {
    return this.over instanceof Error ? ((this.over as NodeJS.ErrnoException).code ?? this.over.message) : undefined
  }

  get remotePort() {
    return this.socket?.remotePort
  }

  /** SHA-256 of all that was received. Once. */
  digest(): string {
    return this.#hash.digest('hex')
  }

  write(bytes: Bytes | string) {
    this.#queue.push(typeof bytes === 'string' ? Buffer.from(bytes) : bytes)
    this.flush()
  }

  /** Sends so much of the endless stream of `direction`. */
  stream(direction: 'up' | 'down', bytes: number) {
    this.#stream = { direction, at: 0, end: bytes }
    this.flush()
  }

  /** FIN behind everything that was written; reading goes on. */
  finish() {
    this.#finishing = true
    this.flush()
  }

  /** RST. */
  reset() {
    this.socket?.terminate()
  }

  flush() {
    const { socket } = this
    if (!socket || this.over) return
    for (let bytes = this.#next(); bytes; bytes = this.#next()) {
      const accepted = Math.max(0, socket.write(bytes))
      this.sent += accepted
      if (this.#queue.length > 0) {
        if (accepted < bytes.length) this.#queue[0] = bytes.subarray(accepted)
        else this.#queue.shift()
      } else this.#stream!.at += accepted
      if (accepted < bytes.length) return
    }
    if (!this.#finishing || this.#finished) return
    this.#finished = true
    if (this.ended) socket.end()
    else socket.shutdown()
  }

  #next(): Bytes | undefined {
    if (this.#queue.length > 0) return this.#queue[0]
    const stream = this.#stream
    return stream && stream.at < stream.end ? streamFrom(stream.direction, stream.at, stream.end) : undefined
  }

  // ---- what the socket says ----

  hear(bytes: Buffer) {
    const skipped = Math.min(this.skip, bytes.length)
    this.skip -= skipped
    bytes = bytes.subarray(skipped)
    if (bytes.length === 0) return
    this.received += bytes.length
    this.#hash.update(bytes)
    if (this.heard.length < HEARD_CHARACTERS_MAX) this.heard += bytes.toString('latin1')
    this.onData?.(this, Buffer.from(bytes))
  }

  hearEnd() {
    if (this.ended) return
    this.ended = true
    // Its own FIN is out already: nothing is left to wait for.
    if (this.#finished) this.socket?.end()
    this.onEnd(this)
  }

  hearOver(how: Error | 'closed') {
    if (this.over) return
    this.over = how
    this.#over.resolve(how)
  }
}

export const peerHandlers = {
  data: (socket: Socket<Peer>, bytes: Buffer) => socket.data.hear(bytes),
  drain: (socket: Socket<Peer>) => socket.data.flush(),
  end: (socket: Socket<Peer>) => socket.data.hearEnd(),
  close: (socket: Socket<Peer>, error?: Error) => socket.data.hearOver(error ?? 'closed'),
  // One that fails in its handshake has not been opened.
  error: (socket: Socket<Peer | undefined>, error: Error) => socket.data?.hearOver(error),
}

export type Behaviour = (peer: Peer) => void

export const echo: Behaviour = (peer) => {
  peer.onData = (_, bytes) => peer.write(bytes)
}

export interface Target {
  port: number
  /** All that ever came. */
  peers: Peer[]
  live(): Peer[]
  stop(): void
}

/** Descriptors of a process by kind. Pipes are lent from a pool that outlives connections; sockets belong to one each. */
export async function descriptors(pid: number): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  for (const name of await readdir(`/proc/${pid}/fd`)) {
    // One that is closed between the two looks is not there.
    const kind = (await readlink(`/proc/${pid}/fd/${name}`).catch(() => '')).split(':')[0]!
    if (kind) counts[kind] = (counts[kind] ?? 0) + 1
  }
  return counts
}

/** Not one descriptor of any kind more. Fewer may be: those who asked control for something keep their sockets for a while. */
export const isWithin = (now: Record<string, number>, before: Record<string, number>) =>
  Object.entries(now).every(([kind, count]) => count <= (before[kind] ?? 0))

export interface Carrier {
  name: 'kernel' | 'splice' | 'user' | 'terminate' | 're-encrypt'
  /** What the record says. */
  carrier: 'kernel' | 'splice' | 'user'
  /** The client speaks TLS with the gateway. */
  tls: boolean
  /** The target is asked for as soon as the client is accepted: nothing has to be read. */
  immediate: boolean
  /** What a client begins with where its first bytes decide; empty where they do not. */
  hello: Uint8Array
  /** Bytes of the client that count beside the payload. */
  prefix: number
  route(name: string, port: number, target: { host: string; port: number }, action?: object, rest?: object): object
  listen(where: Namespace, behave: Behaviour): Target
  /** Rejects when the gateway refuses at once; with TLS it stands when the handshake is over. */
  connect(from: Namespace, host: string, port: number, options?: ConnectOptions): Promise<Peer>
}

export interface ConnectOptions {
  localAddress?: string
  /** Nothing is said by itself: neither hello nor handshake. */
  mute?: boolean
  timeoutMs?: number
}

export async function carriers(): Promise<Carrier[]> {
  const hello = await captureHello((port) => [
    'openssl', 's_client', '-connect', `127.0.0.1:${port}`, '-servername', NAME]) // prettier-ignore
  const certificate = await signed([NAME])
  const listen =
    (skip: number, tls?: { cert: string; key: string }) =>
    (where: Namespace, behave: Behaviour): Target => {
      const peers: Peer[] = []
      const { port, stop } = where.listen<Peer>(
        {
          ...peerHandlers,
          open(socket) {
            const peer = new Peer(skip)
            peer.socket = socket
            socket.data = peer
            peers.push(peer)
            behave(peer)
          },
        },
        { allowHalfOpen: true, ...(tls ? { tls } : {}) },
      )
      return { port, peers, live: () => peers.filter((peer) => !peer.over), stop }
    }
  const route =
    (action: object, match: object = {}): Carrier['route'] =>
    (name, port, target, more = {}, rest = {}) =>
      forward(name, port, [target], { ...action, ...more }, { ...rest, match })

  const plain = {
    tls: false,
    immediate: true,
    hello: new Uint8Array(0),
    prefix: 0,
    listen: listen(0),
    connect: connectPlain(),
  }
  const secure = { ...plain, tls: true, immediate: false, hello, connect: connectTls }
  const user = 'user' as const
  return [
    { ...plain, name: 'kernel', carrier: 'kernel', route: route({ forwardingEngine: 'nftables' }) },
    {
      ...plain,
      name: 'splice',
      carrier: 'splice',
      immediate: false,
      hello,
      prefix: hello.length,
      route: route({ tls: { mode: 'passthrough' } }, { domains: NAME }),
      listen: listen(hello.length),
      connect: connectPlain(hello),
    },
    { ...plain, name: user, carrier: user, route: route({ forwardingEngine: 'user' }) },
    {
      ...secure,
      name: 'terminate',
      carrier: user,
      route: route({ tls: { mode: 'terminate', certificate: 'self-signed' } }),
    },
    {
      ...secure,
      name: 're-encrypt',
      carrier: user,
      route: route({
        tls: {
          mode: 'terminate-and-reencrypt',
          certificate: 'self-signed',
          upstream: { serverName: NAME, insecure: true },
        },
      }),
      listen: listen(0, certificate),
    },
  ]
}

const connectPlain =
  (hello?: Uint8Array) =>
  async (from: Namespace, host: string, port: number, options: ConnectOptions = {}): Promise<Peer> => {
    const peer = new Peer()
    const { mute = false, ...rest } = options
    await from.connect<Peer>(
      host,
      port,
      {
        ...peerHandlers,
        open(socket) {
          peer.socket = socket
          // A fresh socket takes a hello whole.
          if (hello && !mute) socket.write(hello)
        },
      },
      { ...rest, allowHalfOpen: true, data: peer },
    )
    return peer
  }

async function connectTls(from: Namespace, host: string, port: number, options: ConnectOptions = {}): Promise<Peer> {
  if (options.mute) return connectPlain()(from, host, port, options)
  const peer = new Peer()
  const { mute: _, ...rest } = options
  const plain = await from.connect(host, port, { data() {}, close() {}, error() {} }, { ...rest, allowHalfOpen: true })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const [, secure] = plain.upgradeTLS<Peer>({
    data: peer,
    tls: { serverName: NAME, rejectUnauthorized: false },
    socket: { ...peerHandlers, handshake: () => resolve() },
  } as never) as unknown as [unknown, Socket<Peer>]
  peer.socket = secure
  const late = setTimeout(() => reject(new Error('no handshake')), HANDSHAKE_MS_MAX)
  void peer.gone.then((how) => reject(how === 'closed' ? new Error('closed in the handshake') : how))
  try {
    await promise
    return peer
  } catch (error) {
    peer.reset()
    throw error
  } finally {
    clearTimeout(late)
  }
}
