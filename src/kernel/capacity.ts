// How full the kernel's conntrack table is, and the alarm before it is full: a full table drops new connections of the whole
// machine, ours and everybody's, with nothing but a line in the kernel's own log.
import { readFile } from 'node:fs/promises'

const EVERY_MS = 5000
/** The rate is taken over this long: short enough for a flood, long enough not to see one in a burst. */
const WINDOW_MS = 30_000
const SOON_S = 300
const VERY_SOON_S = 60
/** A forecast of a table that is mostly empty says more about the last seconds than about the next minutes. */
const FORECAST_FROM_SHARE = 0.3
const SHARES = { warning: 0.8, severe: 0.9, full: 0.98, calm: 0.7 }

export interface Fill {
  entries: number
  limit: number
}
export interface Sample extends Fill {
  /** Any clock that does not jump. */
  atMs: number
}
export interface Capacity extends Fill {
  /** At the present rate; null when it does not grow. */
  fullInSeconds: number | null
}

/** Oldest first. The rate is the one over all of the samples. */
export function forecast(samples: readonly Sample[]): number | null {
  const [first, last] = [samples[0], samples.at(-1)]
  if (!first || !last || last.atMs <= first.atMs) return null
  const perSecond = ((last.entries - first.entries) * 1000) / (last.atMs - first.atMs)
  return perSecond > 0 ? Math.max(0, last.limit - last.entries) / perSecond : null
}

/** 0: room enough. 1 to 3: worse and worse. It falls only to 0, and not before there is room again: a table at the edge does
 *  not alarm with every look. */
export function alarmLevel({ entries, limit, fullInSeconds }: Capacity, before: number): number {
  const share = entries / limit
  const within = (seconds: number) => share >= FORECAST_FROM_SHARE && fullInSeconds !== null && fullInSeconds <= seconds
  if (share < SHARES.calm && !within(2 * SOON_S)) return 0
  const level =
    share >= SHARES.full
      ? 3
      : share >= SHARES.severe || within(VERY_SOON_S)
        ? 2
        : share >= SHARES.warning || within(SOON_S)
          ? 1
          : 0
  return Math.max(level, before)
}

export function alarmText({ entries, limit, fullInSeconds }: Capacity): string {
  const share = `The conntrack table is at ${Math.floor((entries / limit) * 100)} % of ${limit} entries`
  const when =
    entries >= limit
      ? ', full: new connections of the whole machine are dropped'
      : fullInSeconds === null
        ? ''
        : `, full in about ${about(fullInSeconds)} at the present rate`
  return `${share}${when}; raise net.netfilter.nf_conntrack_max`
}

function about(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`
}

/** null where the kernel does not say (no conntrack, or a namespace without the files). */
export async function readFill(): Promise<Fill | null> {
  const number = async (name: string) => Number(await readFile(`/proc/sys/net/netfilter/nf_conntrack_${name}`, 'utf8'))
  try {
    const [entries, limit] = await Promise.all([number('count'), number('max')])
    return Number.isFinite(entries) && limit > 0 ? { entries, limit } : null
  } catch {
    return null
  }
}

type Log = (level: 'info' | 'warn', message: string, fields?: Record<string, unknown>) => void

export class CapacityWatch {
  #samples: Sample[] = []
  #level = 0
  #timer: ReturnType<typeof setInterval> | undefined
  #looking = false

  constructor(
    private readonly log: Log,
    private readonly read: () => Promise<Fill | null> = readFill,
    private readonly clock: () => number = () => performance.now(),
  ) {}

  /** What was seen last; null before the first look and where the kernel does not say. */
  get last(): Capacity | null {
    const sample = this.#samples.at(-1)
    return sample ? { entries: sample.entries, limit: sample.limit, fullInSeconds: forecast(this.#samples) } : null
  }

  start() {
    this.#timer ??= setInterval(() => void this.look(), EVERY_MS)
    void this.look()
  }

  stop() {
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  async look(): Promise<void> {
    if (this.#looking) return
    this.#looking = true
    const fill = await this.read().finally(() => {
      this.#looking = false
    })
    if (!fill) return
    const atMs = this.clock()
    // A raised limit is a new table: what was forecast for the old one is over.
    const kept = this.#samples.filter((sample) => sample.limit === fill.limit && sample.atMs >= atMs - WINDOW_MS)
    this.#samples = [...kept, { ...fill, atMs }]
    this.#judge({ ...fill, fullInSeconds: forecast(this.#samples) })
  }

  #judge(capacity: Capacity) {
    const before = this.#level
    this.#level = alarmLevel(capacity, before)
    const { entries, limit, fullInSeconds } = capacity
    const fields = { entries, limit, fullInSeconds: fullInSeconds === null ? null : Math.round(fullInSeconds) }
    if (this.#level > before) this.log('warn', alarmText(capacity), fields)
    else if (this.#level === 0 && before > 0) this.log('info', 'The conntrack table has room again', fields)
  }
}
