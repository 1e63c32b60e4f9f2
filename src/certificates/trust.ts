// The local authority as those see it who are to trust it.
import { createHash, X509Certificate } from 'node:crypto'
import { join } from 'node:path'

export interface AuthorityView {
  /** File. */
  path: string
  /** PEM. */
  certificate: string
  name: string
  /** SHA-256, as browsers write it. */
  fingerprint: string
  notAfter: string
}

export const authorityDirectory = (stateDir: string) => join(stateDir, 'authority')

export function authorityView(directory: string, pem: string): AuthorityView {
  const certificate = new X509Certificate(pem)
  const digest = createHash('sha256').update(certificate.raw).digest('hex').toUpperCase()
  return {
    path: join(directory, 'ca.crt'),
    certificate: pem,
    name: /^CN=(.+)$/m.exec(certificate.subject)?.[1] ?? certificate.subject,
    fingerprint: digest.match(/../g)!.join(':'),
    notAfter: certificate.validToDate.toISOString(),
  }
}
