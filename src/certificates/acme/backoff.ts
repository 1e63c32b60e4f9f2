// When a failed order is tried again. Pure: time and chance come from outside.
import { ACME_RETRY_AFTER_MS_MAX, ACME_RETRY_MS_MAX, ACME_RETRY_MS_MIN } from '../../base/limits.ts'

/**
 * How long to wait after this many failures in a row, the last one included.
 * @param random 0 to 1: names that failed together do not come back together.
 * @param retryAfterMs what the CA asked for: never sooner than that.
 */
export function retryDelay(failures: number, random: number, retryAfterMs = 0): number {
  // Doubling is done long before the exponent is too large for a number.
  const doubled = ACME_RETRY_MS_MIN * 2 ** Math.min(Math.max(failures, 1) - 1, 30)
  const own = Math.min(doubled * (1 + random / 4), ACME_RETRY_MS_MAX)
  return Math.max(own, Math.min(retryAfterMs, ACME_RETRY_AFTER_MS_MAX))
}

/** Of a Retry-After header, in seconds or as a date; undefined when there is none or it makes no sense. */
export function parseRetryAfter(header: string | null, now: number): number | undefined {
  if (header === null) return undefined
  if (/^\d{1,9}$/.test(header.trim())) return Number(header) * 1000
  const date = Date.parse(header)
  return Number.isNaN(date) ? undefined : Math.max(date - now, 0)
}
