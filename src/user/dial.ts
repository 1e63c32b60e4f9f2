// Opens the target of a connection: chooses one, resolves its name, connects without blocking, and goes on to the next
// address or target while nothing has been delivered. Giving up closes the descriptor, so no SYN stays behind.
import { lookup } from 'node:dns/promises'
import { canonicalIp, formatEnd } from '../base/addresses.ts'
import { DIAL_ADDRESSES_MAX, DIAL_TARGETS_MAX } from '../base/limits.ts'
import { cString, native, ptr } from '../base/native.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Slot } from './balance.ts'
import { of, type Attachment, type Connection } from './connection.ts'
import { End, endHandlers, type Consumer } from './end.ts'

/** Called with connection.target open. Shared functions, not closures. */
export type OnOpen = (connection: Connection) => void

export class Dial implements Attachment {
  readonly #tried: Slot[] = []
  #slot!: Slot
  #addresses: string[] = []
  #reason: CloseReason = 'target_unreachable'
  #released = false

  constructor(
    readonly connection: Connection,
    readonly onOpen: OnOpen,
  ) {
    connection.attachment = this
  }

  /** The next target, or the end of the connection with the last one's reason. */
  next(): void {
    const { connection } = this
    if (connection.slot) connection.slot.active--
    connection.slot = null
    const slot =
      this.#tried.length < DIAL_TARGETS_MAX
        ? connection.route!.balancer!.pick(connection.clientIp, this.#tried)
        : undefined
    if (!slot) return connection.settle(this.#reason)
    this.#tried.push(slot)
    this.#slot = connection.slot = slot
    slot.active++
    connection.arm(connectMs(connection), timedOut)
    const { host } = slot.target
    if (host.kind === 'name') this.#resolve(slot, host.name).catch((error) => connection.crashed(error))
    else {
      this.#addresses = host.kind === 'ip' ? [host.address] : []
      this.#attempt()
    }
  }

  release() {
    this.#released = true
  }

  clientEnded() {
    this.connection.arm(connectMs(this.connection), timedOut)
  }

  /** Nothing answered. */
  timedOut() {
    this.#reason = 'connect_timeout'
    this.connection.target?.reset()
    this.next()
  }

  opened() {
    this.#released = true
    this.connection.attachment = null
    this.connection.target!.consumer = waiting
    this.onOpen(this.connection)
  }

  failed(code: string | undefined) {
    this.#reason =
      code === 'ETIMEDOUT' ? 'connect_timeout' : REFUSED.has(code) ? 'target_refused' : 'target_unreachable'
    if (this.#addresses.length > 0) this.#attempt()
    else this.next()
  }

  async #resolve(slot: Slot, name: string) {
    let addresses: string[] = []
    try {
      addresses = (await lookup(name, { all: true })).map((found) => canonicalIp(found.address))
    } catch {}
    // Meanwhile the client may have left, or the deadline has moved on to another target.
    if (this.#released || slot !== this.#slot) return
    this.#addresses = [...new Set(addresses)].slice(0, DIAL_ADDRESSES_MAX)
    if (this.#addresses.length > 0) return this.#attempt()
    this.#reason = 'target_unreachable'
    this.next()
  }

  #attempt() {
    const { connection } = this
    const { host, port } = this.#slot.target
    const to = port ?? connection.port
    let fd: number
    if (host.kind === 'unix') {
      connection.targetName = `unix:${host.path}`
      fd = native().sluice_connect_unix(ptr(cString(host.path)))
    } else {
      const address = this.#addresses.shift()!
      connection.targetName = formatEnd(address, to)
      fd = native().sluice_connect(ptr(cString(address)), to)
    }
    if (fd < 0) return this.failed(ERRNO[-fd])
    const target = (connection.target = new End(connection, dialing))
    // Its promise says nothing that the handlers do not.
    Bun.connect({ fd, allowHalfOpen: true, data: target, socket: targetHandlers }).catch(ignore)
    // `open` came during the call: connected already (unix, loopback), or `drain` will tell.
    const { socket } = target
    if (!socket) return this.failed(undefined)
    if (host.kind === 'unix' || socket.remotePort !== undefined) this.opened()
  }
}

const ignore = () => {}

const targetHandlers = {
  ...endHandlers,
  open(socket: NonNullable<End['socket']>) {
    socket.data.socket = socket
  },
}

function timedOut(connection: Connection) {
  ;(connection.attachment as Dial).timedOut()
}

/** After the client's FIN an answer would have halfClosed to come; so has the target that should give it. */
function connectMs(connection: Connection): number {
  const { action, timeoutsMs } = connection.route!.plan
  const bounded = connection.client.ended && !(action.type === 'forward' && action.allowHalfOpen)
  return bounded ? Math.min(timeoutsMs.connect, timeoutsMs.halfClosed) : timeoutsMs.connect
}

/** The target while its connect is pending. */
const dialing: Consumer = {
  // The first bytes of a target that speaks first can overtake the event that says it is connected.
  received(end, bytes) {
    dialOf(end).opened()
    end.consumer.received(end, bytes)
  },
  ended() {},
  drained(end) {
    if (end.socket!.remotePort !== undefined) dialOf(end).opened()
    // else the connect has failed: closed() follows.
  },
  closed(end, error) {
    dialOf(end).failed((error as NodeJS.ErrnoException | undefined)?.code ?? 'ECONNREFUSED')
  },
}

const dialOf = (end: End) => of(end).attachment as Dial

/** A connected target that nobody reads yet (its TLS handshake, or the moment before the pair). */
const waiting: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
  },
  ended() {},
  drained() {},
  closed(end) {
    of(end).settle('target_reset')
  },
}

const REFUSED = new Set<string | undefined>(['ECONNREFUSED', 'ECONNRESET', 'EAGAIN', 'EPIPE'])
/** What connect(2) can answer at once (asm-generic/errno.h); anything else is an unreachable target too. */
const ERRNO: Record<number, string> = { 11: 'EAGAIN', 104: 'ECONNRESET', 110: 'ETIMEDOUT', 111: 'ECONNREFUSED' }
