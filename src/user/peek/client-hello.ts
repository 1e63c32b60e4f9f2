// Reads the first flight of a TLS client without knowing a socket: bytes so far in, a verdict out. Nothing is consumed, so
// the same bytes can go on to a TLS engine or to a relay. What two parsers could read differently is refused as malformed
// (two SNIs, duplicate extensions, bytes after the hello): a route must not be chosen by a name the target does not see.
// RFC 8446 4.1.2 and 5.1, RFC 6066 3 (SNI), RFC 7301 (ALPN), RFC 8701 (GREASE), RFC 9849 (ECH).
import { isHostName, isIp } from '../../base/addresses.ts'
import { CLIENT_HELLO_BYTES_MAX, CLIENT_HELLO_MESSAGE_BYTES_MAX } from '../../base/limits.ts'

export interface ClientHello {
  /** Lower case, no trailing dot. Absent when the client sent none, or an address, which RFC 6066 does not allow as a name. */
  serverName?: string
  /** In the client's order, one character for each byte (the names are opaque bytes), GREASE dropped. */
  alpn: string[]
  /** supported_versions without GREASE, in the client's order; the one legacy version where the extension is absent. */
  versions: number[]
  /** An outer encrypted_client_hello is there: serverName may be only the public name. Browsers send a meaningless one (GREASE) too. */
  echOuter: boolean
  /** Bytes on the wire up to and including the record that ends the hello. */
  length: number
}

export type ClientHelloPeek =
  | { verdict: 'more' }
  | { verdict: 'no'; why: 'http' | 'sslv2' | 'not-tls' | 'malformed' | 'oversize' }
  | { verdict: 'yes'; hello: ClientHello }

const HANDSHAKE_RECORD = 22
const CLIENT_HELLO = 1
const RECORD_HEADER_BYTES = 5
const MESSAGE_HEADER_BYTES = 4
const RECORD_BYTES_MAX = 2 ** 14

const EXTENSION_SERVER_NAME = 0
const EXTENSION_ALPN = 16
const EXTENSION_SUPPORTED_VERSIONS = 43
const EXTENSION_ENCRYPTED_CLIENT_HELLO = 0xfe0d // the code point of the drafts, kept by RFC 9849

// RFC 9110 9, RFC 5789, and the first word of HTTP/2 without TLS.
const HTTP_STARTS = 'GET POST PUT HEAD DELETE OPTIONS TRACE CONNECT PATCH PRI'
  .split(' ')
  .map((method) => Buffer.from(method + ' '))

const MORE: ClientHelloPeek = { verdict: 'more' }
const no = (why: (ClientHelloPeek & { verdict: 'no' })['why']): ClientHelloPeek => ({ verdict: 'no', why })

/** Call it with all bytes received so far, as often as bytes arrive; only 'more' may change later. */
export function peekClientHello(bytes: Uint8Array): ClientHelloPeek {
  if (bytes.length === 0) return MORE
  if (bytes[0] !== HANDSHAKE_RECORD) return other(bytes)
  // The second byte of the version field is "ignored for all purposes" (RFC 8446 5.1), the first tells TLS from chance.
  if (bytes.length > 1 && bytes[1] !== 3) return no('not-tls')
  const found = findMessage(bytes)
  if ('verdict' in found) return found
  const hello = parseMessage(found.message, found.length)
  return hello ? { verdict: 'yes', hello } : no('malformed')
}

/** Walks the record headers only, so that waiting for the rest of a hello copies nothing. */
function findMessage(bytes: Uint8Array): ClientHelloPeek | { message: Uint8Array; length: number } {
  const header: number[] = []
  let at = 0
  let have = 0
  let want = Infinity
  while (have < want) {
    if (at >= CLIENT_HELLO_BYTES_MAX) return no('oversize')
    const left = bytes.length - at
    if ((left > 0 && bytes[at] !== HANDSHAKE_RECORD) || (left > 1 && bytes[at + 1] !== 3)) return no('malformed')
    if (left < RECORD_HEADER_BYTES) return MORE
    const size = (bytes[at + 3]! << 8) | bytes[at + 4]!
    // Empty handshake records are forbidden (RFC 8446 5.1); they would also let a client make us wait for ever.
    if (size === 0 || size > RECORD_BYTES_MAX) return no('malformed')
    const start = at + RECORD_HEADER_BYTES
    const end = start + size
    for (let i = start; i < end && i < bytes.length && header.length < MESSAGE_HEADER_BYTES; i++) header.push(bytes[i]!)
    if (header.length > 0 && header[0] !== CLIENT_HELLO) return no('malformed')
    if (header.length === MESSAGE_HEADER_BYTES && want === Infinity) {
      const length = (header[1]! << 16) | (header[2]! << 8) | header[3]!
      if (length > CLIENT_HELLO_MESSAGE_BYTES_MAX) return no('oversize')
      want = MESSAGE_HEADER_BYTES + length
    }
    have += size
    // A second message cannot follow before the server has answered; an engine would refuse it, later and with less to say.
    if (have > want) return no('malformed')
    if (end > CLIENT_HELLO_BYTES_MAX) return no('oversize')
    if (end > bytes.length) return MORE
    at = end
  }
  return { message: join(bytes, at, want).subarray(MESSAGE_HEADER_BYTES), length: at }
}

/** The message without the record headers. One record, the usual case, is a view; only a split hello is copied, once. */
function join(bytes: Uint8Array, end: number, size: number): Uint8Array {
  if (end === RECORD_HEADER_BYTES + size) return bytes.subarray(RECORD_HEADER_BYTES, end)
  const message = new Uint8Array(size)
  let filled = 0
  for (let at = 0; at < end;) {
    const start = at + RECORD_HEADER_BYTES
    at = start + ((bytes[at + 3]! << 8) | bytes[at + 4]!)
    message.set(bytes.subarray(start, at), filled)
    filled += at - start
  }
  return message
}

function parseMessage(message: Uint8Array, length: number): ClientHello | undefined {
  const body = new Cursor(message)
  const legacyVersion = body.uint(2)
  body.skip(32) // random
  const sessionId = body.vector(1)
  const ciphers = body.vector(2)
  const compressions = body.vector(1)
  if (body.failed || legacyVersion >> 8 !== 3 || sessionId.left > 32) return
  if (ciphers.left < 2 || ciphers.left % 2 || compressions.left < 1) return
  const hello: ClientHello = { alpn: [], versions: [legacyVersion], echOuter: false, length }
  // Up to TLS 1.2 the extensions may be missing altogether.
  if (body.left === 0) return hello
  const extensions = body.vector(2)
  if (body.failed || body.left > 0) return
  hellos = (hellos + 1) >>> 0
  while (extensions.left > 0) {
    const type = extensions.uint(2)
    if (lastHello[type] === hellos) return
    lastHello[type] = hellos
    if (READ.has(type)) {
      const data = extensions.vector(2)
      if (extensions.failed || !readExtension(hello, type, data) || data.failed) return
    } else extensions.skip(extensions.uint(2))
    if (extensions.failed) return
  }
  return hello
}

/** For each type of extension the number of the hello that had it last: a set that costs nothing to empty. */
const lastHello = new Uint32Array(2 ** 16)
let hellos = 0

const READ = new Set([
  EXTENSION_SERVER_NAME,
  EXTENSION_ALPN,
  EXTENSION_SUPPORTED_VERSIONS,
  EXTENSION_ENCRYPTED_CLIENT_HELLO,
])

/** False when the extension is malformed. Unknown ones are stepped over unread. */
function readExtension(hello: ClientHello, type: number, data: Cursor): boolean {
  switch (type) {
    case EXTENSION_SERVER_NAME:
      return readServerName(hello, data)
    case EXTENSION_ALPN:
      return readAlpn(hello, data)
    case EXTENSION_SUPPORTED_VERSIONS:
      return readVersions(hello, data)
    case EXTENSION_ENCRYPTED_CLIENT_HELLO: {
      const kind = data.uint(1)
      // 1 is the inner hello as a front end passes it on: its server name is the real one.
      hello.echOuter = kind !== 1
      return true
    }
    default:
      return true
  }
}

function readServerName(hello: ClientHello, data: Cursor): boolean {
  const list = data.vector(2)
  const type = list.uint(1)
  const name = list.vector(2)
  // Exactly one entry and of the one defined type: the form every engine accepts, so that all of them read the same name.
  if (list.failed || list.left > 0 || data.left > 0 || type !== 0) return false
  // 254: the longest host name and its trailing dot.
  if (name.left === 0 || name.left > 254) return false
  const text = name.text()
  if (isIp(text)) return true
  const host = text.endsWith('.') ? text.slice(0, -1) : text
  if (!isHostName(host)) return false
  hello.serverName = host.toLowerCase()
  return true
}

function readAlpn(hello: ClientHello, data: Cursor): boolean {
  const list = data.vector(2)
  if (data.left > 0 || list.left === 0) return false
  while (list.left > 0) {
    const name = list.vector(1)
    if (list.failed || name.left === 0) return false
    const text = name.text()
    if (!(text.length === 2 && isGrease((text.charCodeAt(0) << 8) | text.charCodeAt(1)))) hello.alpn.push(text)
  }
  return true
}

function readVersions(hello: ClientHello, data: Cursor): boolean {
  const list = data.vector(1)
  if (data.left > 0 || list.left === 0 || list.left % 2) return false
  hello.versions = []
  while (list.left > 0) {
    const version = list.uint(2)
    if (!isGrease(version)) hello.versions.push(version)
  }
  return true
}

/** 0x0a0a, 0x1a1a … 0xfafa: values that clients mix in to find servers that choke on the unknown (RFC 8701). */
const isGrease = (value: number) => (value & 0x0f0f) === 0x0a0a && value >> 8 === (value & 0xff)

/** What a client that does not speak TLS speaks, as far as it helps an operator to find the mistake. */
function other(bytes: Uint8Array): ClientHelloPeek {
  for (const start of HTTP_STARTS) {
    let same = 0
    while (same < start.length && same < bytes.length && bytes[same] === start[same]) same++
    if (same === start.length) return no('http')
    if (same === bytes.length) return MORE
  }
  // SSLv2: a length with its high bit set, message type 1, version 0x0002 or 0x03xx.
  if (bytes[0]! < 0x80) return no('not-tls')
  if (bytes.length > 2 && bytes[2] !== 1) return no('not-tls')
  if (bytes.length > 3 && bytes[3] !== 3 && bytes[3] !== 0) return no('not-tls')
  if (bytes.length > 4 && bytes[3] === 0 && bytes[4] !== 2) return no('not-tls')
  return bytes.length < 5 ? MORE : no('sslv2')
}

/** Reads a stretch of bytes from front to back. Reading past its end gives zeros and sets `failed`: callers test once, at the
 *  end. A stretch within it is a range of the same bytes: a view for each would cost more than all the reading. */
class Cursor {
  failed = false
  #at: number
  readonly #end: number

  constructor(
    readonly bytes: Uint8Array,
    from = 0,
    end = bytes.length,
  ) {
    this.#at = from
    this.#end = end
  }

  get left(): number {
    return this.#end - this.#at
  }

  uint(size: 1 | 2): number {
    const at = this.#take(size)
    if (at < 0) return 0
    return size === 1 ? this.bytes[at]! : (this.bytes[at]! << 8) | this.bytes[at + 1]!
  }

  skip(size: number): void {
    this.#take(size)
  }

  /** A vector of RFC 8446 3.4: its length in `prefix` bytes, then the bytes. */
  vector(prefix: 1 | 2): Cursor {
    const size = this.uint(prefix)
    const at = this.#take(size)
    return at < 0 ? new Cursor(NOTHING) : new Cursor(this.bytes, at, at + size)
  }

  /** The rest, one character for each byte. */
  text(): string {
    let text = ''
    while (this.#at < this.#end) text += String.fromCharCode(this.bytes[this.#at++]!)
    return text
  }

  #take(size: number): number {
    if (this.failed || size > this.left) {
      this.failed = true
      return -1
    }
    this.#at += size
    return this.#at - size
  }
}

const NOTHING = new Uint8Array(0)
