// When a certificate is renewed: when the CA says (RFC 9773), else by its lifetime. Pure: time and chance come from outside.
import { RENEWAL_LOOK_MS, RENEWAL_LOOK_MS_MAX, RENEWAL_LOOK_MS_MIN } from '../../base/limits.ts'
import { AuthorityKeyIdentifierExtension, X509Certificate } from '../x509.ts'

/** Times in milliseconds since 1970. */
export interface Lifetime {
  notBefore: number
  notAfter: number
  /** When this gateway, or another of its store, got it, by its own clock. */
  issuedAt: number
}

/** The time in which the CA wants a certificate to be renewed. */
export interface RenewalWindow {
  start: number
  end: number
}

const DAY_MS = 86_400_000

/**
 * The same for every gateway and after every restart, as long as the window stays.
 * @param jitter 0 to 1, the certificate's own: certificates that were issued together are not renewed together.
 */
export function renewalTime(life: Lifetime, renewBeforeDays: number, jitter: number, window?: RenewalWindow): number {
  const { notBefore, notAfter, issuedAt } = life
  const lifetime = notAfter - notBefore
  // Where a clock is wrong, here or at the CA, a certificate may be due when it is issued: without these each renewal would be
  // followed by the next one, or none would come before the end.
  const youngest = issuedAt + (window ? Math.min(lifetime / 10, DAY_MS) : lifetime / 3)
  const oldest = notAfter - lifetime / 10
  const wanted = window
    ? window.start + jitter * (window.end - window.start)
    : byLifetime(life, renewBeforeDays) - (jitter * lifetime) / 50
  return Math.min(Math.max(Math.min(wanted, oldest), youngest), notAfter)
}

function byLifetime({ notBefore, notAfter }: Lifetime, renewBeforeDays: number): number {
  const lifetime = notAfter - notBefore
  const before = renewBeforeDays * DAY_MS
  return lifetime > 3 * before ? notAfter - before : notBefore + (lifetime * 2) / 3
}

/** From here on it is told that the certificate ends soon: it should have been renewed long before. */
export const expiringTime = ({ notBefore, notAfter }: Omit<Lifetime, 'issuedAt'>): number =>
  notAfter - (notAfter - notBefore) / 10

/** The name of a certificate in the CA's renewal information (RFC 9773, section 4.1). undefined: it has none. */
export function renewalId(cert: string): string | undefined {
  const certificate = new X509Certificate(cert)
  const authority = certificate.getExtension(AuthorityKeyIdentifierExtension)?.keyId
  if (!authority) return undefined
  const encode = (hex: string) => Buffer.from(hex, 'hex').toString('base64url')
  return `${encode(authority)}.${encode(positive(certificate.serialNumber))}`
}

/** As DER writes a positive number: the zero before a first byte that would make it negative belongs to it. */
function positive(hex: string): string {
  const even = hex.length % 2 ? `0${hex}` : hex
  const bytes = even.replace(/^(?:00)+(?=..)/, '')
  return parseInt(bytes.slice(0, 2), 16) >= 0x80 ? `00${bytes}` : bytes
}

/** What a CA answered; undefined when it makes no sense. */
export function renewalWindow(answer: unknown): RenewalWindow | undefined {
  const { start, end } = (answer as { suggestedWindow?: Record<string, unknown> } | null)?.suggestedWindow ?? {}
  if (typeof start !== 'string' || typeof end !== 'string') return undefined
  const window = { start: Date.parse(start), end: Date.parse(end) }
  return window.start < window.end ? window : undefined
}

/** How long until the renewal information is asked for again. */
export const nextLook = (retryAfterMs: number | undefined): number =>
  retryAfterMs === undefined
    ? RENEWAL_LOOK_MS
    : Math.min(Math.max(retryAfterMs, RENEWAL_LOOK_MS_MIN), RENEWAL_LOOK_MS_MAX)
