// The typed channel between control and a worker: JSON lines over one unix socket pair, listening descriptors over another.
// A descriptor is sent before the line that names its tag, so it is there when the line is read.
import { native, ptr } from '../base/native.ts'

const SOCK_STREAM = 1
const SOCK_SEQPACKET = 5
/** Lines waiting for a peer that does not read; above this the peer counts as stuck and the channel is closed. */
const QUEUE_BYTES_MAX = 64 * 1024 * 1024
const EAGAIN = 11
const DESCRIPTORS_AT_ONCE = 64
/** A peer that takes no descriptor for this long is stuck. */
const DESCRIPTORS_MS_MAX = 10_000
/** One line: a plan of 10,000 routes is about 6 MB. */
const LINE_BYTES_MAX = 64 * 1024 * 1024

export interface Ends {
  lines: number
  descriptors: number
}

/** Two pairs of connected sockets: one end for us, the other to be inherited by the worker. */
export function openEnds(): { ours: Ends; theirs: Ends } {
  const [lines, descriptors] = [pair(SOCK_STREAM), pair(SOCK_SEQPACKET)]
  return {
    ours: { lines: lines[0]!, descriptors: descriptors[0]! },
    theirs: { lines: lines[1]!, descriptors: descriptors[1]! },
  }
}

function pair(type: number): Int32Array {
  const fds = new Int32Array(2)
  const made = native().sluice_socketpair(type, ptr(fds))
  if (made < 0) throw new Error(`Cannot make a socket pair: error ${-made}`)
  return fds
}

export function closeEnds(ends: Ends) {
  native().sluice_close(ends.lines)
  native().sluice_close(ends.descriptors)
}

export class Channel<Out, In> {
  #socket: Bun.Socket | undefined
  #queue: Buffer[] = []
  #queued = 0
  #head: Uint8Array[] = []
  #headBytes = 0
  #closed = false

  private constructor(
    private readonly ends: Ends,
    private readonly onMessage: (message: In) => void,
    private readonly onClose: () => void,
  ) {}

  /** @param onClose the peer ended, or sent what is no line of ours. Called once. */
  static async open<Out, In>(
    ends: Ends,
    onMessage: (message: In) => void,
    onClose: () => void,
  ): Promise<Channel<Out, In>> {
    const channel = new Channel<Out, In>(ends, onMessage, onClose)
    channel.#socket = await Bun.connect({
      fd: ends.lines,
      socket: {
        data: (_socket: unknown, bytes: Uint8Array) => channel.#read(bytes),
        drain: () => channel.#flush(),
        close: () => channel.close(),
        error: () => channel.close(),
      },
    } as unknown as Bun.UnixSocketOptions<undefined>)
    channel.#flush()
    return channel
  }

  send(message: Out) {
    if (this.#closed) return
    const line = Buffer.from(JSON.stringify(message) + '\n')
    this.#queue.push(line)
    this.#queued += line.length
    if (this.#queued > QUEUE_BYTES_MAX) this.close()
    else if (this.#queue.length === 1) this.#flush()
  }

  #flush() {
    while (this.#queue.length > 0 && this.#socket) {
      const line = this.#queue[0]!
      const written = this.#socket.write(line)
      if (written < 0) return this.close()
      this.#queued -= written
      if (written < line.length) {
        this.#queue[0] = line.subarray(written)
        return // drain calls again
      }
      this.#queue.shift()
    }
  }

  #read(bytes: Uint8Array) {
    let from = 0
    for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, from)) {
      const part = bytes.subarray(from, end)
      from = end + 1
      const line = this.#head.length
        ? Buffer.concat([...this.#head, part])
        : Buffer.from(part.buffer, part.byteOffset, part.length)
      this.#head = []
      this.#headBytes = 0
      this.onMessage(JSON.parse(line.toString()) as In)
    }
    if (from === bytes.length) return
    this.#head.push(bytes.slice(from))
    this.#headBytes += bytes.length - from
    if (this.#headBytes > LINE_BYTES_MAX) this.close()
  }

  /** Passes descriptors on; the caller keeps its own. After each handful the peer is told to take them: a socket holds
   *  only about 200 in flight. */
  async sendDescriptors(descriptors: [tag: number, fd: number][], took: Out) {
    let deadline = performance.now() + DESCRIPTORS_MS_MAX
    for (let i = 0; i < descriptors.length && !this.#closed;) {
      const sent = native().sluice_send_fd(this.ends.descriptors, descriptors[i]![0], descriptors[i]![1])
      if (sent === 0) {
        i++
        deadline = performance.now() + DESCRIPTORS_MS_MAX
      } else if (sent !== -EAGAIN || performance.now() > deadline)
        throw new Error(`Cannot pass a descriptor to the worker: error ${-sent}`)
      if (sent !== 0 || i % DESCRIPTORS_AT_ONCE === 0 || i === descriptors.length) this.send(took)
      if (sent !== 0) await Bun.sleep(1)
    }
  }

  /** Every descriptor that has come, by tag. */
  takeDescriptors(): Map<number, number> {
    const taken = new Map<number, number>()
    if (this.#closed) return taken
    const tag = new Uint32Array(1)
    for (
      let fd = native().sluice_recv_fd(this.ends.descriptors, ptr(tag));
      fd >= 0;
      fd = native().sluice_recv_fd(this.ends.descriptors, ptr(tag))
    )
      taken.set(tag[0]!, fd)
    return taken
  }

  close() {
    if (this.#closed) return
    this.#closed = true
    this.#queue = []
    this.#socket?.end()
    native().sluice_close(this.ends.descriptors)
    this.onClose()
  }
}
