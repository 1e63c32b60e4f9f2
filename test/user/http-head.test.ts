// The request head parser: what browsers and curl send, every cut of it, and requests made to fool a redirect.
import { describe, expect, test } from 'bun:test'
import { peekHttpHead, type HttpHead } from '../../src/user/peek/http-head.ts'
import { HTTP_HEAD_BYTES_MAX } from '../../src/base/limits.ts'
import { bytes, random } from './hellos.ts'

/** The head, after checking that no shorter prefix gives any other answer than 'more'. */
function read(request: string): HttpHead {
  const peek = peekHttpHead(bytes(request))
  if (peek.verdict !== 'yes') throw new Error(`${JSON.stringify(peek)} for ${JSON.stringify(request)}`)
  for (let end = 0; end < peek.head.length; end++)
    expect(peekHttpHead(bytes(request.slice(0, end)))).toEqual({ verdict: 'more' })
  expect(peekHttpHead(bytes(request, 'a body\n\0'))).toEqual(peek)
  return peek.head
}

/** Why it is refused, after checking that every prefix says 'more' or the same. */
function refusal(request: string): string {
  const peek = peekHttpHead(bytes(request))
  if (peek.verdict !== 'no') throw new Error(`${JSON.stringify(peek)} for ${JSON.stringify(request)}`)
  for (let end = 0; end < request.length; end++) {
    const earlier = peekHttpHead(bytes(request.slice(0, end)))
    if (earlier.verdict !== 'more') expect(earlier).toEqual(peek)
  }
  expect(peekHttpHead(bytes(request, '\r\n\r\n'))).toEqual(peek)
  return peek.why
}

const get = (target: string, ...fields: string[]) => [`GET ${target} HTTP/1.1`, ...fields, '', ''].join('\r\n')

describe('requests', () => {
  test('of curl', () => {
    const request = get('/a/b?c=d&e=%20', 'Host: Example.com:8080', 'User-Agent: curl/7.88.1', 'Accept: */*')
    expect(read(request)).toEqual({
      method: 'GET',
      target: '/a/b?c=d&e=%20',
      version: '1.1',
      host: 'example.com',
      port: 8080,
      path: '/a/b?c=d&e=%20',
      length: request.length,
    })
  })
  test('with a body, of which nothing is read', () => {
    const request = 'POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n'
    expect(read(request + 'hello')).toMatchObject({ method: 'POST', length: request.length })
  })
  test('field names in any case, blanks around values, bytes above ASCII in values', () => {
    expect(read(get('/', 'hOST:\t a.test \t', 'X: \xe4\xff', 'Empty:')).host).toBe('a.test')
  })
  test('one empty line before', () => {
    expect(read('\r\n' + get('/', 'Host: a.test'))).toMatchObject({
      path: '/',
      length: get('/', 'Host: a.test').length + 2,
    })
    expect(refusal('\r\n\r\n' + get('/', 'Host: a.test'))).toBe('not-http')
  })
  test('HTTP/1.0 with and without Host', () => {
    expect(read('GET / HTTP/1.0\r\n\r\n')).toEqual({
      method: 'GET',
      target: '/',
      version: '1.0',
      path: '/',
      length: 18,
    })
    expect(read('GET / HTTP/1.0\r\nHost: a.test\r\n\r\n').host).toBe('a.test')
  })
  test('hosts', () => {
    const hosts: Record<string, { host: string; port?: number }> = {
      'a.test.': { host: 'a.test' },
      'a.test:': { host: 'a.test' },
      '192.0.2.1:80': { host: '192.0.2.1', port: 80 },
      '[2001:DB8:0::1]:443': { host: '[2001:db8::1]', port: 443 },
      'xn--bcher-kva.test': { host: 'xn--bcher-kva.test' },
    }
    for (const [sent, expected] of Object.entries(hosts))
      expect(read(get('/', `Host: ${sent}`))).toMatchObject(expected)
  })
  test('an absolute target counts more than Host, and may not differ from it', () => {
    const field = 'Host: a.test'
    expect(read(get('http://A.test:81/x?y', field))).toMatchObject({
      host: 'a.test',
      port: 81,
      path: '/x?y',
      target: 'http://A.test:81/x?y',
    })
    expect(read(get('https://a.test', field)).path).toBe('/')
    expect(read(get('http://a.test?q', field)).path).toBe('/?q')
    expect(read('GET http://a.test/ HTTP/1.0\r\n\r\n').host).toBe('a.test')
  })
  test('OPTIONS *', () =>
    expect(read('OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n')).toMatchObject({ target: '*', path: '/' }))
  test('as long as the limit', () => {
    const rest = get('/', 'Host: a.test', 'X: ').length
    const request = get('/', 'Host: a.test', `X: ${'x'.repeat(HTTP_HEAD_BYTES_MAX - rest)}`)
    expect(peekHttpHead(bytes(request))).toMatchObject({ verdict: 'yes', head: { length: HTTP_HEAD_BYTES_MAX } })
    expect(peekHttpHead(bytes(request.replace('X: ', 'X: x')))).toEqual({ verdict: 'no', why: 'oversize' })
    expect(peekHttpHead(bytes('GET /' + 'a'.repeat(HTTP_HEAD_BYTES_MAX - 6)))).toEqual({ verdict: 'more' })
    expect(peekHttpHead(bytes('GET /' + 'a'.repeat(HTTP_HEAD_BYTES_MAX - 5)))).toEqual({
      verdict: 'no',
      why: 'oversize',
    })
  })
})

describe('what is refused', () => {
  const host = 'Host: a.test'
  const malformed: Record<string, string> = {
    'bare LF': 'GET / HTTP/1.1\nHost: a.test\n\n',
    'a bare LF in a field': get('/', host, 'X: a\nSet-Cookie: b'),
    'a bare CR': get('/', host, 'X: a\rSet-Cookie: b'),
    'CR CR LF': get('/', host + '\r'),
    'a NUL': get('/', host, 'X: \0'),
    'an escape character': get('/', host, 'X: \x1b[2J'),
    'DEL in the target': get('/\x7f', host),
    'two spaces in the request line': 'GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n',
    'a space in the target': get('/a b', host),
    'a space before the colon': get('/', 'Host : a.test'),
    'a space before the name': get('/', ' Host: a.test'),
    'a continued line': get('/', host, 'X: a', '\tb'),
    'a field without colon': get('/', host, 'X'),
    'a field without name': get('/', host, ': x'),
    'no Host': get('/'),
    'an empty Host': get('/', 'Host:'),
    'two Hosts': get('/', host, 'Host: b.test'),
    'the same Host twice': get('/', host, host),
    'two hosts in one field': get('/', 'Host: a.test, b.test'),
    'user information in Host': get('/', 'Host: a.test@evil.test'),
    'a path in Host': get('/', 'Host: a.test/evil'),
    'a port out of range': get('/', 'Host: a.test:65536'),
    'port 0': get('/', 'Host: a.test:0'),
    'a port that is none': get('/', 'Host: a.test:80x'),
    'two ports': get('/', 'Host: a.test:80:80'),
    'IPv6 without brackets': get('/', 'Host: ::1'),
    'IPv4 in brackets': get('/', 'Host: [127.0.0.1]'),
    'a zone': get('/', 'Host: [fe80::1%25eth0]'),
    'an encoded host': get('/', 'Host: a%2etest'),
    'a host that is not ASCII': get('/', 'Host: b\xc3\xbccher.test'),
    'an absolute target for another host': get('http://b.test/', host),
    'an absolute target with user information': get('http://a.test@b.test/', host),
    'an absolute target without host': get('http:///x', host),
    'another scheme': get('javascript:alert(1)', host),
    'a relative target': get('x', host),
    'an asterisk for GET': get('*', host),
    CONNECT: 'CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n',
    'a fragment': get('/#x', host),
    markup: get('/<script>', host),
    'a quote': get('/"', host),
    'bytes above ASCII in the target': get('/\xe4', host),
    'bytes above ASCII in an absolute target': get('http://a.test/\xe4', host),
  }
  for (const [what, request] of Object.entries(malformed)) test(what, () => expect(refusal(request)).toBe('malformed'))

  test('other protocols, at once', () => {
    for (const start of [
      '\x16\x03\x01',
      '\0',
      ' GET',
      '\n',
      '\rG',
      'SSH-2.0-OpenSSH_9.2\r\n',
      'GET\r\n',
      'M'.repeat(33),
      '{"a":1}',
      '\x80\x2e\x01',
    ]) {
      expect(refusal(start)).toBe('not-http')
    }
    expect(refusal('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')).toBe('not-http')
    expect(refusal('GET /\r\n')).toBe('not-http')
    expect(refusal('GET\t/ HTTP/1.1\r\n')).toBe('not-http')
    expect(refusal('EHLO a.test\r\n')).toBe('not-http')
  })
})

test('50,000 mutated requests never throw and are never undecided again', () => {
  const seed = Number(process.env.SLUICE_SEED ?? Date.now() % 2 ** 32)
  const pick = random(seed)
  const corpus = [
    get('/a?b', 'Host: a.test:80', 'Accept: */*'),
    get('http://a.test/', 'Host: a.test'),
    'GET / HTTP/1.0\r\n\r\n',
  ]
  const splice = ['\r', '\n', '\r\n', '\0', ' ', '\t', ':', 'Host: b.test\r\n', '/', '@', '\x80', '\r\n\r\n']
  for (let run = 0; run < 50_000; run++) {
    let text = corpus[pick(corpus.length)]!
    for (let changes = 1 + pick(3); changes > 0; changes--) {
      const at = pick(text.length)
      text = text.slice(0, at) + splice[pick(splice.length)]! + text.slice(at + pick(3))
    }
    const about = () => new Error(`SLUICE_SEED=${seed}, run ${run}: ${JSON.stringify(text)}`)
    const whole = peekHttpHead(bytes(text))
    if (whole.verdict === 'yes') {
      const { host, path, length } = whole.head
      if (length > text.length || /[^!-~]/.test(path + (host ?? '')) || !path.startsWith('/')) throw about()
    }
    const cut = peekHttpHead(bytes(text.slice(0, pick(text.length))))
    if (cut.verdict !== 'more' && JSON.stringify(cut) !== JSON.stringify(whole)) throw about()
  }
}, 30_000)
