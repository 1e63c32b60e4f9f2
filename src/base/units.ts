// Durations and rates as operators write them.

const UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** "500ms", "5s", "30m", "4h", "2d" → milliseconds; undefined when it is none of them. Clamped to what a timer can hold. */
export function parseDuration(text: string): number | undefined {
  const found = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text)
  if (!found) return undefined
  const ms = Number(found[1]) * UNIT_MS[found[2]!]!
  return ms > 0 ? Math.min(ms, TIMER_MS_MAX) : undefined
}

/** setTimeout fires at once above this (2^31 - 1 ms, 24.8 days). */
export const TIMER_MS_MAX = 2 ** 31 - 1

/** "300/minute" → { count: 300, perMs: 60000 }. */
export function parseRate(text: string): { count: number; perMs: number } | undefined {
  const found = /^(\d{1,7})\/(second|minute|hour)$/.exec(text)
  if (!found || Number(found[1]) === 0) return undefined
  return {
    count: Number(found[1]),
    perMs: { second: 1000, minute: 60_000, hour: 3_600_000 }[found[2] as 'second' | 'minute' | 'hour'],
  }
}
