// The memory of the flow table: one slot of bytes for each live flow, in one buffer, found by what identifies a flow. A slot
// begins with the native record as it came; what is known beyond it follows.
import { AT, ctIdOf, FLOW, FLOW_BYTES, idOf, sameFlow } from './native-flow.ts'

/** Beyond the native record: phase u8, generation of the last dump that saw it u8, again u16 (idOf), when its entry would expire u32 s,
 *  opened f64 ms; by the clock that is never set: opened f64 ms, when packets were last seen to be counted f64 ms. */
export const EXTRA = {
  phase: 160,
  seen: 161,
  again: 162,
  expiresS: 164,
  openedMs: 168,
  bornMs: 176,
  activeMs: 184,
} as const
export const SLOT_BYTES = 192
const INDEX_SIZE_MIN = 1024
const SLOTS_MIN = 256
/** An empty table keeps so many: a quiet gateway opens and closes a few flows all the time. */
const SLOTS_KEPT = 1024

export class FlowSlots {
  /** Slot n begins at n * SLOT_BYTES. Both are others after an insert. */
  bytes = new Uint8Array(0)
  view = new DataView(this.bytes.buffer)
  live = 0
  #free: number[] = []
  #used = 0
  /** Open addressing from CTA_ID, which is a hash already; 0 is empty, -1 a tombstone, else slot + 1. */
  #index = new Int32Array(INDEX_SIZE_MIN)
  #tombstones = 0

  /** Bytes held: what the records cost. */
  get memory() {
    return this.bytes.byteLength + this.#index.byteLength
  }

  isLive(slot: number): boolean {
    return slot < this.#used && this.bytes[slot * SLOT_BYTES + AT.kind] !== 0
  }

  /** Slots may come and go while it runs. */
  *[Symbol.iterator](): Generator<number> {
    for (let slot = 0; slot < this.#used; slot++) if (this.isLive(slot)) yield slot
  }

  /** The flow of a native record; -1: it is not here. */
  find(bytes: Uint8Array, view: DataView, at: number): number {
    const size = this.#index.length
    for (let i = view.getUint32(at + AT.id, true) & (size - 1); ; i = (i + 1) & (size - 1)) {
      const entry = this.#index[i]!
      if (entry === 0) return -1
      if (entry > 0 && sameFlow(this.bytes, (entry - 1) * SLOT_BYTES, bytes, at)) return entry - 1
    }
  }

  id(slot: number): string {
    const base = slot * SLOT_BYTES
    return idOf(this.bytes, this.view, base, this.view.getUint16(base + EXTRA.again, true))
  }

  findId(id: string): number | undefined {
    const ctId = ctIdOf(id)
    if (ctId === undefined) return undefined
    const size = this.#index.length
    for (let i = ctId & (size - 1), probes = 0; probes < size; i = (i + 1) & (size - 1), probes++) {
      const entry = this.#index[i]!
      if (entry === 0) return undefined
      if (entry > 0 && this.id(entry - 1) === id) return entry - 1
    }
    return undefined
  }

  /** Call when it is not here. What is beyond the record is as the last flow of the slot left it. */
  insert(bytes: Uint8Array, view: DataView, at: number): number {
    if ((this.live + this.#tombstones + 1) * 2 > this.#index.length) this.#rehash()
    const slot = this.#free.pop() ?? this.#used++
    const base = slot * SLOT_BYTES
    if (base + SLOT_BYTES > this.bytes.length) this.#grow()
    this.bytes.set(bytes.subarray(at, at + FLOW_BYTES), base)
    this.bytes[base + AT.kind] = FLOW.NEW
    this.#place(view.getUint32(at + AT.id, true), slot)
    this.live++
    return slot
  }

  remove(slot: number) {
    const size = this.#index.length
    for (let i = this.view.getUint32(slot * SLOT_BYTES + AT.id, true) & (size - 1); ; i = (i + 1) & (size - 1)) {
      if (this.#index[i] === slot + 1) {
        this.#index[i] = -1
        this.#tombstones++
        break
      }
    }
    this.bytes[slot * SLOT_BYTES + AT.kind] = 0
    this.#free.push(slot)
    this.live--
    // An empty table gives its memory back: a burst of flows must not be paid for for ever.
    if (this.live === 0) this.#reset()
  }

  #place(id: number, slot: number) {
    const size = this.#index.length
    let i = id & (size - 1)
    while (this.#index[i]! > 0) i = (i + 1) & (size - 1)
    if (this.#index[i] === -1) this.#tombstones--
    this.#index[i] = slot + 1
  }

  #reset() {
    this.#free = []
    this.#used = 0
    this.#tombstones = 0
    if (this.#index.length > INDEX_SIZE_MIN) this.#index = new Int32Array(INDEX_SIZE_MIN)
    else this.#index.fill(0)
    if (this.bytes.length > SLOTS_KEPT * SLOT_BYTES) this.#move(new Uint8Array(0))
  }

  #grow() {
    // By half, not by two: at 100,000 flows the slack would be the largest part of what a record costs.
    const bytes = new Uint8Array(Math.max(SLOTS_MIN, Math.ceil((this.bytes.length / SLOT_BYTES) * 1.5)) * SLOT_BYTES)
    bytes.set(this.bytes)
    this.#move(bytes)
  }

  #move(bytes: Uint8Array<ArrayBuffer>) {
    this.bytes = bytes
    this.view = new DataView(bytes.buffer)
  }

  #rehash() {
    let size = INDEX_SIZE_MIN
    while (size < (this.live + 1) * 4) size *= 2
    this.#index = new Int32Array(size)
    this.#tombstones = 0
    for (const slot of this) this.#place(this.view.getUint32(slot * SLOT_BYTES + AT.id, true), slot)
  }
}
