// Opens the target of a connection: chooses one, resolves its name, connects without blocking, and goes on to the next
// address or target while nothing has been delivered. Giving up closes the descriptor, so no SYN stays behind.
import { lookup } from 'node:dns/promises'
import { canonicalIp, formatEnd } from '../base/addresses.ts'
import { DIAL_ADDRESSES_MAX, DIAL_TARGETS_MAX } from '../base/limits.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Slot } from './balance.ts'
import { connectEnd, isConnected, isOurs } from './connect.ts'
import { of, type Attachment, type Connection } from './connection.ts'
import { End, type Consumer } from './end.ts'
import { headerFor } from './proxy-out.ts'

/** Called with connection.target open. Shared functions, not closures. */
export type OnOpen = (connection: Connection) => void

export class Dial implements Attachment {
  readonly #tried: Slot[] = []
  #slot!: Slot
  #addresses: string[] = []
  /** Why the last target was not it. */
  reason: CloseReason = 'target_unreachable'
  #startedAt = 0
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
    if (!slot) return connection.settle(this.reason)
    this.#tried.push(slot)
    this.#slot = connection.slot = slot
    slot.active++
    this.#startedAt = Date.now()
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
    this.#failed('connect_timeout')
    this.skip('connect_timeout')
  }

  /** Gives this target up for the next one. */
  skip(reason: CloseReason) {
    this.reason = reason
    this.connection.client.keeper?.abandon()
    this.connection.target?.reset()
    this.next()
  }

  opened() {
    this.#released = true
    if (this.#slot.failing) this.connection.services.dials.succeeded(this.connection, this.#slot, this.#startedAt)
    this.connection.attachment = null
    if (this.connection.target) this.connection.target.consumer = waiting
    this.onOpen(this.connection)
  }

  failed(code: string | undefined) {
    this.reason = code === 'ETIMEDOUT' ? 'connect_timeout' : REFUSED.has(code) ? 'target_refused' : 'target_unreachable'
    if (!isOurs(code)) this.#failed(this.reason)
    if (this.#addresses.length > 0) this.#attempt()
    else this.next()
  }

  #failed(reason: CloseReason) {
    this.connection.services.dials.failed(this.connection, this.#slot, this.#startedAt, reason)
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
    this.reason = 'target_unreachable'
    this.next()
  }

  #attempt() {
    const { connection } = this
    const { host, port } = this.#slot.target
    const to = port ?? connection.port
    const address = host.kind === 'unix' ? host.path : this.#addresses.shift()!
    connection.targetName = host.kind !== 'name' && port !== null ? this.#slot.endpoint : formatEnd(address, to)
    // How that goes will be heard; that the client has gone, too.
    if (connection.client.keeper) return connection.client.keeper.dial(address, to, headerFor(connection))
    const target = (connection.target = new End(connection, dialing))
    const began = host.kind === 'unix' ? connectEnd(target, undefined, 0, address) : connectEnd(target, address, to)
    if (began === 'connected') this.opened()
    else if (began !== 'connecting') this.failed(began.error)
  }
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
    if (isConnected(end)) dialOf(end).opened()
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
