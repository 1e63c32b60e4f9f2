// The certificate that answers tls-alpn-01 (RFC 8737, section 3). acme-client makes one too, but for an authority, and BoringSSL
// refuses to sign a handshake with that.
import { createHash, randomBytes } from 'node:crypto'
import * as x509 from '../x509.ts'

const P256 = { name: 'ECDSA', namedCurve: 'P-256' }
const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' }
const ID_PE_ACME_IDENTIFIER = '1.3.6.1.5.5.7.1.31'
/** Of an OCTET STRING with the 32 bytes of a SHA-256. */
const OCTET_STRING = Buffer.from([0x04, 0x20])
const HOUR_MS = 3_600_000

/** PEM, both. Nobody looks at when it begins and ends; the clocks of two machines must still agree on it. */
export async function challengeCertificate(
  name: string,
  keyAuthorization: string,
  now: number,
): Promise<{ cert: string; key: string }> {
  const keys = await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])
  const digest = createHash('sha256').update(keyAuthorization).digest()
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: randomBytes(16).toString('hex'),
    name: 'CN=ACME challenge',
    notBefore: new Date(now - 24 * HOUR_MS),
    notAfter: new Date(now + 24 * HOUR_MS),
    keys,
    signingAlgorithm: SIGNATURE,
    extensions: [
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
      new x509.Extension(ID_PE_ACME_IDENTIFIER, true, Buffer.concat([OCTET_STRING, digest])),
    ],
  })
  const key = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
  return { cert: cert.toString('pem') + '\n', key: x509.PemConverter.encode(key, 'PRIVATE KEY') + '\n' }
}
