// One end as the two web streams of a socket: backpressure both ways, flush, half-close and close(), the same for the client's
// socket and for those that a handler opens. What is only true of one kind is its Party's.
import { HANDLER_BUFFER_BYTES } from '../base/limits.ts'
import type { SocketInfo } from '../types/sockets.d.ts'
import type { Connection } from './connection.ts'
import type { Consumer, End } from './end.ts'
import type { Gate } from './gate.ts'
import type { Part } from './proxy.ts'
import { SocketError } from './socket-error.ts'

/** Who owns the socket. Each of these may answer with over(), at once. */
export interface Party {
  /** Whose handler has the socket. */
  readonly connection: Connection
  /** It is the client's. */
  readonly inbound: boolean
  /** What leaves has to pass it. */
  readonly gate: Gate
  readonly allowHalfOpen: boolean
  /** The peer's FIN closes the writable, too, once it is flushed. */
  readonly closesWithPeer: boolean
  /** Both FINs are through. */
  done(): void
  /** One direction is over, and nobody has called close(): how long may the other go on? May be called again. */
  oneSided(): void
  /** close() was called: what was written goes out, and the peer gets the grace time to follow. */
  closing(): void
  /** RST, now; a connect that is pending is given up. null: close() of one that is not open yet, which is no failure. */
  abort(error: Error | null): void
  /** The socket is gone before both FINs were through. */
  broken(error: Error | undefined): void
  /** Another carrier has the end from now on. */
  handedOver(): void
  /** startTls(): the streams that follow this one's. Missing where that is not possible. */
  encrypt?(before: Stream, options: unknown): Stream
}

export type SecureTransport = 'on' | 'off' | 'starttls'

type Sunk = Promise<void> | undefined

export class Stream implements Consumer, Part {
  readonly readable: ReadableStream<Uint8Array>
  readonly writable: WritableStream<Uint8Array>
  /** close() was called: what the handler does after that is no failure. */
  closing = false
  isOver = false
  /** startTls() was called. */
  upgrading = false
  /** Its handshake has begun, under other streams. */
  upgraded = false
  #end: End | null = null
  /** Another carrier is to get the end: what comes is held for it. */
  #surrendering: PromiseWithResolvers<void> | undefined
  readonly #opened = Promise.withResolvers<SocketInfo>()
  readonly #closed = Promise.withResolvers<void>()
  #reader!: ReadableStreamDefaultController<Uint8Array>
  #writer!: WritableStreamDefaultController
  #readEnded = false
  #writeEnded = false
  /** Somebody reads and there was nothing: the next bytes are for them. */
  #pulling = false
  /** The sink's write or close that waits for the network. */
  #waiting: PromiseWithResolvers<void> | undefined
  /** What waits for the socket to open, or for the gate. */
  #held: PromiseWithResolvers<void> | undefined
  /** Bytes that were written to the stream and have not reached the sink. */
  #unsunk = 0
  /** Something else than bytes was written: no FIN may say that what was sent is all. */
  #corrupt = false
  #onFlushed: (() => void) | undefined
  /** Why writing fails, once it is over. */
  #gone: Error = new SocketError('closed')

  constructor(
    readonly party: Party,
    readonly secureTransport: SecureTransport,
    highWaterMark = HANDLER_BUFFER_BYTES,
  ) {
    // A handler that does not look at them must not end the process.
    this.#opened.promise.catch(ignore)
    this.#closed.promise.catch(ignore)
    // The stream holds nothing but what was asked for; the rest is held by the end, where another carrier finds it.
    this.readable = new ReadableStream<Uint8Array>(
      {
        start: (controller) => void (this.#reader = controller),
        pull: () => this.#pull(),
        cancel: () => this.#cancel(),
      },
      { highWaterMark: 0 },
    )
    this.writable = new WritableStream<Uint8Array>(
      {
        start: (controller) => void (this.#writer = controller),
        write: (chunk) => this.#write(chunk),
        close: () => this.#out(() => this.#finish()),
        abort: (reason) => this.party.abort(new SocketError('aborted', undefined, { cause: reason })),
      },
      { highWaterMark, size: (chunk) => this.#measure(chunk) },
    )
  }

  get connection() {
    return this.party.connection
  }

  get inbound() {
    return this.party.inbound
  }

  get gate() {
    return this.party.gate
  }

  get allowHalfOpen() {
    return this.party.allowHalfOpen
  }

  get encrypted() {
    return this.secureTransport === 'on'
  }

  /** It was given to proxy(), which perhaps still waits for the other. */
  get surrendered() {
    return this.#surrendering !== undefined
  }

  /** Valid once it is open. */
  get end() {
    return this.#end!
  }

  get whenOpened() {
    return this.#opened.promise
  }

  get whenClosed() {
    return this.#closed.promise
  }

  /** Takes an end that is connected. What it holds goes in front of everything else. */
  open(end: End, info: SocketInfo) {
    this.#end = end
    end.consumer = this
    this.#opened.resolve(info)
    if (this.#pulling) this.#pull()
    if (end.ended) this.ended(end)
    this.#release()
    this.#flushed()
  }

  /** Both directions at once: flushes what was written, sends FIN, and gives the peer the grace time to follow. */
  close(reason?: unknown): Promise<void> {
    if (this.closing || this.isOver || this.#surrendering) return this.whenClosed
    this.closing = true
    this.#gone = new SocketError('closed', undefined, reason === undefined ? undefined : { cause: reason })
    if (!this.#end) this.party.abort(null)
    else {
      this.#endReading()
      this.party.closing()
      this.#finishWhenFlushed()
    }
    return this.whenClosed
  }

  /** Once the socket is open and everything that was written is with the kernel. The newest wish counts. */
  whenFlushed(act: () => void) {
    this.#onFlushed = act
    this.#flushed()
  }

  // ---- for another carrier, which proxy() finds ----

  refusal(): string | undefined {
    if (this.isOver || this.closing || this.#surrendering) return 'it is closed, or was handed over already'
    if (this.upgrading) return 'startTls() was called: use the socket that it returned'
    if (this.readable.locked || this.writable.locked) return 'its streams are locked: release their readers and writers'
    if (this.#writeEnded || this.#corrupt) return 'its writable is closed'
    if (this.#readEnded && !this.#end?.ended) return 'its readable was cancelled'
    return undefined
  }

  async surrender(): Promise<void> {
    const reader = this.readable.getReader()
    this.writable.getWriter()
    this.#surrendering = Promise.withResolvers()
    // What was written need not be out for that, only with the end: a peer that does not read must not stop the other direction.
    this.#waiting?.resolve()
    this.#waiting = undefined
    this.whenFlushed(() => this.#surrendering!.resolve())
    // Bytes that came for a read that was given up are in the stream.
    const left = this.#reader.desiredSize! < 0 ? (await reader.read()).value : undefined
    await this.#surrendering.promise
    const { end } = this
    if (left) {
      ;(end.held ??= []).unshift(left)
      end.heldBytes += left.length
    }
  }

  handedOver() {
    this.party.handedOver()
  }

  cut(error: unknown) {
    this.party.abort(asError(error))
  }

  settler() {
    const [opened, closed] = [this.#opened, this.#closed]
    return (error: unknown) => {
      if (error === undefined) return closed.resolve()
      opened.reject(asError(error))
      closed.reject(asError(error))
    }
  }

  /** The end, for TLS: goes on under the streams that startTls() has returned. */
  supersede(): End {
    const end = this.end!
    this.upgraded = this.isOver = true
    this.#onFlushed = undefined
    // Bytes from before TLS that nobody has read must never be taken for what came after it.
    const unread = end.takeHeld().length > 0
    if (!unread) this.#endReading()
    this.#endStreams(new SocketError('upgraded'))
    this.#closed.resolve()
    return end
  }

  /** The socket is no more. null: it ended as it should. */
  over(error: Error | null) {
    if (this.isOver) return
    this.isOver = true
    this.#onFlushed = undefined
    if (error) this.#gone = error
    this.#surrendering?.reject(this.#gone)
    if (!error && !this.#readEnded) for (const bytes of this.#end?.takeHeld() ?? []) this.#reader.enqueue(bytes)
    this.#opened.reject(this.#gone)
    if (error) this.#waiting?.reject(error)
    else this.#waiting?.resolve()
    this.#waiting = undefined
    this.#release()
    if (!error) this.#endReading()
    this.#endStreams(this.#gone)
    if (error) this.#closed.reject(error)
    else this.#closed.resolve()
  }

  // ---- what the end tells ----

  received(end: End, bytes: Uint8Array) {
    if (this.#surrendering) return hold(end, bytes)
    if (this.#readEnded) return
    if (this.#pulling) {
      this.#pulling = false
      this.#reader.enqueue(bytes)
      return
    }
    // One event may bring more than the buffer holds. A handler that took all there was before will take this in a moment:
    // pausing for that long would cost two system calls for each.
    if (end.heldBytes > 0) hold(end, bytes)
    else end.hold(bytes)
  }

  ended(end: End) {
    if (this.#surrendering) return
    if (end.heldBytes === 0) this.#endReading()
    if (this.#isDone()) return
    if (this.party.closesWithPeer && !this.upgrading) this.#finishWhenFlushed()
    this.#oneSided()
  }

  drained(end: End) {
    const waiting = this.#waiting
    this.#waiting = undefined
    waiting?.resolve()
    this.#flushed()
    if (!this.isOver && !this.#surrendering && !this.#isDone() && end.finished) this.#oneSided()
  }

  closed(_: End, error: Error | undefined) {
    if (error || this.#surrendering || !this.#isDone()) this.party.broken(error)
  }

  // ---- reading ----

  #pull() {
    const end = this.#end
    const bytes = end?.held?.shift()
    if (!end || !bytes) {
      this.#pulling = true
      end?.resume()
      return
    }
    this.#pulling = false
    end.heldBytes -= bytes.length
    if (end.held!.length === 0) end.held = null
    if (end.heldBytes < HANDLER_BUFFER_BYTES) end.resume()
    this.#reader.enqueue(bytes)
    if (end.ended && end.heldBytes === 0) this.#endReading()
  }

  #cancel() {
    this.#readEnded = true
    this.#drop()
  }

  /** Reads on, and drops: otherwise the peer's FIN would never be seen. */
  #drop() {
    this.#end?.takeHeld()
    this.#end?.resume()
  }

  #endReading() {
    if (this.#readEnded) return
    this.#readEnded = true
    this.#reader.close()
    this.#drop()
  }

  // ---- writing ----

  #measure(chunk: unknown): number {
    const bytes = bytesOf(chunk)?.byteLength ?? 0
    this.#unsunk += bytes
    return bytes
  }

  #write(chunk: unknown): Sunk {
    const bytes = bytesOf(chunk)
    if (bytes) return this.#out(() => this.#send(bytes))
    // The stream drops what was queued behind it.
    this.#corrupt = true
    this.#flushed()
    throw new TypeError('A socket takes bytes only: write a Uint8Array or another view')
  }

  /** The one way out: at once where the socket is open and the gate too. */
  #out(act: () => Sunk): Sunk {
    if (!this.#isHeld()) return act()
    if (!this.#held) {
      this.#held = Promise.withResolvers()
      this.#release()
    }
    return this.#held.promise.then(() => this.#out(act))
  }

  #isHeld() {
    return !this.isOver && (!this.#end || this.party.gate.closed)
  }

  /** The socket is open or over, or the gate has opened: what waited for that may go, unless the other is still to come. */
  #release() {
    if (!this.#held) return
    if (this.#isHeld()) {
      if (this.#end) this.party.gate.wait(() => this.#release())
      return
    }
    this.#held.resolve()
    this.#held = undefined
  }

  #send(bytes: Uint8Array): Sunk {
    this.#unsunk -= bytes.byteLength
    if (this.isOver || this.#writeEnded) throw this.#gone
    const end = this.end!
    // Not copied: the stream hands out the next chunk only when this one is taken.
    const taken = bytes.byteLength === 0 || end.send(bytes)
    if (taken) end.owner.touch()
    this.#flushed()
    if (taken || this.#surrendering) return undefined
    this.#waiting = Promise.withResolvers()
    return this.#waiting.promise
  }

  #finish(): Sunk {
    if (this.#writeEnded || this.isOver) return undefined
    if (this.#corrupt) {
      this.party.abort(new SocketError('aborted', 'something else than bytes was written'))
      return undefined
    }
    this.#writeEnded = true
    const end = this.end!
    end.finish()
    if (end.finished) {
      if (!this.#isDone()) this.#oneSided()
      return undefined
    }
    this.#waiting ??= Promise.withResolvers()
    return this.#waiting.promise
  }

  #finishWhenFlushed() {
    if (!this.#writeEnded && !this.isOver) this.whenFlushed(() => void this.#out(() => this.#finish()))
  }

  #flushed() {
    if (!this.#onFlushed || !this.#end || (this.#end.queuedBytes > 0 && !this.#surrendering)) return
    if (this.#unsunk > 0 && !this.#corrupt && !this.#writeEnded) return
    // Whatever is to follow is an output, too.
    if (this.party.gate.closed) return this.party.gate.wait(() => this.#flushed())
    const act = this.#onFlushed
    this.#onFlushed = undefined
    act()
  }

  // ---- the end ----

  #isDone(): boolean {
    const end = this.#end
    if (!end?.ended || !end.finished) return false
    this.party.done()
    return true
  }

  #oneSided() {
    if (!this.closing && !this.isOver) this.party.oneSided()
  }

  #endStreams(error: Error) {
    this.#writeEnded = true
    this.#gone = error
    this.#writer.error(error)
    if (this.#readEnded) return
    this.#readEnded = true
    this.#reader.error(error)
  }
}

const ignore = () => {}

function hold(end: End, bytes: Uint8Array) {
  end.hold(bytes)
  if (end.heldBytes >= HANDLER_BUFFER_BYTES) end.pause()
}

const asError = (error: unknown) =>
  error instanceof Error ? error : new SocketError('aborted', String(error), { cause: error })

function bytesOf(chunk: unknown): Uint8Array | undefined {
  if (chunk instanceof Uint8Array) return chunk
  if (ArrayBuffer.isView(chunk)) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk)
  return undefined
}
