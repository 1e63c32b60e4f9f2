// A certificate with its key, and what there is to say about it: names, life, kind of key.
import { X509Certificate } from 'node:crypto'
import { EXPIRING_DAYS } from '../base/limits.ts'
import type { RouteCertificate } from '../channel/messages.ts'
import { alternativeNames, certificateName } from './names.ts'

export interface Pair {
  /** PEM: the certificate, then its issuers in order. */
  cert: string
  /** PEM. */
  key: string
  /** Host names and addresses the certificate is for. */
  names: string[]
  notBefore: Date
  notAfter: Date
  /** Of the key: "ECDSA P-256". */
  kind: string
  /** Common name, or organisation. */
  issuer: string
  serialNumber: string
}

const DAY_MS = 86_400_000

export const pairOf = (leaf: X509Certificate, cert: string, key: string): Pair => ({
  cert,
  key,
  names: alternativeNames(leaf.subjectAltName),
  notBefore: leaf.validFromDate,
  notAfter: leaf.validToDate,
  kind: kindOf(leaf),
  issuer: issuerOf(leaf),
  serialNumber: leaf.serialNumber.toLowerCase(),
})

/** Of a chain that is known to be good. */
export const parsePair = (cert: string, key: string): Pair => pairOf(new X509Certificate(cert), cert, key)

/** Smaller and faster to sign with first; what few clients know last. */
export const rankOf = ({ kind }: Pair): number => (kind.startsWith('ECDSA') ? 0 : kind.startsWith('RSA') ? 1 : 2)

const CURVES: Record<string, string> = { prime256v1: 'P-256', secp384r1: 'P-384', secp521r1: 'P-521' }

function kindOf({ publicKey }: X509Certificate): string {
  const details = publicKey.asymmetricKeyDetails
  switch (publicKey.asymmetricKeyType) {
    case 'ec':
      return `ECDSA ${CURVES[details?.namedCurve ?? ''] ?? details?.namedCurve ?? ''}`.trim()
    case 'rsa':
      return `RSA ${details?.modulusLength ?? ''}`.trim()
    case 'ed25519':
      return 'Ed25519'
    default:
      return publicKey.asymmetricKeyType ?? 'unknown'
  }
}

function issuerOf({ issuer }: X509Certificate): string {
  const part = (name: string) => new RegExp(`^${name}=(.+)$`, 'm').exec(issuer)?.[1]
  return part('CN') ?? part('O') ?? issuer.replaceAll('\n', ', ')
}

/** Pairs for the same names together. */
export function routeCertificates(pairs: readonly Pair[]): RouteCertificate[] {
  const groups = new Map<string, RouteCertificate>()
  for (const { names, cert, key } of pairs) {
    const id = [...names].sort().join()
    let group = groups.get(id)
    if (!group) groups.set(id, (group = { names, cert: [], key: [] }))
    group.cert.push(cert)
    group.key.push(key)
  }
  return [...groups.values()]
}

/** When the first of them is over. */
export const endOf = (pairs: readonly Pair[]): number => Math.min(...pairs.map(({ notAfter }) => notAfter.getTime()))

/** When the first of them has lived two thirds of its life. */
export const renewalOf = (pairs: readonly Pair[]): number =>
  Math.min(...pairs.map(({ notBefore, notAfter }) => (notBefore.getTime() + 2 * notAfter.getTime()) / 3))

/** A sentence when it is too early or too late for one of them. */
export function outOfTime(pairs: readonly Pair[], now: number): string | undefined {
  for (const { notBefore, notAfter } of pairs) {
    if (notAfter.getTime() <= now) return `expired at ${notAfter.toISOString()}`
    if (notBefore.getTime() > now) return `not valid before ${notBefore.toISOString()}`
  }
  return undefined
}

/** Whoever renews it should have done so: two weeks are left, or a sixth of a shorter life. */
export const isExpiring = (pairs: readonly Pair[], now: number): boolean =>
  pairs.some(({ notBefore, notAfter }) => {
    const life = notAfter.getTime() - notBefore.getTime()
    return notAfter.getTime() - now < Math.min(EXPIRING_DAYS * DAY_MS, life / 6)
  })

/** Of these names those that no certificate of them is for. A pattern that no certificate can carry is not asked for. */
export function uncovered(wanted: readonly string[], pairs: readonly Pair[]): string[] {
  const names = new Set(pairs.flatMap((pair) => pair.names))
  return wanted.filter((text) => {
    const name = certificateName(text)
    return name !== undefined && !names.has(name) && !names.has(name.replace(/^[^.]+/, '*'))
  })
}
