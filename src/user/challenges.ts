// The challenges of a certificate authority that are placed now, and what of a client's first bytes asks for one: HTTP-01
// (RFC 8555 8.3) and TLS-ALPN-01 (RFC 8737).
import tls from 'node:tls'
import { CHALLENGE_TOKEN_CHARACTERS_MAX } from '../base/limits.ts'
import type { PlacedChallenges } from '../channel/messages.ts'
import type { ClientHello } from './peek/client-hello.ts'
import type { HttpHead } from './peek/http-head.ts'

export class Challenges {
  /** Asked first, and most of the time that is all. */
  placed = false
  #http = new Map<string, string>()
  #tls = new Map<string, { cert: string; context: object }>()

  /** All that are to be answered from now on. Answers which cannot be. */
  set({ http, tls: certificates }: PlacedChallenges): string[] {
    const problems: string[] = []
    this.#http = new Map(Object.entries(http))
    const before = this.#tls
    this.#tls = new Map()
    for (const [name, { cert, key }] of Object.entries(certificates)) {
      const same = before.get(name)
      try {
        const context = same?.cert === cert ? same.context : (tls.createSecureContext({ cert, key }).context as object)
        this.#tls.set(name, { cert, context })
      } catch (error) {
        problems.push(`Cannot answer a challenge for ${name}: ${(error as Error).message}`)
      }
    }
    this.placed = this.#http.size + this.#tls.size > 0
    return problems
  }

  /** The key authorization that this request asks for. */
  authorizationFor({ method, path }: HttpHead): string | undefined {
    if (method !== 'GET' && method !== 'HEAD') return undefined
    const token = challengeToken(path)
    return token === undefined ? undefined : this.#http.get(token)
  }

  /** What this hello is to be answered with. It offers the protocol of the challenge and no other (RFC 8737 3). */
  contextFor({ alpn, serverName }: ClientHello): object | undefined {
    if (alpn.length !== 1 || alpn[0] !== CHALLENGE_ALPN || serverName === undefined) return undefined
    return this.#tls.get(serverName)?.context
  }
}

export const CHALLENGE_ALPN = 'acme-tls/1'
const PREFIX = '/.well-known/acme-challenge/'
const TOKEN = new RegExp(`^[A-Za-z0-9_-]{1,${CHALLENGE_TOKEN_CHARACTERS_MAX}}$`)
const STARTS = ['GET ', 'HEAD '].map((method) => Buffer.from(method + PREFIX))

/** Of a request's path; undefined: it asks for no challenge. */
export function challengeToken(path: string): string | undefined {
  const token = path.startsWith(PREFIX) ? path.slice(PREFIX.length) : ''
  return TOKEN.test(token) ? token : undefined
}

/** These bytes are, or may become, a request for a challenge: nobody else's request is waited for. */
export const mayAskForChallenge = (bytes: Uint8Array) =>
  STARTS.some((start) => {
    const length = Math.min(start.length, bytes.length)
    return start.compare(bytes, 0, length, 0, length) === 0
  })
