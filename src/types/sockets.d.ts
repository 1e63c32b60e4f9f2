// What 'sluice/sockets' is to a program that imports it, 'cloudflare:sockets' being the same: the one place where its types are
// written down, without a word of how it is done. src/sockets.ts is what is behind them.
import type { ConnectionRecord } from '../connections/record.ts'

/** Where to: a name or an address (IPv6 in brackets within a string) and a port.
 * @example connect({ hostname: 'db.internal', port: 5432 }) */
export interface SocketAddress {
  readonly hostname: string
  readonly port: number
}

/** How a socket speaks TLS. Only where it does: with `secureTransport` 'on', or at startTls().
 * @example socket.startTls({ expectedServerHostname: 'mail.example.com' }) */
export interface TlsOptions {
  /** The name that the server is asked for; it is also verified unless expectedServerHostname says another. Default: the hostname. */
  sni?: string | null
  /** Application protocols, the preferred one first. What was agreed on is `alpn` of the SocketInfo. */
  alpn?: readonly string[] | null
  /** PEM of the authorities to trust instead of those that the runtime knows. */
  ca?: string | readonly string[]
  /** PEM of a client certificate, with its chain. Needs `key`. */
  cert?: string
  /** PEM of the key of `cert`. */
  key?: string
  /** Whom the certificate has to name, and what is asked for unless `sni` says another. Also where the address is an IP. */
  expectedServerHostname?: string
}

/** How a socket is opened.
 * @example connect('db.internal:5432', { secureTransport: 'starttls', connectTimeout: 2000 }) */
export interface SocketOptions extends TlsOptions {
  /** 'off': plain. 'on': TLS from the first byte. 'starttls': plain until startTls(). Default 'off'. */
  secureTransport?: 'on' | 'off' | 'starttls'
  /** The writable stays usable after the peer's FIN. Default false: it is closed, once what was written has been sent. */
  allowHalfOpen?: boolean
  /** Bytes that may be written ahead of the network before `desiredSize` is 0. Default 64 KiB. */
  highWaterMark?: number | bigint
  /** Aborts the socket: while it connects, and for as long as it is open. */
  signal?: AbortSignal
  /** Milliseconds for looking up the name and reaching one of its addresses. Default: the route's timeouts.connect. */
  connectTimeout?: number
}

/** A connection as two streams of bytes: the client's, which a handler is given, or one that connect() has opened.
 * @example
 * const socket = connect('example.com:7')
 * const writer = socket.writable.getWriter()
 * await writer.write(new TextEncoder().encode('hello'))
 * for await (const bytes of socket.readable) console.log(bytes.length) */
export interface Socket extends AsyncDisposable {
  readonly readable: ReadableStream<Uint8Array>
  /** Takes bytes only. A write waits while the peer does not read; one before the socket is open waits for that. */
  readonly writable: WritableStream<Uint8Array>
  /** Resolves once TCP, and TLS where it is on, are there. Rejects with a SocketError. Needs no catch. */
  readonly opened: Promise<SocketInfo>
  /** Resolves when both directions are over, rejects with an Error when they were cut. Needs no catch. */
  readonly closed: Promise<void>
  /** startTls() has taken the connection: use the socket that it returned. */
  readonly upgraded: boolean
  readonly secureTransport: 'on' | 'off' | 'starttls'
  /** Sends what was written, then FIN. One that is not open yet is given up at once. The same promise as `closed`. */
  close(reason?: unknown): Promise<void>
  /** The same connection with TLS, as a new socket, once what was written has been sent. Only with secureTransport 'starttls'. */
  startTls(options?: TlsOptions): Socket
  /** proxy(this, other, options) */
  proxyTo(other: Socket, options?: ProxyOptions): void
}

/** What a handler is told of its connection.
 * @example async connect(socket, env, ctx) { if (ctx.domain !== env.domain) await socket.close() } */
export interface Context {
  readonly connectionId: string
  readonly routeName: string
  readonly clientIp: string
  readonly clientPort: number
  /** "ip:port" of the trusted sender whose PROXY protocol header named the client. */
  readonly proxy: string | null
  readonly serverIp: string | null
  readonly port: number
  /** The server name of TLS. */
  readonly domain: string | null
  readonly isTls: boolean
  readonly tlsVersion: string | null
  /** Milliseconds since 1970. */
  readonly timestamp: number
  /** The connection's record as it is now, as the access log will have it. */
  readonly record: ConnectionRecord
  /** The handler goes on until this is settled: when the client has left, the sockets that connect() opened stay that long, for
   * timeouts.grace at most. A failure is logged.
   * @example ctx.waitUntil(audit(ctx.record)) */
  waitUntil(promise: Promise<unknown>): void
  /** Until the promise has resolved nothing leaves for anyone this handler talks to: no SYN, no byte, no FIN. What is written
   * waits, in order. When it rejects, nothing ever left, and everything ends. Answers the same promise.
   * @example
   * ctx.gate(audit.record(ctx.connectionId))
   * const database = connect('db.internal:5432') // goes out once it is recorded */
  gate<T>(promise: T | PromiseLike<T>): Promise<T>
}

/** The default export of a handler module.
 * @example
 * export default {
 *   async connect(socket, env, ctx) {
 *     proxy(socket, connect(env.target))
 *   },
 * } satisfies Handler<{ target: string }> */
export interface Handler<Env = Record<string, unknown>> {
  connect(socket: Socket, env: Env, ctx: Context): void | Promise<void>
  /** Called before connect(): what it returns is given to ctx.gate(). */
  gate?(env: Env, ctx: Context): Promise<unknown> | undefined
}

/** What is known of an open socket.
 * @example const { remoteAddress, alpn } = await socket.opened */
export interface SocketInfo {
  /** "ip:port" of the peer; of a client behind a trusted proxy the real one. */
  remoteAddress: string | null
  localAddress: string | null
  /** What TLS negotiated. */
  alpn: string | null
}

/** How two sockets are joined.
 * @example proxy(socket, target, { signal: AbortSignal.timeout(3_600_000) }) */
export interface ProxyOptions {
  /** Ends both sockets at once. */
  signal?: AbortSignal | undefined
  /** The end of one side does not close the writable of the other. With this or one of the next two the sockets stay the
   *  handler's, and every byte goes through their streams. */
  preventClose?: boolean | undefined
  /** A failure of one side does not abort the writable of the other. */
  preventAbort?: boolean | undefined
  /** A failure of a writable does not cancel the readable that it was fed from. */
  preventCancel?: boolean | undefined
}

/** Opens a connection from within a handler, and returns at once: what is written before it is open goes out when it is. It belongs
 * to the connection of the handler, and ends with it unless proxy() has got it. A mistake in the arguments is a TypeError here;
 * everything else is a SocketError at `opened`, `closed` and the streams.
 * @example
 * const socket = connect('db.internal:5432', { connectTimeout: 2000 })
 * const { localAddress } = await socket.opened */
export declare function connect(address: string | SocketAddress, options?: SocketOptions): Socket

/** Joins two sockets and returns at once; so may the handler. Both directions go at the same time, the order of the two means
 * nothing, and a failure of one is the end of both. How it ended is seen at `closed` of either.
 * @example proxy(socket, connect('10.0.0.5:5432'), { signal: AbortSignal.timeout(60_000) }) */
export declare function proxy(a: Socket, b: Socket, options?: ProxyOptions): void

/** What went wrong with a socket, for programs: they do not change.
 * @example if (error instanceof SocketError && error.code === 'connect_refused') retry() */
export type SocketErrorCode =
  | 'connect_refused'
  | 'connect_timeout'
  | 'connect_unreachable'
  | 'name_not_resolved'
  | 'address_blocked'
  | 'port_25_blocked'
  | 'port_blocked'
  | 'loop_detected'
  | 'too_many_sockets'
  | 'tls_failed'
  | 'gate_rejected'
  | 'aborted'
  | 'closed'
  | 'reset'
  | 'half_closed_timeout'
  | 'client_disconnected'
  | 'upgraded'
  | 'handed_over'
  | 'starttls_not_enabled'
  | 'starttls_on_tls'
  | 'starttls_twice'
  | 'starttls_closed'

/** Every code, with what the message says first after "SocketError: ".
 * @example for (const [code, text] of Object.entries(socketErrors)) console.log(code, text) */
export declare const socketErrors: Readonly<Record<SocketErrorCode, string>>

/** What `opened`, `closed` and the streams of a socket fail with. A mistake in the arguments of a call is a plain TypeError.
 * @example
 * try {
 *   await connect('db.internal:5432').opened
 * } catch (error) {
 *   if (error instanceof SocketError) console.log(error.code) // 'connect_refused', 'name_not_resolved' and so on
 * } */
export declare class SocketError extends TypeError {
  readonly code: SocketErrorCode
  constructor(code: SocketErrorCode, detail?: string, options?: ErrorOptions)
}
