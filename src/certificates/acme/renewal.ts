// When a certificate is renewed: when the CA says (RFC 9773), else by its lifetime. Pure: time and chance come from outside.
import { RENEWAL_LOOK_MS, RENEWAL_LOOK_MS_MAX, RENEWAL_LOOK_MS_MIN } from '../../base/limits.ts'
import { AuthorityKeyIdentifierExtension, X509Certificate } from '../x509.ts'

/** Times in milliseconds since 1970. */
export interface Lifetime {
  notBefore: number
  notAfter: number
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
export function renewalTime(
  { notBefore, notAfter }: Lifetime,
  renewBeforeDays: number,
  jitter: number,
  window?: RenewalWindow,
): number {
  const lifetime = notAfter - notBefore
  // A window that the CA's clock or a mistake has put too late must not become an outage.
  if (window) return Math.min(window.start + jitter * (window.end - window.start), notAfter - lifetime / 10)
  const before = renewBeforeDays * DAY_MS
  const latest = lifetime > 3 * before ? notAfter - before : notBefore + (lifetime * 2) / 3
  return latest - (jitter * lifetime) / 50
}

/** From here on it is told that the certificate ends soon: by then two thirds of the attempts to renew it have failed. */
export const expiringTime = ({ notBefore, notAfter }: Lifetime): number => notAfter - (notAfter - notBefore) / 10

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
