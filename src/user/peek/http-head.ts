// Reads the head of an HTTP/1 request, as far as a redirect needs it: bytes so far in, a verdict out, no socket. Strict where
// leniency would let a client write into the answer, or be routed by one host and answered for another (RFC 9112 11.1, 11.2).
// The body is not read, so whoever answers closes the connection afterwards.
import { canonicalIp, isHostName, isIp } from '../../base/addresses.ts'
import { HTTP_HEAD_BYTES_MAX, HTTP_METHOD_BYTES_MAX } from '../../base/limits.ts'

export interface HttpHead {
  method: string
  /** The request target as sent: visible ASCII without `"<>#`, so that it can stand in a Location header. */
  target: string
  version: '1.0' | '1.1'
  /** Lower case, no port, no trailing dot, an IPv6 address in brackets. Absent only where HTTP/1.0 sends none. */
  host?: string
  /** The port after the host, where the client wrote one. */
  port?: number
  /** Path and query, beginning with "/"; "/" for "*". */
  path: string
  /** Bytes up to and including the empty line. */
  length: number
}

export type HttpHeadPeek =
  | { verdict: 'more' }
  /** not-http: close without an answer; malformed: 400; oversize: 431. */
  | { verdict: 'no'; why: 'not-http' | 'malformed' | 'oversize' }
  | { verdict: 'yes'; head: HttpHead }

const LETTER = "[!#$%&'*+.^_`|~0-9A-Za-z-]" // of a token, RFC 9110 5.6.2
const START = new RegExp(`^${LETTER}{1,${HTTP_METHOD_BYTES_MAX}}(?: |$)`)
const REQUEST_LINE = new RegExp(`^(${LETTER}+) ([^ ]+) HTTP/(1\\.[01])$`)
const HTTP_1 = / HTTP\/1\.\d\r$/
const FIELD = new RegExp(`^(${LETTER}+):[ \\t]*(.*?)[ \\t]*$`, 's')
// A lone CR or LF, or another control character, ends a line for some readers and not for others. A CR at the very end may
// still be followed by its LF.
const FORBIDDEN = /\r(?!\n|$)|(?<!\r)\n|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]/
// Visible ASCII without "#, < and >: no client that follows RFC 3986 or the URL standard sends those unencoded.
const PATH = /^\/[!$-;=?-~]*$/
const ABSOLUTE = /^https?:\/\/([^/?]*)([/?].*)?$/is
const AUTHORITY = /^(\[[0-9A-Fa-f:.]+\]|[^:[\]]+)(?::(\d{0,5}))?$/

const MORE: HttpHeadPeek = { verdict: 'more' }
const no = (why: (HttpHeadPeek & { verdict: 'no' })['why']): HttpHeadPeek => ({ verdict: 'no', why })

/** Call it with all bytes received so far, as often as bytes arrive; only 'more' may change later. */
export function peekHttpHead(bytes: Uint8Array): HttpHeadPeek {
  // One byte, one character: what is allowed is ASCII anyhow.
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, HTTP_HEAD_BYTES_MAX)).toString(
    'latin1',
  )
  // Some old clients leave one empty line behind their previous request (RFC 9112 2.2).
  const skip = text.startsWith('\r\n') ? 2 : 0
  if (text.length === skip || text === '\r') return MORE
  const end = text.indexOf('\r\n\r\n', skip)
  const lines = text.slice(skip, end < 0 ? undefined : end + 2)
  // Judged from front to back, so that more bytes never change a refusal. The first ones show that this is another protocol,
  // whose client must not be left waiting for us.
  if (!START.test(lines)) return no('not-http')
  const cut = lines.indexOf('\r\n') + 1 || lines.length
  const first = lines.slice(0, cut)
  if (FORBIDDEN.test(first)) return no('malformed')
  const request = cut < lines.length ? REQUEST_LINE.exec(first.slice(0, -1)) : undefined
  if (request === null) return no(HTTP_1.test(first) ? 'malformed' : 'not-http')
  if (FORBIDDEN.test(lines.slice(cut - 1))) return no('malformed')
  if (end < 0) return text.length < HTTP_HEAD_BYTES_MAX ? MORE : no('oversize')
  const fields = lines.split('\r\n').slice(1, -1)
  const [, method, target, version] = request!
  const head = readHead(method!, target!, version as HttpHead['version'], fields)
  return head ? { verdict: 'yes', head: { ...head, length: end + 4 } } : no('malformed')
}

function readHead(
  method: string,
  target: string,
  version: HttpHead['version'],
  fields: string[],
): Omit<HttpHead, 'length'> | undefined {
  const hosts: string[] = []
  for (const line of fields) {
    // A space before the colon and a line that continues the one before (obs-fold) both fail here.
    const field = FIELD.exec(line)
    if (!field) return
    if (field[1]!.toLowerCase() === 'host') hosts.push(field[2]!)
  }
  if (hosts.length > 1 || (hosts.length === 0 && version === '1.1')) return
  const named: { host?: string; port?: number } | undefined = hosts.length ? parseAuthority(hosts[0]!) : {}
  if (!named) return
  if (method === 'CONNECT') return
  if (target === '*') return method === 'OPTIONS' ? { method, target, version, ...named, path: '/' } : undefined
  if (PATH.test(target)) return { method, target, version, ...named, path: target }
  const absolute = ABSOLUTE.exec(target)
  if (!absolute) return
  const asked = parseAuthority(absolute[1]!)
  const rest = absolute[2] ?? '/'
  const path = rest.startsWith('/') ? rest : '/' + rest
  // The target's host is the one that counts (RFC 9112 3.2.2), and honest clients send the same in Host.
  if (!asked || !PATH.test(path) || (hosts.length && asked.host !== named.host)) return
  return { method, target, version, ...asked, path }
}

/** host [ ":" port ] of RFC 3986, without user information and percent-encoding. */
function parseAuthority(text: string): { host: string; port?: number } | undefined {
  const [, name, digits] = AUTHORITY.exec(text) ?? []
  const host = name && parseHost(name)
  if (!host) return
  if (!digits) return { host }
  const port = Number(digits)
  return port > 0 && port < 65536 ? { host, port } : undefined
}

function parseHost(text: string): string | undefined {
  const bracketed = text.startsWith('[')
  const address = bracketed ? text.slice(1, -1) : text
  if (isIp(address)) {
    if (address.includes(':') !== bracketed) return
    const ip = canonicalIp(address)
    return ip.includes(':') ? `[${ip}]` : ip
  }
  const name = text.endsWith('.') ? text.slice(0, -1) : text
  return !bracketed && isHostName(name) ? name.toLowerCase() : undefined
}
