// proxy(a, b): two sockets of a handler are joined, and the handler is out of it. Both directions run at once; FIN goes through
// after every byte before it, and a failure of one side is the end of both. Plain sockets go on to the relay thread, so that no
// JavaScript runs for a byte; what cannot go there is pumped from end to end. Nothing here keeps the handler's objects.
import { formatEnd } from '../base/addresses.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { ProxyOptions } from '../types/sockets.d.ts'
import { Connection, type Attachment } from './connection.ts'
import { End } from './end.ts'
import { plainIp } from './listen.ts'
import { opening } from './opening.ts'
import { pair } from './pair.ts'
import { relay } from './relay.ts'
import type { Gate } from './gate.ts'
import { SocketError, type SocketErrorCode } from './socket-error.ts'

/** The key under which a socket can be handed over. Not a name: code of a handler has no business there. */
export const handOver = Symbol('handOver')

/** What a socket is to proxy(). */
export interface Part {
  /** The connection whose client it is, or whose handler opened it. */
  readonly connection: Connection
  /** What leaves has to pass it. */
  readonly gate: Gate
  /** Valid once surrendered. */
  readonly end: End
  /** The client's side of its connection. */
  readonly inbound: boolean
  readonly encrypted: boolean
  readonly allowHalfOpen: boolean
  readonly whenClosed: Promise<void>
  /** Why it cannot be handed over; undefined: it can. */
  refusal(): string | undefined
  /** Locks its streams at once. Resolves when it is open, and its end has everything that was written (sent or queued) and
   *  everything unread (held). Rejects when it ends before that. */
  surrender(): Promise<void>
  /** A surrendered one has another carrier from now on, and is told nothing more of its end. */
  handedOver(): void
  /** Ends one that was not joined. */
  cut(error: unknown): void
  /** Settles what waits for its end, undefined: as it should, without keeping the socket. */
  settler(): (error: unknown) => void
}

/** What can be seen of one from outside. */
interface Proxyable {
  readonly readable: ReadableStream<Uint8Array>
  readonly writable: WritableStream<Uint8Array>
}

/** Joins two sockets of a handler and returns at once; so may the handler. How it ends is seen at `closed` of either. */
export function proxy(a: Proxyable, b: Proxyable, options: ProxyOptions = {}): void {
  const [one, other] = [joinable(a), joinable(b)]
  if (one === other) throw new TypeError('Cannot proxy a socket to itself')
  if (one.connection !== other.connection)
    throw new TypeError(
      'Cannot proxy sockets of two connections: each belongs to the connection whose handler opened it',
    )
  if (options === null || typeof options !== 'object' || options instanceof AbortSignal)
    throw new TypeError('Cannot proxy: the options are an object, such as { signal }')
  if (options.preventClose || options.preventAbort || options.preventCancel) return pipe(a, b, options)
  // Which was named first means nothing: where there is a client, it is the client.
  const [client, target] = other.inbound ? [other, one] : [one, other]
  void new Proxying(client, target, options.signal).run()
}

function joinable(socket: Proxyable): Part {
  const part = (socket as { [handOver]?: Part } | null | undefined)?.[handOver]
  if (!part) throw new TypeError('Cannot proxy: both have to be sockets, of connect() or of the handler')
  const refusal = part.refusal()
  if (refusal !== undefined) throw new TypeError(`Cannot proxy a socket: ${refusal}`)
  return part
}

/** One pair, from the call on: it waits for both sockets, and hears how the pair ended. */
class Proxying implements Attachment {
  encrypted = false
  /** Let go of with the hand-over: the handler's objects may be collected while bytes flow. */
  #parts: readonly [client: Part, target: Part] | null
  #connection: Connection | null = null
  #over = false
  readonly #settlers: ((error: unknown) => void)[]
  readonly #signal: AbortSignal | undefined

  constructor(client: Part, target: Part, signal: AbortSignal | undefined) {
    this.#parts = [client, target]
    this.#settlers = [client.settler(), target.settler()]
    this.#signal = signal
  }

  async run() {
    if (this.#signal?.aborted) return this.#abort()
    this.#signal?.addEventListener('abort', this.#abort)
    const parts = this.#parts!
    // Whichever is over before both are ready: the other must not wait for it.
    const ended = (error?: unknown) => this.#failed(error ?? new SocketError('closed'))
    for (const part of parts) part.whenClosed.then(ended, ended)
    await Promise.all(parts.map((part) => part.surrender())).then(() => this.#join(), ended)
  }

  /** Both are open, and the ends have all that the handler wrote. */
  #join() {
    // Not for one that has ended meanwhile.
    if (!this.#parts) return
    const [client, target] = this.#parts
    // It may have been closed again since the first of them passed it.
    if (client.gate.closed) return client.gate.wait(() => this.#join())
    const targetName = client.end.socket && nameOf(target.end)
    if (!targetName) return this.#failed(new SocketError('closed'))
    this.#parts = null
    client.handedOver()
    target.handedOver()
    const connection = client.inbound ? client.connection : connectionOf(client)
    this.#connection = connection
    this.encrypted = client.encrypted || target.encrypted
    connection.allowHalfOpen = (client.allowHalfOpen && !client.inbound) || target.allowHalfOpen
    connection.targetName = targetName
    connection.client.consumer = opening
    connection.target = new End(connection, opening)
    connection.target.takeOver(target.end)
    if (this.#promote()) return
    connection.attachment = this
    pair(connection)
  }

  /** From TypeScript to the relay thread, which takes a pair once nothing waits to be sent. */
  #promote(): boolean {
    const connection = this.#connection!
    if (this.encrypted) return false
    connection.carrier = 'splice'
    if (!relay(connection, (reason) => this.release(reason))) {
      connection.carrier = 'user'
      return false
    }
    connection.update()
    return true
  }

  // ---- as the attachment of a connection that is pumped ----

  drained() {
    return this.#promote()
  }

  release(reason: CloseReason) {
    this.#settle(reason === 'finished' ? undefined : new SocketError('reset', reason))
  }

  // ---- the end ----

  readonly #abort = () => {
    this.#settle(this.#signal!.reason)
    if (this.#connection) this.#connection.cut('handler_closed')
    else this.#cutParts('handler_closed')
  }

  /** Before they were joined. */
  #failed(error: unknown) {
    if (!this.#parts) return
    this.#settle(error)
    this.#cutParts(REASONS[(error as SocketError).code] ?? 'handler_closed')
  }

  #cutParts(reason: CloseReason) {
    const parts = this.#parts ?? []
    this.#parts = null
    for (const part of parts) {
      if (part.inbound) part.connection.settle(reason)
      else part.cut(new SocketError('aborted'))
    }
  }

  /** The first word is what both sockets say. */
  #settle(error: unknown) {
    if (this.#over) return
    this.#over = true
    this.#signal?.removeEventListener('abort', this.#abort)
    for (const settle of this.#settlers) settle(error)
  }
}

const nameOf = ({ socket }: End) => socket?.remoteAddress && formatEnd(plainIp(socket.remoteAddress), socket.remotePort)

/** What the client's record says of a target that was never reached. */
const REASONS: Partial<Record<SocketErrorCode, CloseReason>> = {
  connect_refused: 'target_refused',
  connect_timeout: 'connect_timeout',
  connect_unreachable: 'target_unreachable',
  name_not_resolved: 'target_unreachable',
  tls_failed: 'target_tls_failed',
  reset: 'target_reset',
}

/** Two outbound sockets: a connection of its own, with a record, of which the first is the client. */
function connectionOf({ end, connection: { services, route } }: Part): Connection {
  const { remoteAddress, remotePort, localAddress, localPort } = end.socket!
  const listener = formatEnd(plainIp(localAddress), localPort)
  const connection = new Connection(services, plainIp(remoteAddress), remotePort, listener, localPort, opening)
  connection.client.takeOver(end)
  connection.enter(route!)
  return connection
}

/** The sockets stay the handler's, so that what was prevented is there for it. */
function pipe(a: Proxyable, b: Proxyable, options: ProxyOptions) {
  const { preventClose = false, preventAbort = false, preventCancel = false } = options
  const failed = new AbortController()
  const signal = options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal
  const way = (from: Proxyable, to: Proxyable) =>
    from.readable
      .pipeTo(to.writable, { signal, preventClose, preventAbort, preventCancel })
      // The other direction must not go on by itself.
      .catch((error) => failed.abort(error))
  void way(a, b)
  void way(b, a)
}
