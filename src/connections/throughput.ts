// How fast each route and the whole gateway carry: what the totals grow by from look to look, as seconds and minutes. Pure:
// whoever looks brings the clock.
//
// How fine that is depends on how the totals grow. What user space carries they learn once a second. What the kernel
// carries they learn when conntrack is read (every 5 s; with very many flows, or where only long deadlines need it, up to
// every 60 s; sooner when somebody asks for rates) and when a flow ends. What one reading brings was carried since the
// reading before: it is spread evenly over that time, and the rates of such a route are those until the last reading. So no
// byte is missing or told twice, but a burst of one second between two readings is not seen as one. What a flow carried
// between the last reading and its end stands where it ended, unless it was the only one left.
import { RATES_LAG_MS_MAX, THROUGHPUT_ROUTES_MAX, THROUGHPUT_ROUTES_PER_TURN } from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import { newRing, spread, sumOf, type Ring, type Span } from './ring.ts'
import type { RouteTotals } from './totals.ts'

/** An amount, or what comes of it in a second. */
export interface Moved {
  bytesIn: number
  bytesOut: number
  opened: number
  closed: number
}

/** Each a second, over so many whole seconds. */
export interface Rates {
  '1s': Moved
  '10s': Moved
  '60s': Moved
}

/** What a minute had. */
export interface Minute extends Moved {
  /** When it began, ISO 8601. */
  at: string
}

export type Counted = Pick<
  RouteTotals,
  'bytesIn' | 'bytesOut' | 'packetsIn' | 'packetsOut' | 'total' | 'now' | 'reasons'
>

/** By a clock that is never set. */
export interface Look {
  nowMs: number
  /** What user space carried is in the totals up to here. */
  userMs: number
  /** And what the kernel carried. null: it has not said yet what it carries; when that was carried will not be known. */
  kernelMs: number | null
}

const NOTHING: Readonly<Moved> = { bytesIn: 0, bytesOut: 0, opened: 0, closed: 0 }
/** In the order in which a ring has them. */
const FIELDS = ['bytesIn', 'bytesOut', 'opened', 'closed'] as const
const [SECOND_MS, MINUTE_MS] = [1000, 60_000]
/** The longest window, as long before now as it may end, and the second that is under way. */
const SECONDS = 60 + Math.ceil(RATES_LAG_MS_MAX / SECOND_MS) + 1
/** The last of them is under way. */
const MINUTES = 60

interface Entry {
  /** The totals as they were at the last look. */
  bytesIn: number
  bytesOut: number
  packets: number
  opened: number
  closed: number
  now: number
  /** The look that saw it last. */
  look: number
  /** It last grew, and last by what the kernel carried. */
  activeMs: number
  byKernelMs: number
  /** null: nothing in all that time, or too many routes have them. */
  seconds: Ring | null
  minutes: Ring | null
}

const NO_RATES: Readonly<Rates> = { '1s': NOTHING, '10s': NOTHING, '60s': NOTHING }

const newEntry = (): Entry => ({
  bytesIn: 0,
  bytesOut: 0,
  packets: 0,
  opened: 0,
  closed: 0,
  now: 0,
  look: 0,
  activeMs: -Infinity,
  byKernelMs: -Infinity,
  seconds: null,
  minutes: null,
})

export class Throughput {
  readonly #routes = new Map<string, Entry>()
  readonly #gateway: Entry = { ...newEntry(), seconds: newSeconds(), minutes: newMinutes() }
  #looking: Promise<void> = Promise.resolve()
  #looks = 0
  #first: Look | null = null
  #last: Look = { nowMs: 0, userMs: 0, kernelMs: 0 }
  /** Routes that have rings. */
  #kept = 0

  /** @param totals of every route that has any, also of those that are gone. */
  constructor(private readonly totals: () => Iterable<readonly [string, Counted]>) {}

  // ---- looking ----

  /** Takes in what the totals have grown by, one look after another. The first one only takes their measure. */
  look(look: Look): Promise<void> {
    const done = this.#looking.then(() => this.#look(look))
    this.#looking = done.catch(() => {})
    return done
  }

  async #look(now: Look) {
    const isFirst = this.#first === null
    const look = ++this.#looks
    const { nowMs } = now
    const since: Span = { fromMs: this.#last.nowMs, toMs: nowMs }
    // What was told without a reading is of connections that have ended.
    const told = (fromMs: number, toMs: number): Span => (toMs > fromMs ? { fromMs, toMs } : since)
    const sinceUser = told(this.#last.userMs, now.userMs)
    const isKernelKnown = now.kernelMs !== null && this.#last.kernelMs !== null
    const sinceKernel = isKernelKnown ? told(this.#last.kernelMs!, now.kernelMs!) : since
    const [byUser, byKernel] = [{ ...NOTHING }, { ...NOTHING }]
    let seen = 0
    await inTurns(this.totals(), THROUGHPUT_ROUTES_PER_TURN, ([name, totals]) => {
      seen++
      const entry = this.#entry(name)
      entry.look = look
      const { packets } = entry
      const more = growth(entry, totals)
      if (!more || isFirst) return this.#rest(entry, nowMs)
      // Only of kernel flows are packets known.
      const isKernel = entry.packets !== packets
      if (isKernel && !isKernelKnown) return this.#rest(entry, nowMs)
      entry.activeMs = nowMs
      if (isKernel) entry.byKernelMs = this.#gateway.byKernelMs = nowMs
      addTo(isKernel ? byKernel : byUser, more)
      if (this.#keep(entry)) put(entry, more, since, isKernel ? sinceKernel : sinceUser)
    })
    if (this.#routes.size > seen) this.#forgetUnseen(look)
    this.#first ??= now
    this.#last = {
      nowMs,
      userMs: Math.max(now.userMs, this.#last.userMs),
      kernelMs: now.kernelMs && Math.max(now.kernelMs, this.#last.kernelMs ?? 0),
    }
    if (isFirst) return
    put(this.#gateway, byUser, since, sinceUser)
    put(this.#gateway, byKernel, since, sinceKernel)
  }

  #entry(name: string): Entry {
    let entry = this.#routes.get(name)
    if (!entry) this.#routes.set(name, (entry = newEntry()))
    return entry
  }

  /** false: too many others have rings. */
  #keep(entry: Entry): boolean {
    if (!entry.minutes) {
      if (this.#kept >= THROUGHPUT_ROUTES_MAX) return false
      this.#kept++
      entry.minutes = newMinutes()
    }
    entry.seconds ??= newSeconds()
    return true
  }

  #rest(entry: Entry, nowMs: number) {
    const idleMs = nowMs - entry.activeMs
    if (entry.seconds && idleMs > SECONDS * SECOND_MS) entry.seconds = null
    if (entry.minutes && idleMs > MINUTES * MINUTE_MS) this.#forget(entry)
  }

  #forget(entry: Entry) {
    entry.seconds = entry.minutes = null
    this.#kept--
  }

  /** Whom the totals have forgotten. */
  #forgetUnseen(look: number) {
    for (const [name, entry] of this.#routes) {
      if (entry.look === look) continue
      if (entry.minutes) this.#forget(entry)
      this.#routes.delete(name)
    }
  }

  // ---- what it comes to ----

  /** @param route null: the gateway. The answer is null when too many other routes are busy. */
  rates(route: string | null): Rates | null {
    const entry = route === null ? this.#gateway : this.#routes.get(route)
    const { nowMs } = this.#last
    if (!entry || (route !== null && nowMs - entry.activeMs > SECONDS * SECOND_MS)) return NO_RATES
    const { seconds } = entry
    if (!seconds) return null
    const end = Math.floor(this.#knownMs(entry) / SECOND_MS)
    const over = (length: number) => amounts(seconds, end - length, end, length)
    return { '1s': over(1), '10s': over(10), '60s': over(60) }
  }

  /** What it carried is in the totals up to here; what is not known for long counts as nothing. */
  #knownMs({ byKernelMs }: Entry): number {
    const { nowMs, userMs, kernelMs } = this.#last
    const isKernel = nowMs - byKernelMs <= SECONDS * SECOND_MS
    return Math.max(Math.min(nowMs, userMs, isKernel ? (kernelMs ?? 0) : Infinity), nowMs - RATES_LAG_MS_MAX)
  }

  /** The last hour at most, oldest minute first; the last one is under way. @param route null: the gateway. */
  history(route: string | null, nowMs: number, wallMs: number): Minute[] {
    if (!this.#first) return []
    const ring = route === null ? this.#gateway.minutes : this.#routes.get(route)?.minutes
    const newest = Math.floor(nowMs / MINUTE_MS)
    const oldest = Math.max(newest - MINUTES + 1, Math.floor(this.#first.nowMs / MINUTE_MS))
    return Array.from({ length: newest - oldest + 1 }, (_, i) => ({
      at: new Date(wallMs - nowMs + (oldest + i) * MINUTE_MS).toISOString(),
      ...(ring ? amounts(ring, oldest + i, oldest + i + 1, 1) : NOTHING),
    }))
  }
}

const newSeconds = () => newRing(SECOND_MS, SECONDS, FIELDS.length)
const newMinutes = () => newRing(MINUTE_MS, MINUTES, FIELDS.length)

/** What the totals have more than the entry, which has it from now on; null: nothing. */
function growth(
  entry: Entry,
  { bytesIn, bytesOut, packetsIn, packetsOut, total, now, reasons }: Counted,
): Moved | null {
  const packets = packetsIn + packetsOut
  // Whatever opens or closes changes one of these.
  if (
    bytesIn === entry.bytesIn &&
    bytesOut === entry.bytesOut &&
    total === entry.opened &&
    now === entry.now &&
    packets === entry.packets
  )
    return null
  let closed = 0
  for (const reason in reasons) closed += reasons[reason as keyof typeof reasons]!
  const more = {
    bytesIn: bytesIn - entry.bytesIn,
    bytesOut: bytesOut - entry.bytesOut,
    opened: total - entry.opened,
    closed: closed - entry.closed,
  }
  entry.bytesIn = bytesIn
  entry.bytesOut = bytesOut
  entry.packets = packets
  entry.opened = total
  entry.closed = closed
  entry.now = now
  return more
}

function addTo(sum: Moved, { bytesIn, bytesOut, opened, closed }: Moved) {
  sum.bytesIn += bytesIn
  sum.bytesOut += bytesOut
  sum.opened += opened
  sum.closed += closed
}

/** Connections open and close before our eyes; bytes are told of later. */
function put({ seconds, minutes }: Entry, more: Moved, since: Span, carried: Span) {
  putIn(seconds!, more, since, carried)
  putIn(minutes!, more, since, carried)
}

function putIn(ring: Ring, { bytesIn, bytesOut, opened, closed }: Moved, since: Span, carried: Span) {
  spread(ring, 0, bytesIn, carried)
  spread(ring, 1, bytesOut, carried)
  spread(ring, 2, opened, since)
  spread(ring, 3, closed, since)
}

/** What turns out to belong elsewhere is taken back, but nothing flows backwards. */
const amounts = (ring: Ring, from: number, to: number, share: number) =>
  Object.fromEntries(
    FIELDS.map((field, i) => [field, Math.max(0, sumOf(ring, i, from, to)) / share]),
  ) as unknown as Moved
