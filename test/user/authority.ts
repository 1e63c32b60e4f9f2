// Certificates for tests of TLS: an authority, and what it signs: for servers, for clients, expired, or not valid yet.
import { isIP } from 'node:net'
import * as x509 from '../../src/certificates/x509.ts'

export interface Pair {
  cert: string
  key: string
}

const P256 = { name: 'ECDSA', namedCurve: 'P-256' }
const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' }
const DAY_MS = 86_400_000

async function newKeys() {
  const keys = (await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])) as CryptoKeyPair
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey)).toString('base64')
  const pem = `-----BEGIN PRIVATE KEY-----\n${pkcs8.replace(/.{64}/g, '$&\n')}\n-----END PRIVATE KEY-----\n`
  return { keys, pem }
}

let serials = 1
const serialNumber = () => (serials++).toString(16).padStart(8, '0')

/** An authority of this name. `issue` signs for names or addresses; `days` may be past. */
export async function authority(name: string) {
  const { keys } = await newKeys()
  const now = Date.now()
  const root = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: `CN=${name}`,
    notBefore: new Date(now - DAY_MS),
    notAfter: new Date(now + 10 * DAY_MS),
    keys,
    signingAlgorithm: SIGNATURE,
    extensions: [new x509.BasicConstraintsExtension(true, undefined, true)],
  })
  const issue = async (names: string[], days: { from?: number; to?: number } = {}): Promise<Pair> => {
    const { keys: own, pem } = await newKeys()
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: `CN=${names[0]}`,
      issuer: root.subject,
      notBefore: new Date(now + (days.from ?? -1) * DAY_MS),
      notAfter: new Date(now + (days.to ?? 5) * DAY_MS),
      publicKey: own.publicKey,
      signingKey: keys.privateKey,
      signingAlgorithm: SIGNATURE,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.SubjectAlternativeNameExtension(
          names.map((value) => ({ type: isIP(value) ? ('ip' as const) : ('dns' as const), value })),
        ),
      ],
    })
    return { cert: `${leaf.toString('pem')}\n`, key: pem }
  }
  return { ca: `${root.toString('pem')}\n`, issue }
}
