// Slot tables: which target each slot of a route goes to. A table is kept when targets come, go or change their weight;
// only the slots that some have too many of move. Pure.

/** A table must say the weights this precisely, or be larger. */
const ERROR_MAX = 0.025
const SLOTS_MIN = 16
const SLOTS_MAX = 1024
/** With very many targets each still has some slots to tell weights with. */
const SLOTS_PER_TARGET = 4

export interface Share {
  value: string
  weight: number
}

/** How a connection finds its slot: in turns, or by the hash of its client. */
export type Choice = 'turn' | 'hash'

/** Slot → value. A power of two of them, never fewer than `before` has. In a larger table each slot of the smaller one is
 *  repeated where its connections look for it now: a hash is scaled to the size, so its slots are neighbours; turns go
 *  through the smaller table again and again. */
export function assignSlots(shares: Share[], before: string[] = [], choice: Choice = 'turn'): string[] {
  let size = before.length
  while (size < SLOTS_MIN || !isPrecise(shares, size)) size = Math.max(SLOTS_MIN, size * 2)
  const room = roomFor(shares, size)
  const old = (slot: number) => (choice === 'turn' ? slot % before.length : Math.floor((slot * before.length) / size))
  const slots: (string | undefined)[] = Array.from({ length: size }, (_, slot) => before[old(slot)])
  release(slots, room)
  fill(slots, room)
  return slots as string[]
}

function isPrecise(shares: Share[], size: number): boolean {
  if (size >= Math.max(SLOTS_MAX, shares.length * SLOTS_PER_TARGET)) return true
  if (size < shares.length) return false
  const total = shares.reduce((sum, share) => sum + share.weight, 0)
  return shares.every(({ weight }) => {
    const exact = (weight / total) * size
    return Math.max(Math.ceil(exact) - exact, exact - Math.floor(exact)) <= exact * ERROR_MAX
  })
}

/** Value → its number of slots: largest remainder, and at least one for every weight. */
function roomFor(shares: Share[], size: number): Map<string, number> {
  const total = shares.reduce((sum, share) => sum + share.weight, 0)
  const exact = shares.map((share) => ({ ...share, exact: (share.weight / total) * size }))
  const room = new Map(exact.map((share) => [share.value, Math.max(1, Math.floor(share.exact))]))
  const left = () => size - [...room.values()].reduce((sum, count) => sum + count, 0)
  const order = exact.toSorted(
    (a, b) => b.exact - Math.floor(b.exact) - (a.exact - Math.floor(a.exact)) || (a.value < b.value ? -1 : 1),
  )
  for (let spare = left(), i = 0; spare > 0; spare--, i++) {
    const { value } = order[i % order.length]!
    room.set(value, room.get(value)! + 1)
  }
  // Those that were given one although they have less take it from the largest.
  for (let missing = -left(); missing > 0; missing--) {
    const largest = [...room].reduce((a, b) => (b[1] > a[1] ? b : a))[0]
    room.set(largest, room.get(largest)! - 1)
  }
  return room
}

/** Empties the slots of values that are gone, and of each value those that it has too many, spread over the table. */
function release(slots: (string | undefined)[], room: Map<string, number>) {
  const has = new Map<string, number>()
  for (const value of slots) if (value !== undefined) has.set(value, (has.get(value) ?? 0) + 1)
  const seen = new Map<string, number>()
  slots.forEach((value, slot) => {
    if (value === undefined) return
    const [count, keep, index] = [has.get(value)!, room.get(value) ?? 0, seen.get(value) ?? 0]
    seen.set(value, index + 1)
    const kept = (n: number) => Math.floor((n * Math.min(keep, count)) / count)
    if (kept(index + 1) === kept(index)) slots[slot] = undefined
  })
}

/** Fills the empty slots in turns (smooth weighted round-robin), so that neighbours differ. */
function fill(slots: (string | undefined)[], room: Map<string, number>) {
  const wants = new Map(room)
  for (const value of slots) if (value !== undefined) wants.set(value, wants.get(value)! - 1)
  const waiting = [...wants].filter(([, count]) => count > 0).map(([value, count]) => ({ value, count, credit: 0 }))
  const total = waiting.reduce((sum, one) => sum + one.count, 0)
  for (let slot = 0; slot < slots.length; slot++) {
    if (slots[slot] !== undefined) continue
    let best = waiting[0]!
    for (const one of waiting) {
      one.credit += one.count
      if (one.credit > best.credit) best = one
    }
    best.credit -= total
    slots[slot] = best.value
  }
}
