// The kernel's flows as records: one slot of bytes each, the native record as it came (native/sluice.h) plus what we know
// beyond it. 100,000 flows are 100,000 slots in one buffer, not objects; a ConnectionRecord is made when somebody looks.
// Pure: it knows neither netlink nor clocks.
import { formatEnd, formatIp } from '../base/addresses.ts'
import type { ConnectionRecord } from './record.ts'
import type { CloseReason } from './reasons.ts'

/** struct sluice_flow. */
export const FLOW_BYTES = 160

export const FLOW = {
  NEW: 1,
  UPDATE: 2,
  DESTROY: 3,
  DUMPED: 4,
  DUMP_END: 5,
  LOST: 6,
  CLOSED: 7,
  NFT_CHANGED: 8,
  WHOLE: 9,
} as const

/** Offsets in struct sluice_flow. */
const AT = {
  kind: 0, family: 1, protocol: 2, state: 3, mark: 4, id: 8, status: 12, zone: 16, request: 18, origSport: 20, origDport: 22, replySport: 24, replyDport: 26,
  error: 28, origSrc: 32, origDst: 48, replySrc: 64, replyDst: 80, origPackets: 96, origBytes: 104, replyPackets: 112, replyBytes: 120, startNs: 128, eventNs: 136,
  timeout: 144, counted: 148,
} as const // prettier-ignore

/** enum tcp_conntrack of the kernel (nf_conntrack_tcp.h). */
const TCP = {
  SYN_SENT: 1,
  SYN_RECV: 2,
  ESTABLISHED: 3,
  FIN_WAIT: 4,
  CLOSE_WAIT: 5,
  LAST_ACK: 6,
  TIME_WAIT: 7,
  CLOSE: 8,
} as const
const IPPROTO_TCP = 6
/** enum ip_conntrack_status. */
const IPS_SEEN_REPLY = 2
const IPS_ASSURED = 4
/** enum sluice_mark. */
const MARK = { FIN_CLIENT: 0x00800000, FIN_TARGET: 0x00400000, RST_CLIENT: 0x00200000, RST_TARGET: 0x00100000 } as const
const NUMBER_MASK = 0x000fffff

const PHASE = { OPENING: 0, OPEN: 1, HALF_CLOSED: 2, CLOSING: 3 } as const
const STATES = ['opening', 'open', 'half-closed', 'closing'] as const

/** Beyond the native record, in the same slot: phase u8, generation of the last dump that saw it u8, 2 free, opened f64 ms. */
const EXTRA = { phase: 160, seen: 161, openedMs: 168 } as const
const SLOT_BYTES = 176

export interface FlowView {
  number: number
  record: ConnectionRecord
}

/** What a batch did. `settled` flows are out of the table when the callback runs. */
export interface FlowListener {
  opened(slot: number): void
  settled(record: ConnectionRecord, number: number): void
  lost(): void
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

  /** @param routeOf name of a route number, also of routes that are gone. */
  constructor(
    private readonly routeOf: (number: number) => string,
    private readonly listener: FlowListener,
  ) {}

  get size() {
    return this.#live
  }

  /** Bytes held for `size` flows: what a record costs. */
  get bytes() {
    return this.#bytes.byteLength + this.#index.byteLength
  }

  // ---- events ----

  /** One message of the reader: several native records. */
  ingest(message: Uint8Array) {
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength)
    for (let at = 0; at + FLOW_BYTES <= message.byteLength; at += FLOW_BYTES)
      this.#one(message.subarray(at, at + FLOW_BYTES), view, at)
  }

  #one(record: Uint8Array, view: DataView, at: number) {
    switch (record[AT.kind]) {
      case FLOW.NEW:
        return this.#see(record, view, at)
      case FLOW.UPDATE:
        // Never opens a record: what is told late of a flow that we have ended would bring it back.
        if (this.#find(record, view, at) >= 0) this.#see(record, view, at)
        return
      case FLOW.CLOSED:
        return this.#closed(record, view, at)
      case FLOW.WHOLE:
        return this.#whole(record, view, at)
      case FLOW.DESTROY:
        return this.#destroyed(record, view, at)
      case FLOW.DUMPED:
        return this.#dumped(record, view, at)
      case FLOW.DUMP_END:
        return this.#dumpEnd(view.getUint16(at + AT.request, true), view.getUint32(at + AT.error, true))
      case FLOW.LOST:
        return this.listener.lost()
      case FLOW.NFT_CHANGED:
        return this.listener.nftChanged(view.getUint32(at + AT.mark, true))
    }
  }

  #see(record: Uint8Array, view: DataView, at: number) {
    let slot = this.#find(record, view, at)
    const isNew = slot < 0
    if (isNew) slot = this.#insert(record, view, at)
    this.#bytes[slot * SLOT_BYTES + AT.state] = record[AT.state]!
    this.#bytes[slot * SLOT_BYTES + EXTRA.phase] = phaseOf(record)
    this.#bytes[slot * SLOT_BYTES + EXTRA.seen] = this.#dumpGeneration
    if (record[AT.counted]) this.#copyCounters(slot, record)
    if (isNew) this.listener.opened(slot)
  }

  #closed(record: Uint8Array, view: DataView, at: number) {
    const slot = this.#find(record, view, at)
    // Settled before (killed, or a late FIN that is sent again): the record is written already.
    if (slot < 0) return
    this.#bytes.set(record.subarray(AT.mark, AT.id), slot * SLOT_BYTES + AT.mark)
    if (!record[AT.counted]) {
      // The entry went before its counters could be read: DESTROY is on its way and has them.
      this.#bytes[slot * SLOT_BYTES + EXTRA.phase] = PHASE.CLOSING
      return
    }
    this.#copyCounters(slot, record)
    this.#settle(slot, endReason(view, at) ?? 'nftables_closed', eventMs(view, at))
  }

  /** A short connection that opened and ended while the reader held its records back. */
  #whole(record: Uint8Array, view: DataView, at: number) {
    // The tuple of a flow that we still hold: it ended unseen, and its port is in use again.
    if (this.#find(record, view, at) < 0) this.listener.opened(this.#insert(record, view, at))
    this.#closed(record, view, at)
  }

  #destroyed(record: Uint8Array, view: DataView, at: number) {
    const slot = this.#find(record, view, at)
    if (slot < 0) return
    if (record[AT.counted]) this.#copyCounters(slot, record)
    this.#settle(slot, endReason(view, at) ?? destroyReason(record, view, at), eventMs(view, at))
  }

  // ---- dumps: the kernel's truth ----

  /** Call right before a dump is asked for. Flows that it does not list, and that were there before it, are over. */
  beginDump() {
    this.#endedDuringDump = new Set()
    this.#dumpGeneration = (this.#dumpGeneration + 1) & 0xff
  }

  #dumped(record: Uint8Array, view: DataView, at: number) {
    if (this.#endedDuringDump?.has(keyOf(record))) return
    const state = record[AT.state]!
    const tcpOver = record[AT.protocol] === IPPROTO_TCP && (state === TCP.TIME_WAIT || state === TCP.CLOSE)
    const reason = endReason(view, at) ?? (tcpOver ? 'nftables_closed' : undefined)
    if (reason === undefined) return this.#see(record, view, at)
    const slot = this.#find(record, view, at)
    if (slot < 0) return
    this.#copyCounters(slot, record)
    this.#settle(slot, reason, eventMs(view, at))
  }

  #dumpEnd(request: number, error: number) {
    this.#endedDuringDump = null
    if (error === 0) {
      const now = Date.now()
      for (const slot of this.#everySlot())
        if (this.#bytes[slot * SLOT_BYTES + EXTRA.seen] !== this.#dumpGeneration)
          this.#settle(slot, endReason(this.#view, slot * SLOT_BYTES) ?? 'nftables_closed', now)
    }
    this.listener.dumped(request, error)
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

  slotsOf(number: number): number[] {
    return [...this.#everySlot()].filter((slot) => this.number(slot) === number)
  }

  slotOf(id: string): number | undefined {
    const ctId = parseInt(id.slice(1), 36)
    if (!id.startsWith('k') || !Number.isInteger(ctId)) return undefined
    const size = this.#index.length
    for (let i = ctId & (size - 1), probes = 0; probes < size; i = (i + 1) & (size - 1), probes++) {
      const entry = this.#index[i]!
      if (entry === 0) return undefined
      if (entry > 0 && this.#id(entry - 1) === id) return entry - 1
    }
    return undefined
  }

  number(slot: number) {
    return this.#view.getUint32(slot * SLOT_BYTES + AT.mark, true) & NUMBER_MASK
  }

  record(slot: number): ConnectionRecord {
    const base = slot * SLOT_BYTES
    const { in: bytesIn, out: bytesOut } = this.#payload(slot)
    return {
      id: this.#id(slot),
      route: this.routeOf(this.number(slot)),
      carrier: 'kernel',
      client: this.#end(base, AT.origSrc, AT.origSport),
      listener: this.#end(base, AT.origDst, AT.origDport),
      target: this.#end(base, AT.replySrc, AT.replySport),
      state: STATES[this.#bytes[base + EXTRA.phase]!]!,
      openedAt: new Date(this.#view.getFloat64(base + EXTRA.openedMs, true)).toISOString(),
      bytesIn,
      bytesOut,
    }
  }

  /** A copy of the native record, as sluice_ct_get and sluice_ct_delete take it. */
  native(slot: number): Uint8Array {
    return this.#bytes.slice(slot * SLOT_BYTES, slot * SLOT_BYTES + FLOW_BYTES)
  }

  /** Takes fresh counters (sluice_ct_get) into the slot. */
  count(slot: number, native: Uint8Array) {
    this.#copyCounters(slot, native)
  }

  /** Ends a flow on our own account (killed, drained): the kernel's DESTROY for it will find nothing. */
  end(slot: number, reason: CloseReason, nowMs: number) {
    this.#settle(slot, reason, nowMs)
  }

  // ---- slots ----

  #end(base: number, address: number, port: number) {
    const width = this.#bytes[base + AT.family] === 4 ? 4 : 16
    return formatEnd(
      formatIp(this.#bytes.subarray(base + address, base + address + width)),
      this.#view.getUint16(base + port, true),
    )
  }

  #id(slot: number) {
    const base = slot * SLOT_BYTES
    return `k${this.#view.getUint32(base + AT.id, true).toString(36)}-${tupleHash(this.#bytes, base).toString(36)}`
  }

  /** Payload from packets: what conntrack counts less the headers. 52 is IPv4 with TCP timestamps, as every current stack sends. */
  #payload(slot: number): { in: number; out: number } {
    const base = slot * SLOT_BYTES
    const isTcp = this.#bytes[base + AT.protocol] === IPPROTO_TCP
    const ip = this.#bytes[base + AT.family] === 4 ? 20 : 40
    const get = (at: number) => Number(this.#view.getBigUint64(base + at, true))
    const less = (bytes: number, packets: number) => {
      if (!isTcp) return Math.max(0, bytes - packets * (ip + 8))
      const long = bytes - packets * (ip + 32)
      // Fewer bytes than timestamps alone would take: the ends do not use them. SYN carries 8 bytes more than the rest.
      const estimate = long >= -packets ? long - 8 : bytes - packets * (ip + 20) - 20
      return Math.max(0, estimate)
    }
    return { in: less(get(AT.origBytes), get(AT.origPackets)), out: less(get(AT.replyBytes), get(AT.replyPackets)) }
  }

  #copyCounters(slot: number, record: Uint8Array) {
    this.#bytes.set(record.subarray(AT.origPackets, AT.startNs), slot * SLOT_BYTES + AT.origPackets)
  }

  #find(record: Uint8Array, view: DataView, at: number): number {
    const size = this.#index.length
    for (let i = view.getUint32(at + AT.id, true) & (size - 1); ; i = (i + 1) & (size - 1)) {
      const entry = this.#index[i]!
      if (entry === 0) return -1
      if (entry > 0 && this.#same(entry - 1, record)) return entry - 1
    }
  }

  /** CTA_ID alone collides (one pair in 100,000): the key is original tuple, zone and id. */
  #same(slot: number, record: Uint8Array) {
    const base = slot * SLOT_BYTES
    const bytes = this.#bytes
    for (let i = AT.id; i < AT.id + 4; i++) if (bytes[base + i] !== record[i]) return false
    for (let i = AT.origSport; i < AT.replySport; i++) if (bytes[base + i] !== record[i]) return false
    for (let i = AT.origSrc; i < AT.replySrc; i++) if (bytes[base + i] !== record[i]) return false
    return (
      bytes[base + AT.protocol] === record[AT.protocol] &&
      bytes[base + AT.zone] === record[AT.zone] &&
      bytes[base + AT.zone + 1] === record[AT.zone + 1]
    )
  }

  #insert(record: Uint8Array, view: DataView, at: number): number {
    if ((this.#live + this.#tombstones + 1) * 2 > this.#index.length) this.#rehash()
    const slot = this.#free.pop() ?? this.#slots++
    if ((slot + 1) * SLOT_BYTES > this.#bytes.length) this.#grow()
    this.#bytes.set(record, slot * SLOT_BYTES)
    this.#bytes[slot * SLOT_BYTES + AT.kind] = FLOW.NEW
    this.#bytes[slot * SLOT_BYTES + EXTRA.phase] = PHASE.OPENING
    const startNs = view.getBigUint64(at + AT.startNs, true) || view.getBigUint64(at + AT.eventNs, true)
    this.#view.setFloat64(slot * SLOT_BYTES + EXTRA.openedMs, Number(startNs / 1000n) / 1000, true)
    this.#place(view.getUint32(at + AT.id, true), slot)
    this.#live++
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
    record.state = 'closed'
    record.closedAt = new Date(Math.max(closedMs, this.#view.getFloat64(base + EXTRA.openedMs, true))).toISOString()
    record.reason = reason
    this.#endedDuringDump?.add(keyOf(this.#bytes.subarray(base, base + FLOW_BYTES)))
    this.#remove(slot)
    this.listener.settled(record, number)
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

const eventMs = (view: DataView, at: number) => Number(view.getBigUint64(at + AT.eventNs, true) / 1000n) / 1000

function phaseOf(record: Uint8Array): number {
  if (record[AT.protocol] !== IPPROTO_TCP) return PHASE.OPEN
  const state = record[AT.state]!
  if (state <= TCP.SYN_RECV) return PHASE.OPENING
  return state === TCP.ESTABLISHED ? PHASE.OPEN : PHASE.HALF_CLOSED
}

/** How the flow ended, from the bits that the nft program keeps in its mark; undefined while it has not. A reset by a peer
 *  that had sent its FIN is no failure: it has closed, and answers late bytes with it. */
function endReason(view: DataView, at: number): CloseReason | undefined {
  const mark = view.getUint32(at + AT.mark, true)
  if (mark & MARK.RST_CLIENT) return mark & MARK.FIN_CLIENT ? 'finished' : 'client_reset'
  if (mark & MARK.RST_TARGET) {
    if (mark & MARK.FIN_TARGET) return 'finished'
    return view.getUint32(at + AT.status, true) & IPS_ASSURED ? 'target_reset' : 'target_refused'
  }
  return mark & MARK.FIN_CLIENT && mark & MARK.FIN_TARGET ? 'finished' : undefined
}

/** An entry that goes without its protocol being over: refused, expired, or deleted. */
function destroyReason(record: Uint8Array, view: DataView, at: number): CloseReason {
  if (record[AT.protocol] !== IPPROTO_TCP) return 'idle_timeout'
  const status = view.getUint32(at + AT.status, true)
  if (!(status & IPS_ASSURED)) {
    // A RST as the only answer deletes the entry at once: it was counted, but SEEN_REPLY is set only after that.
    const refused = view.getBigUint64(at + AT.replyPackets, true) > 0n && !(status & IPS_SEEN_REPLY)
    return refused ? 'target_refused' : 'connect_timeout'
  }
  // Time left: it has not expired, somebody deleted it.
  return view.getUint32(at + AT.timeout, true) > 0 ? 'conntrack_flushed' : 'nftables_closed'
}

/** FNV-1a over the original tuple and zone. */
function tupleHash(bytes: Uint8Array, base: number): number {
  let hash = 0x811c9dc5
  const mix = (from: number, to: number) => {
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[base + i]!, 0x01000193)
  }
  mix(AT.zone, AT.zone + 2)
  mix(AT.origSport, AT.replySport)
  mix(AT.origSrc, AT.replySrc)
  return hash >>> 0
}

const keyOf = (record: Uint8Array) =>
  Buffer.from(record.buffer, record.byteOffset + AT.id, 4).toString('latin1') +
  Buffer.from(record.buffer, record.byteOffset + AT.origSport, 4).toString('latin1') +
  Buffer.from(record.buffer, record.byteOffset + AT.origSrc, 32).toString('latin1')
