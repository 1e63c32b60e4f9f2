// What is told of a certificate: GET /v1/certificates, the metrics, and the lines and events about one that is running out.
import { endOf, isExpiring, outOfTime, uncovered } from './pair.ts'
import type { Source, SourceKind } from './source.ts'

export interface CertificateView {
  name: string
  /** Of the certificate; before there is one, those it is wanted for. */
  names: string[]
  routes: string[]
  source: SourceKind
  /** `pending`: there is none yet; `failed`: there is none that clients would take, and the last attempt went wrong. */
  state: 'valid' | 'expiring' | 'expired' | 'pending' | 'failed'
  keys: string[]
  issuer?: string
  serialNumber?: string
  /** Times are ISO 8601. */
  notBefore?: string
  notAfter?: string
  /** Negative when it is over. */
  expiresInSeconds?: number
  lastError?: string
  nextAttempt?: string
  renewAt?: string
  files?: { cert: string; key: string }
  /** Domains of its routes that it is not for: clients that ask for them refuse it. */
  uncovered?: string[]
  warnings?: string[]
}

export function certificateView(source: Source, routes: string[], wanted: string[], now: number): CertificateView {
  const { name, kind, pairs, nextAttempt, renewAt, files, warnings } = source
  const lastError = source.lastError ?? (pairs.length > 0 ? outOfTime(pairs, now) : undefined)
  const missing = pairs.length > 0 ? uncovered(wanted, pairs) : []
  return {
    name,
    names: pairs.length > 0 ? [...new Set(pairs.flatMap((pair) => pair.names))] : wanted,
    routes,
    source: kind,
    state: stateOf(source, now),
    keys: pairs.map((pair) => pair.kind),
    ...(pairs.length > 0 ? lifeOf(source, now) : {}),
    ...(lastError === undefined ? {} : { lastError }),
    ...(nextAttempt === undefined ? {} : { nextAttempt: iso(nextAttempt) }),
    ...(renewAt === undefined ? {} : { renewAt: iso(renewAt) }),
    ...(files ? { files } : {}),
    ...(missing.length > 0 ? { uncovered: missing } : {}),
    ...(warnings?.length ? { warnings: [...warnings] } : {}),
  }
}

/** Of the pair that is over first. */
function lifeOf({ pairs }: Source, now: number) {
  const end = endOf(pairs)
  const first = pairs.find(({ notAfter }) => notAfter.getTime() === end)!
  return {
    issuer: first.issuer,
    serialNumber: first.serialNumber,
    notBefore: first.notBefore.toISOString(),
    notAfter: first.notAfter.toISOString(),
    expiresInSeconds: Math.floor((end - now) / 1000),
  }
}

export function stateOf({ pairs, lastError }: Source, now: number): CertificateView['state'] {
  if (pairs.length === 0) return lastError === undefined ? 'pending' : 'failed'
  if (endOf(pairs) <= now) return 'expired'
  if (outOfTime(pairs, now)) return 'failed' // too early
  return isExpiring(pairs, now) ? 'expiring' : 'valid'
}

/** A sentence about one that clients refuse, or soon will. */
export function concernOf(source: Source, now: number): { level: 'error' | 'warn'; words: string } | undefined {
  if (source.pairs.length === 0) return undefined
  const why = outOfTime(source.pairs, now)
  if (why) return { level: 'error', words: `clients refuse it: ${why}` }
  if (!isExpiring(source.pairs, now)) return undefined
  return { level: 'warn', words: `it expires at ${iso(endOf(source.pairs))} and has not been renewed` }
}

const iso = (time: number) => new Date(time).toISOString()
