// The ClientHello parser against hellos of real clients, against fixed ones, cut everywhere, and against what an attacker sends.
import { describe, expect, test } from 'bun:test'
import tls from 'node:tls'
import { peekClientHello, type ClientHello } from '../../src/user/peek/client-hello.ts'
import { CLIENT_HELLO_BYTES_MAX, CLIENT_HELLO_MESSAGE_BYTES_MAX } from '../../src/base/limits.ts'
import {
  alpn,
  bytes,
  captureHello,
  extension,
  fromRecords,
  hello,
  helloMessage,
  inRecords,
  sni,
  vector,
  versions,
} from './hellos.ts'

const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'))

/** The hello, after checking that no shorter prefix gives any other answer than 'more'. */
function read(wire: Uint8Array): ClientHello {
  const peek = peekClientHello(wire)
  if (peek.verdict !== 'yes')
    throw new Error(`verdict ${JSON.stringify(peek)} for ${Buffer.from(wire).toString('hex')}`)
  for (let end = 0; end < peek.hello.length; end++)
    expect(peekClientHello(wire.subarray(0, end))).toEqual({ verdict: 'more' })
  expect(peekClientHello(bytes(wire, 'early data'))).toEqual(peek)
  return peek.hello
}

/** Why it is refused, after checking that every prefix says 'more' or the same. */
function refusal(wire: Uint8Array): string {
  const peek = peekClientHello(wire)
  if (peek.verdict !== 'no') throw new Error(`verdict ${JSON.stringify(peek)} for ${Buffer.from(wire).toString('hex')}`)
  for (let end = 0; end < wire.length; end++) {
    const earlier = peekClientHello(wire.subarray(0, end))
    if (earlier.verdict !== 'more') expect(earlier).toEqual(peek)
  }
  return peek.why
}

// RFC 8448 section 3, the first flight of the simple 1-RTT handshake.
const RFC_8448 = hex(`
  16030100c4010000c00303cb34ecb1e78163ba1c38c6dacb196a6dffa21a8d9912ec18a2ef6283024dece7000006130113031302010000910000000b
  0009000006736572766572ff01000100000a00140012001d0017001800190100010101020103010400230000003300260024001d002099381de560e4
  bd43d23d8e435a7dbafeb3c06e51c13cae4d5413691e529aaf2c002b0003020304000d0020001e040305030603020308040805080604010501060102
  01040205020602020 2002d00020101001c00024001`)

describe('fixed hellos', () => {
  test('the trace of RFC 8448', () => {
    expect(read(RFC_8448)).toEqual({ serverName: 'server', alpn: [], versions: [0x0304], echOuter: false, length: 201 })
  })
  test('a hello that ends before the extensions, as old TLS 1.0 clients send', () => {
    const wire = inRecords(helloMessage({ version: 0x0301, ciphers: [0, 0x2f] }))
    expect(read(wire)).toEqual({ alpn: [], versions: [0x0301], echOuter: false, length: wire.length })
  })
  test('a browser: GREASE at every place, ALPN, ECH', () => {
    const wire = inRecords(
      helloMessage({
        sessionId: new Uint8Array(32),
        ciphers: [0x5a, 0x5a, 0x13, 0x01],
        extensions: [
          extension(0xfafa),
          sni('WWW.Example.COM.'),
          alpn('\x1a\x1a', 'h2', 'http/1.1'),
          versions(0x2a2a, 0x0304, 0x0303),
          extension(0xfe0d, [0, 0, 1, 0, 1, 7], vector(2, new Uint8Array(32)), vector(2, new Uint8Array(144))),
          extension(0x3a3a, [0]),
        ],
      }),
    )
    expect(read(wire)).toEqual({
      serverName: 'www.example.com',
      alpn: ['h2', 'http/1.1'],
      versions: [0x0304, 0x0303],
      echOuter: true,
      length: wire.length,
    })
  })
  test('the ALPN of an ACME challenge', () =>
    expect(read(hello(sni('a.test'), alpn('acme-tls/1'))).alpn).toEqual(['acme-tls/1']))
  test('ALPN names are bytes', () => expect(read(hello(alpn('\xff\x00'))).alpn).toEqual(['\xff\x00']))
  test('no SNI', () => expect(read(hello(alpn('h2'))).serverName).toBeUndefined())
  test('an empty list of extensions', () => expect(read(hello()).alpn).toEqual([]))
  test('the inner hello of ECH shows its real name', () => {
    expect(read(hello(sni('inner.test'), extension(0xfe0d, [1])))).toMatchObject({
      serverName: 'inner.test',
      echOuter: false,
    })
  })
  test('an address as SNI counts as none', () => {
    for (const address of ['127.0.0.1', '::1']) expect(read(hello(sni(address))).serverName).toBeUndefined()
  })
  test('the longest name', () => {
    const name = `${'a'.repeat(63)}.${'b'.repeat(63)}.${'c'.repeat(63)}.${'d'.repeat(61)}`
    expect(read(hello(sni(name + '.'))).serverName).toBe(name)
    expect(refusal(hello(sni(name + 'd')))).toBe('malformed')
  })
  test('the largest message, in records of any size', () => {
    const room =
      CLIENT_HELLO_MESSAGE_BYTES_MAX + 4 - helloMessage({ extensions: [sni('big.test'), extension(21)] }).length
    const message = helloMessage({ extensions: [sni('big.test'), extension(21, new Uint8Array(room))] })
    for (const size of [16384, 8192, 257])
      expect(peekClientHello(inRecords(message, size))).toMatchObject({ hello: { serverName: 'big.test' } })
    expect(peekClientHello(inRecords(message, 200))).toEqual({ verdict: 'no', why: 'oversize' })
  })
  test('bytes of the surrounding buffer are never read', () => {
    const inside = new Uint8Array(RFC_8448.length + 200).fill(0xff)
    inside.set(RFC_8448, 100)
    expect(peekClientHello(inside.subarray(100, 100 + RFC_8448.length))).toEqual(peekClientHello(RFC_8448))
    expect(peekClientHello(inside.subarray(100, 99 + RFC_8448.length))).toEqual({ verdict: 'more' })
  })
})

describe('records', () => {
  test('any size of record, any place of the cut', () => {
    const message = fromRecords(RFC_8448)
    for (let size = 1; size <= message.length; size++) {
      const wire = inRecords(message, size)
      expect(peekClientHello(wire)).toMatchObject({
        verdict: 'yes',
        hello: { serverName: 'server', length: wire.length },
      })
    }
    for (const size of [1, 3, 100]) read(inRecords(message, size))
    for (let cut = 1; cut < message.length; cut++) {
      const wire = bytes(inRecords(message.subarray(0, cut)), inRecords(message.subarray(cut)))
      expect(peekClientHello(wire)).toMatchObject({
        verdict: 'yes',
        hello: { serverName: 'server', length: wire.length },
      })
    }
  })
  test('a record of no bytes, first or later', () => {
    const message = fromRecords(RFC_8448)
    expect(refusal(hex('1603010000'))).toBe('malformed')
    expect(refusal(bytes(inRecords(message.subarray(0, 50)), hex('1603010000'), inRecords(message.subarray(50))))).toBe(
      'malformed',
    )
  })
  test('another record between two parts', () => {
    const message = fromRecords(RFC_8448)
    expect(refusal(bytes(inRecords(message.subarray(0, 50)), hex('15030100020100')))).toBe('malformed')
    expect(refusal(bytes(inRecords(message.subarray(0, 50)), hex('16020100020100')))).toBe('malformed')
  })
  test('a record longer than TLS allows', () => expect(refusal(hex('1603014001'))).toBe('malformed'))
  test('bytes after the hello in its own record', () => {
    expect(refusal(inRecords(bytes(fromRecords(RFC_8448), [0])))).toBe('malformed')
  })
  test('another handshake message', () => expect(refusal(hex('1603010005 0200000100'))).toBe('malformed'))
  test('a longer message than the limit is refused when its length is read', () => {
    expect(peekClientHello(hex('1603014000 01 004001'))).toEqual({ verdict: 'no', why: 'oversize' })
    expect(peekClientHello(hex('1603014000 01 004000'))).toEqual({ verdict: 'more' })
    expect(peekClientHello(hex('1603010100 01 ffffff'))).toEqual({ verdict: 'no', why: 'oversize' })
  })
  test('waiting ends at the limit of bytes', () => {
    const endless = inRecords(bytes([1, 0, 0x40, 0], new Uint8Array(16000)), 1)
    expect(peekClientHello(endless.subarray(0, CLIENT_HELLO_BYTES_MAX - 6))).toEqual({ verdict: 'more' })
    expect(peekClientHello(endless.subarray(0, CLIENT_HELLO_BYTES_MAX + 6))).toEqual({ verdict: 'no', why: 'oversize' })
  })
})

describe('what is refused', () => {
  const malformed: Record<string, Uint8Array> = {
    'two names': hello(sni('a.test', 'b.test')),
    'the same name twice': hello(sni('a.test', 'a.test')),
    'SNI twice': hello(sni('a.test'), sni('b.test')),
    'any extension twice': hello(extension(0x1234), extension(0x1234)),
    'an SNI of no names': hello(extension(0, [0, 0])),
    'an empty SNI': hello(extension(0)),
    'an empty name': hello(sni('')),
    'a name of unknown type': hello(extension(0, vector(2, [1], vector(2, 'a.test')))),
    'bytes after the name list': hello(extension(0, vector(2, [0], vector(2, 'a.test')), [0])),
    'a name longer than its list': hello(extension(0, [0, 4, 0, 0, 9, 97])),
    'a NUL in the name': hello(sni('a.test\0.evil.test')),
    'a name that is not ASCII': hello(sni('b\xc3\xbccher.test')),
    'a space in the name': hello(sni('a b')),
    'a slash in the name': hello(sni('a/../b')),
    'two trailing dots': hello(sni('a.test..')),
    'only a dot': hello(sni('.')),
    'a hyphen at the edge': hello(sni('-a.test')),
    'a name of 255 bytes': hello(sni('a'.repeat(255))),
    'an ALPN of nothing': hello(extension(16, [0, 0])),
    'an empty ALPN name': hello(alpn('h2', '')),
    'an ALPN name longer than its list': hello(extension(16, [0, 3, 9, 104, 50])),
    'bytes after the ALPN list': hello(extension(16, vector(2, vector(1, 'h2')), [0])),
    'no versions': hello(versions()),
    'half a version': hello(extension(43, [1, 3])),
    'bytes after the versions': hello(extension(43, [2, 3, 4, 0])),
    'an empty ECH': hello(extension(0xfe0d)),
    'an extension longer than the list': inRecords(helloMessage({ extensions: [[0, 9, 0, 5, 1]] })),
    'half an extension header': inRecords(helloMessage({ extensions: [[0, 9, 0]] })),
    'bytes after the extensions': inRecords(helloMessage({ extensions: [], after: [0] })),
    'one byte of extensions': inRecords(helloMessage({ after: [0] })),
    'a long session id': inRecords(helloMessage({ sessionId: new Uint8Array(33), extensions: [] })),
    'no ciphers': inRecords(helloMessage({ ciphers: [], extensions: [] })),
    'half a cipher': inRecords(helloMessage({ ciphers: [0x13], extensions: [] })),
    'no compression method': inRecords(helloMessage({ compressions: [], extensions: [] })),
    'a version that is no TLS': inRecords(helloMessage({ version: 0x0203, extensions: [] })),
    'an empty hello': hex('1603010004 01000000'),
  }
  for (const [what, wire] of Object.entries(malformed)) test(what, () => expect(refusal(wire)).toBe('malformed'))

  test('HTTP on a TLS port', () => {
    for (const method of ['GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'OPTIONS', 'TRACE', 'CONNECT', 'PATCH', 'PRI']) {
      expect(refusal(bytes(`${method} / HTTP/1.1\r\n`))).toBe('http')
      expect(peekClientHello(bytes(method))).toEqual({ verdict: 'more' })
    }
  })
  test('an SSLv2 hello, with the version of SSL 2, of SSL 3 and of TLS 1.0', () => {
    for (const version of ['0002', '0300', '0301'])
      expect(refusal(hex(`802e01${version}00150000001001008003008007`))).toBe('sslv2')
    expect(peekClientHello(hex('802e01'))).toEqual({ verdict: 'more' })
  })
  test('other protocols', () => {
    for (const greeting of [
      'SSH-2.0-x\r\n',
      'EHLO a.test\r\n',
      'GETX',
      'get / HTTP/1.1',
      '\0\0\0\x08\x04\xd2\x16\x2f',
      '\x15\x03\x01\x00\x02\x01\x00',
    ]) {
      expect(refusal(bytes(greeting))).toBe('not-tls')
    }
    for (const start of ['16 02 00', '16 04', '80 2e 02', '80 2e 01 01', '80 2e 01 00 03', 'ff ff ff ff'])
      expect(refusal(hex(start))).toBe('not-tls')
  })
})

describe('real clients', () => {
  const openssl = (...args: string[]) =>
    captureHello((port) => ['openssl', 's_client', '-connect', `127.0.0.1:${port}`, ...args])

  test.skipIf(!Bun.which('openssl'))('openssl', async () => {
    expect(read(await openssl('-servername', 'App.Example.com', '-alpn', 'h2,http/1.1'))).toMatchObject({
      serverName: 'app.example.com',
      alpn: ['h2', 'http/1.1'],
      versions: expect.arrayContaining([0x0304, 0x0303]),
    })
    expect(read(await openssl('-noservername', '-tls1_2'))).toMatchObject({ alpn: [], versions: [0x0303] })
    expect(read(await openssl('-servername', 'a.test', '-alpn', 'acme-tls/1', '-tls1_3'))).toMatchObject({
      serverName: 'a.test',
      alpn: ['acme-tls/1'],
      versions: [0x0304],
    })
  })
  test.skipIf(!Bun.which('openssl'))('openssl, cutting its hello into records', async () => {
    const names = Array.from({ length: 12 }, (_, i) => `protocol-${i}-${'x'.repeat(80)}`)
    const wire = await openssl('-servername', 'cut.test', '-alpn', names.join(','), '-max_send_frag', '512')
    expect(fromRecords(wire).length).toBeLessThan(wire.length - 5)
    expect(read(wire)).toMatchObject({ serverName: 'cut.test', alpn: names, length: wire.length })
  })
  test.skipIf(!Bun.which('curl'))('curl', async () => {
    const wire = await captureHello((port) => [
      'curl',
      '-sk',
      '--connect-to',
      `::127.0.0.1:${port}`,
      'https://curl.test/',
    ])
    expect(read(wire)).toMatchObject({ serverName: 'curl.test', length: wire.length })
    expect(read(wire).alpn).toContain('http/1.1')
  })
  test('Bun: fetch, a raw socket, node:tls', async () => {
    const fetched = await captureHello(async (port) => void (await fetch(`https://localhost:${port}/`).catch(() => {})))
    expect(read(fetched).serverName).toBe('localhost')
    const raw = await captureHello(async (port) => {
      const { promise, resolve } = Promise.withResolvers<void>()
      const handlers = { data() {}, close: () => resolve(), error: () => resolve() }
      await Bun.connect({
        hostname: '127.0.0.1',
        port,
        tls: { serverName: 'bun.test', ALPNProtocols: '\x02h2' },
        socket: handlers,
      })
      await promise
    })
    expect(read(raw)).toMatchObject({ serverName: 'bun.test', alpn: ['h2'] })
    const node = await captureHello((port) => {
      const { promise, resolve } = Promise.withResolvers<void>()
      const socket = tls.connect({
        host: '127.0.0.1',
        port,
        servername: 'node.test',
        ALPNProtocols: ['acme-tls/1'],
        maxVersion: 'TLSv1.2',
      })
      socket.on('error', () => {}).on('close', () => resolve())
      return promise
    })
    expect(read(node)).toMatchObject({ serverName: 'node.test', alpn: ['acme-tls/1'], versions: [0x0303] })
  })
})
