// The life of one connection: accepted, admitted to a route, carried, settled. It owns both ends, the one deadline, and
// whatever carries it at the moment; settle() is the only way out, works once, and leaves nothing behind.
import { formatEnd, ipBytes } from '../base/addresses.ts'
import { isoTime } from '../base/clock.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Slot } from './balance.ts'
import type { Challenges } from './challenges.ts'
import type { Dials } from './dials.ts'
import type { Own } from './reach.ts'
import type { ProxyHeader } from './peek/proxy-header.ts'
import { End, type Consumer, type Owner } from './end.ts'
import type { Reported, Reporter } from './report.ts'
import type { LiveRoute } from './route.ts'
import { refusalFor, type Everyone } from './security.ts'
import { Timed, type Timers } from './timers.ts'

/** What a connection needs of the plane it lives in. */
export interface Services {
  readonly timers: Timers
  readonly reporter: Reporter
  /** How dialling targets goes. */
  readonly dials: Dials
  readonly table: Map<string, Connection>
  readonly everyone: Everyone
  /** Of a certificate authority. */
  readonly challenges: Challenges
  readonly log: (level: 'debug' | 'info' | 'warn' | 'error', message: string, fields?: Record<string, unknown>) => void
  /** Connections in the relay now. */
  spliced: number
  /** Sockets that handlers have opened, or are opening. */
  opened: number
  /** What the gateway itself has, which no handler may connect to. */
  own(): Own
  /** The relay thread carries what it can. */
  relays(): boolean
  nextId(): string
  /** A connection is gone. */
  left(): void
}

/** What carries the connection besides its two ends: a dial, a handler, the relay. */
export interface Attachment {
  /** The connection is settling: let go of everything at once. */
  release(reason: CloseReason): void
  /** The operator or a deadline wants it over. true: settle() comes later, with the final counts. */
  close?(reason: CloseReason): boolean
  counts?(): { bytesIn: number; bytesOut: number } | undefined
  /** Native code has the sockets: does it still know of them? undefined: they are TypeScript's at the moment. */
  held?(): boolean | undefined
  /** The client sent FIN while its bytes are still held. */
  clientEnded?(): void
  /** Pumped: everything for one side is out. true: the sockets are not TypeScript's any more. */
  drained?(): boolean
  /** Pumped: a side speaks TLS that a handler began. */
  readonly encrypted?: boolean
}

/** What a handler has of the connection, whatever carries it. */
export interface Scope {
  /** The connection is settling. */
  release(reason: CloseReason): void
}

/** Shared functions, so that a deadline costs no closure. */
export type OnDeadline = (connection: Connection) => void

export class Connection extends Timed implements Owner, Reported {
  readonly id: string
  readonly client: End
  target: End | null = null
  route: LiveRoute | null = null
  slot: Slot | null = null
  attachment: Attachment | null = null
  scope: Scope | null = null
  /** While its first bytes are read: the routes that the listener had when it came. */
  candidates: readonly LiveRoute[] | null = null
  carrier: 'splice' | 'user' = 'user'
  state: ConnectionRecord['state'] = 'opening'
  reason: CloseReason | undefined
  serverName: string | undefined
  tls: ConnectionRecord['tls']
  targetName: string | null = null
  /** What a trusted sender said, and who that was. */
  proxy: { sender: string; header: ProxyHeader } | null = null
  /** On the timers' clock: the last byte in either direction. */
  activeAt: number
  announced = false
  changed = false
  settled = false
  /** After one side's FIN the other may go on for as long as it moves; else for halfClosed. */
  allowHalfOpen = false
  readonly openedAt = Date.now()
  #closedAt = 0
  /** The limits of everyone count it. */
  #isCounted = false
  #bytes: { bytesIn: number; bytesOut: number } | undefined
  #onDeadline: OnDeadline | null = null
  #clientBytes: Uint8Array | undefined

  constructor(
    readonly services: Services,
    /** Who is connected; from acceptHeader() on the client behind it. */
    public clientIp: string,
    public clientPort: number,
    /** Where the client connected to. */
    public listener: string,
    readonly port: number,
    consumer: Consumer,
  ) {
    super()
    this.id = services.nextId()
    this.client = new End(this, consumer)
    this.activeAt = services.timers.now
    services.table.set(this.id, this)
  }

  /** The 4 or 16 bytes of the client's address, for lists; most routes have none. */
  get clientBytes() {
    return (this.#clientBytes ??= ipBytes(this.clientIp))
  }

  /** A trusted sender has said for whom it speaks. Before the admission: limits, lists and records are the real client's. */
  acceptHeader(header: ProxyHeader) {
    this.proxy = { sender: formatEnd(this.clientIp, this.clientPort), header }
    const { ends } = header
    if (!ends) return
    this.clientIp = ends.clientIp
    this.clientPort = ends.clientPort
    this.listener = formatEnd(ends.listenerIp, ends.listenerPort)
    this.#clientBytes = undefined
  }

  // ---- admission ----

  /** Checks the route's lists and limits. false: refused and gone, without a record. From here on the connection has one. */
  admit(route: LiveRoute): boolean {
    const refused = refusalFor(route, this.clientIp, this, this.openedAt)
    const enforced = refused !== undefined && !route.rules.observe
    if (refused !== undefined) this.services.reporter.refused(route.name, refused, !enforced)
    const shut = enforced ? undefined : (route.shut ?? this.services.everyone.refusalFor(this.clientIp, this.openedAt))
    if (shut !== undefined) this.services.reporter.refused(route.name, shut)
    if (enforced || shut !== undefined) {
      this.discard()
      return false
    }
    this.enter(route)
    return true
  }

  /** It is the route's, and counts: for a connection that nobody has to admit, because a handler of the route made it. */
  enter(route: LiveRoute) {
    const { action } = route.plan
    this.route = route
    this.allowHalfOpen = action.type === 'forward' && action.allowHalfOpen
    route.counters.enter(this.clientIp)
    this.#count()
    this.services.reporter.opened(this)
  }

  /** No route's: the gateway answers it itself, and only the limits of everyone apply. false: refused and gone. */
  admitUnrouted(): boolean {
    const refused = this.services.everyone.refusalFor(this.clientIp, this.openedAt)
    if (refused === undefined) this.#count()
    else {
      this.services.reporter.refused('', refused)
      this.discard()
    }
    return refused === undefined
  }

  #count() {
    this.#isCounted = true
    this.services.everyone.counters.enter(this.clientIp)
  }

  /** Ends a connection that never got a record. */
  discard() {
    this.settled = true
    this.#leave()
    this.client.reset()
    this.services.left()
  }

  // ---- the one deadline ----

  arm(ms: number, onDeadline: OnDeadline) {
    this.#onDeadline = onDeadline
    this.services.timers.arm(this, ms)
  }

  disarm() {
    this.services.timers.disarm(this)
  }

  override expired() {
    try {
      this.#onDeadline?.(this)
    } catch (error) {
      this.crashed(error)
    }
  }

  touch() {
    this.activeAt = this.services.timers.now
  }

  /** Milliseconds since the last byte. */
  get idleMs() {
    return this.services.timers.now - this.activeAt
  }

  // ---- what is known ----

  setState(state: ConnectionRecord['state']) {
    if (this.state === state || this.settled) return
    this.state = state
    this.services.reporter.changed(this)
  }

  update() {
    this.services.reporter.changed(this)
  }

  counts() {
    const { client } = this
    const carried = this.#bytes ?? this.attachment?.counts?.() ?? client.keeper?.counts()
    return carried ?? { bytesIn: client.received, bytesOut: client.sent }
  }

  record(): ConnectionRecord {
    const { bytesIn, bytesOut } = this.counts()
    const record: ConnectionRecord = {
      id: this.id,
      route: this.route?.name ?? '',
      carrier: this.carrier,
      client: formatEnd(this.clientIp, this.clientPort),
      listener: this.listener,
      target: this.targetName,
      state: this.state,
      openedAt: isoTime(this.openedAt),
      bytesIn,
      bytesOut,
    }
    if (this.proxy) record.proxy = this.proxy.sender
    if (this.serverName !== undefined) record.serverName = this.serverName
    if (this.tls) record.tls = this.tls
    if (this.settled) {
      record.closedAt = isoTime(this.#closedAt)
      if (this.reason) record.reason = this.reason
    }
    return record
  }

  // ---- the end ----

  /** Ends it now with RST both ways; a carrier in native code answers with its final counts first. */
  cut(reason: CloseReason) {
    if (this.settled) return
    if (this.attachment?.close?.(reason)) this.setState('closing')
    else this.settle(reason)
  }

  /** Over. `orderly` sockets are closed, so that what the kernel has accepted still arrives; else they are reset. Once. */
  settle(reason: CloseReason, orderly = false) {
    if (this.settled) return
    this.#bytes = this.counts()
    this.settled = true
    this.state = 'closed'
    this.reason = reason
    this.#closedAt = Date.now()
    const { attachment } = this
    this.attachment = null
    attachment?.release(reason)
    this.scope?.release(reason)
    this.scope = null
    for (const end of [this.client, this.target]) {
      if (!end) continue
      end.takeHeld()
      if (orderly) end.close()
      else end.reset()
    }
    this.#leave()
    this.services.reporter.settled(this)
    this.services.left()
  }

  #leave() {
    this.disarm()
    this.services.table.delete(this.id)
    this.route?.counters.leave(this.clientIp)
    if (this.#isCounted) this.services.everyone.counters.leave(this.clientIp)
    if (this.slot) this.slot.active--
    this.slot = null
  }

  /** For what a client can cause at will: at most a line a second and route. */
  log(level: 'debug' | 'info' | 'warn' | 'error', message: string, fields?: Record<string, unknown>) {
    const line = this.route ? this.route.logLine(message, this.services.timers.now) : message
    if (line !== undefined) this.services.log(level, line, { id: this.id, route: this.route?.name, ...fields })
  }

  /** The sweep found that nothing would end it any more. */
  swept(what: string, facts: object) {
    this.services.log('error', `The sweep ended a connection: ${what}`, { ...facts, ...this.record() })
    // One that has settled was only not forgotten.
    if (this.settled) this.services.table.delete(this.id)
    else this.settle('internal_error')
  }

  crashed(error: unknown) {
    this.services.log('error', 'A connection ended by a mistake in the gateway', {
      id: this.id,
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    })
    this.settle('internal_error')
  }
}

/** The connection an end belongs to. */
export const of = (end: End) => end.owner as Connection
