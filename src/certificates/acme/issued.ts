// What a CA has issued, looked at before it is kept: a CA makes mistakes too, and the certificate in use is better than a wrong one.
import { createPrivateKey, X509Certificate } from 'node:crypto'
import tls from 'node:tls'
import { CERTIFICATE_CHAIN_MAX } from '../../base/limits.ts'
import { chain, textOf } from '../files.ts'
import { alternativeNames } from '../names.ts'
import { pemBlocks } from '../pem.ts'
import type { StoredCertificate } from '../types.ts'
import { AcmeError } from './problem.ts'

/** Throws when it cannot be used for `name`. */
export function checkIssued(name: string, text: string, key: string, now: number, jitter: number): StoredCertificate {
  const fail = (why: string) => new AcmeError(`The CA issued a certificate that cannot be used: ${why}`)
  const blocks = pemBlocks(text, /^CERTIFICATE$/)
  if (blocks.length === 0) throw fail('no PEM certificate')
  if (blocks.length > CERTIFICATE_CHAIN_MAX) throw fail(`a chain of ${blocks.length} certificates`)
  const certificates = blocks.flatMap((block) => parse(block) ?? [])
  const leaf = certificates[0]
  if (!leaf || certificates.length < blocks.length) throw fail('it is damaged')
  if (!leaf.checkPrivateKey(createPrivateKey(key))) throw fail('it has another key')
  const names = alternativeNames(leaf.subjectAltName)
  if (!names.includes(name)) throw fail(`it is for ${names.join(', ') || 'no name'}`)
  if (leaf.validToDate.getTime() <= now)
    throw fail(
      `it ended at ${leaf.validToDate.toISOString()}, and this machine's clock says ${new Date(now).toISOString()}`,
    )
  // In order, and without strangers: some clients give up at one.
  const cert = textOf(chain(leaf, certificates))
  try {
    // The engine that will use it has the last word.
    tls.createSecureContext({ cert, key })
  } catch (cause) {
    throw fail((cause as Error).message)
  }
  return {
    cert,
    key,
    issuedAt: new Date(now).toISOString(),
    notBefore: leaf.validFromDate.toISOString(),
    notAfter: leaf.validToDate.toISOString(),
    jitter,
  }
}

function parse(block: string): X509Certificate | undefined {
  try {
    return new X509Certificate(block)
  } catch {
    return undefined
  }
}
