// Loads a certificate and its key from files, and finds before they are used everything that would fail when a client comes.
import { createPrivateKey, X509Certificate, type KeyObject } from 'node:crypto'
import tls from 'node:tls'
import { CERTIFICATE_CHAIN_MAX } from '../base/limits.ts'
import { alternativeNames } from './names.ts'
import { pemBlocks, readText } from './pem.ts'

export interface CertificateFiles {
  cert: string
  key: string
}

export interface LoadedCertificate {
  /** PEM: the certificate, then its issuers in order. */
  cert: string
  /** PEM. */
  key: string
  /** Host names and addresses the certificate is for. */
  names: string[]
  notAfter: Date
}

/** Throws an Error that names the file and what is wrong with it. */
export async function loadCertificate(files: CertificateFiles, now: number = Date.now()): Promise<LoadedCertificate> {
  const [certText, keyText] = await Promise.all([readText('certificate', files.cert), readText('key', files.key)])
  const certificates = parseCertificates(certText, files.cert)
  const { key, pem } = parseKey(keyText, files.key)
  const leaf = certificates.find((certificate) => matches(certificate, key))
  if (!leaf) throw new Error(`Cannot use key ${files.key}: it does not belong to any certificate in ${files.cert}`)
  if (leaf.validToDate.getTime() <= now)
    throw new Error(`Cannot use certificate ${files.cert}: expired at ${leaf.validToDate.toISOString()}`)
  if (leaf.validFromDate.getTime() > now) {
    throw new Error(`Cannot use certificate ${files.cert}: not valid before ${leaf.validFromDate.toISOString()}`)
  }
  const cert = chain(leaf, certificates)
    .map((certificate) => certificate.toString().trim() + '\n')
    .join('')
  try {
    // The engine that will use it has the last word: it refuses weak keys and curves that parse well.
    tls.createSecureContext({ cert, key: pem })
  } catch (cause) {
    throw new Error(`Cannot use certificate ${files.cert} with key ${files.key}: ${(cause as Error).message}`, {
      cause,
    })
  }
  return { cert, key: pem, names: alternativeNames(leaf.subjectAltName), notAfter: leaf.validToDate }
}

function parseCertificates(text: string, path: string): X509Certificate[] {
  const fail = (why: string, cause?: unknown) => new Error(`Cannot use certificate ${path}: ${why}`, { cause })
  const blocks = pemBlocks(text, /^(X509 |TRUSTED )?CERTIFICATE$/)
  if (blocks.length === 0) {
    throw fail(
      pemBlocks(text, /PRIVATE KEY$/).length
        ? 'it holds a private key and no certificate'
        : 'it holds no PEM certificate',
    )
  }
  if (blocks.length > CERTIFICATE_CHAIN_MAX)
    throw fail(`it holds ${blocks.length} certificates, a chain has at most ${CERTIFICATE_CHAIN_MAX}`)
  return blocks.map((block, i) => {
    try {
      return new X509Certificate(block)
    } catch (cause) {
      throw fail(`PEM block ${i + 1} is damaged`, cause)
    }
  })
}

function parseKey(text: string, path: string): { key: KeyObject; pem: string } {
  const fail = (why: string, cause?: unknown) => new Error(`Cannot use key ${path}: ${why}`, { cause })
  const [pem] = pemBlocks(text, /PRIVATE KEY$/)
  if (!pem)
    throw fail(
      pemBlocks(text, /CERTIFICATE$/).length
        ? 'it holds a certificate and no private key'
        : 'it holds no PEM private key',
    )
  if (/^-----BEGIN ENCRYPTED|^Proc-Type: .*ENCRYPTED/m.test(pem))
    throw fail('it is protected by a passphrase; store it without one')
  try {
    return { key: createPrivateKey(pem), pem }
  } catch (cause) {
    throw fail('it is damaged, or of a kind that is not supported', cause)
  }
}

function matches(certificate: X509Certificate, key: KeyObject): boolean {
  try {
    return certificate.checkPrivateKey(key)
  } catch {
    return false // a public key of a kind the engine does not know is not this key's
  }
}

/** The leaf, then whoever issued it, and so on. Order in the file does not matter, doubles and strangers are left out;
 * cross-signed variants of one issuer are all kept, since each may be the one a client knows. */
function chain(leaf: X509Certificate, certificates: X509Certificate[]): X509Certificate[] {
  const ordered = [leaf]
  for (const child of ordered) {
    for (const parent of certificates) {
      if (ordered.some((known) => known.fingerprint256 === parent.fingerprint256)) continue
      if (child.checkIssued(parent) && child.verify(parent.publicKey)) ordered.push(parent)
    }
  }
  return ordered
}
