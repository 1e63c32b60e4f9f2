// What is to be done for a certificate, and when, from what is known of it. Pure: the clock comes from outside.
import { ACME_RETRY_AFTER_MS_MAX, STORE_RETRY_MS } from '../../base/limits.ts'
import type { CertificateStatus, StoredCertificate } from '../types.ts'
import type { Attempts } from './records.ts'
import { expiringTime, renewalTime, type RenewalWindow } from './renewal.ts'

export interface Known {
  held: StoredCertificate | undefined
  attempts: Attempts
  /** The CA's wish, and when it is asked for it again. */
  window: RenewalWindow | undefined
  lookAt: number
  /** That it ends soon. */
  told: boolean
  /** Why the store could not be asked. It is asked again. */
  storeError: string | undefined
  /** It has to be told of what is held. */
  unsaved: boolean
  renewBeforeDays: number
}

/** Timers do not hear of a clock that is set, as one is that began in 1970. */
const LOOK_AT_THE_CLOCK_MS = 3_600_000
/** Between two steps of one name, whatever seems to be due. */
const STEP_MS_MIN = 1000

export function isDue(known: Known, now: number): boolean {
  return now >= nextAttempt(known, now) && (!known.held || now >= renewAt(known, known.held))
}

/** Its end is near, and nobody was told. */
export const isExpiring = ({ held, told }: Known, now: number): boolean =>
  held !== undefined && !told && now >= expiringTime(lifetime(held))

/** How long until something may have to be done. */
export function nextStep(known: Known, now: number): number {
  const { held, storeError, unsaved, lookAt, told } = known
  const times = [now + LOOK_AT_THE_CLOCK_MS]
  if (storeError !== undefined || unsaved) times.push(now + STORE_RETRY_MS)
  else if (!held) times.push(nextAttempt(known, now))
  else {
    times.push(Math.max(renewAt(known, held), nextAttempt(known, now)), lookAt)
    if (!told) times.push(expiringTime(lifetime(held)))
  }
  return Math.max(Math.min(...times) - now, STEP_MS_MIN)
}

export function statusOf(known: Known, now: number): CertificateStatus {
  const { held, attempts, storeError } = known
  const good = held !== undefined && Date.parse(held.notAfter) > now
  // Of one that is not due nothing is kept back by it.
  const inTheWay = storeError !== undefined && isDue(known, now)
  return {
    state: good ? 'valid' : attempts.failures > 0 ? 'failed' : 'pending',
    ...attempts,
    ...(inTheWay ? { lastError: storeError } : {}),
    ...(held ? { notAfter: held.notAfter, renewAt: new Date(renewAt(known, held)).toISOString() } : {}),
  }
}

/** Nobody is made to wait longer than a CA may ask for: what is later was written by a clock that was ahead. */
function nextAttempt({ attempts: { nextAttemptAt } }: Known, now: number): number {
  const time = nextAttemptAt === undefined ? 0 : Date.parse(nextAttemptAt)
  return time > now + ACME_RETRY_AFTER_MS_MAX ? 0 : time
}

const renewAt = ({ renewBeforeDays, window }: Known, held: StoredCertificate): number =>
  renewalTime(lifetime(held), renewBeforeDays, held.jitter, window)

const lifetime = ({ notBefore, notAfter, issuedAt }: StoredCertificate) => ({
  notBefore: Date.parse(notBefore),
  notAfter: Date.parse(notAfter),
  issuedAt: Date.parse(issuedAt),
})
