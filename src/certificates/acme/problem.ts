// What a CA says when it says no (RFC 8555, section 6.7), fit to be shown: it is a stranger's text, in logs, tables and events.
import { ACME_ERROR_LENGTH_MAX } from '../../base/limits.ts'

const PREFIX = 'urn:ietf:params:acme:error:'

/** The CA has said no; cannot say yes or no now; said nothing in time about what it was asked; or was not there. */
export type ErrorKind = 'refused' | 'busy' | 'late' | 'unreachable'

export class AcmeError extends Error {
  override name = 'AcmeError'
  /** Of the problem, without its prefix: "rateLimited". Undefined: the answer was no problem document. */
  readonly type: string | undefined
  readonly retryAfterMs: number | undefined
  readonly kind: ErrorKind
  /** Of HTTP. */
  readonly status: number | undefined

  constructor(
    message: string,
    details: { type?: string | undefined; retryAfterMs?: number | undefined; kind?: ErrorKind; status?: number } = {},
  ) {
    super(message)
    this.type = details.type
    this.retryAfterMs = details.retryAfterMs
    this.kind = details.kind ?? 'refused'
    this.status = details.status
  }
}

/** One line of limited length without anything a terminal would obey. */
export function presentable(text: string, lengthMax = ACME_ERROR_LENGTH_MAX): string {
  // Cut first: the rest is work for nothing. Bidirectional overrides turn a line around, so they go like control characters.
  const line = text
    .slice(0, 4 * lengthMax)
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\s]+/gu, ' ')
    .trim()
  return line.length > lengthMax ? `${line.slice(0, lengthMax - 1)}…` : line
}

/** It stumbled, and does not say until when. */
export const hasStumbled = (error: unknown) =>
  error instanceof AcmeError && (error.status ?? 0) >= 500 && error.retryAfterMs === undefined

interface Problem {
  type?: string
  sentence: string
}

/** undefined: this is no problem document. */
export function problemOf(data: unknown): Problem | undefined {
  if (typeof data !== 'object' || data === null) return undefined
  const { type, detail, subproblems } = data as Record<string, unknown>
  const short =
    typeof type === 'string' ? presentable(type.startsWith(PREFIX) ? type.slice(PREFIX.length) : type) : undefined
  const details = [detail, ...(Array.isArray(subproblems) ? subproblems.map((one) => one?.detail) : [])]
  const said = details.filter((text): text is string => typeof text === 'string').join('; ')
  if (short === undefined && !said) return undefined
  return { type: short, sentence: presentable(said && short ? `${said} (${short})` : said || short!) }
}
