// What a handler module imports: `import type { Handler, Socket } from 'sluice/sockets'`.
import type { SocketInfo } from './user/handler-socket.ts'

export type { SocketInfo }

/** The client's connection. It outlives the handler's return; what is written after its end fails with an Error. */
export interface Socket extends AsyncDisposable {
  readonly readable: ReadableStream<Uint8Array>
  /** Takes bytes only. A write waits while the client does not read. */
  readonly writable: WritableStream<Uint8Array>
  readonly opened: Promise<SocketInfo>
  /** Resolves when both directions are over, rejects with an Error when they were cut. Needs no catch. */
  readonly closed: Promise<void>
  readonly upgraded: boolean
  readonly secureTransport: 'on' | 'off'
  /** Sends what was written, then FIN. The same promise as `closed`. */
  close(): Promise<void>
}

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
  waitUntil(promise: Promise<unknown>): void
}

/** The default export of a handler module. */
export interface Handler<Env = Record<string, unknown>> {
  connect(socket: Socket, env: Env, ctx: Context): void | Promise<void>
}
