// Connections that the nft program refused: its counters by route and reason, read while any route can refuse one, as what
// came since the last look.
import { OBSERVED_FROM, REFUSED } from '../plan/kernel-state.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import type { Nft } from './nft.ts'

const SET = 'refused'
const EVERY_MS = 2000

export interface Refusal {
  /** Number of the route; 0: a port whose route only user space could have told. */
  number: number
  reason: RefusalReason
  /** false: mode observe, it would have been refused. */
  enforced: boolean
  count: number
}

export class Refusals {
  #last = new Map<string, number>()
  #timer: ReturnType<typeof setInterval> | undefined
  #reading: Promise<void> | null = null

  constructor(
    private readonly nft: Nft,
    private readonly table: string,
    private readonly onRefused: (refusals: Refusal[]) => void,
    private readonly onError: (message: string) => void,
  ) {}

  /** @param possible whether the program as it is can refuse anything. */
  watch(possible: boolean) {
    if (possible === (this.#timer !== undefined)) return
    clearInterval(this.#timer)
    this.#timer = possible ? setInterval(() => void this.read(), EVERY_MS) : undefined
    // What was refused until now.
    if (!possible) void this.read()
  }

  /** Resolves when what was refused until the call has been reported. */
  read(): Promise<void> {
    return (this.#reading ??= this.#read()
      .catch((error: Error) => this.onError(error.message))
      .finally(() => {
        this.#reading = null
      }))
  }

  async #read() {
    const listing = await this.nft.listSet(this.table, SET)
    const counts = countsIn(listing ?? [])
    const refusals = [...counts].flatMap(([key, count]): Refusal[] => {
      // A table that was made anew counts from nothing.
      const before = this.#last.get(key) ?? 0
      const came = count >= before ? count - before : count
      const [mark, code] = key.split(' ').map(Number) as [number, number]
      const enforced = code <= OBSERVED_FROM
      const reason = REFUSED[(enforced ? code : code - OBSERVED_FROM) - 1]
      return came > 0 && reason ? [{ number: mark & 0x000fffff, reason, enforced, count: came }] : []
    })
    this.#last = counts
    if (refusals.length > 0) this.onRefused(refusals)
  }

  stop() {
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

/** nft's JSON of the set → "mark code" → packets. */
export function countsIn(listing: unknown[]): Map<string, number> {
  const set = (listing as { set?: { elem?: { elem: Listed }[] } }[]).find((item) => item.set)?.set
  return new Map(
    (set?.elem ?? []).map(({ elem }) => [`${elem.val.concat[0]} ${elem.val.concat[1]}`, elem.counter.packets]),
  )
}
interface Listed {
  val: { concat: [number, number] }
  counter: { packets: number }
}
