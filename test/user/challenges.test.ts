// Challenges of a certificate authority at the worker: answered on every port whose first bytes are read, whoever has the port,
// and nothing else on it notices.
import { beforeAll, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import tls from 'node:tls'
import { CHALLENGE_ANSWER_MS_MAX, CHALLENGE_FIRST_BYTES_MS_MAX } from '../../src/base/limits.ts'
import type { PlacedChallenges } from '../../src/channel/messages.ts'
import { challengeToken, mayAskForChallenge } from '../../src/user/challenges.ts'
import { Timers } from '../../src/user/timers.ts'
import { authority, type Pair } from './authority.ts'
import { alpn, captureHello, hello, random, sni } from './hellos.ts'
import { client, connected, echo, ends, forward, gone, open, readAll, reasons, route, server, later, type Bench } from './plane.ts' // prettier-ignore

let ours: Awaited<ReturnType<typeof authority>>
const of: Record<string, Pair> = {}
beforeAll(async () => {
  ours = await authority('ours')
  of.a = await ours.issue(['a.test'])
  of.challenge = await ours.issue(['a.test'])
})

const TOKEN = 'LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0'
const AUTHORIZATION = `${TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI`
const PATH = `/.well-known/acme-challenge/${TOKEN}`
const place = (bench: Bench, more: Partial<PlacedChallenges> = {}) =>
  bench.plane.challenge({ http: { [TOKEN]: AUTHORIZATION }, tls: {}, ...more })

const get = (path = PATH, line = 'GET', version = '1.1') =>
  `${line} ${path} HTTP/${version}\r\n${version === '1.1' ? 'Host: a.test\r\n' : ''}\r\n`
const ANSWER =
  'HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n' +
  `Content-Length: ${AUTHORIZATION.length}\r\nConnection: close\r\n\r\n${AUTHORIZATION}`

/** Sends, closes its side if asked to, and resolves to all that comes back. */
async function ask(port: number, request: string | Buffer, closes = false): Promise<string> {
  const socket = client(port)
  await connected(socket)
  socket.write(request)
  if (closes) socket.end()
  const { bytes } = await readAll(socket)
  socket.end()
  return bytes.toString('latin1')
}

/** Answers with what it heard, once it has heard an empty line or the end. */
const mirror = () =>
  server((socket) => {
    let heard = ''
    socket.on('data', (bytes) => {
      heard += bytes.toString('latin1')
      if (heard.includes('\r\n\r\n')) socket.end(`heard ${heard}`)
    })
    socket.on('end', () => socket.end(`heard ${heard}`))
  })

const acme = () => route('_acme', { action: { type: 'challenge' } })
const redirect = (domains: string[] = []) =>
  route('r', { domains, action: { type: 'redirect', to: 'https://{host}{path}', status: 308, tls: null } })

// ---- the pure part ----

test('F5: what is a token, and what is none', () => {
  const prefix = '/.well-known/acme-challenge/'
  expect(challengeToken(prefix + TOKEN)).toBe(TOKEN)
  expect(challengeToken(`${prefix}a`)).toBe('a')
  expect(challengeToken(prefix + 'x'.repeat(256))).toHaveLength(256)
  const others = ['', 'x'.repeat(257), 'a.b', 'a/b', '../a', '%61', 'a?b', 'a=', 'a+b', ' a', 'a\n', 'é', '__proto__/']
  for (const token of others) expect([token, challengeToken(prefix + token)]).toEqual([token, undefined])
  for (const path of ['/', '', '/x', `/x${prefix}a`, prefix.toUpperCase() + 'a', '//.well-known/acme-challenge/a'])
    expect([path, challengeToken(path)]).toEqual([path, undefined])
})

test('F5: only what may become a request for a challenge is waited for', () => {
  const start = 'GET /.well-known/acme-challenge/'
  for (let length = 1; length <= start.length; length++) {
    expect(mayAskForChallenge(Buffer.from(start.slice(0, length)))).toBe(true)
    expect(mayAskForChallenge(Buffer.from(`${start.slice(0, length - 1)}\0`))).toBe(false)
  }
  expect(mayAskForChallenge(Buffer.from(get(PATH, 'HEAD')))).toBe(true)
  expect(mayAskForChallenge(Buffer.from(get('/')))).toBe(false)
  expect(mayAskForChallenge(Buffer.from(get(PATH, 'POST')))).toBe(false)
})

test('F5: fuzz: a token is one of the alphabet, and no longer than it may be', () => {
  const seed = Date.now() % 2 ** 32
  console.log(`seed ${seed}`)
  const pick = random(seed)
  for (let i = 0; i < 50_000; i++) {
    const path = [...PATH]
    for (let changes = 1 + pick(3); changes > 0; changes--) {
      const at = pick(path.length)
      path.splice(at, pick(3), ...(pick(2) ? [String.fromCharCode(pick(256))] : path.slice(at, at + pick(300))))
    }
    const text = path.join('')
    const token = challengeToken(text)
    if (token === undefined) continue
    expect([seed, token]).toEqual([seed, expect.stringMatching(/^[A-Za-z0-9_-]{1,256}$/)])
    expect(text.endsWith(`/${token}`)).toBe(true)
  }
})

// ---- HTTP-01 ----

for (const relay of [true, false])
  test(`E13 F5: on a port of others a challenge is answered, and all else reaches the route whole (${relay ? 'relay thread' : 'TypeScript'})`, async () => {
    for (const carrier of ['splice', 'user'] as const) {
      const plain = route('plain', { carrier, action: forward(await mirror()) })
      const bench = await open([plain, acme()], { peek: true, challenge: true, relay })
      place(bench)
      expect(await ask(bench.port, get())).toBe(ANSWER)
      expect(await ask(bench.port, get(PATH, 'HEAD'))).toBe(ANSWER.slice(0, -AUTHORIZATION.length))
      expect(await ask(bench.port, get(PATH, 'GET', '1.0'))).toBe(ANSWER)
      const others: [string | Buffer, boolean?][] = [
        [get('/')],
        [get(`${PATH}x`)],
        [get(`${PATH}?x`)],
        [get(PATH, 'POST')],
        [get('/.well-known/acme-challenge/')],
        [get('/.well-known/acme-challenge/../../etc/passwd')],
        // A head that is none: its route may make of it what it likes.
        [`GET ${PATH} HTTP/1.1\r\n\r\n`],
        [`GET ${PATH} HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n`],
        [`GET ${PATH} HTTP/1.1\nHost: a.test\r\n\r\n`],
        [`GET ${PATH} HTTP/1.1\r\nX: ${'x'.repeat(20_000)}`, true],
        // Cut short, and no TLS, though it begins like some.
        [`GET ${PATH.slice(0, 20)}`, true],
        ['GE', true],
        [Buffer.from('160301', 'hex'), true],
        [Buffer.from('16030100050100000100', 'hex'), true],
        ['SSH-2.0-x\r\n', true],
        [Buffer.alloc(70_000, 0x41), true],
      ]
      for (const [request, closes] of others) {
        const expected = `heard ${request.toString('latin1')}`
        expect((await ask(bench.port, request, closes)) === expected || expected.slice(0, 100)).toBe(true)
      }
      bench.plane.challenge({ http: {}, tls: {} })
      expect(await ask(bench.port, get())).toBe(`heard ${get()}`)
      const records = await bench.settle(4 + others.length)
      expect(records.slice(0, 3).map(({ route, reason, serverName }) => [route, reason, serverName])).toEqual([
        ['', 'challenge_answered', 'a.test'],
        ['', 'challenge_answered', 'a.test'],
        ['', 'challenge_answered', undefined],
      ])
      expect(records[0]).toMatchObject({ bytesIn: get().length, bytesOut: ANSWER.length })
      expect(new Set(records.slice(3).map(({ route, reason, carrier }) => `${route} ${reason} ${carrier}`))).toEqual(
        new Set([`plain finished ${carrier}`]),
      )
    }
  })

test('E13: a target that speaks first is reached, after a while', async () => {
  const greeting = await server((socket) => {
    socket.write('220 hello\r\n')
    socket.on('data', (bytes) => socket.end(bytes))
  })
  let now = 0
  const timers = new Timers(() => now)
  const routes = [route('plain', { carrier: 'splice', action: forward(greeting) }), acme()]
  const bench = await open(routes, { peek: true, challenge: true, timers })
  place(bench)
  const socket = client(bench.port)
  await connected(socket)
  const said = new Promise((resolve) => socket.once('data', (bytes) => resolve(String(bytes))))
  while (bench.plane.size === 0) await Bun.sleep(1)
  expect(bench.opened).toEqual([])
  now += CHALLENGE_FIRST_BYTES_MS_MAX + 100
  timers.advance()
  expect(await said).toBe('220 hello\r\n')
  const rest = readAll(socket)
  socket.end('quit')
  expect(String((await rest).bytes)).toBe('quit')
  expect(reasons(await bench.settle(1))).toEqual(['finished'])
})

test('E13 F5: a redirect and a challenge share a port, with names and without', async () => {
  for (const domains of [[], ['a.test']]) {
    const bench = await open([redirect(domains), acme()], { peek: true, challenge: true })
    place(bench)
    expect(await ask(bench.port, get())).toBe(ANSWER)
    expect(await ask(bench.port, get('/x'))).toContain('Location: https://a.test/x\r\n')
    expect(await ask(bench.port, get(`${PATH}x`))).toContain(`Location: https://a.test${PATH}x\r\n`)
    expect(reasons(await bench.settle(3))).toEqual(['challenge_answered', 'responded', 'responded'])
  }
})

test('F5: behind a trusted sender too; the record has the client', async () => {
  for (const domains of [[], ['a.test']]) {
    const bench = await open([{ ...redirect(domains), acceptProxyProtocol: ['127.0.0.0/8'] }, acme()], {
      ...{ peek: true, challenge: true, trusted: ['127.0.0.0/8'] },
    })
    place(bench)
    const header = 'PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n'
    expect(await ask(bench.port, header + get())).toBe(ANSWER)
    expect(await ask(bench.port, header + get('/x'))).toContain('Location: https://a.test/x\r\n')
    const records = await bench.settle(2)
    expect(records[0]).toMatchObject({ client: '192.0.2.1:4000', reason: 'challenge_answered', bytesIn: get().length })
  }
})

test("F5: the lists and limits of routes are nothing to a challenge; the gateway's own limits are", async () => {
  const security = { block: ['127.0.0.1'], maxConnections: 0 }
  const routes = [route('plain', { security, action: forward(await echo()) }), acme()]
  const bench = await open(routes, { peek: true, challenge: true })
  place(bench)
  expect(await ask(bench.port, get())).toBe(ANSWER)
  expect(await ask(bench.port, get('/'))).toBe('')
  const limited = await open(routes, {
    ...{ peek: true, challenge: true },
    limits: { maxConnections: 1, maxConnectionsPerIp: null, rate: null },
  })
  place(limited)
  const first = client(limited.port)
  await connected(first)
  first.write(get())
  await new Promise((resolve) => first.once('data', resolve))
  expect(await ask(limited.port, get())).toBe('')
  first.end()
  await limited.settle(1)
  expect(await ask(limited.port, get())).toBe(ANSWER)
  await limited.settle(2)
  expect([...limited.refused]).toEqual([['global_limit', 1]])
  expect(limited.plane.everyone.counters.total).toBe(0)
})

test('F6: the port of challenges carries nothing: no route, whatever comes', async () => {
  for (const peek of [true, false]) {
    const bench = await open([acme()], { peek, challenge: peek })
    place(bench)
    for (const request of [get('/'), get(`${PATH}x`), 'SSH-2.0-x\r\n']) expect(await ask(bench.port, request)).toBe('')
    if (peek) expect(await ask(bench.port, get())).toBe(ANSWER)
    expect(reasons(await bench.settle(3)).slice(0, 3)).toEqual(['no_route', 'no_route', 'no_route'])
  }
})

test('F6: reading begins and ends on one listening socket, and nobody is refused meanwhile', async () => {
  const plain = route('plain', { carrier: 'splice', action: forward(await mirror()) })
  const bench = await open([plain, acme()], { peek: false })
  const ports = bench.ports
  let stopping = false
  const answers: string[] = []
  const visitors = Array.from({ length: 4 }, async () => {
    while (!stopping) answers.push(await ask(bench.port, get('/')))
  })
  for (let i = 0; i < 10; i++) {
    const isReading = i % 2 === 0
    await bench.apply([plain, acme()], {}, isReading)
    place(bench)
    expect(await ask(bench.port, get())).toBe(isReading ? ANSWER : `heard ${get()}`)
  }
  stopping = true
  await Promise.all(visitors)
  expect(new Set(answers)).toEqual(new Set([`heard ${get('/')}`]))
  expect(bench.ports).toBe(ports)
})

test('F5: one that stays after its answer is closed at last', async () => {
  let now = 0
  const timers = new Timers(() => now)
  const bench = await open([acme()], { peek: true, challenge: true, timers })
  place(bench)
  const socket = client(bench.port)
  await connected(socket)
  socket.write(get())
  await new Promise((resolve) => socket.once('data', resolve))
  expect(bench.plane.size).toBe(1)
  now += CHALLENGE_ANSWER_MS_MAX + 100
  timers.advance()
  expect(reasons(await bench.settle(1))).toEqual(['challenge_answered'])
  expect(timers.armed).toBe(0)
})

// ---- TLS-ALPN-01 ----

interface Shaken {
  serial?: string
  alpn?: string | false | null
  error?: string
}

/** Shakes hands and leaves. */
function shake(port: number, servername: string, ALPNProtocols: string[], more: tls.ConnectionOptions = {}) {
  const { promise, resolve } = Promise.withResolvers<Shaken>()
  const seen: Shaken = {}
  const options = { port, host: '127.0.0.1', rejectUnauthorized: false, servername, ALPNProtocols, ...more }
  const socket = tls.connect(options, () => {
    seen.serial = socket.getPeerCertificate().serialNumber?.toLowerCase()
    seen.alpn = socket.alpnProtocol
    socket.end()
  })
  socket.on('error', (error: NodeJS.ErrnoException) => (seen.error ??= error.code ?? error.message))
  socket.on('end', () => socket.destroy())
  socket.on('close', () => resolve(seen))
  later(() => socket.destroy())
  return promise
}
const serialOf = (pair: Pair) => new X509Certificate(pair.cert).serialNumber.toLowerCase()

for (const relay of [true, false])
  for (const mode of ['passthrough', 'terminate'] as const)
    test(`F5: TLS-ALPN-01 on a port where a route has the name (${mode}, ${relay ? 'relay thread' : 'TypeScript'})`, async () => {
      const origin = tls.createServer({ ...of.a!, ALPNProtocols: ['acme-tls/1', 'h2'] }, (socket) => {
        socket.on('error', () => {})
        socket.on('end', () => socket.end())
      })
      await new Promise<void>((resolve) => origin.listen(0, '127.0.0.1', resolve))
      later(() => origin.close())
      const to = mode === 'passthrough' ? (origin.address() as { port: number }).port : await echo()
      const action = forward(to, { tls: ends(mode, { alpn: ['h2', 'acme-tls/1'] }) })
      const routes = [route('a', { carrier: mode === 'passthrough' ? 'splice' : 'user', domains: ['*.test'], action })]
      const bench = await open(routes, { peek: true, relay, certificates: { a: of.a! } })
      place(bench, { tls: { 'a.test': of.challenge! } })
      for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const)
        expect(await shake(bench.port, 'A.test', ['acme-tls/1'], { maxVersion })).toEqual({
          serial: serialOf(of.challenge!),
          alpn: 'acme-tls/1',
        })
      // What is no challenge that is placed goes to the route, as if there were none.
      for (const [name, offered, chosen] of [
        ['b.test', ['acme-tls/1'], 'acme-tls/1'],
        ['a.test', ['h2'], 'h2'],
        ['a.test', ['h2', 'acme-tls/1'], mode === 'passthrough' ? 'acme-tls/1' : 'h2'],
      ] as const)
        expect([name, await shake(bench.port, name, [...offered])]).toEqual([
          name,
          { serial: serialOf(of.a!), alpn: expect.stringMatching(chosen === 'h2' ? /^h2$/ : /^(h2|acme-tls\/1)$/) },
        ])
      bench.plane.challenge({ http: {}, tls: {} })
      expect((await shake(bench.port, 'a.test', ['acme-tls/1'])).serial).toBe(serialOf(of.a!))
      const records = await bench.settle(6)
      const answered = records.filter(({ reason }) => reason === 'challenge_answered')
      expect(answered).toHaveLength(2)
      for (const record of answered)
        expect(record).toMatchObject({ route: '', serverName: 'a.test', target: null, tls: { alpn: 'acme-tls/1' } })
      expect(records.filter(({ route }) => route === 'a')).toHaveLength(4)
      expect(bench.plane.everyone.counters.total).toBe(0)
    })

test('F5: handshakes of challenges that fail, or never end, end', async () => {
  let now = 0
  const timers = new Timers(() => now)
  const bench = await open([acme()], { peek: true, challenge: true, timers })
  place(bench, { tls: { 'a.test': of.challenge! } })
  const offers = { servername: 'a.test', ALPNProtocols: ['acme-tls/1'] }
  const whole = await captureHello(async (port) => {
    const socket = tls.connect({ port, host: '127.0.0.1', ...offers })
    socket.on('error', () => {})
    await gone(socket)
  })
  // A hello with nothing in it to agree on, one that its sender takes back, and one that it leaves at that.
  const broken = client(bench.port)
  await connected(broken)
  broken.write(hello(sni('a.test'), alpn('acme-tls/1')))
  await readAll(broken)
  broken.end()
  const leaving = client(bench.port)
  await connected(leaving)
  leaving.end(whole)
  await readAll(leaving)
  expect(reasons(await bench.settle(2))).toEqual(['handshake_failed', 'handshake_failed'])
  const silent = client(bench.port)
  await connected(silent)
  silent.write(whole)
  await new Promise((resolve) => silent.once('data', resolve))
  now += CHALLENGE_ANSWER_MS_MAX + 100
  timers.advance()
  expect(reasons(await bench.settle(3))[2]).toBe('handshake_timeout')
  expect(bench.plane.everyone.counters.total).toBe(0)
  expect(timers.armed).toBe(0)
})

test('F5: a challenge certificate that cannot be used is told, and the others are answered', async () => {
  const bench = await open([acme()], { peek: true, challenge: true })
  place(bench, { tls: { 'a.test': of.challenge!, 'b.test': { cert: of.a!.cert, key: of.challenge!.key } } })
  expect(bench.logged.filter((line) => line.includes('Cannot answer a challenge for b.test'))).toHaveLength(1)
  expect((await shake(bench.port, 'a.test', ['acme-tls/1'])).serial).toBe(serialOf(of.challenge!))
  expect(await ask(bench.port, get())).toBe(ANSWER)
  expect((await shake(bench.port, 'b.test', ['acme-tls/1'])).serial).toBeUndefined()
})
