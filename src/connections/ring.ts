// Amounts by time: slots of equal length, of which the newest are kept. Pure.

export interface Ring {
  readonly slotMs: number
  /** One number for each field of each slot. */
  readonly values: Float64Array
  readonly fields: number
  readonly slots: number
  /** Counted since the clock's zero; those before it are kept as far as there is room. */
  newest: number
}

/** (fromMs, toMs], by the clock that all calls for a ring share. */
export interface Span {
  fromMs: number
  toMs: number
}

export const newRing = (slotMs: number, slots: number, fields: number): Ring => ({
  slotMs,
  values: new Float64Array(slots * fields),
  fields,
  slots,
  newest: -1,
})

/** Spreads an amount evenly over the span: whole numbers, which add up to it. What lies before the oldest slot goes there. */
export function spread(ring: Ring, field: number, amount: number, { fromMs, toMs }: Span) {
  if (amount === 0) return
  const last = Math.floor(toMs / ring.slotMs)
  advance(ring, last)
  const oldestMs = (ring.newest - ring.slots + 1) * ring.slotMs
  const from = Math.min(Math.max(fromMs, oldestMs, 0), toMs)
  const lengthMs = toMs - from
  if (from >= last * ring.slotMs) {
    ring.values[at(ring, last, field)]! += amount
    return
  }
  let told = 0
  for (let slot = Math.floor(from / ring.slotMs); slot <= last; slot++) {
    const passed = slot === last ? 1 : ((slot + 1) * ring.slotMs - from) / lengthMs
    const until = Math.round(amount * passed)
    ring.values[at(ring, slot, field)]! += until - told
    told = until
  }
}

/** Of the slots from, …, to - 1. Those that are not kept, or yet to come, have nothing. */
export function sumOf(ring: Ring, field: number, from: number, to: number): number {
  let sum = 0
  const first = Math.max(from, ring.newest - ring.slots + 1, 0)
  for (let slot = first; slot < Math.min(to, ring.newest + 1); slot++) sum += ring.values[at(ring, slot, field)]!
  return sum
}

const at = ({ slots, fields }: Ring, slot: number, field: number) => (slot % slots) * fields + field

function advance(ring: Ring, slot: number) {
  if (slot <= ring.newest) return
  for (let next = Math.max(ring.newest + 1, slot - ring.slots + 1); next <= slot; next++)
    for (let field = 0; field < ring.fields; field++) ring.values[at(ring, next, field)] = 0
  ring.newest = slot
}
