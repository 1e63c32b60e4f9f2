// The socket that a handler sees, as in the Workers runtime and in WinterTC's draft. What it does is its Stream's (stream.ts);
// this is the face, so that a handler can reach nothing else.
import type { ProxyOptions, SocketInfo } from '../types/sockets.d.ts'
import { handOver, proxy } from './proxy.ts'
import { SocketError } from './socket-error.ts'
import type { SecureTransport, Stream } from './stream.ts'

export class StreamSocket {
  readonly readable: ReadableStream<Uint8Array>
  readonly writable: WritableStream<Uint8Array>
  readonly opened: Promise<SocketInfo>
  readonly closed: Promise<void>
  readonly secureTransport: SecureTransport
  readonly #stream: Stream

  constructor(stream: Stream) {
    this.#stream = stream
    this.readable = stream.readable
    this.writable = stream.writable
    this.opened = stream.whenOpened
    this.closed = stream.whenClosed
    this.secureTransport = stream.secureTransport
  }

  get upgraded(): boolean {
    return this.#stream.upgraded
  }

  close(reason?: unknown): Promise<void> {
    return this.#stream.close(reason)
  }

  startTls(options?: unknown): StreamSocket {
    const stream = this.#stream
    if (this.secureTransport === 'on') throw new SocketError('starttls_on_tls')
    if (this.secureTransport === 'off' || !stream.party.encrypt) throw new SocketError('starttls_not_enabled')
    if (stream.upgrading) throw new SocketError('starttls_twice')
    if (stream.closing || stream.isOver) throw new SocketError('starttls_closed')
    const next = stream.party.encrypt(stream, options)
    stream.upgrading = true
    return new StreamSocket(next)
  }

  /** proxy(this, other, options) */
  proxyTo(other: StreamSocket, options?: ProxyOptions): void {
    proxy(this, other, options)
  }

  get [handOver](): Stream {
    return this.#stream
  }

  async [Symbol.asyncDispose]() {
    await this.close()
  }
}
