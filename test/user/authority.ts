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

const RSA = {
  name: 'RSASSA-PKCS1-v1_5',
  hash: 'SHA-256',
  modulusLength: 2048,
  publicExponent: new Uint8Array([1, 0, 1]),
}

async function newKeys(kind: typeof P256 | typeof RSA = P256) {
  const keys = (await crypto.subtle.generateKey(kind, true, ['sign', 'verify'])) as CryptoKeyPair
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey)).toString('base64')
  const pem = `-----BEGIN PRIVATE KEY-----\n${pkcs8.replace(/.{64}/g, '$&\n')}\n-----END PRIVATE KEY-----\n`
  return { keys, pem }
}

let serials = 1
const serialNumber = () => (serials++).toString(16).padStart(8, '0')

/** An authority of this name. `issue` signs for names or addresses; `from` and `to` are days, and may be past. */
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
  const issue = async (names: string[], how: { from?: number; to?: number; rsa?: boolean } = {}): Promise<Pair> => {
    const { keys: own, pem } = await newKeys(how.rsa ? RSA : P256)
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: `CN=${names[0]}`,
      issuer: root.subject,
      notBefore: new Date(now + (how.from ?? -1) * DAY_MS),
      notAfter: new Date(now + (how.to ?? 5) * DAY_MS),
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
