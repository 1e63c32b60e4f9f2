// The kernel's flows as records: one slot of bytes each, the native record as it came plus what we know beyond it. 100,000
// flows are 100,000 slots in one buffer, not objects; a ConnectionRecord is made when somebody looks. Pure: it knows neither
// netlink nor clocks.
import { isoTime } from '../base/clock.ts'
import { TARGET_NAMES_MAX } from '../base/limits.ts'
import {
  AT,
  carriedOf,
  ctIdOf,
  destroyReason,
  endReason,
  eventMs,
  FLOW,
  FLOW_BYTES,
  idOf,
  keyOf,
  numberOf,
  openedMs,
  PHASE,
  phaseOf,
  recordOf,
  sameFlow,
  targetNumberOf,
  targetOf,
  tcpIsOver,
} from './native-flow.ts'
import type { ConnectionRecord } from './record.ts'
import type { CloseReason } from './reasons.ts'
import type { Carried } from './totals.ts'

/** Beyond the native record, in the same slot: phase u8, generation of the last dump that saw it u8, 2 free, opened f64 ms. */
const EXTRA = { phase: 160, seen: 161, openedMs: 168 } as const
const SLOT_BYTES = 176

/** What a batch did. */
export interface FlowListener {
  opened(number: number, target: string, openedMs: number): void
  /** It has carried this much more than was told before. */
  carried(number: number, target: string, openedMs: number, more: Carried): void
  /** Out of the table when this is called. `carried`: the sum of all that was told. */
  settled(record: ConnectionRecord, number: number, carried: Carried): void
  lost(): void
  /** Reads the flow's entry, as it is now, into the native record; false when it has gone. */
  readEntry(native: Uint8Array): boolean
  dumped(request: number, error: number): void
  nftChanged(pid: number): void
}

export class FlowTable {
  #bytes = new Uint8Array(0)
  #view = new DataView(this.#bytes.buffer)
  #free: number[] = []
  #slots = 0
  #live = 0
  /** Open addressing from CTA_ID, which is a hash already; 0 is empty, -1 a tombstone, else slot + 1. */
  #index = new Int32Array(1024)
  #tombstones = 0
  /** Keys that ended while a dump ran: an entry of that dump is older than their end. */
  #endedDuringDump: Set<string> | null = null
  #dumpGeneration = 0
  readonly #targets = new Map<number, string>()

  /** @param routeOf name of a route number, also of routes that are gone. */
  constructor(
    private readonly routeOf: (number: number) => string,
    private readonly listener: FlowListener,
  ) {}

  get size() {
    return this.#live
  }

  /** Bytes held: what the records cost. */
  get bytes() {
    return this.#bytes.byteLength + this.#index.byteLength
  }

  // ---- events ----

  /** One message of the reader: several native records. */
  ingest(message: Uint8Array) {
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength)
    for (let at = 0; at + FLOW_BYTES <= message.byteLength; at += FLOW_BYTES) this.#one(message, view, at)
  }

  #one(bytes: Uint8Array, view: DataView, at: number) {
    switch (bytes[at + AT.kind]) {
      case FLOW.NEW:
        return this.#see(bytes, view, at)
      case FLOW.UPDATE:
        // Never opens a record: what is told late of a flow that we have ended would bring it back.
        if (this.#find(bytes, view, at) >= 0) this.#see(bytes, view, at)
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
        return this.listener.lost()
      case FLOW.NFT_CHANGED:
        return this.listener.nftChanged(view.getUint32(at + AT.mark, true))
    }
  }

  #see(bytes: Uint8Array, view: DataView, at: number) {
    const found = this.#find(bytes, view, at)
    const slot = found < 0 ? this.#insert(bytes, view, at) : found
    const base = slot * SLOT_BYTES
    this.#bytes[base + AT.state] = bytes[at + AT.state]!
    this.#bytes[base + EXTRA.phase] = phaseOf(bytes, at)
    this.#bytes[base + EXTRA.seen] = this.#dumpGeneration
    if (bytes[at + AT.counted]) this.#copyCounters(slot, bytes, at)
  }

  #closed(bytes: Uint8Array, view: DataView, at: number) {
    const slot = this.#find(bytes, view, at)
    // Settled before (killed, or a late FIN that is sent again): the record is written already.
    if (slot < 0) return
    this.#view.setUint32(slot * SLOT_BYTES + AT.mark, view.getUint32(at + AT.mark, true), true)
    if (!bytes[at + AT.counted]) {
      // The entry went before its counters could be read: DESTROY is on its way and has them.
      this.#bytes[slot * SLOT_BYTES + EXTRA.phase] = PHASE.CLOSING
      return
    }
    this.#copyCounters(slot, bytes, at)
    this.#settle(slot, endReason(view, at) ?? 'nftables_closed', eventMs(view, at))
  }

  /** A short connection that opened and ended while the reader held its records back: it never needs a slot. */
  #whole(bytes: Uint8Array, view: DataView, at: number) {
    const known = this.#find(bytes, view, at) >= 0
    if (known || !bytes[at + AT.counted]) {
      // Not counted: DESTROY will bring that. Known: the tuple of a flow that ended unseen, and whose port is in use again.
      if (!known) this.#see(bytes, view, at)
      return this.#closed(bytes, view, at)
    }
    const number = numberOf(view, at)
    const [target, opened, carried] = [this.#targetOf(bytes, view, at), openedMs(view, at), carriedOf(bytes, view, at)]
    this.listener.opened(number, target, opened)
    this.listener.carried(number, target, opened, carried)
    const record = recordOf(bytes, view, at, this.routeOf(number), target, PHASE.OPEN, opened)
    this.#endedDuringDump?.add(keyOf(bytes, at))
    const reason = endReason(view, at) ?? 'nftables_closed'
    this.#report(record, number, carried, reason, Math.max(eventMs(view, at), opened))
  }

  #destroyed(bytes: Uint8Array, view: DataView, at: number) {
    const slot = this.#find(bytes, view, at)
    if (slot < 0) return
    if (bytes[at + AT.counted]) this.#copyCounters(slot, bytes, at)
    this.#settle(slot, endReason(view, at) ?? destroyReason(bytes, view, at), eventMs(view, at))
  }

  // ---- dumps: the kernel's truth ----

  /** Call right before a dump is asked for. Flows that it does not list, and that were there before it, are over. */
  beginDump() {
    this.#endedDuringDump = new Set()
    this.#dumpGeneration = (this.#dumpGeneration + 1) & 0xff
  }

  #dumped(bytes: Uint8Array, view: DataView, at: number) {
    if (this.#endedDuringDump?.has(keyOf(bytes, at))) return
    const reason = endReason(view, at) ?? (tcpIsOver(bytes, at) ? 'nftables_closed' : undefined)
    if (reason === undefined) return this.#see(bytes, view, at)
    const slot = this.#find(bytes, view, at)
    if (slot < 0) return
    this.#copyCounters(slot, bytes, at)
    this.#settle(slot, reason, eventMs(view, at))
  }

  #dumpEnd(request: number, error: number) {
    this.#endedDuringDump = null
    if (error === 0)
      for (const slot of this.#everySlot())
        if (this.#bytes[slot * SLOT_BYTES + EXTRA.seen] !== this.#dumpGeneration) this.#missing(slot)
    this.listener.dumped(request, error)
  }

  /** A flow that the dump does not list has ended and its event was lost, or the dump was not whole (the end of one that was
   *  given up can come during the next). Its entry decides: what lives is never closed by not being listed. */
  #missing(slot: number) {
    const entry = this.native(slot)
    const found = this.listener.readEntry(entry)
    if (found) this.#copyCounters(slot, entry, 0)
    const reason = endReason(new DataView(entry.buffer), 0)
    if (found && reason === undefined && !tcpIsOver(entry, 0)) {
      this.#bytes[slot * SLOT_BYTES + EXTRA.seen] = this.#dumpGeneration
      return
    }
    this.#settle(slot, reason ?? 'nftables_closed', Date.now())
  }

  // ---- looking ----

  *#everySlot() {
    for (let slot = 0; slot < this.#slots; slot++) if (this.#bytes[slot * SLOT_BYTES + AT.kind] !== 0) yield slot
  }

  *records(): Generator<ConnectionRecord> {
    for (const slot of this.#everySlot()) yield this.record(slot)
  }

  /** Route numbers that live flows carry, with how many. */
  numbers(): Map<number, number> {
    const counts = new Map<number, number>()
    for (const slot of this.#everySlot()) counts.set(this.number(slot), (counts.get(this.number(slot)) ?? 0) + 1)
    return counts
  }

  /** Live flows by target, of one route or of all. */
  countByTarget(number?: number): Map<string, number> {
    const counts = new Map<string, number>()
    for (let slot = 0; slot < this.#slots; slot++) {
      const base = slot * SLOT_BYTES
      if (this.#bytes[base + AT.kind] === 0) continue
      if (number !== undefined && numberOf(this.#view, base) !== number) continue
      const target = this.#targetOf(this.#bytes, this.#view, base)
      counts.set(target, (counts.get(target) ?? 0) + 1)
    }
    return counts
  }

  slotsOf(number: number): number[] {
    return [...this.#everySlot()].filter((slot) => this.number(slot) === number)
  }

  slotOf(id: string): number | undefined {
    const ctId = ctIdOf(id)
    if (ctId === undefined) return undefined
    const size = this.#index.length
    for (let i = ctId & (size - 1), probes = 0; probes < size; i = (i + 1) & (size - 1), probes++) {
      const entry = this.#index[i]!
      if (entry === 0) return undefined
      if (entry > 0 && idOf(this.#bytes, this.#view, (entry - 1) * SLOT_BYTES) === id) return entry - 1
    }
    return undefined
  }

  number(slot: number) {
    return numberOf(this.#view, slot * SLOT_BYTES)
  }

  record(slot: number): ConnectionRecord {
    const base = slot * SLOT_BYTES
    return recordOf(
      this.#bytes,
      this.#view,
      base,
      this.routeOf(this.number(slot)),
      this.#targetOf(this.#bytes, this.#view, base),
      this.#bytes[base + EXTRA.phase]!,
      this.#view.getFloat64(base + EXTRA.openedMs, true),
    )
  }

  /** A copy of the native record, as sluice_ct_get and sluice_ct_delete take it. */
  native(slot: number): Uint8Array {
    return this.#bytes.slice(slot * SLOT_BYTES, slot * SLOT_BYTES + FLOW_BYTES)
  }

  /** Takes fresh counters (sluice_ct_get) into the slot. */
  count(slot: number, native: Uint8Array) {
    this.#copyCounters(slot, native, 0)
  }

  /** Ends a flow on our own account (killed, drained): the kernel's DESTROY for it will find nothing. */
  end(slot: number, reason: CloseReason, nowMs: number) {
    this.#settle(slot, reason, nowMs)
  }

  // ---- slots ----

  /** Takes the counters into the slot and tells what came. */
  #copyCounters(slot: number, bytes: Uint8Array, at: number) {
    const base = slot * SLOT_BYTES
    let same = true
    for (let i = AT.origPackets; same && i < AT.startNs; i++) same = this.#bytes[base + i] === bytes[at + i]
    if (same) return
    const before = carriedOf(this.#bytes, this.#view, base)
    this.#bytes.set(bytes.subarray(at + AT.origPackets, at + AT.startNs), base + AT.origPackets)
    this.#tellCarried(slot, difference(carriedOf(this.#bytes, this.#view, base), before))
  }

  #tellCarried(slot: number, more: Carried) {
    const base = slot * SLOT_BYTES
    const opened = this.#view.getFloat64(base + EXTRA.openedMs, true)
    this.listener.carried(this.number(slot), this.#targetOf(this.#bytes, this.#view, base), opened, more)
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

  #find(bytes: Uint8Array, view: DataView, at: number): number {
    const size = this.#index.length
    for (let i = view.getUint32(at + AT.id, true) & (size - 1); ; i = (i + 1) & (size - 1)) {
      const entry = this.#index[i]!
      if (entry === 0) return -1
      if (entry > 0 && sameFlow(this.#bytes, (entry - 1) * SLOT_BYTES, bytes, at)) return entry - 1
    }
  }

  #insert(bytes: Uint8Array, view: DataView, at: number): number {
    if ((this.#live + this.#tombstones + 1) * 2 > this.#index.length) this.#rehash()
    const slot = this.#free.pop() ?? this.#slots++
    const base = slot * SLOT_BYTES
    if (base + SLOT_BYTES > this.#bytes.length) this.#grow()
    this.#bytes.set(bytes.subarray(at, at + FLOW_BYTES), base)
    this.#bytes[base + AT.kind] = FLOW.NEW
    this.#bytes[base + EXTRA.phase] = PHASE.OPENING
    const opened = openedMs(view, at)
    this.#view.setFloat64(base + EXTRA.openedMs, opened, true)
    this.#place(view.getUint32(at + AT.id, true), slot)
    this.#live++
    this.listener.opened(numberOf(view, at), this.#targetOf(bytes, view, at), opened)
    if (bytes[at + AT.counted]) this.#tellCarried(slot, carriedOf(bytes, view, at))
    return slot
  }

  #place(id: number, slot: number) {
    const size = this.#index.length
    let i = id & (size - 1)
    while (this.#index[i]! > 0) i = (i + 1) & (size - 1)
    if (this.#index[i] === -1) this.#tombstones--
    this.#index[i] = slot + 1
  }

  #settle(slot: number, reason: CloseReason, closedMs: number) {
    const base = slot * SLOT_BYTES
    const record = this.record(slot)
    const number = this.number(slot)
    const carried = carriedOf(this.#bytes, this.#view, base)
    const opened = this.#view.getFloat64(base + EXTRA.openedMs, true)
    this.#endedDuringDump?.add(keyOf(this.#bytes, base))
    this.#remove(slot)
    this.#report(record, number, carried, reason, Math.max(closedMs, opened))
  }

  #report(record: ConnectionRecord, number: number, carried: Carried, reason: CloseReason, closedMs: number) {
    record.state = 'closed'
    record.closedAt = isoTime(closedMs)
    record.reason = reason
    this.listener.settled(record, number, carried)
  }

  #remove(slot: number) {
    const size = this.#index.length
    for (let i = this.#view.getUint32(slot * SLOT_BYTES + AT.id, true) & (size - 1); ; i = (i + 1) & (size - 1)) {
      if (this.#index[i] === slot + 1) {
        this.#index[i] = -1
        this.#tombstones++
        break
      }
    }
    this.#bytes[slot * SLOT_BYTES + AT.kind] = 0
    this.#free.push(slot)
    this.#live--
    // An empty table gives its memory back: a burst of flows must not be paid for for ever.
    if (this.#live === 0) this.#reset()
  }

  #reset() {
    this.#free = []
    this.#slots = 0
    this.#tombstones = 0
    if (this.#index.length > 1024) this.#index = new Int32Array(1024)
    else this.#index.fill(0)
    if (this.#bytes.length > 1024 * SLOT_BYTES) this.#bytes = new Uint8Array(0)
    this.#view = new DataView(this.#bytes.buffer)
  }

  #grow() {
    // By half, not by two: at 100,000 flows the slack would be the largest part of what a record costs.
    const slots = Math.max(256, Math.ceil((this.#bytes.length / SLOT_BYTES) * 1.5))
    const bytes = new Uint8Array(slots * SLOT_BYTES)
    bytes.set(this.#bytes)
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer)
  }

  #rehash() {
    let size = 1024
    while (size < (this.#live + 1) * 4) size *= 2
    this.#index = new Int32Array(size)
    this.#tombstones = 0
    for (const slot of this.#everySlot()) this.#place(this.#view.getUint32(slot * SLOT_BYTES + AT.id, true), slot)
  }
}

const difference = (a: Carried, b: Carried): Carried => ({
  bytesIn: a.bytesIn - b.bytesIn,
  bytesOut: a.bytesOut - b.bytesOut,
  packetsIn: a.packetsIn - b.packetsIn,
  packetsOut: a.packetsOut - b.packetsOut,
})
