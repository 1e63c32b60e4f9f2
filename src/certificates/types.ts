// What the parts of the certificates tell each other: the challenges of a CA, what was issued, and what happened to it.

export type ChallengeType = 'http-01' | 'tls-alpn-01'

/** What the gateway has to answer so that a CA believes that the name is its own. */
export type Challenge =
  | { type: 'http-01'; name: string; token: string; keyAuthorization: string }
  /** PEM: what a handshake for acme-tls/1 has to show. */
  | { type: 'tls-alpn-01'; name: string; cert: string; key: string }

export interface CertificateEvent {
  name: string
  source: 'auto' | 'file' | 'module' | 'self-signed'
  /** `replaced`: somebody else made it: another gateway, or a hand that changed a file. */
  what: 'issued' | 'renewed' | 'failed' | 'expiring' | 'replaced'
  notAfter?: string
  error?: string
  nextAttemptAt?: string
}

/** A certificate of a CA as it is kept in the store. Times are ISO 8601. */
export interface StoredCertificate {
  /** PEM: the certificate, then its issuers. */
  cert: string
  /** PEM, PKCS #8. */
  key: string
  issuedAt: string
  notBefore: string
  notAfter: string
  /** 0 to 1, drawn once: where in the time that is good for a renewal this one is renewed, the same after every restart. */
  jitter: number
}

export interface AcmeSettings {
  email: string
  directory: string
  /** PEM text of what signs the directory's own certificate, when no public CA does. */
  ca: string | null
  eab: { kid: string; hmacKey: string } | null
  renewBeforeDays: number
}

/** What is known of one automatic certificate. Times are ISO 8601. */
export interface CertificateStatus {
  /** `valid` also while a renewal fails; `pending` has none yet; `failed` has none, or an expired one, and the CA said no. */
  state: 'valid' | 'pending' | 'failed'
  failures: number
  lastError?: string
  nextAttemptAt?: string
  renewAt?: string
  notAfter?: string
}
