// Loads certificates and their keys from files, and finds before they are used everything that would fail when a client
// comes. A file may hold several: one kind of key beside the other, for clients that know only one of them.
import { createPrivateKey, X509Certificate, type KeyObject } from 'node:crypto'
import tls from 'node:tls'
import { CERTIFICATE_CHAIN_MAX } from '../base/limits.ts'
import { pairOf, rankOf, type Pair } from './pair.ts'
import { pemBlocks, readText } from './pem.ts'

export interface CertificateFiles {
  cert: string
  key: string
}

export interface LoadedCertificates {
  /** One for each kind of key and set of names, the best first. */
  pairs: Pair[]
  /** Sentences about what the files hold beside them. */
  unused: string[]
}

/** Throws an Error that names the file and what is wrong with it. Whether it is time for them is not looked at. */
export async function loadCertificates(files: CertificateFiles): Promise<LoadedCertificates> {
  const [cert, key] = await Promise.all([readText('certificate', files.cert), readText('key', files.key)])
  return certificatesOf({ cert, key }, files)
}

/** @param texts PEM.
 *  @param from what the errors call them. */
export function certificatesOf(texts: CertificateFiles, from: CertificateFiles): LoadedCertificates {
  const certificates = parseCertificates(texts.cert, from.cert)
  const keys = parseKeys(texts.key, from.key)
  const pairs: Pair[] = []
  const unused: string[] = []
  const used = new Set<string>()
  for (const [i, { key, pem }] of keys.entries()) {
    const leaves = certificates.filter((certificate) => matches(certificate, key))
    if (leaves.length === 0)
      unused.push(`key ${i + 1} of ${from.key} does not belong to any certificate in ${from.cert}`)
    for (const leaf of leaves) {
      const ordered = chain(leaf, certificates)
      for (const one of ordered) used.add(one.fingerprint256)
      pairs.push(pairOf(leaf, textOf(ordered), pem))
    }
  }
  if (pairs.length === 0)
    throw new Error(`Cannot use key ${from.key}: it does not belong to any certificate in ${from.cert}`)
  for (const [i, certificate] of certificates.entries()) {
    if (!certificate.ca && !used.has(certificate.fingerprint256))
      unused.push(`certificate ${i + 1} of ${from.cert} has no key in ${from.key}`)
  }
  const best = bestOfEach(pairs)
  for (const pair of best) checkWithEngine(pair, from)
  return { pairs: best, unused }
}

/** Of those that only differ in time the one that lasts longest: who appends a new certificate means it. */
function bestOfEach(pairs: Pair[]): Pair[] {
  const best = new Map<string, Pair>()
  for (const pair of pairs) {
    const id = `${pair.kind} ${[...pair.names].sort().join()}`
    const other = best.get(id)
    if (!other || other.notAfter < pair.notAfter) best.set(id, pair)
  }
  return [...best.values()].sort((a, b) => rankOf(a) - rankOf(b))
}

function checkWithEngine({ cert, key }: Pair, from: CertificateFiles) {
  try {
    // The engine that will use it has the last word: it refuses weak keys and curves that parse well.
    tls.createSecureContext({ cert, key })
  } catch (cause) {
    throw new Error(`Cannot use certificate ${from.cert} with key ${from.key}: ${(cause as Error).message}`, { cause })
  }
}

export const textOf = (certificates: X509Certificate[]) =>
  certificates.map((certificate) => certificate.toString().trim() + '\n').join('')

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

function parseKeys(text: string, path: string): { key: KeyObject; pem: string }[] {
  const fail = (why: string, cause?: unknown) => new Error(`Cannot use key ${path}: ${why}`, { cause })
  const blocks = pemBlocks(text, /PRIVATE KEY$/)
  if (blocks.length === 0)
    throw fail(
      pemBlocks(text, /CERTIFICATE$/).length
        ? 'it holds a certificate and no private key'
        : 'it holds no PEM private key',
    )
  if (blocks.length > CERTIFICATE_CHAIN_MAX)
    throw fail(`it holds ${blocks.length} keys, at most ${CERTIFICATE_CHAIN_MAX} are read`)
  return blocks.map((pem) => {
    if (/^-----BEGIN ENCRYPTED|^Proc-Type: .*ENCRYPTED/m.test(pem))
      throw fail('it is protected by a passphrase; store it without one')
    try {
      return { key: createPrivateKey(pem), pem }
    } catch (cause) {
      throw fail('it is damaged, or of a kind that is not supported', cause)
    }
  })
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
export function chain(leaf: X509Certificate, certificates: X509Certificate[]): X509Certificate[] {
  const ordered = [leaf]
  for (const child of ordered) {
    for (const parent of certificates) {
      if (ordered.some((known) => known.fingerprint256 === parent.fingerprint256)) continue
      if (child.checkIssued(parent) && child.verify(parent.publicKey)) ordered.push(parent)
    }
  }
  return ordered
}
