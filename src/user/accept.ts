// A listening socket that the relay thread accepts on: for ports whose connections are forwarded as they are once the first
// bytes, or the address alone, have told the route. A connection costs one event here, and most of them nothing else.
import { canonicalIp, formatEnd, formatIp } from '../base/addresses.ts'
import { native } from '../base/native.ts'
import type { PlannedListener } from '../plan/types.ts'
import { Connection, type Services } from './connection.ts'
import { RelayKeeper } from './keeper.ts'
import { Listening, type Reads } from './listen.ts'
import { opening } from './opening.ts'
import { relayListeners, relayRuns, type RelayEvent, type RelayListener } from './relay-thread.ts'

/** struct sluice_relay_accepted. */
const ENDS_BYTES = 40

let tags = 0

export class RelayAcceptor extends Listening implements RelayListener {
  readonly anyDescriptor: number
  readonly #tag = ++tags
  readonly #stopped = Promise.withResolvers<void>()

  /** Owns the descriptor from here on, also when it throws: it is no listening socket.
   *  @param choose gets each connection; what it said first follows. */
  constructor(
    plan: PlannedListener,
    readonly services: Services,
    fd: number,
    reads: Reads,
    readonly choose: (listener: Listening, connection: Connection, descriptor: number) => void,
  ) {
    super(plan, reads)
    this.anyDescriptor = native().sluice_dup(fd)
    relayListeners.set(this.#tag, this)
    const error = native().sluice_relay_listen(this.#tag, fd, reads === 'thread' ? 1 : 0)
    if (error === 0) return
    relayListeners.delete(this.#tag)
    this.#stopped.resolve()
    native().sluice_close(this.anyDescriptor)
    throw new Error(`errno ${-error}`)
  }

  stop(): Promise<void> {
    if (native().sluice_relay_unlisten(this.#tag) < 0) this.unlistened()
    native().sluice_close(this.anyDescriptor)
    return this.#stopped.promise
  }

  // The thread has one bound for all its listeners: see bound().
  pause() {
    native().sluice_relay_accept(0, 0)
  }

  resume() {}

  unlistened() {
    relayListeners.delete(this.#tag)
    this.#stopped.resolve()
  }

  accepted(event: RelayEvent, bytes: Buffer) {
    const size = bytes[0] === 4 ? 4 : 16
    const ip = addressOf(bytes.subarray(8, 8 + size))
    const { address, port } = this.plan
    const any = address === '::' || address === '0.0.0.0'
    const local = formatEnd(any ? addressOf(bytes.subarray(24, 24 + size)) : address, port)
    const connection = new Connection(this.services, ip, bytes.readUInt16LE(4), local, port, opening)
    const keeper = new RelayKeeper(connection, event.id)
    try {
      this.choose(this, connection, event.descriptor)
      const heard = bytes.length > ENDS_BYTES && connection.client.keeper === keeper
      if (heard) keeper.heard(bytes.subarray(ENDS_BYTES))
      if (heard || this.reads !== 'thread') keeper.goOn()
    } catch (error) {
      connection.crashed(error)
    }
  }
}

const addressOf = (bytes: Buffer) => (bytes.length === 4 ? formatIp(bytes) : canonicalIp(formatIp(bytes)))

/** How far the thread goes by itself: many can come to it before the first of them is heard of here.
 *  @param pairs connections that it may have, those that it was handed over among them. */
export const bound = (pairs: number, descriptorsBelow: number) =>
  native().sluice_relay_accept(Math.max(1, Math.min(pairs, UINT32_MAX)), Math.min(descriptorsBelow, INT32_MAX))

const UINT32_MAX = 2 ** 32 - 1
const INT32_MAX = 2 ** 31 - 1

/** Whether the thread can have listeners. */
export const canAccept = (services: Services) => relayRuns((message) => services.log('error', message))
