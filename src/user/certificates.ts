// The certificates that a route serves, made ready: which secure context a handshake for a name begins with. Never changed, only
// replaced by another, so that a handshake keeps what it began with.
import tls from 'node:tls'
import type { RouteCertificate, RouteCertificates } from '../channel/messages.ts'
import type { UserTls } from '../plan/types.ts'

/** What a context is made of beside the certificate. */
export interface TlsRules {
  minVersion: UserTls['minVersion']
  /** PEM of the authorities that client certificates come from. */
  clientCa: string | null
}

interface Ready {
  names: readonly string[]
  /** Of everything that it was made of. */
  digest: string
  context: object
}

export class ServedCertificates {
  /** Certificates that cannot be used. */
  readonly problems: string[] = []
  /** The name decides which one a client gets. */
  readonly byName: boolean
  readonly #perName: boolean
  readonly #rules: string
  readonly #ready: Ready[] = []
  readonly #exact = new Map<string, object>()
  /** Of "*.example.com": ".example.com". */
  readonly #below = new Map<string, object>()

  /** @param before those of the route so far. A context is made only where it would be another one: session tickets live in it,
   *  and are good for nothing else. */
  constructor(given: RouteCertificates, rules: TlsRules, before: ServedCertificates | null) {
    this.#perName = given.perName
    this.#rules = JSON.stringify(rules)
    const known = new Map((before ? before.#ready : []).map((one) => [one.digest, one]))
    for (const certificate of given.list) {
      const ready = this.#make(certificate, rules, known) ?? this.#insteadOf(certificate, before)
      if (ready) this.#add(ready, certificate.names)
    }
    this.byName = this.#perName || this.#ready.length > 1
  }

  #make(certificate: RouteCertificate, rules: TlsRules, known: Map<string, Ready>): Ready | undefined {
    const { names, cert, key } = certificate
    const digest = new Bun.CryptoHasher('sha256').update(JSON.stringify([cert, key, this.#rules])).digest('hex')
    const earlier = known.get(digest)
    if (earlier) return { ...earlier, names }
    try {
      return { names, digest, context: secureContext({ cert, key }, rules) }
    } catch (error) {
      const whose = names.length > 0 ? ` for ${names.slice(0, 3).join(', ')}` : ''
      this.problems.push(`Cannot use the certificate${whose}: ${(error as Error).message}`)
      return undefined
    }
  }

  /** A certificate that cannot be used is no reason to serve none. */
  #insteadOf({ names }: RouteCertificate, before: ServedCertificates | null): Ready | undefined {
    if (before === null || before.#rules !== this.#rules) return undefined
    return before.#ready.find((one) => Bun.deepEquals(one.names, names))
  }

  #add(ready: Ready, names: readonly string[]) {
    this.#ready.push(ready)
    for (const name of names) {
      const map = name.startsWith('*.') ? this.#below : this.#exact
      const key = (name.startsWith('*.') ? name.slice(1) : name).toLowerCase()
      if (!map.has(key)) map.set(key, ready.context)
    }
  }

  /** The exact name, a wildcard of one label, then the first one. pending: it is being issued. null: there is none.
   *  @param name lower case. */
  contextFor(name: string | undefined): object | 'pending' | null {
    const found = name === undefined ? undefined : (this.#exact.get(name) ?? this.#below.get(parentOf(name)))
    if (found) return found
    if (!this.#perName) return this.#ready[0]?.context ?? null
    return name === undefined ? null : 'pending'
  }
}

/** ".example.com" of "a.example.com". */
const parentOf = (name: string) => name.slice(Math.max(0, name.indexOf('.')))

const secureContext = (pairs: { cert: string[]; key: string[] }, { minVersion, clientCa }: TlsRules): object =>
  tls.createSecureContext({
    ...pairs,
    minVersion,
    ciphers: CIPHERS,
    honorCipherOrder: true,
    ...(clientCa === null ? {} : { ca: clientCa }),
  }).context as object

/** Of TLS 1.2 (those of 1.3 are all good): forward secrecy, and no CBC, whose padding has been an oracle again and again.
 *  Mozilla's intermediate list; within the brackets the client chooses, who knows whether it has AES in hardware. */
const CIPHERS = ['ECDSA', 'RSA']
  .map((kind) => `[ECDHE-${kind}-AES128-GCM-SHA256|ECDHE-${kind}-CHACHA20-POLY1305]:ECDHE-${kind}-AES256-GCM-SHA384`)
  .join(':')
