// TypeScript's end of the conntrack reader (native/conntrack.c): its messages in, dumps and single flows on request.
import { cString, native, ptr } from '../base/native.ts'

const SOCK_SEQPACKET = 5
const ENOENT = 2
const DUMP_MS_MAX = 20_000

/** Which flows that have ended a dump should list: those that began then or later, and whose entries are forgotten in so many
 *  seconds at the earliest, by TCP state (struct sluice_ct_ended). */
export interface Ended {
  startedMs: number
  leastTimeoutS: readonly number[]
}

function endedBytes({ startedMs, leastTimeoutS }: Ended): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(48))
  bytes.setBigUint64(0, BigInt(Math.max(0, Math.floor(startedMs))) * 1_000_000n, true)
  leastTimeoutS.forEach((seconds, state) => bytes.setUint32(8 + state * 4, seconds, true))
  return new Uint8Array(bytes.buffer)
}

export class ConntrackReader {
  #fd: number | undefined
  #socket: Bun.Socket | undefined
  #dumps = new Map<number, { resolve(): void; reject(error: Error): void; timer: ReturnType<typeof setTimeout> }>()
  #nextRequest = 1

  /** Nothing that happens from now on is missed. It waits, natively and then in the kernel, until `listen`. */
  static start(options: { base: number; mask: number; table: string; receiveBuffer?: number }): ConntrackReader {
    const reader = new ConntrackReader()
    const pair = new Int32Array(2)
    const made = native().sluice_socketpair(SOCK_SEQPACKET, ptr(pair))
    if (made < 0) throw new Error(`Cannot make a socket pair: error ${-made}`)
    const table = cString(options.table)
    const started = native().sluice_ct_start(
      pair[1]!,
      options.base,
      options.mask,
      ptr(table),
      options.receiveBuffer ?? 0,
    )
    if (started < 0) {
      native().sluice_close(pair[0]!)
      native().sluice_close(pair[1]!)
      throw new Error(
        started === -1
          ? 'Cannot listen to conntrack: not permitted (CAP_NET_ADMIN is needed)'
          : `Cannot listen to conntrack: error ${-started}`,
      )
    }
    reader.#fd = pair[0]!
    return reader
  }

  /** @param onMessage several native records; the bytes are its own. @param onEnd the reader ended although nobody stopped it. */
  async listen(onMessage: (message: Uint8Array) => void, onEnd: () => void): Promise<void> {
    const fd = this.#fd
    this.#fd = undefined
    this.#socket = await Bun.connect({
      fd,
      socket: {
        data: (_socket: unknown, message: Uint8Array) => onMessage(message),
        close: () => {
          if (this.#socket) onEnd()
        },
        error: () => {},
      },
    } as unknown as Bun.UnixSocketOptions<undefined>)
  }

  /** Asks for a dump; its records come through onMessage, and it resolves when `dumped` was told of its end. */
  dump(ended: Ended | null = null): Promise<void> {
    const request = this.#nextRequest
    this.#nextRequest = (this.#nextRequest % 0xfffe) + 1
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const timer = setTimeout(() => this.dumped(request, 110), DUMP_MS_MAX)
    this.#dumps.set(request, { resolve, reject, timer })
    const asked = native().sluice_ct_dump(request, ended && ptr(endedBytes(ended)))
    if (asked < 0) this.dumped(request, -asked)
    return promise
  }

  dumped(request: number, error: number) {
    const waiting = this.#dumps.get(request)
    if (!waiting) return
    this.#dumps.delete(request)
    clearTimeout(waiting.timer)
    if (error) waiting.reject(new Error(`Cannot read the conntrack table: error ${error}`))
    else waiting.resolve()
  }

  /** Fills the record's counters and state from its entry now; false when the entry has gone. */
  read(record: Uint8Array): boolean {
    return native().sluice_ct_get(ptr(record)) === 0
  }

  /** Deletes the flow's entry; false when it had gone. */
  delete(record: Uint8Array): boolean {
    const result = native().sluice_ct_delete(ptr(record))
    if (result < 0 && result !== -ENOENT) throw new Error(`Cannot delete a conntrack entry: error ${-result}`)
    return result === 0
  }

  stop() {
    const socket = this.#socket
    this.#socket = undefined
    for (const [request] of this.#dumps) this.dumped(request, 125)
    native().sluice_ct_stop()
    socket?.end()
    if (this.#fd !== undefined) native().sluice_close(this.#fd)
    this.#fd = undefined
  }
}
