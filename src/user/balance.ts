// Which target a connection gets, and which one next when that fails. Numbers only: nothing here knows a socket.
import { endpointKey } from '../base/addresses.ts'
import type { UserTarget } from '../plan/types.ts'

export interface Slot {
  /** With its present weight. */
  target: UserTarget
  /** Identity of the endpoint within the route. */
  readonly endpoint: string
  /** Its last connect failed: the next success is worth a word. */
  failing: boolean
  /** Connections that have or are opening it. */
  active: number
  /** Smooth weighted round-robin: what the target is owed. */
  credit: number
  readonly seed: string
}

export class Balancer {
  /** Those that take connections now. */
  slots: readonly Slot[] = []
  /** Of every target there is, by seed; one that is configured twice has two. */
  #known = new Map<string, Slot[]>()

  constructor(
    targets: readonly UserTarget[],
    readonly balance: 'round-robin' | 'source-hash' | 'least-connections',
  ) {
    this.retarget(targets)
  }

  /** Targets come, go and change their weight; what is known of those that stay is kept. */
  retarget(targets: readonly UserTarget[]) {
    const before = this.#known
    this.#known = new Map()
    const all = targets.map((target) => {
      const seed = JSON.stringify([target.host, target.port])
      const slot = before.get(seed)?.shift() ?? newSlot(target, seed)
      slot.target = target
      const same = this.#known.get(seed)
      if (same) same.push(slot)
      else this.#known.set(seed, [slot])
      return slot
    })
    this.slots = all.filter((slot) => slot.target.weight > 0)
  }

  /** undefined: no target is left that was not tried. */
  pick(client: string, tried: readonly Slot[]): Slot | undefined {
    if (this.slots.length === 1) return tried.length === 0 ? this.slots[0] : undefined
    const left = tried.length === 0 ? this.slots : this.slots.filter((slot) => !tried.includes(slot))
    if (left.length === 0) return undefined
    if (this.balance === 'source-hash') return highest(left, (slot) => rendezvous(client, slot))
    if (this.balance === 'least-connections') {
      const least = Math.min(...left.map(load))
      return roundRobin(left.filter((slot) => load(slot) === least))
    }
    return roundRobin(left)
  }
}

const newSlot = (target: UserTarget, seed: string): Slot => ({
  target,
  endpoint: endpointKey(target.host, target.port),
  failing: false,
  active: 0,
  credit: 0,
  seed,
})

const load = (slot: Slot) => slot.active / slot.target.weight

/** nginx's smooth weighted round-robin: exact over each full turn, and never all of one target's share in a row. */
function roundRobin(slots: readonly Slot[]): Slot {
  let total = 0
  for (const slot of slots) {
    slot.credit += slot.target.weight
    total += slot.target.weight
  }
  const best = highest(slots, (slot) => slot.credit)
  best.credit -= total
  return best
}

/** Weighted rendezvous hashing: a target that comes or goes moves only the clients it gains or loses. */
function rendezvous(client: string, slot: Slot): number {
  const hash = Number(Bun.hash.xxHash64(`${client} ${slot.seed}`) >> 11n) + 1
  return -slot.target.weight / Math.log(hash / (2 ** 53 + 1))
}

function highest<T>(list: readonly T[], score: (item: T) => number): T {
  let best = list[0] as T
  let most = -Infinity
  for (const item of list) {
    const value = score(item)
    if (value > most) [best, most] = [item, value]
  }
  return best
}
