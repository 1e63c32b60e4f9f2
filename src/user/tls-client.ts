// TLS as a client, on an end that is connected: towards the target of a route, and of a handler's socket. Chain and name are
// verified, by the engine where it can.
import { checkServerIdentity } from 'node:tls'
import type { Socket } from 'bun'
import { isIp } from '../base/addresses.ts'
import { secureHandlers, type End } from './end.ts'

export interface TlsWish {
  /** Whom the certificate has to name. */
  name: string
  /** What the server is asked for; null: nothing. An address is no SNI (RFC 6066). */
  sni: string | null
  alpn: readonly string[]
  /** PEM; null: the authorities that the runtime knows. */
  ca: string | readonly string[] | null
  /** What the server may see of us, PEM. */
  cert?: string | null
  key?: string | null
  insecure: boolean
}

/** Begins the handshake; the end's consumer hears secured(), which has to ask untrusted(). Answers why it could not begin. */
export function beginTls(end: End, wish: TlsWish): string | undefined {
  const { sni, alpn, ca, cert, key } = wish
  // A paused socket would not hear the server.
  end.resume()
  const raw = end.detach()
  if (!raw) return 'the connection is gone'
  try {
    const [tap, secure] = raw.upgradeTLS<End>({
      tls: {
        ...(sni === null ? {} : { serverName: sni }),
        ...(alpn.length === 0 ? {} : { ALPNProtocols: alpnWire(alpn) }),
        ...(ca === null ? {} : { ca: ca as string | string[] }),
        ...(cert && key ? { cert, key } : {}),
        rejectUnauthorized: byEngine(wish),
      },
      data: end,
      socket: secureHandlers,
    })
    // The raw socket goes on hearing ciphertext; nobody listens.
    tap.data = raw.data
    end.socket = secure
    return undefined
  } catch (error) {
    raw.terminate()
    return (error as Error).message
  }
}

/** The engine knows one name only, for both: what it asks for is what it verifies. */
const byEngine = ({ insecure, sni, name }: TlsWish) => !insecure && sni === name

/** Why this is not who we wanted to talk to. */
export function untrusted(wish: TlsWish, socket: Socket<End>, ok: boolean, error: Error | null): string | undefined {
  if (wish.insecure) return undefined
  if (byEngine(wish)) return ok && socket.authorized ? undefined : (error?.message ?? 'not authorized')
  // A name mismatch says only that it is not the one that was asked for; anything else is the chain.
  if (error && (error as NodeJS.ErrnoException).code !== 'ERR_TLS_CERT_ALTNAME_INVALID') return error.message
  const certificate = socket.getPeerCertificate()
  return certificate
    ? checkServerIdentity(wish.name, certificate as never)?.message
    : 'the target showed no certificate'
}

/** An address is never asked for. */
export const sniOf = (name: string) => (isIp(name) ? null : name)

/** ALPN as the wire has it: each name behind its length. */
export const alpnWire = (names: readonly string[]) =>
  Buffer.concat(
    names.map((name) => {
      const bytes = Buffer.from(name, 'latin1')
      return Buffer.concat([Buffer.of(bytes.length), bytes])
    }),
  )
