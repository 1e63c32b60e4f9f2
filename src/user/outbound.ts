// connect(): the sockets that a handler opens. Each belongs to the connection whose handler it was, and ends with it unless
// proxy() has got it; from the call to its end it counts as a descriptor, and has a deadline wherever it waits for a peer.
import { lookup } from 'node:dns/promises'
import { canonicalIp, formatEnd, isIp } from '../base/addresses.ts'
import { DIAL_ADDRESSES_MAX, HANDLER_SOCKETS_MAX } from '../base/limits.ts'
import { native } from '../base/native.ts'
import type { CloseReason } from '../connections/reasons.ts'
import { connectEnd, isConnected } from './connect.ts'
import { End, type Consumer } from './end.ts'
import { CLEAN } from './handler-socket.ts'
import { currentScope, type HandlerScope, type Opened } from './handlers.ts'
import { plainIp } from './listen.ts'
import { codeOf } from './opening.ts'
import { addressRefusal, portRefusal } from './reach.ts'
import { SocketError, type SocketErrorCode } from './socket-error.ts'
import {
  parseAddress,
  parseConnectOptions,
  parseTlsOptions,
  type ConnectOptions,
  type SocketAddress,
  type TlsOptions,
} from './socket-options.ts'
import { StreamSocket } from './stream-socket.ts'
import { Stream, type Party } from './stream.ts'
import { beginTls, sniOf, untrusted, type TlsWish } from './tls-client.ts'
import { Timed } from './timers.ts'

/** A socket that is on its way to this address. Mistakes in the arguments throw; everything else is told by the socket. */
export function connect(address: unknown, options?: unknown): StreamSocket {
  const to = parseAddress(address)
  const wanted = parseConnectOptions(options)
  const scope = currentScope()
  if (!scope) throw new TypeError('connect() belongs to a handler: call it from within connect(socket, env, ctx)')
  const outbound = new Outbound(scope, to, wanted)
  const socket = new StreamSocket(outbound.stream)
  outbound.begin()
  return socket
}

class Outbound extends Timed implements Party, Opened {
  readonly inbound = false
  readonly gate
  readonly connection
  /** What the handler has: after startTls() the new streams. */
  stream: Stream
  /** startTls() was called: the old streams, until they are flushed. */
  #before: Stream | null = null
  /** The newest attempt. */
  #end: End | null = null
  #addresses: string[] = []
  #address = ''
  #tls: TlsOptions
  #isOver = false
  #counted = false
  #onDeadline: () => void = ignore
  readonly #onAbort = () => this.#close(abortedBy(this.wanted.signal!))

  constructor(
    private readonly scope: HandlerScope,
    private readonly to: SocketAddress,
    private readonly wanted: ConnectOptions,
  ) {
    super()
    this.gate = scope.gate
    this.connection = scope.connection
    this.#tls = wanted.tls
    this.stream = new Stream(this, wanted.secureTransport, wanted.highWaterMark)
  }

  get allowHalfOpen() {
    return this.wanted.allowHalfOpen
  }

  get closesWithPeer() {
    return !this.wanted.allowHalfOpen
  }

  // ---- on its way ----

  begin() {
    const { scope, to, wanted } = this
    const refused =
      this.#unusable() ??
      portRefusal(to.port, this.#reach) ??
      (isIp(to.hostname) ? this.#refusal(to.hostname) : undefined)
    if (refused) return this.#close(refused)
    this.#counted = true
    scope.opened.add(this)
    this.connection.services.opened++
    wanted.signal?.addEventListener('abort', this.#onAbort)
    this.#afterGate(() => this.#dial())
  }

  #unusable(): SocketError | undefined {
    if (this.scope.isOver) return new SocketError('client_disconnected')
    if (this.wanted.signal?.aborted) return abortedBy(this.wanted.signal)
    if (this.scope.opened.size >= HANDLER_SOCKETS_MAX)
      return new SocketError('too_many_sockets', `${HANDLER_SOCKETS_MAX}`)
    return undefined
  }

  get #reach() {
    const { action } = this.connection.route!.plan
    return action.type === 'handler' ? action.reach : NOTHING
  }

  #refusal(address: string) {
    return addressRefusal(address, this.to.port, this.#reach, this.connection.services.own())
  }

  /** At once where nothing is pending; not at all where it is over by then. */
  #afterGate(act: () => void) {
    if (this.#isOver) return
    if (this.gate.closed) this.gate.wait(() => this.#afterGate(act))
    else act()
  }

  #dial() {
    const { hostname } = this.to
    this.#arm(this.wanted.connectTimeout ?? this.#timeouts.connect, () =>
      this.#close(this.#failure('connect_timeout', 'no answer in time')),
    )
    if (!isIp(hostname)) return void this.#resolve(hostname)
    this.#addresses = [hostname]
    this.#attempt()
  }

  async #resolve(name: string) {
    let found: string[] = []
    try {
      found = (await lookup(name, { all: true })).map(({ address }) => canonicalIp(address))
    } catch {}
    if (this.#isOver) return
    // Each for itself: one name may stand for an address that is allowed and one that is not.
    const refused = found.map((address) => this.#refusal(address))
    this.#addresses = [...new Set(found.filter((_, i) => !refused[i]))].slice(0, DIAL_ADDRESSES_MAX)
    if (this.#addresses.length > 0) this.#attempt()
    else this.#close(refused.find(Boolean) ?? this.#failure('name_not_resolved', `${name} has no address`))
  }

  #attempt() {
    this.#address = this.#addresses.shift()!
    const end = (this.#end = new End(this.connection, this.#dialing))
    const began = connectEnd(end, this.#address, this.to.port)
    if (began === 'connected') this.#connected(end)
    else if (began !== 'connecting') this.#refused(began.error)
  }

  #refused(code: string | undefined) {
    if (this.#addresses.length > 0) return this.#attempt()
    this.#close(this.#failure(FAILURES[code ?? ''] ?? 'connect_unreachable', code ?? 'no route'))
  }

  #failure(code: SocketErrorCode, why: string) {
    const { hostname, port } = this.to
    // Workers say so, too: who connects to these means HTTP as a rule.
    const hint = port === 80 || port === 443 ? '; for HTTP consider using fetch instead' : ''
    return new SocketError(code, `${formatEnd(hostname, port)}: ${why}${hint}`)
  }

  readonly #dialing: Consumer = {
    // The first bytes of a server that speaks first can overtake the event that says it is connected.
    received: (end, bytes) => {
      this.#connected(end)
      end.consumer.received(end, bytes)
    },
    ended() {},
    drained: (end) => {
      if (isConnected(end)) this.#connected(end)
      // else the connect has failed: closed() follows.
    },
    closed: (_, error) => this.#refused(codeOf(error) ?? 'ECONNREFUSED'),
  }

  #connected(end: End) {
    if (this.wanted.secureTransport === 'on') this.#encrypt(end)
    else this.#open(end, null)
  }

  #open(end: End, alpn: string | null) {
    this.#disarm()
    const { keepAlive } = this.connection.route!.plan
    const { fd, localAddress, localPort } = end.socket!
    if (keepAlive) native().sluice_keepalive(fd, keepAlive.idleS, keepAlive.intervalS, keepAlive.count)
    const stream = this.#before ?? this.stream
    stream.open(end, {
      remoteAddress: formatEnd(this.#address, this.to.port),
      localAddress: formatEnd(plainIp(localAddress), localPort),
      alpn,
    })
  }

  // ---- TLS ----

  /** startTls(). What was written before goes out before it. */
  encrypt(before: Stream, options: unknown): Stream {
    this.#tls = parseTlsOptions(options, this.wanted.tls)
    before.upgrading = true
    this.#before = before
    this.stream = new Stream(this, 'on', this.wanted.highWaterMark)
    before.whenFlushed(() => {
      this.#before = null
      this.#encrypt(before.supersede())
    })
    return this.stream
  }

  #encrypt(end: End) {
    end.consumer = this.#handshaking
    this.#arm(this.#timeouts.handshake, () => this.#tlsFailed('no answer in time'))
    const problem = beginTls(end, this.#wish)
    if (this.#isOver) end.reset()
    else if (problem !== undefined) this.#tlsFailed(problem)
  }

  get #wish(): TlsWish {
    const { sni, alpn, ca, cert, key, expectedServerHostname } = this.#tls
    const name = expectedServerHostname ?? sni ?? this.to.hostname
    return { name, sni: sniOf(sni ?? name), alpn, ca, cert, key, insecure: false }
  }

  #tlsFailed(why: string) {
    this.#close(new SocketError('tls_failed', `${formatEnd(this.to.hostname, this.to.port)}: ${why}`))
  }

  readonly #handshaking: Consumer = {
    received: (end, bytes) => end.hold(bytes),
    ended: () => this.#tlsFailed('the server closed its side'),
    drained() {},
    closed: (_, error) => this.#tlsFailed(error?.message ?? 'the server closed the connection'),
    secured: (end, ok, error) => {
      const problem = untrusted(this.#wish, end.socket!, ok, error)
      if (problem !== undefined) return this.#tlsFailed(problem)
      const { alpnProtocol } = end.socket!
      this.#open(end, typeof alpnProtocol === 'string' && alpnProtocol !== '' ? alpnProtocol : null)
    },
  }

  // ---- what becomes of it ----

  done() {
    this.#close(null)
  }

  oneSided() {
    if (!this.allowHalfOpen) this.#arm(this.#timeouts.halfClosed, () => this.#quiet())
  }

  #quiet() {
    const left = this.#timeouts.halfClosed - this.connection.idleMs
    if (left > 0) this.#arm(left, () => this.#quiet())
    else this.#close(new SocketError('half_closed_timeout'))
  }

  closing() {
    this.#arm(this.#timeouts.grace, () => this.#close(null))
  }

  abort(error: Error | null) {
    this.#close(error)
  }

  broken(error: Error | undefined) {
    this.#close(error || !this.#end!.ended ? new SocketError('reset', codeOf(error), { cause: error }) : null)
  }

  handedOver() {
    this.#leave()
  }

  scopeOver(reason: CloseReason, error: Error) {
    // What it has said goodbye to has its grace time.
    if (this.stream.closing && this.#due) return
    this.#close(error, CLEAN.has(reason))
  }

  /** null: as it should be. orderly: what the kernel has accepted still arrives. */
  #close(error: Error | null, orderly = error === null) {
    if (this.#isOver) return
    this.#isOver = true
    this.#leave()
    this.#before?.over(error)
    this.stream.over(error)
    if (orderly) this.#end?.close()
    else this.#end?.reset()
  }

  /** Nothing of this connection any more: neither counted nor waited for. */
  #leave() {
    this.#disarm()
    this.wanted.signal?.removeEventListener('abort', this.#onAbort)
    this.scope.opened.delete(this)
    if (this.#counted) this.connection.services.opened--
    this.#counted = false
  }

  // ---- its deadline ----

  get #timeouts() {
    return this.connection.route!.plan.timeoutsMs
  }

  get #due() {
    return this.due > 0
  }

  #arm(ms: number, onDeadline: () => void) {
    this.#onDeadline = onDeadline
    this.connection.services.timers.arm(this, ms)
  }

  #disarm() {
    this.connection.services.timers.disarm(this)
  }

  override expired() {
    try {
      this.#onDeadline()
    } catch (error) {
      this.connection.crashed(error)
    }
  }
}

const ignore = () => {}

const NOTHING = { private: false, ports: [] }

const FAILURES: Record<string, SocketErrorCode> = {
  ECONNREFUSED: 'connect_refused',
  ECONNRESET: 'connect_refused',
  EPIPE: 'connect_refused',
  ETIMEDOUT: 'connect_timeout',
}

const abortedBy = (signal: AbortSignal) =>
  new SocketError('aborted', signal.reason instanceof Error ? signal.reason.message : String(signal.reason), {
    cause: signal.reason,
  })
