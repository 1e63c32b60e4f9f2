// Reads and writes the PROXY protocol's header, versions 1 and 2, without knowing a socket: bytes so far in, a verdict out.
// Only a trusted sender's bytes come here, and strictly: what two readers could take differently is malformed, since the
// header says who the client is. https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
import { canonicalIp, formatIp, ipBytes, isIp } from '../../base/addresses.ts'
import { PROXY_HEADER_BYTES_MAX } from '../../base/limits.ts'

export interface ProxyEnds {
  clientIp: string
  clientPort: number
  /** Where the client connected to. */
  listenerIp: string
  listenerPort: number
}

export interface ProxyHeader {
  /** null: the sender speaks for itself (LOCAL), or does not say for whom (UNKNOWN, UNSPEC, a unix socket). */
  ends: ProxyEnds | null
  /** Version 2 may say more (ALPN, authority, TLS …): what goes on to a target that is told in version 2. */
  tlvs: ProxyTlv[]
  /** The sender protected the header with a checksum: so do we when it goes on. */
  checksum: boolean
  /** Bytes up to and including the header's last. */
  length: number
}

export interface ProxyTlv {
  type: number
  value: Uint8Array
}

export type ProxyHeaderPeek =
  | { verdict: 'more' }
  | { verdict: 'no'; why: 'absent' | 'malformed' | 'oversize' }
  | { verdict: 'yes'; header: ProxyHeader }

const V1_BYTES_MAX = 107
const V1_START = Buffer.from('PROXY ')
const V1_LINE = /^(TCP4|TCP6) (\S+) (\S+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})$/

const V2_SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1')
const V2_FIXED_BYTES = 16
const V2_LOCAL = 0x20
const V2_PROXY = 0x21
/** Bytes of both addresses and ports by family: AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX. */
const V2_ENDS_BYTES = [0, 12, 36, 216] as const
const V2_STREAM = 1
const V2_DATAGRAM = 2

const TLV_CHECKSUM = 3
const TLV_NOOP = 4
const TLV_HEADER_BYTES = 3
const CHECKSUM_BYTES = 4

const MORE: ProxyHeaderPeek = { verdict: 'more' }
const no = (why: (ProxyHeaderPeek & { verdict: 'no' })['why']): ProxyHeaderPeek => ({ verdict: 'no', why })

/** Call it with all bytes received so far, as often as bytes arrive; only 'more' may change later. */
export function peekProxyHeader(bytes: Uint8Array): ProxyHeaderPeek {
  if (bytes.length === 0) return MORE
  const start = bytes[0] === V1_START[0] ? V1_START : V2_SIGNATURE
  for (let i = 0; i < start.length && i < bytes.length; i++) if (bytes[i] !== start[i]) return no('absent')
  if (bytes.length < start.length) return MORE
  return start === V1_START ? readV1(bytes) : readV2(bytes)
}

// ---- version 1: one line of text ----

function readV1(bytes: Uint8Array): ProxyHeaderPeek {
  let end = V1_START.length
  while (end < bytes.length && end < V1_BYTES_MAX && bytes[end] !== 10) end++
  if (end === V1_BYTES_MAX) return no('oversize')
  if (end === bytes.length) return MORE
  if (bytes[end - 1] !== 13) return no('malformed')
  let line = ''
  for (let i = V1_START.length; i < end - 1; i++) line += String.fromCharCode(bytes[i]!)
  const header: ProxyHeader = { ends: null, tlvs: [], checksum: false, length: end + 1 }
  // Whatever follows UNKNOWN is to be ignored.
  if (line === 'UNKNOWN' || line.startsWith('UNKNOWN ')) return { verdict: 'yes', header }
  const found = V1_LINE.exec(line)
  if (!found) return no('malformed')
  const [, family, from, to, fromPort, toPort] = found as unknown as [string, string, string, string, string, string]
  const ends = { clientPort: Number(fromPort), listenerPort: Number(toPort) }
  if (![from, to].every((ip) => isIp(ip) && ip.includes(':') === (family === 'TCP6'))) return no('malformed')
  if (ends.clientPort > 0xffff || ends.listenerPort > 0xffff) return no('malformed')
  header.ends = { ...ends, clientIp: canonicalIp(from), listenerIp: canonicalIp(to) }
  return { verdict: 'yes', header }
}

// ---- version 2: binary ----

function readV2(bytes: Uint8Array): ProxyHeaderPeek {
  // Judged byte by byte as they come, so that more bytes never change a refusal.
  if (bytes.length < 13) return MORE
  const command = bytes[12]!
  if (command !== V2_LOCAL && command !== V2_PROXY) return no('malformed')
  if (bytes.length < 14) return MORE
  const family = bytes[13]! >> 4
  const transport = bytes[13]! & 15
  if (family >= V2_ENDS_BYTES.length || transport > V2_DATAGRAM) return no('malformed')
  if (bytes.length < V2_FIXED_BYTES) return MORE
  const length = V2_FIXED_BYTES + uint16(bytes, 14)
  if (length > PROXY_HEADER_BYTES_MAX) return no('oversize')
  const header: ProxyHeader = { ends: null, tlvs: [], checksum: false, length }
  // LOCAL: everything after the length is to be discarded. Without a family nobody can say where the addresses end.
  const said = command === V2_PROXY && family > 0 && transport > 0
  const tlvsAt = V2_FIXED_BYTES + V2_ENDS_BYTES[family]!
  if (said && tlvsAt > length) return no('malformed')
  if (bytes.length < length) return MORE
  if (!said) return { verdict: 'yes', header }
  if (!readTlvs(header, bytes.subarray(0, length), tlvsAt)) return no('malformed')
  if (family < 3 && transport === V2_STREAM) header.ends = readEnds(bytes, family === 1 ? 4 : 16)
  return { verdict: 'yes', header }
}

function readEnds(bytes: Uint8Array, size: 4 | 16): ProxyEnds {
  const at = V2_FIXED_BYTES
  const ip = (from: number) => {
    const raw = Uint8Array.from({ length: size }, (_, i) => bytes[from + i]!)
    // IPv4-mapped IPv6 is an IPv4 client, as everywhere.
    return canonicalIp(formatIp(raw))
  }
  return {
    clientIp: ip(at),
    listenerIp: ip(at + size),
    clientPort: uint16(bytes, at + size * 2),
    listenerPort: uint16(bytes, at + size * 2 + 2),
  }
}

/** false: they do not fill the rest of the header exactly, or its checksum is wrong. */
function readTlvs(header: ProxyHeader, whole: Uint8Array, from: number): boolean {
  for (let at = from; at < whole.length;) {
    if (whole.length - at < TLV_HEADER_BYTES) return false
    const type = whole[at]!
    const valueAt = at + TLV_HEADER_BYTES
    const next = valueAt + uint16(whole, at + 1)
    if (next > whole.length) return false
    if (type === TLV_CHECKSUM) {
      if (header.checksum || next - valueAt !== CHECKSUM_BYTES) return false
      header.checksum = true
      const stated = uint16(whole, valueAt) * 0x10000 + uint16(whole, valueAt + 2)
      if (crc32c(whole, valueAt) !== stated) return false
    } else if (type !== TLV_NOOP) header.tlvs.push({ type, value: copy(whole, valueAt, next) })
    at = next
  }
  return true
}

const uint16 = (bytes: Uint8Array, at: number) => (bytes[at]! << 8) | bytes[at + 1]!

const copy = (bytes: Uint8Array, from: number, to: number) =>
  Uint8Array.from({ length: to - from }, (_, i) => bytes[from + i]!)

// ---- CRC-32C (Castagnoli, RFC 9260 appendix A) ----

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0x82f63b78 : byte >>> 1
  return byte
})

/** The four bytes at `checksumAt` count as zero: the checksum covers the whole header without itself. */
function crc32c(bytes: Uint8Array, checksumAt: number): number {
  let crc = 0xffffffff
  for (let i = 0; i < bytes.length; i++) {
    const byte = i >= checksumAt && i < checksumAt + CHECKSUM_BYTES ? 0 : bytes[i]!
    crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff]!
  }
  return (crc ^ 0xffffffff) >>> 0
}

// ---- what a target is told ----

/** The header of a connection. `kept` is what a header of the client's side said beyond the addresses. */
export function proxyHeader(
  version: 'v1' | 'v2',
  ends: ProxyEnds,
  kept: Pick<ProxyHeader, 'tlvs' | 'checksum'> | null = null,
): Uint8Array {
  return version === 'v1' ? v1(ends) : v2(ends, kept)
}

/** The header of a connection of our own: a health check. */
export function localHeader(version: 'v1' | 'v2'): Uint8Array {
  if (version === 'v1') return Buffer.from('PROXY UNKNOWN\r\n')
  return Buffer.concat([V2_SIGNATURE, Buffer.from([V2_LOCAL, 0, 0, 0])])
}

function v1({ clientIp, clientPort, listenerIp, listenerPort }: ProxyEnds): Uint8Array {
  // Version 1 has no words for ends of two families.
  if (clientIp.includes(':') !== listenerIp.includes(':')) return localHeader('v1')
  const family = clientIp.includes(':') ? 'TCP6' : 'TCP4'
  return Buffer.from(`PROXY ${family} ${clientIp} ${listenerIp} ${clientPort} ${listenerPort}\r\n`, 'latin1')
}

function v2(ends: ProxyEnds, kept: Pick<ProxyHeader, 'tlvs' | 'checksum'> | null): Uint8Array {
  const [client, listener] = [ipBytes(ends.clientIp), ipBytes(ends.listenerIp)]
  const is4 = client.length === 4 && listener.length === 4
  const parts: Uint8Array[] = is4 ? [client, listener] : [as6(client), as6(listener)]
  parts.push(Uint8Array.of(...high(ends.clientPort), ...high(ends.listenerPort)))
  for (const { type, value } of kept?.tlvs ?? []) parts.push(Uint8Array.of(type, ...high(value.length)), value)
  if (kept?.checksum) parts.push(Uint8Array.of(TLV_CHECKSUM, 0, CHECKSUM_BYTES, 0, 0, 0, 0))
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const fixed = Uint8Array.of(V2_PROXY, ((is4 ? 1 : 2) << 4) | V2_STREAM, ...high(length))
  const header = Buffer.concat([V2_SIGNATURE, fixed, ...parts])
  if (kept?.checksum) {
    const at = header.length - CHECKSUM_BYTES
    header.writeUInt32BE(crc32c(header, at), at)
  }
  return header
}

const high = (value: number) => [value >> 8, value & 0xff]

const as6 = (ip: Uint8Array) => (ip.length === 16 ? ip : Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ...ip))
