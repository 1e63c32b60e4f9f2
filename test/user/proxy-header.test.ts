// The PROXY protocol's header, byte by byte: what senders send, what they must not, and what we send. Mutated headers at the end.
// SLUICE_FUZZ=1000000 runs longer, SLUICE_SEED=n repeats a run.
import { expect, test } from 'bun:test'
import { isIp } from '../../src/base/addresses.ts'
import { PROXY_HEADER_BYTES_MAX } from '../../src/base/limits.ts'
import { localHeader, peekProxyHeader, proxyHeader, type ProxyHeader } from '../../src/user/peek/proxy-header.ts'
import { bytes, guarded, random } from './hellos.ts'

const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]
const v2 = (command: number, family: number, ...rest: (number[] | Uint8Array)[]) => {
  const body = bytes(...rest)
  return bytes(SIGNATURE, [command, family, body.length >> 8, body.length & 0xff], body)
}
const tlv = (type: number, ...value: number[]) => [type, value.length >> 8, value.length & 0xff, ...value]
const ENDS4 = [192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xbb]
const ENDS6 = [
  0x20,
  1,
  0xd,
  0xb8,
  ...Array(11).fill(0),
  1,
  0x20,
  1,
  0xd,
  0xb8,
  ...Array(11).fill(0),
  2,
  0,
  1,
  0xff,
  0xff,
]
const ends4 = { clientIp: '192.0.2.1', clientPort: 12345, listenerIp: '198.51.100.7', listenerPort: 443 }
const ends6 = { clientIp: '2001:db8::1', clientPort: 1, listenerIp: '2001:db8::2', listenerPort: 65535 }

const header = (wire: Uint8Array): ProxyHeader => {
  const peek = peekProxyHeader(wire)
  if (peek.verdict !== 'yes') throw new Error(JSON.stringify(peek))
  return peek.header
}
const verdictOf = (wire: Uint8Array | string) => {
  const peek = peekProxyHeader(typeof wire === 'string' ? bytes(wire) : wire)
  return peek.verdict === 'no' ? peek.why : peek.verdict
}

test('J2: version 1, both families, the longest line, and what follows is kept', () => {
  const line = 'PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n'
  expect(header(bytes(line))).toEqual({ ends: ends4, tlvs: [], checksum: false, length: line.length })
  expect(header(bytes(line + 'GET / HTTP/1.1')).length).toBe(line.length)
  expect(header(bytes('PROXY TCP6 2001:DB8::1 2001:db8:0::2 1 65535\r\n')).ends).toEqual(ends6)
  expect(header(bytes('PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.7 12345 443\r\n')).ends).toEqual(ends4)
  const longest = 'PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535'.padEnd(105, 'x') + '\r\n'
  expect(longest.length).toBe(107)
  expect(header(bytes(longest))).toMatchObject({ ends: null, length: 107 })
  expect(header(bytes('PROXY UNKNOWN\r\n'))).toMatchObject({ ends: null, length: 15 })
})

test('J2: version 1, whatever is not exactly so is refused', () => {
  const malformed = [
    'PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\n',
    'PROXY TCP4  192.0.2.1 198.51.100.7 12345 443\r\n',
    'PROXY TCP4 192.0.2.1 198.51.100.7 12345 443 \r\n',
    'PROXY TCP4 192.0.2.1 198.51.100.7 12345\r\n',
    'PROXY TCP4 192.0.2.1 198.51.100.7 012345 443\r\n',
    'PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n',
    'PROXY TCP4 192.0.2.1 198.51.100.7 -1 443\r\n',
    'PROXY TCP4 192.0.2.256 198.51.100.7 12345 443\r\n',
    'PROXY TCP4 192.0.02.1 198.51.100.7 12345 443\r\n',
    'PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n',
    'PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n',
    'PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n',
    'PROXY UDP4 192.0.2.1 198.51.100.7 12345 443\r\n',
    'PROXY UNKNOWNS\r\n',
    'PROXY \r\n',
    'PROXY \n',
  ]
  expect(malformed.filter((line) => verdictOf(line) !== 'malformed')).toEqual([])
  expect(verdictOf('PROXY UNKNOWN'.padEnd(106, 'x') + '\r\n')).toBe('oversize')
  expect(verdictOf('PROXY '.padEnd(106, 'x'))).toBe('more')
  for (const other of ['GET / HTTP/1.1\r\n', 'PRI * HTTP/2.0', 'proxy TCP4', '\x16\x03\x01', '\r\n\r\nGET'])
    expect(verdictOf(other)).toBe('absent')
})

test('J2: version 2, byte for byte as the specification has it', () => {
  expect(header(v2(0x21, 0x11, ENDS4))).toEqual({ ends: ends4, tlvs: [], checksum: false, length: 28 })
  expect(header(v2(0x21, 0x21, ENDS6))).toEqual({ ends: ends6, tlvs: [], checksum: false, length: 52 })
  const mapped = [...Array(10).fill(0), 0xff, 0xff]
  const both = [...mapped, 192, 0, 2, 1, ...mapped, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xbb]
  expect(header(v2(0x21, 0x21, both)).ends).toEqual(ends4)
  // LOCAL: the family is ignored and all that follows is discarded, whatever it is.
  for (const rest of [[], ENDS4, [1, 2, 3]])
    expect(header(v2(0x20, 0x11, rest))).toMatchObject({ ends: null, tlvs: [] })
  // UNSPEC, unix sockets and datagrams name no client that we could believe in.
  expect(header(v2(0x21, 0x00, [9, 9]))).toMatchObject({ ends: null, length: 18 })
  expect(header(v2(0x21, 0x31, Array(216).fill(65), tlv(2, 97)))).toMatchObject({ ends: null, tlvs: [{ type: 2 }] })
  expect(header(v2(0x21, 0x12, ENDS4)).ends).toBeNull()
})

test('J2: version 2, TLVs are kept, NOOPs not, and a checksum is verified', () => {
  const kept = header(v2(0x21, 0x11, ENDS4, tlv(1, 104, 50), tlv(4, 0, 0), tlv(0xea), tlv(2, 97)))
  expect(kept.tlvs).toEqual([
    { type: 1, value: bytes([104, 50]) },
    { type: 0xea, value: bytes([]) },
    { type: 2, value: bytes([97]) },
  ])
  // The check value of CRC-32C is that of "123456789": 0xe3069283. Here over a header, from an independent implementation.
  const sealed = Buffer.from('0d0a0d0a000d0a515549540a21110013c0000201c6336407303901bb030004', 'hex')
  const whole = bytes(sealed, referenceCrc(bytes(sealed, [0, 0, 0, 0])))
  expect(header(whole)).toMatchObject({ ends: ends4, checksum: true, tlvs: [] })
  for (let i = 0; i < whole.length; i++) {
    const wrong = new Uint8Array(whole)
    wrong[i]! ^= 1
    // 12: 0x20 is LOCAL. 13: no transport, so nothing is believed. 14, 15: a longer header is waited for. 28: some other TLV.
    if (![12, 13, 14, 15, 28].includes(i)) expect([i, peekProxyHeader(wrong).verdict]).toEqual([i, 'no'])
  }
})

test('J2: version 2, whatever is not exactly so is refused, as soon as it is seen', () => {
  const malformed = {
    'version 1': v2(0x11, 0x11, ENDS4),
    'command 2': v2(0x22, 0x11, ENDS4),
    'family 4': v2(0x21, 0x41, ENDS4),
    'transport 3': v2(0x21, 0x13, ENDS4),
    'too short for IPv4': v2(0x21, 0x11, ENDS4.slice(1)),
    'too short for IPv6': v2(0x21, 0x21, ENDS4),
    'a TLV cut short': v2(0x21, 0x11, ENDS4, [1, 0]),
    'a TLV longer than the header': v2(0x21, 0x11, ENDS4, [1, 0, 9, 1]),
    'a checksum of three bytes': v2(0x21, 0x11, ENDS4, tlv(3, 0, 0, 0)),
    'a wrong checksum': v2(0x21, 0x11, ENDS4, tlv(3, 0, 0, 0, 0)),
  }
  for (const [what, wire] of Object.entries(malformed)) expect([what, verdictOf(wire)]).toEqual([what, 'malformed'])
  expect(verdictOf(bytes(SIGNATURE, [0x31]))).toBe('malformed')
  const long = (size: number) => bytes(SIGNATURE, [0x21, 0x11, size >> 8, size & 0xff])
  expect(verdictOf(long(PROXY_HEADER_BYTES_MAX - 16))).toBe('more')
  expect(verdictOf(long(PROXY_HEADER_BYTES_MAX - 15))).toBe('oversize')
})

test('J3: what we send, byte for byte, is what we read', () => {
  expect(Buffer.from(proxyHeader('v1', ends4)).toString()).toBe('PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n')
  expect(Buffer.from(proxyHeader('v1', ends6)).toString()).toBe('PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n')
  expect(bytes(proxyHeader('v2', ends4))).toEqual(v2(0x21, 0x11, ENDS4))
  expect(bytes(proxyHeader('v2', ends6))).toEqual(v2(0x21, 0x21, ENDS6))
  const mixed = { ...ends4, listenerIp: '2001:db8::2' }
  expect(Buffer.from(proxyHeader('v1', mixed)).toString()).toBe('PROXY UNKNOWN\r\n')
  expect(header(proxyHeader('v2', mixed)).ends).toEqual(mixed)
  for (const version of ['v1', 'v2'] as const) {
    for (const ends of [ends4, ends6]) expect(header(proxyHeader(version, ends)).ends).toEqual(ends)
    expect(header(localHeader(version))).toMatchObject({ ends: null })
  }
  const kept = {
    tlvs: [
      { type: 1, value: bytes([104, 50]) },
      { type: 0xee, value: bytes(Array(300).fill(7)) },
    ],
  }
  expect(header(proxyHeader('v2', ends6, { ...kept, checksum: true }))).toMatchObject({
    ...kept,
    checksum: true,
    ends: ends6,
  })
  expect(header(proxyHeader('v2', ends6, { ...kept, checksum: false }))).toMatchObject({ ...kept, checksum: false })
})

/** CRC-32C bit by bit, as big-endian bytes. */
function referenceCrc(input: Uint8Array): number[] {
  let crc = 0xffffffffn
  for (const byte of input) {
    crc ^= BigInt(byte)
    for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n
  }
  crc ^= 0xffffffffn
  return [24n, 16n, 8n, 0n].map((shift) => Number((crc >> shift) & 0xffn))
}

test('the reference of the checksum gives the check value of CRC-32C', () => {
  expect(referenceCrc(bytes('123456789'))).toEqual([0xe3, 0x06, 0x92, 0x83])
})

// ---- mutated headers ----

const RUNS = Number(process.env.SLUICE_FUZZ ?? 200_000)
const SEED = Number(process.env.SLUICE_SEED ?? Date.now() % 2 ** 32)
const CORPUS = [
  bytes('PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\nGET /'),
  bytes('PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n'),
  bytes('PROXY UNKNOWN ::1\r\n'),
  v2(0x21, 0x11, ENDS4, tlv(1, 104, 50)),
  v2(0x21, 0x21, ENDS6, tlv(4, 0), tlv(0x20, 1, 0, 0, 0, 0)),
  v2(0x20, 0x00),
  bytes(proxyHeader('v2', ends4, { tlvs: [{ type: 2, value: bytes('a.test') }], checksum: true })),
]

function mutate(wire: Uint8Array, pick: (below: number) => number): Uint8Array {
  let out = new Uint8Array(wire)
  for (let changes = pick(4); changes > 0; changes--) {
    const at = pick(out.length || 1)
    const kind = pick(6)
    if (kind === 0) out = out.slice(0, at)
    else if (kind === 1) out = bytes(out.subarray(0, at), out.subarray(at + 1 + pick(4)))
    else if (kind === 2) out = bytes(out.subarray(0, at), [pick(256)], out.subarray(at))
    else if (kind === 3) out = bytes(out.subarray(0, at), out.subarray(at, at + pick(60)), out.subarray(at))
    else if (at < out.length) out[at] = kind === 4 ? out[at]! ^ (1 << pick(8)) : [0, 1, 10, 13, 32, 48, 255][pick(7)]!
  }
  return out
}

test(
  `J2: ${RUNS} mutated headers, seed ${SEED}: an answer that no further byte changes`,
  () => {
    const pick = random(SEED)
    const verdicts = { more: 0, no: 0, yes: 0 }
    for (let run = 0; run < RUNS; run++) {
      const wire = mutate(CORPUS[pick(CORPUS.length)]!, pick)
      try {
        verdicts[checkOne(wire, run)]++
      } catch (cause) {
        throw new Error(`SLUICE_SEED=${SEED}, input ${Buffer.from(wire).toString('hex')}: ${cause}`, { cause })
      }
    }
    if (RUNS >= 10_000) for (const count of Object.values(verdicts)) expect(count).toBeGreaterThan(RUNS / 50)
  },
  60_000 + RUNS / 5,
)

function checkOne(wire: Uint8Array, run: number): 'more' | 'no' | 'yes' {
  const peek = peekProxyHeader(wire)
  const text = JSON.stringify(peek)
  const same = (other: Uint8Array, what: string) => {
    const now = JSON.stringify(peekProxyHeader(other))
    if (now !== text) throw new Error(`${what}: ${now} instead of ${text}`)
  }
  if (peek.verdict === 'yes') {
    const { ends, length } = peek.header
    if (!(length >= 15 && length <= wire.length && length <= PROXY_HEADER_BYTES_MAX))
      throw new Error(`length ${length}`)
    if (ends && !(isIp(ends.clientIp) && isIp(ends.listenerIp))) throw new Error(text)
    same(wire.subarray(0, length), 'without what follows')
    if (peekProxyHeader(wire.subarray(0, length - 1)).verdict !== 'more') throw new Error('one byte less is not "more"')
    if (ends) {
      const again = peekProxyHeader(proxyHeader('v2', ends, peek.header))
      if (again.verdict !== 'yes' || !Bun.deepEquals({ ...again.header, length }, peek.header))
        throw new Error('sent on')
    }
  }
  if (peek.verdict !== 'more') same(bytes(wire, [1, 2, 3]), 'with more bytes')
  else if (wire.length >= PROXY_HEADER_BYTES_MAX) throw new Error('waits above the limit')
  if (run % 16 === 0) same(guarded(wire), 'guarded')
  if (run % 16 === 0 && peek.verdict !== 'more') {
    let decided = false
    for (let end = 0; end <= wire.length; end++) {
      const earlier = peekProxyHeader(wire.subarray(0, end))
      if (earlier.verdict === 'more' && decided) throw new Error(`undecided again at ${end}`)
      if (earlier.verdict === 'more') continue
      decided = true
      same(wire.subarray(0, end), `at ${end}`)
    }
  }
  return peek.verdict
}
