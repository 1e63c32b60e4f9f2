// The kernel's flows as records: what events and dumps say of them, each opened once and settled once. 100,000 flows are
// 100,000 slots in one buffer (flow-slots.ts), not objects; a ConnectionRecord is made when somebody looks. Pure: it knows
// neither netlink nor clocks.
import { isoTime } from '../base/clock.ts'
import { TARGET_NAMES_MAX } from '../base/limits.ts'
import { EXTRA, FlowSlots, SLOT_BYTES } from './flow-slots.ts'
import {
  AT,
  bothEndsKnow,
  carriedOf,
  destroyReason,
  endedMs,
  endReason,
  establishedMs,
  eventMs,
  FLOW,
  FLOW_BYTES,
  IPPROTO_TCP,
  keyOf,
  numberOf,
  openedMs,
  PHASE,
  phaseOf,
  recordOf,
  startMs,
  STATE_TIMEOUTS_S,
  targetNumberOf,
  targetOf,
  tcpIsOver,
} from './native-flow.ts'
import { recentFlows } from './recent.ts'
import type { ConnectionRecord } from './record.ts'
import type { CloseReason } from './reasons.ts'
import type { Carried } from './totals.ts'

/** Between the kernel's own times of one flow. */
const CLOCK_MS = 10
/** A listed entry tells when its flow ended to the second below. Twice that, for what is under way as well. */
const ENDED_MS = 2000

/** What a batch did. */
export interface FlowListener {
  /** slot: where its record is; null: it is over already. */
  opened(number: number, target: string, openedMs: number, slot: number | null): void
  /** It has carried this much more than was told before. */
  carried(number: number, target: string, openedMs: number, more: Carried): void
  /** Out of the table when this is called. `carried`: the sum of all that was told. `written`: an earlier life has written its
   *  record already. */
  settled(record: ConnectionRecord, number: number, carried: Carried, written: boolean): void
  /** From SYN to established; of one flow in eight. `receipt`: a kernel before 6.14, it is when we heard of it. */
  established(number: number, target: string, latencyMs: number, clock: 'kernel' | 'receipt'): void
  /** Its entry has gone though both ends believe in the connection. */
  orphaned(native: Uint8Array): void
  lost(): void
  /** Reads the flow's entry, as it is now, into the native record; false when it has gone. */
  readEntry(native: Uint8Array): boolean
  dumped(request: number, error: number): void
  nftChanged(pid: number): void
}

export type Written = ReadonlyMap<number, number>

/** What the first dump of a life has to know of the life before. */
export interface Adoption {
  /** Flows that ended later than this have not been counted. */
  sinceMs: number
  /** The flows that ended around then, or later, and have their record, when that is known: key and when it closed. */
  written: Written | null
  /** Of flows that began later than this all events are heard: they are told by those. */
  heardMs: number
}

/** One live flow, for deciding whether its time is up; by the clock that is never set. */
export interface FlowTimes {
  number: number
  protocol: number
  phase: number
  bornMs: number
  /** Packets were last seen to be counted. */
  activeMs: number
}

export class FlowTable {
  readonly #slots = new FlowSlots()
  /** Keys that ended while a dump ran: an entry of that dump is older than their end. */
  #endedDuringDump: Set<number> | null = null
  #dumpGeneration = 0
  #dumpIsWhole = false
  #adoption: Adoption | null = null
  /** Events were dropped of flows that began then. `open`: no dump has shown yet what there was. */
  #loss = { fromMs: Infinity, toMs: -Infinity, open: false, inDump: false }
  /** Of the message that is being read, by the clock that is never set and by the one on the wall. */
  #nowMs = 0
  #wallMs = 0
  readonly #recent = recentFlows()
  #reuses = 0
  /** Seconds that conntrack remembers a TCP flow, by its state. */
  stateTimeoutsS: readonly number[] = STATE_TIMEOUTS_S
  readonly #targets = new Map<number, string>()

  /** @param routeOf name of a route number, also of routes that are gone. */
  constructor(
    private readonly routeOf: (number: number) => string,
    private readonly listener: FlowListener,
  ) {}

  get size() {
    return this.#slots.live
  }

  /** Bytes held: what the records cost. */
  get bytes() {
    return this.#slots.memory
  }

  // ---- events ----

  /** One message of the reader: several native records. */
  ingest(message: Uint8Array, nowMs = performance.now(), wallMs = Date.now()) {
    this.#nowMs = nowMs
    this.#wallMs = wallMs
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength)
    for (let at = 0; at + FLOW_BYTES <= message.byteLength; at += FLOW_BYTES) this.#one(message, view, at)
  }

  #one(bytes: Uint8Array, view: DataView, at: number) {
    switch (bytes[at + AT.kind]) {
      case FLOW.NEW:
        return this.#see(bytes, view, at)
      case FLOW.UPDATE:
        // Never opens a record: what is told late of a flow that we have ended would bring it back.
        if (this.#slots.find(bytes, view, at) >= 0) this.#see(bytes, view, at)
        return
      case FLOW.CLOSED:
        return this.#closed(bytes, view, at)
      case FLOW.WHOLE:
        return this.#whole(bytes, view, at)
      case FLOW.DESTROY:
        return this.#destroyed(bytes, view, at)
      case FLOW.DUMPED:
        return this.#dumped(bytes, view, at)
      case FLOW.DUMP_END:
        return this.#dumpEnd(view.getUint16(at + AT.request, true), view.getUint32(at + AT.error, true))
      case FLOW.LOST:
        return this.#lost(startMs(view, at), eventMs(view, at))
      case FLOW.NFT_CHANGED:
        return this.listener.nftChanged(view.getUint32(at + AT.mark, true))
    }
  }

  #see(bytes: Uint8Array, view: DataView, at: number) {
    const found = this.#slots.find(bytes, view, at)
    const slot = found < 0 ? this.#insert(bytes, view, at) : found
    const base = slot * SLOT_BYTES
    const was = this.#slots.bytes[base + EXTRA.phase]!
    this.#slots.bytes[base + EXTRA.seen] = this.#dumpGeneration
    // A dump may be ahead of the event that tells of the SYN.
    if (found < 0 || bytes[at + AT.kind] !== FLOW.NEW) this.#refresh(slot, bytes, view, at)
    if (was === PHASE.OPENING) this.#established(slot, bytes, view, at)
  }

  /** Told once, and only of a flow that was seen to open. */
  #established(slot: number, bytes: Uint8Array, view: DataView, at: number) {
    const established = establishedMs(view, at)
    const opened = this.#slots.view.getFloat64(slot * SLOT_BYTES + EXTRA.openedMs, true)
    if (established !== 0) this.#tellEstablished(bytes, view, at, established - opened)
  }

  /** State and counters, as they are told now. */
  #refresh(slot: number, bytes: Uint8Array, view: DataView, at: number) {
    const base = slot * SLOT_BYTES
    this.#slots.view.setUint32(base + AT.mark, view.getUint32(at + AT.mark, true), true)
    this.#slots.view.setUint32(base + AT.status, view.getUint32(at + AT.status, true), true)
    // Not every message tells the state.
    if (bytes[at + AT.state] !== 0 || bytes[at + AT.protocol] !== IPPROTO_TCP) {
      this.#slots.bytes[base + AT.state] = bytes[at + AT.state]!
      this.#slots.bytes[base + EXTRA.phase] = phaseOf(bytes, view, at)
    }
    const expires = eventMs(view, at) / 1000 + view.getUint32(at + AT.timeout, true)
    this.#slots.view.setUint32(base + EXTRA.expiresS, expires, true)
    if (bytes[at + AT.counted]) this.#copyCounters(slot, bytes, at)
  }

  #tellEstablished(bytes: Uint8Array, view: DataView, at: number, latencyMs: number) {
    const clock = bytes[at + AT.timed] ? 'kernel' : 'receipt'
    this.listener.established(numberOf(view, at), this.#targetOf(bytes, view, at), Math.max(0, latencyMs), clock)
  }

  #closed(bytes: Uint8Array, view: DataView, at: number) {
    const slot = this.#slots.find(bytes, view, at)
    // Settled before (killed, or a late FIN that is sent again): the record is written already.
    if (slot < 0) return
    if (this.#slots.bytes[slot * SLOT_BYTES + EXTRA.phase] === PHASE.OPENING) this.#established(slot, bytes, view, at)
    this.#slots.view.setUint32(slot * SLOT_BYTES + AT.mark, view.getUint32(at + AT.mark, true), true)
    if (!bytes[at + AT.counted]) {
      // The entry went before its counters could be read: DESTROY is on its way and has them.
      this.#slots.bytes[slot * SLOT_BYTES + EXTRA.phase] = PHASE.CLOSING
      return
    }
    this.#copyCounters(slot, bytes, at)
    this.#settle(slot, endReason(view, at) ?? 'nftables_closed', eventMs(view, at))
  }

  /** A short connection that opened and ended while the reader held its records back: it never needs a slot. */
  #whole(bytes: Uint8Array, view: DataView, at: number) {
    const known = this.#slots.find(bytes, view, at) >= 0
    if (known || !bytes[at + AT.counted]) {
      // Not counted: DESTROY will bring that. Known: the tuple of a flow that ended unseen, and whose port is in use again.
      if (!known) this.#see(bytes, view, at)
      return this.#closed(bytes, view, at)
    }
    const established = establishedMs(view, at)
    if (established !== 0) this.#tellEstablished(bytes, view, at, established - openedMs(view, at))
    this.#tellWhole(bytes, view, at, endReason(view, at) ?? 'nftables_closed', eventMs(view, at))
  }

  /** Opened, counted and settled at once. */
  #tellWhole(bytes: Uint8Array, view: DataView, at: number, reason: CloseReason, closedMs: number, written = false) {
    const number = numberOf(view, at)
    const [target, opened, carried] = [this.#targetOf(bytes, view, at), openedMs(view, at), carriedOf(bytes, view, at)]
    this.listener.opened(number, target, opened, null)
    this.listener.carried(number, target, opened, carried)
    const key = keyOf(bytes, view, at)
    const record = recordOf(bytes, view, at, this.routeOf(number), target, PHASE.OPEN, opened, this.#again(key))
    this.#remember(key)
    this.#report(record, number, carried, reason, Math.max(closedMs, opened), written)
  }

  #destroyed(bytes: Uint8Array, view: DataView, at: number) {
    const slot = this.#slots.find(bytes, view, at)
    if (slot < 0) {
      // Of one that the kernel did not tell us of there is nothing to come but this.
      if (bytes[at + AT.counted] && this.#isUntold(bytes, view, at))
        this.#tellWhole(bytes, view, at, endReason(view, at) ?? destroyReason(bytes, view, at), eventMs(view, at))
      return
    }
    if (bytes[at + AT.counted]) this.#copyCounters(slot, bytes, at)
    const reason = endReason(view, at)
    if (reason === undefined && bothEndsKnow(bytes, view, at)) this.listener.orphaned(this.native(slot))
    this.#settle(slot, reason ?? destroyReason(bytes, view, at), eventMs(view, at))
  }

  // ---- events that were dropped ----

  #lost(fromMs: number, toMs: number) {
    const before = this.#loss.open ? this.#loss.fromMs : Infinity
    this.#loss = { fromMs: Math.min(before, fromMs), toMs, open: true, inDump: false }
    this.listener.lost()
  }

  /** Flows that began since then may be unknown, also those that have ended; null: none. */
  get lossMs(): number | null {
    return this.#loss.open ? this.#loss.fromMs - CLOCK_MS : null
  }

  /** A flow that is not in the table began while events were dropped, and nobody has told of its end. When it began is the
   *  kernel's own time; one that began before was seen to begin, so it is in the table until its end is told. */
  #isUntold(bytes: Uint8Array, view: DataView, at: number): boolean {
    const { fromMs, toMs } = this.#loss
    const start = startMs(view, at)
    if (start < fromMs - CLOCK_MS || start > toMs || start < this.#recent.sinceMs) return false
    return !this.#recent.has(keyOf(bytes, view, at))
  }

  /** 0: no other flow of this key has ended lately. Else a number that the others do not have. */
  #again(key: number): number {
    return this.#recent.has(key) ? (this.#reuses = (this.#reuses % 0xffff) + 1) : 0
  }

  #remember(key: number) {
    this.#endedDuringDump?.add(key)
    this.#recent.add(key, this.#wallMs)
  }

  // ---- dumps: the kernel's truth ----

  /** Call right before a dump is asked for. Flows that it does not list, and that were there before it, are over. With
   *  `adoption`, and after a loss, it should list ended flows as well: those that nobody has told of are told. */
  beginDump(adoption: Adoption | null = null) {
    this.#adoption = adoption
    this.#endedDuringDump = new Set()
    this.#dumpIsWhole = false
    this.#dumpGeneration = (this.#dumpGeneration + 1) & 0xff
    this.#loss.inDump = this.#loss.open
  }

  #dumped(bytes: Uint8Array, view: DataView, at: number) {
    if (this.#endedDuringDump?.has(keyOf(bytes, view, at))) return
    const reason = endReason(view, at) ?? (tcpIsOver(bytes, at) ? 'nftables_closed' : undefined)
    if (reason === undefined) return this.#see(bytes, view, at)
    const ended = endedMs(bytes, view, at, this.stateTimeoutsS)
    const slot = this.#slots.find(bytes, view, at)
    if (slot < 0) return this.#dumpedEnded(bytes, view, at, reason, ended)
    this.#copyCounters(slot, bytes, at)
    this.#settle(slot, reason, ended)
  }

  #dumpedEnded(bytes: Uint8Array, view: DataView, at: number, reason: CloseReason, ended: number) {
    // Of what began since we listen the list may be ahead of the news, which would tell it once more.
    if (!this.#adoption || startMs(view, at) > this.#adoption.heardMs + CLOCK_MS) {
      if (this.#isUntold(bytes, view, at)) this.#tellWhole(bytes, view, at, reason, ended)
      return
    }
    // Heard of since we listen.
    if (this.#recent.has(keyOf(bytes, view, at))) return
    const { sinceMs, written } = this.#adoption
    const closed = written?.get(keyOf(bytes, view, at))
    // What was written knows the time exactly.
    if (closed !== undefined && closed >= Math.floor(openedMs(view, at))) {
      if (closed > sinceMs) this.#tellWhole(bytes, view, at, reason, closed, true)
      return
    }
    // Nobody has told it: it ended after the cut, and its record says so to a life that may come before totals are stored again.
    if (ended > (written ? sinceMs - ENDED_MS : sinceMs))
      this.#tellWhole(bytes, view, at, reason, Math.max(ended, sinceMs + 1))
  }

  #dumpEnd(request: number, error: number) {
    this.#endedDuringDump = null
    this.#dumpIsWhole = error === 0
    // A life can be short: the next one is not to tell them either.
    for (const key of this.#adoption?.written?.keys() ?? []) this.#recent.add(key, this.#wallMs)
    this.#adoption = null
    if (error === 0 && this.#loss.inDump) this.#loss.open = false
    this.listener.dumped(request, error)
  }

  /** Flows that the last dump did not list. Each of them is for endMissing, before the next dump begins. */
  missing(): number[] {
    if (!this.#dumpIsWhole) return []
    return [...this.#slots].filter((slot) => this.#isMissing(slot))
  }

  #isMissing(slot: number): boolean {
    return this.#slots.isLive(slot) && this.#slots.bytes[slot * SLOT_BYTES + EXTRA.seen] !== this.#dumpGeneration
  }

  /** A flow that the dump does not list has ended and its event was lost, or the dump was not whole (the end of one that was
   *  given up can come during the next). Its entry decides: what lives is never closed by not being listed. */
  endMissing(slot: number) {
    if (!this.#isMissing(slot)) return
    const entry = this.native(slot)
    if (this.listener.readEntry(entry)) {
      const view = new DataView(entry.buffer)
      const reason = endReason(view, 0) ?? (tcpIsOver(entry, 0) ? 'nftables_closed' : undefined)
      if (reason === undefined) this.#slots.bytes[slot * SLOT_BYTES + EXTRA.seen] = this.#dumpGeneration
      this.update(slot, entry, this.#nowMs)
      if (reason !== undefined) this.#settle(slot, reason, this.#wallMs)
      return
    }
    const base = slot * SLOT_BYTES
    const expires = this.#slots.view.getUint32(base + EXTRA.expiresS, true) * 1000
    const ended = endReason(this.#slots.view, base)
    if (ended === undefined && this.#slots.bytes[base + AT.protocol] === IPPROTO_TCP) this.listener.orphaned(entry)
    // It cannot have expired yet: somebody deleted it.
    this.#settle(slot, ended ?? (expires > this.#wallMs ? 'conntrack_flushed' : 'nftables_closed'), this.#wallMs)
  }

  // ---- looking ----

  /** Keys of the flows that were settled in the last seconds, in this life or the one before: the next is not to tell them. */
  settledLately(): number[] {
    return this.#recent.keys()
  }

  *records(): Generator<ConnectionRecord> {
    for (const slot of this.#slots) yield this.record(slot)
  }

  /** Route numbers that live flows carry, with how many. */
  numbers(): Map<number, number> {
    const counts = new Map<number, number>()
    for (const slot of this.#slots) counts.set(this.number(slot), (counts.get(this.number(slot)) ?? 0) + 1)
    return counts
  }

  /** Live flows by target, of one route or of all. */
  countByTarget(number?: number): Map<string, number> {
    const counts = new Map<string, number>()
    for (const slot of this.#slots) {
      const base = slot * SLOT_BYTES
      if (number !== undefined && numberOf(this.#slots.view, base) !== number) continue
      const target = this.#targetOf(this.#slots.bytes, this.#slots.view, base)
      counts.set(target, (counts.get(target) ?? 0) + 1)
    }
    return counts
  }

  slotsOf(number: number): number[] {
    return [...this.#slots].filter((slot) => this.number(slot) === number)
  }

  slotOf(id: string): number | undefined {
    return this.#slots.findId(id)
  }

  number(slot: number) {
    return numberOf(this.#slots.view, slot * SLOT_BYTES)
  }

  id(slot: number): string {
    return this.#slots.id(slot)
  }

  record(slot: number): ConnectionRecord {
    const base = slot * SLOT_BYTES
    return recordOf(
      this.#slots.bytes,
      this.#slots.view,
      base,
      this.routeOf(this.number(slot)),
      this.#targetOf(this.#slots.bytes, this.#slots.view, base),
      this.#slots.bytes[base + EXTRA.phase]!,
      this.#slots.view.getFloat64(base + EXTRA.openedMs, true),
      this.#slots.view.getUint16(base + EXTRA.again, true),
    )
  }

  /** A copy of the native record, as sluice_ct_get and sluice_ct_delete take it. */
  native(slot: number): Uint8Array {
    return this.#slots.bytes.slice(slot * SLOT_BYTES, slot * SLOT_BYTES + FLOW_BYTES)
  }

  /** Takes its entry as it is now (sluice_ct_get) into the slot. */
  update(slot: number, native: Uint8Array, nowMs = performance.now()) {
    this.#nowMs = nowMs
    this.#refresh(slot, native, new DataView(native.buffer, native.byteOffset), 0)
  }

  /** Live flows for which `isDue` holds. */
  due(isDue: (flow: FlowTimes) => boolean): number[] {
    const times: FlowTimes = { number: 0, protocol: 0, phase: 0, bornMs: 0, activeMs: 0 }
    const slots: number[] = []
    for (const slot of this.#slots) if (isDue(this.#times(slot, times))) slots.push(slot)
    return slots
  }

  /** null: no flow has the slot any more. */
  times(slot: number): FlowTimes | null {
    if (!this.#slots.isLive(slot)) return null
    return this.#times(slot, { number: 0, protocol: 0, phase: 0, bornMs: 0, activeMs: 0 })
  }

  #times(slot: number, into: FlowTimes): FlowTimes {
    const base = slot * SLOT_BYTES
    into.number = numberOf(this.#slots.view, base)
    into.protocol = this.#slots.bytes[base + AT.protocol]!
    into.phase = this.#slots.bytes[base + EXTRA.phase]!
    into.bornMs = this.#slots.view.getFloat64(base + EXTRA.bornMs, true)
    into.activeMs = this.#slots.view.getFloat64(base + EXTRA.activeMs, true)
    return into
  }

  /** Ends a flow on our own account (killed, drained): the kernel's DESTROY for it will find nothing. */
  end(slot: number, reason: CloseReason, wallMs: number) {
    this.#wallMs = wallMs
    this.#settle(slot, reason, wallMs)
  }

  // ---- what a slot says ----

  /** Takes the counters into the slot and tells what came. */
  #copyCounters(slot: number, bytes: Uint8Array, at: number) {
    const base = slot * SLOT_BYTES
    let same = true
    for (let i = AT.origPackets; same && i < AT.startNs; i++) same = this.#slots.bytes[base + i] === bytes[at + i]
    if (same) return
    const before = carriedOf(this.#slots.bytes, this.#slots.view, base)
    this.#slots.bytes.set(bytes.subarray(at + AT.origPackets, at + AT.startNs), base + AT.origPackets)
    this.#slots.view.setFloat64(base + EXTRA.activeMs, this.#nowMs, true)
    this.#tellCarried(slot, difference(carriedOf(this.#slots.bytes, this.#slots.view, base), before))
  }

  #tellCarried(slot: number, more: Carried) {
    const base = slot * SLOT_BYTES
    const opened = this.#slots.view.getFloat64(base + EXTRA.openedMs, true)
    this.listener.carried(this.number(slot), this.#targetOf(this.#slots.bytes, this.#slots.view, base), opened, more)
  }

  /** Many flows have few targets: their names are made once. */
  #targetOf(bytes: Uint8Array, view: DataView, at: number): string {
    const number = targetNumberOf(bytes, view, at)
    if (number === undefined) return targetOf(bytes, view, at)
    let name = this.#targets.get(number)
    if (name === undefined) {
      if (this.#targets.size >= TARGET_NAMES_MAX) this.#targets.clear()
      this.#targets.set(number, (name = targetOf(bytes, view, at)))
    }
    return name
  }

  #insert(bytes: Uint8Array, view: DataView, at: number): number {
    const slot = this.#slots.insert(bytes, view, at)
    const base = slot * SLOT_BYTES
    const opened = openedMs(view, at)
    this.#slots.bytes[base + EXTRA.phase] = PHASE.OPENING
    this.#slots.view.setUint16(base + EXTRA.again, this.#again(keyOf(bytes, view, at)), true)
    this.#slots.view.setFloat64(base + EXTRA.openedMs, opened, true)
    this.#slots.view.setFloat64(base + EXTRA.bornMs, this.#nowMs - Math.max(0, this.#wallMs - opened), true)
    this.#slots.view.setFloat64(base + EXTRA.activeMs, this.#nowMs, true)
    this.listener.opened(numberOf(view, at), this.#targetOf(bytes, view, at), opened, slot)
    if (bytes[at + AT.counted]) this.#tellCarried(slot, carriedOf(bytes, view, at))
    return slot
  }

  #settle(slot: number, reason: CloseReason, closedMs: number) {
    const base = slot * SLOT_BYTES
    const record = this.record(slot)
    const number = this.number(slot)
    const carried = carriedOf(this.#slots.bytes, this.#slots.view, base)
    const opened = this.#slots.view.getFloat64(base + EXTRA.openedMs, true)
    this.#remember(keyOf(this.#slots.bytes, this.#slots.view, base))
    this.#slots.remove(slot)
    this.#report(record, number, carried, reason, Math.max(closedMs, opened))
  }

  #report(
    record: ConnectionRecord,
    number: number,
    carried: Carried,
    reason: CloseReason,
    closedMs: number,
    written = false,
  ) {
    record.state = 'closed'
    record.closedAt = isoTime(closedMs)
    record.reason = reason
    this.listener.settled(record, number, carried, written)
  }
}

const difference = (a: Carried, b: Carried): Carried => ({
  bytesIn: a.bytesIn - b.bytesIn,
  bytesOut: a.bytesOut - b.bytesOut,
  packetsIn: a.packetsIn - b.packetsIn,
  packetsOut: a.packetsOut - b.packetsOut,
})
