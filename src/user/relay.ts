// TypeScript's side of the native relay: hands both sockets of a connection over and hears how it went on. From then on no
// JavaScript runs for a byte; the record, the deadlines and the closing stay here.
import { native, ptr } from '../base/native.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Attachment, Connection } from './connection.ts'
import { keepAlive } from './idle.ts'

const EVENT_BYTES = 48
const HALF_CLOSED = 1
const CLIENT_SIDE = 0
const SEQPACKET = 5

/** The relay thread is one for the process. It starts with the first connection handed over and stops with its last user. */
const carried = new Map<number, Relayed>()
let state: 'stopped' | 'running' | 'failed' = 'stopped'
let users = 0
let nextId = 1
let events: Bun.Socket<any> | undefined

/** A plane may hand over from now on. */
export function useRelay() {
  users++
}

export function leaveRelay() {
  if (--users > 0 || state !== 'running') return
  native().sluice_relay_stop()
  state = 'stopped'
  const socket = events
  events = undefined // or its close would look like an accident
  socket?.terminate()
}

/** Hands the connection over; false: the relay cannot take it (no thread, a unix target), and nothing has changed. */
export function relay(connection: Connection): boolean {
  const { client } = connection
  const target = connection.target!
  if (target.socket!.remotePort === undefined || target.queuedBytes > 0 || client.queuedBytes > 0) return false
  if (!start(connection)) return false
  keepAlive(connection)
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
  const relayed = new Relayed(connection, nextId++, client.received - toTarget.length, client.sent)
  connection.attachment = relayed
  connection.services.spliced++
  connection.carrier = 'splice'
  connection.setState('open')
  carried.set(relayed.id, relayed)
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
  } else armIdle(connection)
  return true
}

class Relayed implements Attachment {
  #final: { bytesIn: number; bytesOut: number } | undefined
  #closing: CloseReason | undefined
  #reset = false

  constructor(
    readonly connection: Connection,
    readonly id: number,
    /** Forwarded before the hand-over. */
    readonly bytesInBefore: number,
    readonly bytesOutBefore: number,
  ) {}

  release() {
    this.connection.services.spliced--
    carried.delete(this.id)
    // Settled before the relay had its say (a mistake of ours): its sockets must not stay behind.
    if (!this.#final) native().sluice_relay_close(this.id, 1, 0)
  }

  close(reason: CloseReason, reset = true): boolean {
    // A second wish can only be a harder one; the first reason stays.
    if (this.#closing && (this.#reset || !reset)) return true
    if (
      native().sluice_relay_close(this.id, reset ? 1 : 0, reset ? 0 : this.connection.route!.plan.timeoutsMs.grace) < 0
    )
      return this.#closing !== undefined
    this.#closing ??= reason
    this.#reset = reset
    return true
  }

  counts() {
    if (this.#final) return this.#final
    const now = this.stats()
    return now ? this.#sum(now.bytesIn, now.bytesOut) : undefined
  }

  held() {
    return this.stats() !== undefined
  }

  stats() {
    if (native().sluice_relay_stats(this.id, ptr(scratch)) < 0) return undefined
    return readEvent(scratch, 0)
  }

  event(event: RelayEvent) {
    const { connection } = this
    if (event.kind === HALF_CLOSED) {
      const { action } = connection.route!.plan
      const allowHalfOpen = action.type === 'forward' && action.allowHalfOpen
      connection.setState('half-closed')
      if (allowHalfOpen) quiet(connection)
      else connection.arm(connection.route!.plan.timeoutsMs.halfClosed, late)
      return
    }
    this.#final = this.#sum(event.bytesIn, event.bytesOut)
    connection.settle(this.#closing ?? reasonOf(event))
  }

  #sum(bytesIn: number, bytesOut: number) {
    return { bytesIn: this.bytesInBefore + bytesIn, bytesOut: this.bytesOutBefore + bytesOut }
  }
}

const reasonOf = (event: RelayEvent): CloseReason =>
  event.error === 0 ? 'finished' : event.side === CLIENT_SIDE ? 'client_reset' : 'target_reset'

// ---- deadlines: as in idle.ts, but only the relay knows when the last byte moved ----

function armIdle(connection: Connection) {
  connection.arm(connection.route!.plan.timeoutsMs.idle, idle)
}

const idleMs = (connection: Connection) => (connection.attachment as Relayed).stats()?.idleMs ?? 0

function idle(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.idle - idleMs(connection)
  if (left > 0) connection.arm(left, idle)
  else connection.cut('idle_timeout')
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

// ---- events ----

interface RelayEvent {
  kind: number
  side: number
  error: number
  idleMs: number
  bytesIn: number
  bytesOut: number
}

const scratch = Buffer.alloc(EVENT_BYTES)

function readEvent(from: Buffer, at: number): RelayEvent & { id: number } {
  return {
    id: Number(from.readBigUInt64LE(at)),
    kind: from[at + 8]!,
    side: from[at + 9]!,
    error: from.readUInt16LE(at + 10),
    idleMs: from.readUInt32LE(at + 12),
    bytesIn: Number(from.readBigUInt64LE(at + 16)),
    bytesOut: Number(from.readBigUInt64LE(at + 24)),
  }
}

function start(connection: Connection): boolean {
  if (state !== 'stopped') return state === 'running'
  const pair = new Int32Array(2)
  let error = native().sluice_socketpair(SEQPACKET, ptr(pair))
  if (error === 0) error = native().sluice_relay_start(pair[1]!)
  state = error < 0 ? 'failed' : 'running'
  if (error < 0) {
    connection.services.log(
      'error',
      `The relay thread did not start (errno ${-error}): bytes are carried in TypeScript instead`,
    )
    return false
  }
  Bun.connect({ fd: pair[0]!, allowHalfOpen: true, data: undefined, socket: eventHandlers }).catch(() => {})
  return true
}

const eventHandlers = {
  open(socket: Bun.Socket<any>) {
    events = socket
  },
  data(_: Bun.Socket<any>, bytes: Buffer) {
    for (let at = 0; at + EVENT_BYTES <= bytes.length; at += EVENT_BYTES) {
      const event = readEvent(bytes, at)
      const relayed = carried.get(event.id)
      try {
        relayed?.event(event)
      } catch (error) {
        relayed!.connection.crashed(error)
      }
    }
  },
  close(socket: Bun.Socket<any>) {
    // The thread has gone although nobody stopped it: its connections went with it.
    if (socket !== events) return
    events = undefined
    state = 'failed'
    for (const { connection } of [...carried.values()]) connection.settle('internal_error')
  },
}
