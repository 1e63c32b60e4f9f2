// A certificate authority of this gateway alone, for `certificate: 'self-signed'`. Its key is made once and kept, so that
// clients which trust ca.crt go on trusting every certificate made here; those live in memory and are made again after a
// restart.
import { createPrivateKey, createPublicKey, randomBytes, X509Certificate as Certificate } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { isIp } from '../base/addresses.ts'
import {
  AUTHORITY_DAYS,
  CERTIFICATE_NAMES_MAX,
  ISSUED_CERTIFICATE_DAYS,
  ISSUED_CERTIFICATES_MAX,
} from '../base/limits.ts'
import { createFile, privateDirectory } from './durable.ts'
import { certificateName } from './names.ts'
import { readText } from './pem.ts'
import * as x509 from './x509.ts'

export interface Issued {
  /** PEM: the certificate, then the authority's. */
  cert: string
  /** PEM, PKCS #8. */
  key: string
  notAfter: Date
}

const P256 = { name: 'ECDSA', namedCurve: 'P-256' }
const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' }
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
// Clients whose clock is a little behind would otherwise refuse a certificate that has just been made.
const BACKDATE_MS = HOUR_MS

export class LocalAuthority {
  /** By name set, the least recently used first. */
  #issued = new Map<string, Promise<Issued>>()

  private constructor(
    /** PEM: what clients have to trust. */
    readonly certificate: string,
    readonly notAfter: Date,
    private readonly signing: { subject: x509.Name; key: CryptoKey; publicKey: CryptoKey },
    private readonly now: () => number,
  ) {}

  /** Loads ca.crt and ca.key of `directory`, or makes them. Any number of processes may do so at the same time. */
  static async open(directory: string, now: () => number = Date.now): Promise<LocalAuthority> {
    const [certPath, keyPath] = [join(directory, 'ca.crt'), join(directory, 'ca.key')]
    await privateDirectory(directory)
    // The key is written first, so a certificate without key is a loss and not a start that somebody else is just making. A key
    // without certificate is a start that was cut off: nobody can trust it yet, so it simply goes on.
    if ((await exists(certPath)) && !(await exists(keyPath))) {
      throw new Error(
        `Cannot use authority ${certPath}: its key ${keyPath} is missing; restore it, or remove ca.crt to make a new authority`,
      )
    }
    if (!(await exists(keyPath))) await createFile(keyPath, await newKeyPem())
    const { key, publicKey } = await loadKey(keyPath)
    if (!(await exists(certPath))) await createFile(certPath, await newAuthority(key, publicKey, now()))
    const pem = await readText('certificate', certPath)
    const certificate = parseAuthority(pem, certPath)
    if (!certificate.publicKey.equals(createPublicKey(await readText('key', keyPath)))) {
      throw new Error(`Cannot use authority ${certPath}: ${keyPath} is the key of another certificate`)
    }
    if (certificate.validToDate.getTime() <= now()) {
      const when = certificate.validToDate.toISOString()
      throw new Error(
        `Cannot use authority ${certPath}: expired at ${when}; remove ca.crt and ca.key to make a new one`,
      )
    }
    // The name as it is encoded: some clients compare its bytes, so spelling it again from text could break the chain.
    const { subjectName: subject } = new x509.X509Certificate(pem)
    return new LocalAuthority(certificate.toString(), certificate.validToDate, { subject, key, publicKey }, now)
  }

  /** A certificate for exactly these names. The same set gives the same one until two thirds of its life are over. */
  async issue(names: string[]): Promise<Issued> {
    const set = nameSet(names)
    const id = set.join(' ')
    const cached = this.#issued.get(id)
    // Another call may have replaced it during the await: then that one is good.
    if (cached && !(await this.#isFresh(cached)) && this.#issued.get(id) === cached) this.#issued.delete(id)
    const issued = this.#issued.get(id) ?? this.#make(set)
    this.#issued.delete(id)
    this.#issued.set(id, issued)
    for (const oldest of this.#issued.keys()) {
      if (this.#issued.size <= ISSUED_CERTIFICATES_MAX) break
      this.#issued.delete(oldest)
    }
    return issued
  }

  /** The next certificate for these names is a new one. */
  forget(names: string[]) {
    this.#issued.delete(nameSet(names).join(' '))
  }

  /** A failed one is not fresh: the next call tries again. */
  async #isFresh(issued: Promise<Issued>): Promise<boolean> {
    const left = await issued.then(
      ({ notAfter }) => notAfter.getTime() - this.now(),
      () => 0,
    )
    return left > (ISSUED_CERTIFICATE_DAYS * DAY_MS) / 3
  }

  async #make(names: string[]): Promise<Issued> {
    const keys = await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])
    const notBefore = this.now() - BACKDATE_MS
    const notAfter = new Date(Math.min(notBefore + ISSUED_CERTIFICATE_DAYS * DAY_MS, this.notAfter.getTime()))
    // The common name is for people only and has 64 letters at most; clients look at the alternative names.
    const common = names.find((name) => name.length <= 64)
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serial(),
      issuer: this.signing.subject,
      subject: [{ O: ['sluice'] }, ...(common ? [{ CN: [common] }] : [])],
      notBefore: new Date(notBefore),
      notAfter,
      publicKey: keys.publicKey,
      signingKey: this.signing.key,
      signingAlgorithm: SIGNATURE,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
        new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: isIp(value) ? 'ip' : 'dns', value }))),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
        await x509.AuthorityKeyIdentifierExtension.create(this.signing.publicKey),
      ],
    })
    return { cert: leaf.toString('pem') + '\n' + this.certificate, key: await keyPem(keys.privateKey), notAfter }
  }
}

/** Sorted, each name once and in one spelling: equal sets give equal texts. */
function nameSet(names: string[]): string[] {
  const set = new Set<string>()
  for (const text of names) {
    const name = certificateName(text)
    if (!name) throw new Error(`Cannot issue a certificate for ${JSON.stringify(text)}: not a host name or address`)
    set.add(name)
  }
  if (set.size === 0) throw new Error('Cannot issue a certificate: no names given')
  if (set.size > CERTIFICATE_NAMES_MAX)
    throw new Error(`Cannot issue a certificate for ${set.size} names: at most ${CERTIFICATE_NAMES_MAX} fit`)
  return [...set].sort()
}

async function newAuthority(key: CryptoKey, publicKey: CryptoKey, now: number): Promise<string> {
  // The random part tells the authorities of two gateways apart in one trust store.
  const name: x509.JsonName = [{ O: ['sluice'] }, { CN: [`sluice local authority ${randomBytes(4).toString('hex')}`] }]
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial(),
    subject: name,
    issuer: name,
    notBefore: new Date(now - BACKDATE_MS),
    notAfter: new Date(now + AUTHORITY_DAYS * DAY_MS),
    publicKey,
    signingKey: key,
    signingAlgorithm: SIGNATURE,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(publicKey),
    ],
  })
  return certificate.toString('pem') + '\n'
}

function parseAuthority(pem: string, path: string): Certificate {
  const parse = () => {
    try {
      return new Certificate(pem)
    } catch (cause) {
      throw new Error(`Cannot use authority ${path}: not a PEM certificate`, { cause })
    }
  }
  const certificate = parse()
  if (!certificate.ca) throw new Error(`Cannot use authority ${path}: not the certificate of an authority`)
  return certificate
}

async function loadKey(path: string): Promise<{ key: CryptoKey; publicKey: CryptoKey }> {
  // Whoever reads this key can pretend to be any site for every client that trusts ca.crt; making it private again afterwards
  // would hide that it was not.
  const { mode } = await stat(path)
  if (mode & 0o077)
    throw new Error(
      `Cannot use key ${path}: other users can read it (mode ${(mode & 0o777).toString(8)}); make it 600 if you trust them, else remove ca.crt and ca.key`,
    )
  const pem = await readText('key', path)
  try {
    const key = createPrivateKey(pem)
    const secret = key.export({ type: 'pkcs8', format: 'der' })
    const spki = createPublicKey(key).export({ type: 'spki', format: 'der' })
    return {
      key: await crypto.subtle.importKey('pkcs8', secret, P256, false, ['sign']),
      publicKey: await crypto.subtle.importKey('spki', spki, P256, true, ['verify']),
    }
  } catch (cause) {
    throw new Error(`Cannot use key ${path}: not a P-256 private key in PEM`, { cause })
  }
}

async function newKeyPem(): Promise<string> {
  const { privateKey } = await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])
  return keyPem(privateKey)
}

const keyPem = async (key: CryptoKey) =>
  x509.PemConverter.encode(await crypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY') + '\n'

/** 128 random bits; twice as many as the CA/Browser Forum asks for. */
const serial = () => randomBytes(16).toString('hex')

const exists = (path: string) =>
  stat(path).then(
    () => true,
    (cause) => {
      if (cause.code === 'ENOENT') return false
      throw cause
    },
  )
