// One socket of a connection, plain or TLS, with what waits to be sent on it and what was read from it ahead of time. All
// sockets share one set of handlers; who listens to an end changes with the phase of its connection (Consumer).
import type { Socket, SocketHandler } from 'bun'

/** Who deals with what happens on an end. Shared objects without state of their own: the state is in the end and its owner. */
export interface Consumer {
  received(end: End, bytes: Uint8Array): void
  /** The peer sent its FIN; every byte before it was received(). At most once. */
  ended(end: End): void
  /** Everything that was sent has been accepted by the kernel (also: a pending connect is over). */
  drained(end: End): void
  /** The socket is gone. Not called for one that we closed or detached ourselves. */
  closed(end: End, error: Error | undefined): void
  /** A TLS handshake is over. `error` may stand beside ok = true where nobody asked for a certificate. */
  secured?(end: End, ok: boolean, error: Error | null): void
}

export interface Owner {
  /** Bytes moved. */
  touch(): void
  /** A handler of ours threw: a mistake in this program, which must not reach another connection. */
  crashed(error: unknown): void
}

/** In whose hands the socket of a client is before it has a target, where those are not Bun's. */
export interface Keeper {
  readonly id: number
  /** Of a PROXY header for the target, which no count may include. */
  readonly headerBytes: number
  /** Begins a connection to a target, which gets `header` first, then what the client said. The Dial will hear how it went. */
  dial(address: string, port: number, header: Uint8Array | null): void
  /** Gives up the target that is being dialled. */
  abandon(): void
  /** What has flowed, where a target is connected and we have not heard of it yet. */
  counts(): { bytesIn: number; bytesOut: number } | undefined
  /** false: it does not know the client any more, which it has told or will tell in a moment. */
  held(): boolean
  /** The descriptor, for TypeScript; -1: the client has gone. */
  take(): number
  reset(): void
}

export class End {
  socket: Socket<End> | null = null
  keeper: Keeper | null = null
  other: End | null = null
  /** Payload bytes taken from the network, and accepted by it. */
  received = 0
  sent = 0
  /** Read before anyone wanted it, in order. */
  held: Uint8Array[] | null = null
  heldBytes = 0
  /** Accepted by send() but not by the kernel yet. */
  queue: Uint8Array[] | null = null
  queuedBytes = 0
  paused = false
  /** The peer's FIN was seen. */
  ended = false
  /** finish() was called / its FIN was sent. */
  finishing = false
  finished = false

  constructor(
    readonly owner: Owner,
    public consumer: Consumer,
  ) {}

  /** false: something is queued now; stop reading the source until drained(). Takes every byte in any case. */
  send(bytes: Uint8Array): boolean {
    if (!this.socket) return true
    if (this.queuedBytes === 0) {
      const accepted = this.socket.write(bytes)
      if (accepted === bytes.length) {
        this.sent += accepted
        return true
      }
      // -1: the socket is closing, its close event follows.
      if (accepted > 0) {
        this.sent += accepted
        bytes = bytes.subarray(accepted)
      }
    }
    ;(this.queue ??= []).push(bytes)
    this.queuedBytes += bytes.length
    return false
  }

  /** Sends FIN once all that was sent before is out. Reading goes on. */
  finish(): void {
    this.finishing = true
    if (this.queuedBytes > 0 || this.finished || !this.socket) return
    this.finished = true
    this.socket.shutdown()
  }

  hold(bytes: Uint8Array): void {
    ;(this.held ??= []).push(bytes)
    this.heldBytes += bytes.length
  }

  /** Everything held as one piece, still held. */
  peekHeld(): Uint8Array {
    if (!this.held) return new Uint8Array(0)
    if (this.held.length > 1) this.held = [Buffer.concat(this.held)]
    return this.held[0]!
  }

  takeHeld(): Uint8Array[] {
    const held = this.held ?? []
    this.held = null
    this.heldBytes = 0
    return held
  }

  pause(): void {
    if (this.paused || !this.socket) return
    this.paused = true
    this.socket.pause()
  }

  resume(): void {
    if (!this.paused) return
    this.paused = false
    this.socket?.resume()
  }

  /** Lets go of the socket: no event of it reaches this end any more. */
  detach(): Socket<End> | null {
    const socket = this.socket
    if (socket) socket.data = NOBODY
    this.socket = null
    this.queue = null
    this.queuedBytes = 0
    return socket
  }

  /** RST, at once. */
  reset(): void {
    this.keeper?.reset()
    this.detach()?.terminate()
  }

  /** close(2): what the kernel has accepted is still delivered. */
  close(): void {
    this.keeper?.reset()
    this.detach()?.end()
  }

  /** Takes over the socket of another end, with what that one has read ahead, has yet to send, and has counted. */
  takeOver(from: End): void {
    this.received = from.received
    this.sent = from.sent
    this.held = from.held
    this.heldBytes = from.heldBytes
    this.queue = from.queue
    this.queuedBytes = from.queuedBytes
    this.paused = from.paused
    this.ended = from.ended
    this.finishing = from.finishing
    this.finished = from.finished
    from.takeHeld()
    this.socket = from.detach()
    if (this.socket) this.socket.data = this
  }

  flush(): void {
    const { queue, socket } = this
    if (!socket) return
    if (queue && this.queuedBytes > 0) {
      let done = 0
      while (done < queue.length) {
        const bytes = queue[done]!
        const accepted = socket.write(bytes)
        if (accepted > 0) {
          this.sent += accepted
          this.queuedBytes -= accepted
          this.owner.touch()
        }
        if (accepted < bytes.length) {
          if (accepted > 0) queue[done] = bytes.subarray(accepted)
          break
        }
        done++
      }
      if (this.queuedBytes > 0) {
        queue.splice(0, done)
        return
      }
      this.queue = null
    }
    if (this.finishing) this.finish()
    this.consumer.drained(this)
  }
}

const silent: Consumer = { received() {}, ended() {}, drained() {}, closed() {} }
/** Owner of every socket that was let go. */
const NOBODY = new End({ touch() {}, crashed() {} }, silent)

/** The handlers of every socket of the user plane. `s.data` is its End. */
export const endHandlers = {
  data(socket, bytes) {
    const end = socket.data
    end.received += bytes.length
    end.owner.touch()
    end.consumer.received(end, bytes)
  },
  end(socket) {
    const end = socket.data
    if (end.ended) return
    end.ended = true
    end.consumer.ended(end)
  },
  drain(socket) {
    socket.data.flush()
  },
  close(socket, error) {
    const end = socket.data
    if (end === NOBODY) return
    end.socket = null
    // After our own FIN the peer's FIN comes as a close without `end`.
    if (!error && end.finished && !end.ended) {
      end.ended = true
      end.consumer.ended(end)
    }
    end.consumer.closed(end, error)
  },
  error(socket, error) {
    const end = socket.data
    if (end === NOBODY) return
    // Two kinds arrive here: what a peer did (a TLS alert, with a code), and what a handler of ours threw.
    if (typeof (error as NodeJS.ErrnoException).code === 'string') {
      end.reset()
      end.consumer.closed(end, error)
    } else end.owner.crashed(error)
  },
} satisfies SocketHandler<End>

/** The same for sockets that speak TLS. */
export const secureHandlers = {
  ...endHandlers,
  handshake(socket, ok, error) {
    const end = socket.data
    end.consumer.secured?.(end, ok, error)
  },
} satisfies SocketHandler<End>
