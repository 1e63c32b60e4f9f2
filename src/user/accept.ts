// A listening socket that the relay thread accepts on: for ports whose connections are forwarded as they are once the first
// bytes, or the address alone, have told the route. A connection costs one event here, and most of them nothing else.
import { canonicalIp, formatEnd, formatIp } from '../base/addresses.ts'
import { native } from '../base/native.ts'
import type { PlannedListener } from '../plan/types.ts'
import { Connection, type Services } from './connection.ts'
import { RelayKeeper } from './keeper.ts'
import { Listening, type Reads } from './listen.ts'
import { opening } from './opening.ts'
import { relayListeners, type RelayEvent, type RelayListener } from './relay-thread.ts'

/** struct sluice_relay_accepted. */
const ENDS_BYTES = 40

let tags = 0

export class RelayAcceptor extends Listening implements RelayListener {
  readonly descriptors = 1
  readonly anyDescriptor: number
  readonly #end: string
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
    this.#end = formatEnd(plan.address, plan.port)
    // The thread's, and open until it has heard of stop(): ten thousand listeners would be twenty thousand with a copy each.
    this.anyDescriptor = fd
    relayListeners.set(this.#tag, this)
    const error = native().sluice_relay_listen(this.#tag, fd, reads === 'thread' ? 1 : 0)
    if (error === 0) return
    relayListeners.delete(this.#tag)
    this.#stopped.resolve()
    throw new Error(`errno ${-error}`)
  }

  stop(): Promise<void> {
    if (native().sluice_relay_unlisten(this.#tag) < 0) this.unlistened()
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

  accepted(event: RelayEvent) {
    const { message, from } = event
    const is4 = message[from] === 4
    const ip = addressAt(message, from + 8, is4)
    const { address, port } = this.plan
    const local = isAny(address) ? formatEnd(addressAt(message, from + 24, is4), port) : this.#end
    const connection = new Connection(this.services, ip, message.readUInt16LE(from + 4), local, port, opening)
    const keeper = new RelayKeeper(connection, event.id)
    try {
      this.choose(this, connection, event.descriptor)
      const heard = event.to - from > ENDS_BYTES && connection.client.keeper === keeper
      if (heard) keeper.heard(message.subarray(from + ENDS_BYTES, event.to))
      if (heard || this.reads !== 'thread') keeper.goOn()
    } catch (error) {
      connection.crashed(error)
    }
  }
}

const isAny = (address: string) => address === '::' || address === '0.0.0.0'

/** Made without a view of the bytes: those cost more than all the rest. */
const addressAt = (message: Buffer, at: number, is4: boolean) =>
  is4
    ? `${message[at]}.${message[at + 1]}.${message[at + 2]}.${message[at + 3]}`
    : canonicalIp(formatIp(message.subarray(at, at + 16)))

/** How far the thread goes by itself: many can come to it before the first of them is heard of here.
 *  @param pairs connections that it may have, those that it was handed over among them. */
export const bound = (pairs: number, descriptorsBelow: number) =>
  native().sluice_relay_accept(Math.max(1, Math.min(pairs, UINT32_MAX)), Math.min(descriptorsBelow, INT32_MAX))

const UINT32_MAX = 2 ** 32 - 1
const INT32_MAX = 2 ** 31 - 1
