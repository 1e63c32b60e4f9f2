// Connections that the native relay carries: both sockets are the thread's, and no JavaScript runs for a byte. The record, the
// deadlines and the closing stay here.
import { native, ptr } from '../base/native.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Attachment, Connection } from './connection.ts'
import { KEEP_ALIVE_AFTER_MS } from '../base/limits.ts'
import { errnoCode } from './connect.ts'
import { brokenBy } from './opening.ts'
import { CLIENT_SIDE, KIND, parts, relayStats, type RelayEvent, type RelayPart } from './relay-thread.ts'

/** Ids of pairs that are handed over; those of clients that the thread accepts begin at 2^48. */
let nextId = 1

/** Hands both Bun sockets over; false: the relay cannot take them (no thread, a unix target), and nothing has changed.
 *  @param over hears once how the connection ended. */
export function relay(connection: Connection, over?: (reason: CloseReason) => void): boolean {
  const { client } = connection
  const target = connection.target!
  if (target.socket!.remotePort === undefined || target.queuedBytes > 0 || client.queuedBytes > 0) return false
  if (!connection.services.relays()) return false
  client.pause()
  target.pause()
  const clientFd = native().sluice_dup(client.socket!.fd)
  const targetFd = native().sluice_dup(target.socket!.fd)
  if (clientFd < 0 || targetFd < 0) {
    for (const fd of [clientFd, targetFd]) if (fd >= 0) native().sluice_close(fd)
    client.resume()
    target.resume()
    return false
  }
  const toTarget = Buffer.concat(client.takeHeld())
  const toClient = Buffer.concat(target.takeHeld())
  // Nothing is queued on them, so this is close(2) and no shutdown(2): the connections live on in the copies.
  client.close()
  target.close()
  const relayed = new Relayed(connection, nextId++, client.received - toTarget.length, client.sent, over)
  const error = native().sluice_relay_add(
    relayed.id,
    clientFd,
    targetFd,
    toTarget.length > 0 ? ptr(toTarget) : null,
    toTarget.length,
    toClient.length > 0 ? ptr(toClient) : null,
    toClient.length,
  )
  if (error < 0) {
    // It owned, and has closed, both descriptors.
    connection.log('error', `The relay did not take a connection: errno ${-error}`)
    connection.settle('internal_error')
  }
  return true
}

/** The thread has connected the client it keeps: from now on it carries. */
export function carryKept(connection: Connection) {
  const { id, headerBytes } = connection.client.keeper!
  connection.client.keeper = null
  new Relayed(connection, id, -headerBytes, 0)
}

class Relayed implements Attachment, RelayPart {
  #final: { bytesIn: number; bytesOut: number } | undefined
  #closing: CloseReason | undefined
  #reset = false

  constructor(
    readonly connection: Connection,
    readonly id: number,
    /** Forwarded before the relay counted; negative: counted by it, and no word of the client's. */
    readonly bytesInBefore: number,
    readonly bytesOutBefore: number,
    readonly over?: (reason: CloseReason) => void,
  ) {
    parts.set(id, this)
    connection.attachment = this
    connection.services.spliced++
    connection.setState('open')
    connection.arm(Math.min(connection.route!.plan.timeoutsMs.idle, KEEP_ALIVE_AFTER_MS), lasting)
  }

  release(reason: CloseReason) {
    this.connection.services.spliced--
    parts.delete(this.id)
    // Settled before the relay had its say (a mistake of ours): its sockets must not stay behind.
    if (!this.#final) native().sluice_relay_close(this.id, 1, 0)
    this.over?.(reason)
  }

  close(reason: CloseReason, reset = true): boolean {
    // A second wish can only be a harder one; the first reason stays.
    if (this.#closing && (this.#reset || !reset)) return true
    const grace = reset ? 0 : this.connection.route!.plan.timeoutsMs.grace
    if (native().sluice_relay_close(this.id, reset ? 1 : 0, grace) < 0) return this.#closing !== undefined
    this.#closing ??= reason
    this.#reset = reset
    return true
  }

  counts() {
    if (this.#final) return this.#final
    const now = relayStats(this.id)
    return now ? this.#sum(now) : undefined
  }

  held() {
    return relayStats(this.id) !== undefined
  }

  event(event: RelayEvent) {
    const { connection } = this
    if (event.kind === KIND.halfClosed) {
      connection.setState('half-closed')
      if (connection.allowHalfOpen) halfOpen(connection)
      else connection.arm(connection.route!.plan.timeoutsMs.halfClosed, late)
    } else if (event.kind === KIND.closed) {
      this.#final = this.#sum(event)
      connection.settle(this.#closing ?? reasonOf(event))
    }
  }

  crashed(error: unknown) {
    this.connection.crashed(error)
  }

  lost() {
    this.connection.settle('internal_error')
  }

  #sum({ bytesIn, bytesOut }: RelayEvent) {
    // A header of ours that the target has not taken yet is no payload of a negative length.
    return { bytesIn: Math.max(0, this.bytesInBefore + bytesIn), bytesOut: this.bytesOutBefore + bytesOut }
  }
}

function reasonOf({ error, side }: RelayEvent): CloseReason {
  if (error === 0) return 'finished'
  return brokenBy(side === CLIENT_SIDE ? 'client' : 'target', errnoCode(error))
}

// ---- deadlines: as in idle.ts, but only the relay knows when the last byte moved ----

const idleMs = (connection: Connection) => relayStats((connection.attachment as Relayed).id)?.idleMs ?? 0

/** As in idle.ts: keepalive costs ten system calls, and most connections are over before it could find anything. */
function lasting(connection: Connection) {
  keepAlive(connection)
  idle(connection)
}

function keepAlive(connection: Connection) {
  const { keepAlive } = connection.route!.plan
  if (!keepAlive) return
  const { idleS, intervalS, count } = keepAlive
  native().sluice_relay_keepalive((connection.attachment as Relayed).id, idleS, intervalS, count)
}

function idle(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.idle - idleMs(connection)
  if (left > 0) connection.arm(left, idle)
  else connection.cut('idle_timeout')
}

function halfOpen(connection: Connection) {
  keepAlive(connection)
  quiet(connection)
}

function quiet(connection: Connection) {
  const { parity, idle } = connection.route!.plan.timeoutsMs
  const left = Math.min(parity, idle) - idleMs(connection)
  if (left > 0) connection.arm(left, quiet)
  else connection.cut('half_closed_timeout')
}

function late(connection: Connection) {
  connection.setState('closing')
  if (!(connection.attachment as Relayed).close('half_closed_timeout', false)) connection.settle('half_closed_timeout')
}
