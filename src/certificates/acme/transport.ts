// Requests to a CA: with a deadline and a limit each, over TLS that its own root may vouch for. What the CA refuses comes back
// as an AcmeError.
import { ACME_ANSWER_BYTES_MAX, ACME_REDIRECTS_MAX, ACME_REQUEST_MS_MAX } from '../../base/limits.ts'
import { parseRetryAfter } from './backoff.ts'
import { AcmeError, presentable, problemOf } from './problem.ts'

/** As acme-client expects it of its own. */
export interface Answer {
  status: number
  headers: Record<string, string>
  data: any
}

export interface TransportOptions {
  /** PEM; null: the roots of this machine. */
  ca: string | null
  /** Also what the CA names is asked over TLS only. */
  secure: boolean
  /** Ends every request. */
  signal: AbortSignal
  requestMs?: number
  now?(): number
}

export class Transport {
  /** When the CA wants to be asked again, by the data of its answer. */
  readonly retryAfter = new WeakMap<object, number>()

  constructor(private readonly options: TransportOptions) {}

  /** Bad nonces are answered like successes: acme-client tries them again. */
  async request(url: string, method: string, { data: body }: { data?: unknown } = {}): Promise<Answer> {
    const { ca, signal, requestMs = ACME_REQUEST_MS_MAX, now = Date.now } = this.options
    signal.throwIfAborted()
    const late = AbortSignal.timeout(requestMs)
    const host = presentable(URL.parse(url)?.host ?? 'the CA')
    try {
      const response = await this.#fetch(url, body === undefined ? ACME_REDIRECTS_MAX : 0, {
        method: method.toUpperCase(),
        headers: { 'content-type': 'application/jose+json', 'user-agent': 'sluice' },
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.any([signal, late]),
        redirect: 'manual',
        ...(ca === null ? {} : { tls: { ca } }),
      })
      const data = parse(response, await limited(response))
      const retryAfterMs = parseRetryAfter(response.headers.get('retry-after'), now())
      if (typeof data === 'object' && data !== null && retryAfterMs !== undefined)
        this.retryAfter.set(data, retryAfterMs)
      if (response.status >= 300) refuse(host, response.status, data, retryAfterMs)
      return { status: response.status, headers: Object.fromEntries(response.headers), data }
    } catch (cause) {
      if (cause instanceof AcmeError) throw cause
      // Of the two signals that could have ended it, the outer one is not the CA's fault.
      signal.throwIfAborted()
      const why = late.aborted ? `no answer within ${requestMs / 1000} s` : presentable((cause as Error).message)
      throw new AcmeError(`Cannot reach ${host}: ${why}`, { kind: 'unreachable' })
    }
  }

  /** Follows by hand, to see where: a signature names the address it is for, so a signed request cannot follow at all. */
  async #fetch(url: string, redirects: number, init: BunFetchRequestInit): Promise<Response> {
    if (this.options.secure && URL.parse(url)?.protocol !== 'https:')
      throw new AcmeError(`The CA names an address without TLS: ${presentable(url)}`)
    const response = await fetch(url, init)
    const location = REDIRECTS.has(response.status) ? response.headers.get('location') : null
    if (redirects === 0 || location === null) return response
    await response.body?.cancel()
    return this.#fetch(URL.parse(location, url)?.href ?? location, redirects - 1, init)
  }
}

const REDIRECTS = new Set([301, 302, 303, 307, 308])

function refuse(host: string, status: number, data: unknown, retryAfterMs: number | undefined): void {
  const problem = problemOf(data)
  if (problem?.type === 'badNonce' && status === 400) return
  throw new AcmeError(problem ? `${host}: ${problem.sentence}` : `${host} answered with status ${status}`, {
    type: problem?.type,
    retryAfterMs,
    status,
    kind: status === 429 || status >= 500 ? 'busy' : 'refused',
  })
}

function parse(response: Response, text: string): unknown {
  if (!/^application\/(?:[\w.+-]+\+)?json\b/i.test(response.headers.get('content-type') ?? '')) return text
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

async function limited(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.byteLength
    if (bytes > ACME_ANSWER_BYTES_MAX)
      throw new AcmeError(`The CA's answer is longer than ${ACME_ANSWER_BYTES_MAX / 1024} KiB`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}
