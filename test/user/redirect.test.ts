// L1: the one answer the gateway gives by itself, to honest clients and to others; nothing a client sends may write into it.
import { expect, test } from 'bun:test'
import { client, connected, forward, gone, open, readAll, reasons, route } from './plane.ts'

const redirect = (to: string, status = 308) => ({ type: 'redirect' as const, to, status, tls: null })

const opened = (to = 'https://{host}{path}', status?: number, more: object = {}) =>
  open([route('r', { action: redirect(to, status), ...more })])

/** Sends, and resolves to all that is answered, to the FIN. */
async function ask(port: number, ...pieces: (string | Buffer)[]): Promise<string> {
  const socket = client(port)
  await connected(socket)
  for (const piece of pieces) socket.write(piece)
  const { bytes } = await readAll(socket)
  socket.end()
  return bytes.toString('latin1')
}

const get = (target: string, host = 'a.test') => `GET ${target} HTTP/1.1\r\nHost: ${host}\r\n\r\n`
const location = (answer: string) => /^Location: (.*)\r$/m.exec(answer)?.[1]
/** The names of its fields, in order: what is written into an answer would show here. */
const fields = (answer: string) => answer.split('\r\n').slice(1, -2).map((line) => line.split(':')[0]) // prettier-ignore

test('L1: every status, and what stands in the URL', async () => {
  const phrases = { 301: 'Moved Permanently', 302: 'Found', 303: 'See Other', 307: 'Temporary Redirect', 308: 'Permanent Redirect' } // prettier-ignore
  for (const [status, phrase] of Object.entries(phrases)) {
    const bench = await opened('https://{host}:{port}{path}', Number(status))
    const answer = await ask(bench.port, get('/a%20b/c?d=e&f=%0d%0a'))
    expect(answer).toBe(
      `HTTP/1.1 ${status} ${phrase}\r\nLocation: https://a.test:${bench.port}/a%20b/c?d=e&f=%0d%0a\r\n` +
        'Content-Length: 0\r\nConnection: close\r\n\r\n',
    )
    expect((await bench.settle(1))[0]).toMatchObject({ reason: 'responded', route: 'r', bytesOut: answer.length })
  }
})

test('L1: hosts and targets of every form lead where they say', async () => {
  const bench = await opened()
  const cases: [string, string | undefined][] = [
    [get('/'), 'https://a.test/'],
    [get('/', 'A.Test:80'), 'https://a.test/'],
    [get('/', 'a.test.'), 'https://a.test/'],
    [get('/x', '[2001:DB8::1]:80'), 'https://[2001:db8::1]/x'],
    [get('/x', '192.0.2.1'), 'https://192.0.2.1/x'],
    [get('//evil.test/x'), 'https://a.test//evil.test/x'],
    [get('/\\evil.test'), 'https://a.test/\\evil.test'],
    [get('/%5c%2fevil.test'), 'https://a.test/%5c%2fevil.test'],
    [get('http://a.test/x?y'), 'https://a.test/x?y'],
    [get('http://a.test?y'), 'https://a.test/?y'],
    ['GET http://a.test/x HTTP/1.0\r\n\r\n', 'https://a.test/x'],
    ['OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n', 'https://a.test/'],
    [`POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody`, 'https://a.test/x'],
    // Two requests at once get one answer: the connection is over.
    [get('/one') + get('/two'), 'https://a.test/one'],
  ]
  for (const [request, to] of cases) {
    const answer = await ask(bench.port, request)
    expect([request, location(answer), fields(answer)]).toEqual([request, to, ['Location', 'Content-Length', 'Connection']]) // prettier-ignore
  }
})

test('L1: hostile heads: 400 or 431 without a Location, or nothing at all', async () => {
  const bench = await opened()
  const big = 'x'.repeat(20_000)
  const bad: Record<string, string | Buffer> = {
    'no Host': 'GET / HTTP/1.1\r\n\r\n',
    'HTTP/1.0 without Host': 'GET / HTTP/1.0\r\n\r\n',
    'a line break in Host': 'GET / HTTP/1.1\r\nHost: a.test\nSet-Cookie: b\r\n\r\n',
    'a CR in Host': 'GET / HTTP/1.1\r\nHost: a.test\rSet-Cookie: b\r\n\r\n',
    'a line break in the path': 'GET /\nLocation:https://evil.test HTTP/1.1\r\nHost: a.test\r\n\r\n',
    'a CR in the path': 'GET /\rX HTTP/1.1\r\nHost: a.test\r\n\r\n',
    'another host in the target': get('http://evil.test/'),
    'user information': get('/', 'a.test@evil.test'),
    'user information in the target': get('http://a.test@evil.test/'),
    'two hosts': 'GET / HTTP/1.1\r\nHost: a.test\r\nHost: evil.test\r\n\r\n',
    'a path in Host': get('/', 'evil.test/'),
    'a quote in Host': get('/', 'a"b'),
    'bytes above ASCII': Buffer.from('GET /\xe4 HTTP/1.1\r\nHost: a.test\r\n\r\n', 'latin1'),
    'a NUL': get('/\0'),
    CONNECT: 'CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n',
  }
  for (const [what, request] of Object.entries(bad)) {
    const answer = await ask(bench.port, request)
    expect([what, answer.split('\r\n')[0], fields(answer)]).toEqual([what, 'HTTP/1.1 400 Bad Request', ['Content-Length', 'Connection']]) // prettier-ignore
  }
  for (const request of [get(`/${big}`), get('/', big), `GET / HTTP/1.1\r\nHost: a.test\r\nX: ${big}`]) {
    const answer = await ask(bench.port, request)
    expect([answer.split(' ')[1], fields(answer)]).toEqual(['431', ['Content-Length', 'Connection']])
  }
  // Not the protocol of an answer: nobody would read one.
  for (const other of ['SSH-2.0-x\r\n', Buffer.from('16030100050100000100', 'hex'), 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'])
    expect(await ask(bench.port, other)).toBe('')
  expect(bench.plane.size).toBe(0)
})

test('L1: HTTP/1.0 without Host is answered where the URL needs none', async () => {
  const bench = await opened('https://b.test{path}')
  expect(location(await ask(bench.port, 'GET /x HTTP/1.0\r\n\r\n'))).toBe('https://b.test/x')
})

test('L1: one byte at a time is answered; one that never comes to an end is not waited for, whatever it sends', async () => {
  const bench = await opened('https://{host}{path}', 308, { timeoutsMs: { firstByte: 400, halfClosed: 300 } })
  const slow = client(bench.port)
  await connected(slow)
  const answered = readAll(slow)
  for (const byte of get('/')) {
    slow.write(byte)
    await new Promise((resolve) => setImmediate(resolve))
  }
  expect(location((await answered).bytes.toString())).toBe('https://a.test/')
  slow.end()
  await bench.settle(1)

  // Each byte is one more, and none of them buys time.
  const drip = client(bench.port)
  await connected(drip)
  drip.write('GET / HTTP/1.1\r\nX: ')
  const dripping = setInterval(() => drip.write('x'), 20)
  await gone(drip).finally(() => clearInterval(dripping))

  // Answered, but it neither closes nor stops sending.
  const endless = client(bench.port)
  await connected(endless)
  endless.write(get('/'))
  const sending = setInterval(() => endless.write(Buffer.alloc(50_000)), 10)
  endless.resume()
  await gone(endless).finally(() => clearInterval(sending))

  // Answered, and it goes without having read.
  const rude = client(bench.port)
  await connected(rude)
  rude.write(get('/'), () => rude.resetAndDestroy())
  await gone(rude)

  const half = client(bench.port)
  await connected(half)
  half.end('GET / HTTP/1.1\r\n')
  await gone(half)
  expect(reasons(await bench.settle(5)).slice(0, 3)).toEqual(['responded', 'first_byte_timeout', 'responded'])
  expect(['responded', 'client_reset']).toContain(bench.settled[3]!.reason!)
  expect(bench.settled[4]!.reason).toBe('malformed_hello')
  expect(bench.plane.size).toBe(0)
  expect(bench.plane.timers.armed).toBe(0)
})

test('L1, E13: where a route beside it reads names, a redirect answers its hosts alone', async () => {
  const bench = await open(
    [
      route('tls', { domains: ['a.test'], action: forward(1, { tls: { mode: 'passthrough', alpn: [], minVersion: 'TLSv1.2', clientCa: null, upstream: { serverName: null, ca: null, insecure: false } } }) }),
      route('exact', { domains: ['a.test'], action: redirect('https://exact{path}') }),
      route('wild', { domains: ['*.test'], action: redirect('https://wild{path}') }),
    ],
    { peek: true },
  ) // prettier-ignore
  expect(location(await ask(bench.port, get('/', 'A.test:80')))).toBe('https://exact/')
  expect(location(await ask(bench.port, get('/', 'b.test')))).toBe('https://wild/')
  expect(await ask(bench.port, get('/', 'b.org'))).toBe('')
  expect(await ask(bench.port, 'GET / HTTP/1.0\r\n\r\n')).toBe('')
  expect(reasons(await bench.settle(4))).toEqual(['responded', 'responded', 'no_route', 'no_route'])
})
