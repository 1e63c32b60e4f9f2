// A CA for tests (RFC 8555) that does on request what real test servers do not: it wants external accounts, refuses nonces, has
// renewal information, limits, wrong answers or none. It asks the test itself whether a challenge stands, not the network.
import { createHmac, createPublicKey, randomBytes, verify } from 'node:crypto'
import * as x509 from '../../src/certificates/x509.ts'

type Jwk = Record<string, unknown>

const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' }
const P256 = { name: 'ECDSA', namedCurve: 'P-256' }

export interface Script {
  eab?: { kid: string; hmacKey: string }
  /** Every second signed request. */
  badNonces?: boolean
  /** By the id of the certificate (RFC 9773); undefined: 404. Without it the directory has no renewal information. */
  renewal?: (id: string) => { start: string; end: string } | undefined
  /** Whether the challenge stands. A problem: it does not. Never: the CA does not make up its mind. */
  sees?: (name: string, type: string, token: string) => Problem | true | 'never'
  /** Answers in place of the CA. */
  instead?: (path: string, times: number) => Response | Promise<Response> | undefined
  lifetimeMs?: number
  /** When certificates begin. */
  now?: () => number
  tls?: { cert: string; key: string }
  /** Of its certificates, in place of the name that was asked for. */
  wrongName?: string
  /** PEM: a certificate that has nothing to do with the chain that it stands in. */
  stranger?: string
}

export interface Problem {
  type: string
  detail: string
}

interface Order {
  name: string
  status: string
  authorized: string
  error?: Problem
  challenge?: { type: string; status: string; error?: object }
  replaces?: string
  certificate?: string
}

export const problem = (status: number, type: string, detail: string, headers: Record<string, string> = {}) =>
  new Response(JSON.stringify({ type: `urn:ietf:params:acme:error:${type}`, detail }), {
    status,
    headers: { 'content-type': 'application/problem+json', 'replay-nonce': randomBytes(8).toString('hex'), ...headers },
  })

export class AcmeServer implements Disposable {
  readonly accounts: { jwk: string; contact: string[]; bound: boolean }[] = []
  readonly orders: Order[] = []
  /** Paths, "POST /order". */
  readonly requests: string[] = []
  inFlightMax = 0
  #nonces = new Set<string>()
  #signed = 0
  #server: Bun.Server<undefined>
  #ca: Promise<{ keys: CryptoKeyPair; cert: x509.X509Certificate }>

  constructor(public script: Script = {}) {
    this.#ca = makeAuthority()
    this.#server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      idleTimeout: 30,
      ...(script.tls ? { tls: script.tls } : {}),
      fetch: (request) => this.#answer(request),
    })
  }

  get directory(): string {
    return new URL('/directory', this.#server.url).href
  }
  /** PEM of its root. */
  async root(): Promise<string> {
    return (await this.#ca).cert.toString('pem')
  }
  ordersOf(name: string): Order[] {
    return this.orders.filter((order) => order.name === name)
  }
  count(request: string): number {
    return this.requests.filter((one) => one === request).length
  }
  [Symbol.dispose]() {
    void this.#server.stop(true)
  }

  async #answer(request: Request): Promise<Response> {
    const { pathname } = new URL(request.url)
    const asked = `${request.method} ${pathname}`
    this.requests.push(asked)
    const scripted = await this.script.instead?.(asked, this.count(asked))
    if (scripted) return scripted
    if (pathname === '/directory') return Response.json(this.#directory())
    if (pathname === '/nonce') return this.#reply(200, undefined)
    if (pathname.startsWith('/renewal/')) return this.#renewal(pathname.slice('/renewal/'.length))
    const jws = (await request.json()) as { protected: string; payload: string; signature: string }
    const header = decode(jws.protected)
    this.#signed++
    if (!this.#nonces.delete(header.nonce) || (this.script.badNonces && this.#signed % 2 === 1))
      return problem(400, 'badNonce', 'try again', { 'replay-nonce': this.#nonce() })
    if (header.url !== request.url) return problem(400, 'malformed', 'signed for another address')
    const jwk = header.jwk ?? JSON.parse(this.accounts[Number(header.kid?.split('/').pop())]?.jwk ?? 'null')
    if (!jwk) return problem(400, 'accountDoesNotExist', 'who are you?')
    if (!isSigned(jws, jwk)) return problem(400, 'malformed', 'wrong signature')
    return this.#act(pathname, jws.payload ? decode(jws.payload) : undefined, jwk, request.url)
  }

  async #act(path: string, payload: any, jwk: Jwk, url: string): Promise<Response> {
    const [, what, id, type] = path.split('/') as [string, string, string?, string?]
    if (what === 'account') return this.#account(payload, jwk, url)
    if (what === 'accounts') return this.#reply(200, { status: 'valid' })
    if (what === 'order') return this.#newOrder(payload)
    const order = this.orders[Number(id)]
    if (!order) return problem(404, 'malformed', 'no such thing')
    if (what === 'orders') return this.#reply(200, this.#order(Number(id)))
    if (what === 'authz') return this.#reply(200, this.#authorization(Number(id)))
    if (what === 'challenge') {
      this.#validate(order, Number(id), type!)
      return this.#reply(200, { type, url, token: this.#token(Number(id), type!), status: order.challenge!.status })
    }
    if (what === 'finalize') {
      if (order.status !== 'ready') return problem(403, 'orderNotReady', order.status)
      order.certificate = await this.#issue(order.name, payload.csr)
      order.status = 'valid'
      return this.#reply(200, this.#order(Number(id)))
    }
    return this.#reply(200, order.certificate, { 'content-type': 'application/pem-certificate-chain' })
  }

  #directory() {
    const at = (path: string) => new URL(path, this.#server.url).href
    return {
      ...{ newNonce: at('/nonce'), newAccount: at('/account'), newOrder: at('/order') },
      ...(this.script.renewal ? { renewalInfo: at('/renewal') } : {}),
      meta: { externalAccountRequired: this.script.eab !== undefined },
    }
  }

  #account(payload: any, jwk: Jwk, url: string): Response {
    const { eab } = this.script
    const text = JSON.stringify(jwk)
    const known = this.accounts.findIndex((account) => account.jwk === text)
    const location = (index: number) => ({ location: new URL(`/accounts/${index}`, this.#server.url).href })
    if (known >= 0) return this.#reply(200, { status: 'valid' }, location(known))
    const binding = payload.externalAccountBinding
    if (eab && !binding) return problem(403, 'externalAccountRequired', 'who pays for this?')
    if (eab) {
      const expected = createHmac('sha256', Buffer.from(eab.hmacKey, 'base64url'))
        .update(`${binding.protected}.${binding.payload}`)
        .digest('base64url')
      const header = decode(binding.protected)
      if (header.kid !== eab.kid || header.url !== url || binding.signature !== expected)
        return problem(403, 'unauthorized', 'wrong external account')
      if (JSON.stringify(decode(binding.payload)) !== text) return problem(403, 'malformed', 'another key is bound')
    }
    if (payload.termsOfServiceAgreed !== true) return problem(403, 'userActionRequired', 'terms')
    this.accounts.push({ jwk: text, contact: payload.contact, bound: eab !== undefined })
    return this.#reply(201, { status: 'valid' }, location(this.accounts.length - 1))
  }

  #newOrder({ identifiers, replaces }: { identifiers: { value: string }[]; replaces?: string }): Response {
    const order = { name: identifiers[0]!.value, status: 'pending', authorized: 'pending', replaces: replaces! }
    this.orders.push(order)
    const inFlight = this.orders.filter(({ status }) => status === 'pending' || status === 'ready').length
    this.inFlightMax = Math.max(this.inFlightMax, inFlight)
    const index = this.orders.length - 1
    return this.#reply(201, this.#order(index), { location: new URL(`/orders/${index}`, this.#server.url).href })
  }

  #order(index: number) {
    const { name, status, error, certificate } = this.orders[index]!
    const at = (what: string) => new URL(`/${what}/${index}`, this.#server.url).href
    return {
      ...{
        status,
        identifiers: [{ type: 'dns', value: name }],
        authorizations: [at('authz')],
        finalize: at('finalize'),
      },
      ...(error ? { error } : {}),
      ...(certificate ? { certificate: at('certificate') } : {}),
    }
  }

  #authorization(index: number) {
    const { name, authorized, challenge } = this.orders[index]!
    const challenges = ['dns-01', 'http-01', 'tls-alpn-01'].map((type) => ({
      ...{ type, status: 'pending', token: this.#token(index, type) },
      url: new URL(`/challenge/${index}/${type}`, this.#server.url).href,
      ...(challenge?.type === type ? challenge : {}),
    }))
    return { status: authorized, identifier: { type: 'dns', value: name }, challenges }
  }

  #validate(order: Order, index: number, type: string): void {
    const seen = this.script.sees?.(order.name, type, this.#token(index, type)) ?? true
    order.challenge = { type, status: seen === true ? 'valid' : seen === 'never' ? 'processing' : 'invalid' }
    if (seen === 'never') return
    if (seen === true) [order.status, order.authorized] = ['ready', 'valid']
    else {
      order.challenge.error = seen
      ;[order.status, order.authorized] = ['invalid', 'invalid']
    }
  }

  #token = (index: number, type: string) => `token-${index}-${type}`

  #renewal(id: string): Response {
    const suggestedWindow = this.script.renewal!(id)
    return suggestedWindow
      ? Response.json({ suggestedWindow }, { headers: { 'retry-after': '21600' } })
      : problem(404, 'malformed', 'no such certificate')
  }

  async #issue(name: string, csr: string): Promise<string> {
    const { keys, cert } = await this.#ca
    const request = new x509.Pkcs10CertificateRequest(Buffer.from(csr, 'base64url'))
    const notBefore = this.script.now?.() ?? Date.now()
    const leaf = await x509.X509CertificateGenerator.create({
      ...{
        serialNumber: randomBytes(8).toString('hex'),
        issuer: cert.subject,
        subject: '',
        publicKey: request.publicKey,
      },
      ...{
        notBefore: new Date(notBefore),
        notAfter: new Date(notBefore + (this.script.lifetimeMs ?? 90 * 86_400_000)),
      },
      ...{ signingKey: keys.privateKey, signingAlgorithm: SIGNATURE },
      extensions: [
        new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: this.script.wrongName ?? name }]),
        await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
      ],
    })
    return `${leaf.toString('pem')}\n${this.script.stranger ?? ''}${cert.toString('pem')}\n`
  }

  #nonce(): string {
    const nonce = randomBytes(8).toString('hex')
    this.#nonces.add(nonce)
    return nonce
  }

  #reply(status: number, body: unknown, headers: Record<string, string> = {}): Response {
    return new Response(typeof body === 'string' ? body : JSON.stringify(body), {
      status,
      headers: { 'content-type': 'application/json', 'replay-nonce': this.#nonce(), ...headers },
    })
  }
}

const decode = (text: string) => JSON.parse(Buffer.from(text, 'base64url').toString())

const isSigned = (jws: { protected: string; payload: string; signature: string }, jwk: Jwk) =>
  verify(
    'sha256',
    Buffer.from(`${jws.protected}.${jws.payload}`),
    { key: createPublicKey({ key: jwk as never, format: 'jwk' }), dsaEncoding: 'ieee-p1363' },
    Buffer.from(jws.signature, 'base64url'),
  )

async function makeAuthority() {
  const keys = await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])
  const cert = await x509.X509CertificateGenerator.create({
    ...{ serialNumber: '01', subject: 'CN=a CA of tests', issuer: 'CN=a CA of tests' },
    ...{ notBefore: new Date(0), notAfter: new Date(Date.UTC(2100, 0)) },
    ...{ publicKey: keys.publicKey, signingKey: keys.privateKey, signingAlgorithm: SIGNATURE },
    extensions: [
      new x509.BasicConstraintsExtension(true, 1, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { keys, cert }
}
