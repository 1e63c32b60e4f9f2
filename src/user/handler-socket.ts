// The socket a handler sees, as in the Workers runtime: two streams with backpressure, two promises, close(). Bytes that were
// read before the handler ran come first; nothing is lost for a handler that reads late, or never.
import { formatEnd } from '../base/addresses.ts'
import { HANDLER_BUFFER_BYTES } from '../base/limits.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Connection } from './connection.ts'

export interface SocketInfo {
  /** "ip:port" of the client, after a PROXY header the real one. */
  remoteAddress: string | null
  localAddress: string | null
  /** What TLS negotiated. */
  alpn: string | null
}

/** Reasons that are an end and no failure: `closed` resolves. */
const CLEAN = new Set<CloseReason>(['finished', 'handler_closed'])

export class HandlerSocket {
  readonly readable: ReadableStream<Uint8Array>
  readonly writable: WritableStream<Uint8Array>
  readonly opened: Promise<SocketInfo>
  readonly closed: Promise<void>
  readonly upgraded = false
  readonly secureTransport: 'on' | 'off'
  /** close() was called: what the handler does after that is no failure. */
  closing = false

  readonly #connection: Connection
  readonly #resolved = Promise.withResolvers<void>()
  #reader: ReadableStreamDefaultController<Uint8Array> | undefined
  #writer: WritableStreamDefaultController | undefined
  #readEnded = false
  #writeEnded = false
  /** The sink's write or close that waits for the network. */
  #waiting: (() => void) | undefined
  /** Bytes that were written to the stream and have not reached the sink. */
  #unsunk = 0

  constructor(connection: Connection) {
    this.#connection = connection
    this.secureTransport = connection.tls ? 'on' : 'off'
    this.opened = Promise.resolve({
      remoteAddress: formatEnd(connection.clientIp, connection.clientPort),
      localAddress: connection.listener,
      alpn: connection.tls?.alpn ?? null,
    })
    this.closed = this.#resolved.promise
    // A handler that does not look at it must not end the process.
    this.closed.catch(() => {})
    this.readable = new ReadableStream<Uint8Array>(
      {
        start: (controller) => void (this.#reader = controller),
        pull: () => this.#connection.client.resume(),
        cancel: () => this.#cancel(),
      },
      { highWaterMark: HANDLER_BUFFER_BYTES, size: (bytes) => bytes!.byteLength },
    )
    this.writable = new WritableStream<Uint8Array>(
      {
        start: (controller) => void (this.#writer = controller),
        write: (chunk) => this.#write(chunk),
        close: () => this.#finish(),
        abort: () => this.#connection.settle('handler_closed'),
      },
      { highWaterMark: HANDLER_BUFFER_BYTES, size: (chunk) => this.#measure(chunk) },
    )
  }

  /** What was held goes in front of everything else. */
  start() {
    const { client } = this.#connection
    for (const bytes of client.takeHeld()) this.received(bytes)
    if (client.ended) this.ended()
  }

  /** Both directions at once: flushes what was written, sends FIN, and gives the client the grace time to follow. */
  close(): Promise<void> {
    if (this.closing || this.#connection.settled) return this.closed
    this.closing = true
    this.#endReading()
    this.#connection.setState('closing')
    this.#connection.arm(this.#connection.route!.plan.timeoutsMs.grace, graceOver)
    this.#finishWhenFlushed()
    return this.closed
  }

  startTls(): never {
    throw new TypeError("SocketError: startTls() needs a socket that was opened with secureTransport 'starttls'")
  }

  async [Symbol.asyncDispose]() {
    await this.close()
  }

  // ---- what the connection tells ----

  received(bytes: Uint8Array) {
    if (this.#readEnded || !this.#reader) return
    const taken = this.#reader.desiredSize === HANDLER_BUFFER_BYTES
    this.#reader.enqueue(bytes)
    // One event may bring more than the buffer holds. A handler that took all there was before will take this in a moment:
    // pausing for that long would cost two system calls for each.
    if (!taken && (this.#reader.desiredSize ?? 0) <= 0) this.#connection.client.pause()
  }

  ended() {
    this.#endReading()
    if (!this.#done()) this.#armOneSided()
  }

  drained() {
    const waiting = this.#waiting
    this.#waiting = undefined
    waiting?.()
    if (this.closing) this.#finishWhenFlushed()
    this.#done()
  }

  released(reason: CloseReason) {
    const clean = CLEAN.has(reason)
    const error = new Error(`The connection is closed: ${reason}`)
    this.#waiting?.()
    this.#waiting = undefined
    if (!this.#readEnded) {
      this.#readEnded = true
      try {
        if (clean) this.#reader?.close()
        else this.#reader?.error(error)
      } catch {} // cancelled by its reader
    }
    this.#writeEnded = true
    this.#writer?.error(error)
    if (clean) this.#resolved.resolve()
    else this.#resolved.reject(error)
  }

  // ---- the streams ----

  #measure(chunk: unknown): number {
    const bytes = bytesOf(chunk)?.byteLength ?? 0
    this.#unsunk += bytes
    return bytes
  }

  #write(chunk: unknown): Promise<void> | undefined {
    const bytes = bytesOf(chunk)
    if (!bytes) throw new TypeError('A socket takes bytes only: write a Uint8Array or another view')
    this.#unsunk -= bytes.byteLength
    const { client, settled } = this.#connection
    if (settled || this.#writeEnded) throw new Error('The connection is closed')
    // Not copied: the stream hands out the next chunk only when this one is taken.
    const taken = bytes.byteLength === 0 || client.send(bytes)
    if (this.closing) this.#finishWhenFlushed()
    if (taken) {
      this.#connection.touch()
      return undefined
    }
    return new Promise((resolve) => (this.#waiting = resolve))
  }

  #finish(): Promise<void> | undefined {
    if (this.#writeEnded || this.#connection.settled) return undefined
    this.#writeEnded = true
    const { client } = this.#connection
    client.finish()
    if (client.finished) {
      if (!this.#done()) this.#armOneSided()
      return undefined
    }
    return new Promise((resolve) => (this.#waiting = resolve))
  }

  #cancel() {
    this.#readEnded = true
    // Read on, and drop: otherwise the client's FIN would never be seen.
    this.#connection.client.resume()
  }

  #finishWhenFlushed() {
    if (this.#unsunk > 0 || this.#writeEnded) return
    this.#writeEnded = true
    this.#connection.client.finish()
    this.#done()
  }

  #endReading() {
    if (this.#readEnded) return
    this.#readEnded = true
    try {
      this.#reader?.close()
    } catch {}
    this.#connection.client.resume()
  }

  /** Both FINs are through. */
  #done(): boolean {
    const { client } = this.#connection
    if (!client.ended || !client.finished) return false
    this.#connection.settle(this.closing ? 'handler_closed' : 'finished', true)
    return true
  }

  /** One direction is over: the other may go on for as long as it moves. */
  #armOneSided() {
    if (this.closing || this.#connection.settled) return
    this.#connection.setState('half-closed')
    this.#connection.arm(this.#connection.route!.plan.timeoutsMs.halfClosed, oneSided)
  }
}

function oneSided(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.halfClosed - connection.idleMs
  if (left > 0) connection.arm(left, oneSided)
  else connection.settle('half_closed_timeout', true)
}

function graceOver(connection: Connection) {
  connection.settle('handler_closed', true)
}

function bytesOf(chunk: unknown): Uint8Array | undefined {
  if (chunk instanceof Uint8Array) return chunk
  if (ArrayBuffer.isView(chunk)) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk)
  return undefined
}
