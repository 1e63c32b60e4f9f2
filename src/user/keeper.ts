// A client that the relay thread has accepted and holds while it has no target: its first bytes come up here, and from here it
// is dialled for, or taken out of the thread's hands for what TypeScript does (TLS, handlers, redirects).
import { TARGET_NAMES_MAX } from '../base/limits.ts'
import { cString, native, ptr } from '../base/native.ts'
import { errnoCode } from './connect.ts'
import type { Connection } from './connection.ts'
import { Dial } from './dial.ts'
import type { Keeper } from './end.ts'
import { brokenBy, clientGone } from './opening.ts'
import { KIND, parts, relayStats, type RelayEvent, type RelayPart } from './relay-thread.ts'

export class RelayKeeper implements Keeper, RelayPart {
  headerBytes = 0
  #attempt = 0
  #handedOver = false

  constructor(
    readonly connection: Connection,
    readonly id: number,
  ) {
    connection.client.keeper = this
    parts.set(id, this)
  }

  /** What the client said. Afterwards nothing of the message it came in is kept. */
  heard(bytes: Buffer) {
    const { client } = this.connection
    client.received += bytes.length
    this.connection.touch()
    client.consumer.received(client, bytes)
    if (client.heldBytes > 0) client.held = [Buffer.from(client.peekHeld())]
  }

  /** Reads (on) while no route is chosen. */
  goOn() {
    if (this.connection.client.keeper === this && this.connection.route === null) native().sluice_relay_more(this.id)
  }

  dial(address: string, port: number, header: Uint8Array | null) {
    const { client } = this.connection
    let first: Uint8Array = NOTHING
    if (!this.#handedOver) {
      this.#handedOver = true
      this.headerBytes = header?.length ?? 0
      const held = client.takeHeld()
      first = header || held.length > 1 ? Buffer.concat(header ? [header, ...held] : held) : (held[0] ?? NOTHING)
    }
    const bytes = first.length > 0 ? ptr(first) : null
    // A client that has gone meanwhile will be heard of.
    native().sluice_relay_dial(this.id, ++this.#attempt, ptr(addressText(address)), port, null, bytes, first.length)
  }

  abandon() {
    native().sluice_relay_dial(this.id, ++this.#attempt, ptr(NO_ADDRESS), 0, null, null, 0)
  }

  counts() {
    const now = relayStats(this.id)
    if (!now || now.bytesIn + now.bytesOut === 0) return undefined
    return { bytesIn: Math.max(0, now.bytesIn - this.headerBytes), bytesOut: now.bytesOut }
  }

  held() {
    return relayStats(this.id) !== undefined
  }

  take(): number {
    this.#letGo()
    return Math.max(-1, native().sluice_relay_take(this.id))
  }

  reset() {
    this.#letGo()
    native().sluice_relay_close(this.id, 1, 0)
  }

  #letGo() {
    parts.delete(this.id)
    this.connection.client.keeper = null
  }

  event(event: RelayEvent) {
    const { connection } = this
    switch (event.kind) {
      case KIND.bytes:
        this.heard(event.message.subarray(event.from, event.to))
        return this.goOn()
      case KIND.halfClosed:
        connection.client.ended = true
        // What waits unread before the FIN may be all of a request.
        if (event.bytesIn > 0) connection.attachment?.clientEnded?.()
        else connection.client.consumer.ended(connection.client)
        return
      case KIND.closed:
        this.#letGo()
        // It had said something, even if nobody has read it.
        if (event.bytesIn > 0) return connection.settle(brokenBy('client', errnoCode(event.error)))
        return clientGone(connection, new Error('the client reset the connection'))
      case KIND.connected:
        if (event.tag === this.#attempt) return (connection.attachment as Dial).opened()
        // It was connected in the very moment in which it was given up. Its bytes flow, so nobody else can have them.
        return connection.settle((connection.attachment as Dial).reason)
      case KIND.refused:
        if (event.tag === this.#attempt) (connection.attachment as Dial).failed(errnoCode(event.error))
    }
  }

  crashed(error: unknown) {
    this.connection.crashed(error)
  }

  lost() {
    this.connection.settle('internal_error')
  }
}

/** Targets are few, their connections many. */
const texts = new Map<string, Buffer>()

function addressText(address: string): Buffer {
  let text = texts.get(address)
  if (!text) {
    if (texts.size === TARGET_NAMES_MAX) texts.clear()
    texts.set(address, (text = cString(address)))
  }
  return text
}

const NOTHING = new Uint8Array(0)
const NO_ADDRESS = cString('')
