// TLS through the whole gateway, with openssl as the client: which certificate it sees, how certificates are replaced under
// load, which sessions open which route, which targets are believed, and who is not let in.
import { expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { authority, type Pair } from '../user/authority.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab, type Namespace } from './lab.ts'

const named = (domains: string | string[], rest: object = {}) => ({ match: { domains }, ...rest })

/** Says its name to whoever says something, and closes; behind TLS of its own where it has a certificate. */
function backend(where: Namespace, name: string, tls?: Pair & { ca?: string; requestCert?: boolean }) {
  const heard: string[] = []
  let accepted = 0
  const { port } = where.listen(
    {
      open: () => void accepted++,
      data(socket, bytes) {
        heard.push(bytes.toString('latin1'))
        socket.end(`${name}\n`)
      },
      end: (socket) => void socket.end(),
      error: () => {},
    },
    (tls ? { tls } : {}) as never,
  )
  return {
    port,
    heard,
    get accepted() {
      return accepted
    },
  }
}

interface Seen {
  /** What the backend said. */
  answer: string | null
  /** Common name of the certificate that was shown. */
  subject: string | null
  serial: string | null
  session: 'new' | 'reused' | null
  version: string | null
  text: string
}

/** One visit of openssl: shakes hands, says a line, reads to the end. */
async function visit(from: Namespace, host: string, port: number, ...options: string[]): Promise<Seen> {
  const name = options.includes('-noservername') || options.includes('-servername') ? [] : ['-servername', 'a.test']
  const { stdout, stderr } = await from.run(
    ['openssl', 's_client', '-connect', `${host.includes(':') ? `[${host}]` : host}:${port}`, '-ign_eof', ...name, ...options],
    { stdin: 'hello\n' },
  ) // prettier-ignore
  const text = stdout + stderr
  const pem = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(stdout)?.[0]
  const certificate = pem === undefined ? null : new X509Certificate(pem)
  const [, session, version] = /^(New|Reused), (TLSv[\d.]+), Cipher is (?!\(NONE\))/m.exec(stdout) ?? []
  return {
    // It may come in the middle of what openssl tells of a ticket.
    answer: /answer (\w+)/.exec(stdout)?.[1] ?? null,
    subject: certificate?.subject.replace('CN=', '') ?? null,
    serial: certificate?.serialNumber ?? null,
    session: session === undefined ? null : session === 'New' ? 'new' : 'reused',
    version: version ?? null,
    text,
  }
}

/** Writes a pair where the gateway's configuration finds it. */
function files(directory: string, name: string, pair: Pair): { cert: string; key: string } {
  const paths = { cert: join(directory, `${name}.crt`), key: join(directory, `${name}.key`) }
  writeFileSync(paths.cert, pair.cert)
  writeFileSync(paths.key, pair.key)
  return paths
}

function file(directory: string, name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

const VERSIONS = ['-tls1_2', '-tls1_3'] as const

test("F1, F2, E13: the certificate a client sees: its target's, or that of the route its name chose; versions below 1.2 never", async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const ca = await authority('lab')
  const theirs = backend(lab.backend, 'answer theirs', await ca.issue(['backend', 'a.test']))
  const plain = backend(lab.backend, 'answer plain')
  const to = ({ port }: { port: number }) => [{ host: lab.backend.address4, port }]
  await using gateway = await Gateway.start(lab, [])
  const { directory } = gateway
  const terminate = async (...names: string[]) => ({
    tls: { mode: 'terminate', certificate: files(directory, names[0]!.replace('*', 'any'), await ca.issue(names)) },
  })
  const strict = await terminate('strict.test')
  const routes = [
    forward('through', 8443, to(theirs), { tls: { mode: 'passthrough' } }, named('through.test')),
    forward('exact', 8443, to(plain), await terminate('a.test'), named('a.test')),
    forward('wild', 8443, to(plain), await terminate('*.a.test'), named('*.a.test')),
    forward('pattern', 8443, to(plain), await terminate('api-1.b.test'), named('api-*.b.test')),
    forward('strict', 8443, to(plain), { tls: { ...strict.tls, minVersion: 'TLSv1.3' } }, named('strict.test')),
    forward(
      'again',
      8443,
      to(theirs),
      {
        tls: {
          ...(await terminate('again.test')).tls,
          mode: 'terminate-and-reencrypt',
          upstream: { ca: file(directory, 'ca.crt', ca.ca), serverName: 'a.test' },
        },
      },
      named('again.test'),
    ),
  ]
  gateway.write(routes)
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  const seen = async (name: string, ...options: string[]) => {
    const { subject, answer } = await visit(lab.client, host, 8443, '-servername', name, ...options)
    return [subject, answer]
  }
  expect(await seen('through.test')).toEqual(['backend', 'theirs'])
  expect(await seen('a.test')).toEqual(['a.test', 'plain'])
  expect(await seen('X.A.test')).toEqual(['*.a.test', 'plain'])
  expect(await seen('api-7.b.test')).toEqual(['api-1.b.test', 'plain'])
  expect(await seen('again.test')).toEqual(['again.test', 'theirs'])
  expect(await seen('nobody.test')).toEqual([null, null])
  expect(await seen('strict.test', '-tls1_2')).toEqual([null, null])
  expect(await seen('strict.test', '-tls1_3')).toEqual(['strict.test', 'plain'])
  const old = ['-cipher', 'ALL:@SECLEVEL=0']
  for (const version of ['-tls1', '-tls1_1']) {
    const { text, subject } = await visit(lab.client, host, 8443, '-servername', 'a.test', version, ...old)
    expect([subject, /alert protocol version|unsupported protocol|no protocols available/i.test(text)]).toEqual([
      null,
      true,
    ])
  }
  // Nothing but TLS goes to the target that TLS begins again to, and to the one it is passed through to.
  expect(theirs.heard).toEqual(['hello\n', 'hello\n'])
  const records = await until(() => gateway.records().length >= 10 && gateway.records(), 5000, 'every record is there')
  const of = (name: string) => records.find((record) => record.serverName === name) as never as { tls?: { version: string; cipher: string }; carrier: string; reason: string } // prettier-ignore
  expect(of('a.test').tls).toMatchObject({ version: 'TLSv1.3', cipher: expect.stringMatching(/^TLS_AES/) })
  expect([of('through.test').tls, of('through.test').carrier]).toEqual([undefined, 'splice'])
  expect(records.filter(({ reason }) => reason === 'handshake_failed').length).toBe(3)
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

/** Handshakes one after another until stopped: the serial numbers it saw, and what failed. */
function handshakes(from: Namespace, host: string, port: number, ca: string) {
  let stopping = false
  const serials: string[] = []
  const failures: string[] = []
  const one = async () => {
    const { promise, resolve } = Promise.withResolvers<string | null>()
    const socket = await from.connect(host, port)
    socket.upgradeTLS({
      tls: { serverName: 'a.test', ca },
      socket: {
        handshake(socket: Bun.Socket<any>, ok: boolean, error: Error | null) {
          if (!ok || !socket.authorized) return failures.push(`handshake: ${error?.message}`)
          serials.push((socket.getPeerCertificate() as { serialNumber: string }).serialNumber)
          socket.write('hello\n')
        },
        data: (_: unknown, bytes: Buffer) => resolve(bytes.toString()),
        close: () => resolve(null),
        error: () => {},
      },
    } as never)
    const answer = await promise
    if (answer !== 'answer plain\n') failures.push(`answer: ${answer}`)
  }
  const loop = (async () => {
    while (!stopping) await one().catch((error: Error) => failures.push(error.message))
  })()
  return {
    serials,
    failures,
    async stop() {
      stopping = true
      await loop
    },
  }
}

test('F2: certificate files are replaced under load: no handshake fails, live connections go on, a broken file changes nothing', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const ca = await authority('lab')
  const plain = backend(lab.backend, 'answer plain')
  const echo = lab.backend.listen({ data: (socket, bytes) => void socket.write(bytes), error: () => {} })
  await using gateway = await Gateway.start(lab, [])
  const { directory } = gateway
  const put = async (pair?: Pair) => files(directory, 'a', pair ?? (await ca.issue(['a.test'])))
  const tls = { mode: 'terminate', certificate: await put() }
  gateway.write([
    forward('a', 8443, [{ host: lab.backend.address4, port: plain.port }], { tls }),
    forward('echo', 8444, [{ host: lab.backend.address4, port: echo.port }], { tls }),
  ])
  expect((await gateway.reload()).status).toBe(200)
  await gateway.settled()

  const heard: string[] = []
  const opened = Promise.withResolvers<Bun.Socket<any>>()
  const raw = await lab.client.connect(host, 8444)
  raw.upgradeTLS({
    tls: { serverName: 'a.test', ca: ca.ca },
    socket: {
      handshake: (socket: Bun.Socket<any>) => opened.resolve(socket),
      data: (_: unknown, bytes: Buffer) => void heard.push(bytes.toString()),
      close: () => void heard.push('closed'),
      error: () => {},
    },
  } as never)
  const standing = await opened.promise
  const load = Array.from({ length: 3 }, () => handshakes(lab.client, host, 8443, ca.ca))
  const total = () => load.reduce((sum, { serials }) => sum + serials.length, 0)
  for (let i = 0; i < 8; i++) {
    await put()
    expect((await gateway.reload()).status).toBe(200)
    const before = total()
    await until(() => total() >= before + 6, 10_000, 'handshakes go on')
    standing.write(`still ${i}`)
    await until(() => heard.at(-1) === `still ${i}`, 5000, 'the live connection talks')
  }
  const good = load[0]!.serials.at(-1)!
  // Half a file: told with its name, and the certificate in use stays, for a route that comes now too. A file that nobody has
  // used yet is refused, and with it the whole change.
  const bad = await put({ cert: '-----BEGIN CERTIFICATE-----\nAAAA\n', key: 'nothing' })
  const to = [{ host: lab.backend.address4, port: plain.port }]
  const routes = [forward('a', 8443, to, { tls }), forward('b', 8445, to, { tls })]
  const others = files(directory, 'b', { cert: 'nothing', key: 'nothing' })
  gateway.write([...routes, forward('c', 8446, to, { tls: { ...tls, certificate: others } })])
  const refused = await gateway.reload()
  expect([refused.status, refused.problems!.map(({ path }) => path)]).toEqual([
    422,
    ['routes.c.action.tls.certificate'],
  ])
  gateway.write([...routes, forward('echo', 8444, [{ host: lab.backend.address4, port: echo.port }], { tls })])
  const broken = (await gateway.reload()) as { status: number; warnings?: { path: string; message: string }[] }
  expect([broken.status, broken.warnings?.map(({ path }) => path)]).toEqual([
    200,
    ['routes.a.action.tls.certificate', 'routes.echo.action.tls.certificate'],
  ])
  expect(broken.warnings![0]!.message).toContain(bad.cert)
  expect((await gateway.cli('reload', '--admin', gateway.socket)).stderr).toContain(bad.cert)
  await gateway.settled()
  expect((await visit(lab.client, host, 8445, '-servername', 'a.test')).answer).toBe('plain')
  const before = total()
  await until(() => total() >= before + 6, 10_000, 'handshakes go on')
  for (const one of load) await one.stop()
  expect(load.flatMap(({ failures }) => failures)).toEqual([])
  expect(new Set(load.flatMap(({ serials }) => serials)).size).toBeGreaterThanOrEqual(8)
  expect(load[0]!.serials.at(-1)).toBe(good)
  standing.end()
  const reasons = await until(() => {
    const records = gateway.records().filter(({ event }) => event === 'closed')
    return records.length > total() && records.map(({ reason }) => reason)
  }, 5000, 'every record is there') // prettier-ignore
  expect([...new Set(reasons)].filter((reason) => reason !== 'finished')).toEqual([])
}, 60_000)

test('E12: sessions of openssl: resumed by name, also after a reload; never across names, and without a name they open nothing', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const [ca, other] = [await authority('lab'), await authority('other')]
  const [ours, theirs] = [backend(lab.backend, 'answer ours'), backend(lab.backend, 'answer theirs')]
  await using gateway = await Gateway.start(lab, [])
  const { directory } = gateway
  const certificate = files(directory, 'both', await ca.issue(['a.test', 'b.test']))
  const mine = files(directory, 'mine', await ca.issue(['somebody']))
  const strange = files(directory, 'strange', await other.issue(['somebody']))
  const expired = files(directory, 'expired', await ca.issue(['somebody'], { from: -3, to: -1 }))
  const route = (name: string, to: { port: number }, clientCa: string, more: object = {}) =>
    forward(
      name,
      8443,
      [{ host: lab.backend.address4, port: to.port }],
      { tls: { mode: 'terminate', certificate, clientCa: file(directory, `${name}-ca.crt`, clientCa) } },
      named(`${name}.test`, more),
    )
  const routes = (more: object = {}) => [route('a', ours, ca.ca, more), route('b', theirs, other.ca)]
  gateway.write(routes())
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  const as = ({ cert, key }: { cert: string; key: string }) => ['-cert', cert, '-key', key]
  for (const version of VERSIONS) {
    const session = join(directory, `session${version}`)
    const go = async (...options: string[]) => {
      const { answer, session } = await visit(lab.client, host, 8443, version, ...options)
      return answer === null ? 'refused' : `${answer}, ${session}`
    }
    const outcomes = {
      'no certificate': await go(),
      'of another authority': await go(...as(strange)),
      expired: await go(...as(expired)),
      right: await go(...as(mine), '-sess_out', session),
      again: await go(...as(mine), '-sess_in', session),
      'to the other name': await go(...as(mine), '-sess_in', session, '-servername', 'b.test'),
      'to the other name, as who may': await go(...as(strange), '-sess_in', session, '-servername', 'b.test'),
      'without a name': await go(...as(mine), '-sess_in', session, '-noservername'),
      'to a name that nobody has': await go(...as(mine), '-sess_in', session, '-servername', 'c.test'),
    }
    expect([version, outcomes]).toEqual([
      version,
      {
        'no certificate': 'refused',
        'of another authority': 'refused',
        expired: 'refused',
        right: 'ours, new',
        again: 'ours, reused',
        'to the other name': 'refused',
        'to the other name, as who may': 'theirs, new',
        'without a name': 'refused',
        'to a name that nobody has': 'refused',
      },
    ])
    gateway.write(routes({ timeouts: { idle: version === '-tls1_2' ? '1h' : '2h' } }))
    expect(await gateway.reload()).toMatchObject({ status: 200, changes: { changed: ['a'] } })
    await gateway.settled()
    expect(await go(...as(mine), '-sess_in', session)).toBe('ours, reused')
  }
  expect([ours.accepted, theirs.accepted]).toEqual([6, 2])
}, 60_000)

test('F8: a target has to show a certificate for its name that is trusted; insecure says otherwise', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const [ca, other] = [await authority('lab'), await authority('other')]
  const right = backend(lab.backend, 'answer right', await ca.issue(['target.test']))
  const strange = backend(lab.backend, 'answer strange', await other.issue(['target.test']))
  await using gateway = await Gateway.start(lab, [])
  const bundle = file(gateway.directory, 'ca.crt', ca.ca)
  const cases: [string, { port: number }, object, string | null][] = [
    ['trusted', right, { ca: bundle, serverName: 'target.test' }, 'right'],
    ['not the name', right, { ca: bundle, serverName: 'other.test' }, null],
    ['the address is not in it', right, { ca: bundle }, null],
    ['nobody trusts it', right, { serverName: 'target.test' }, null],
    ['another authority', strange, { ca: bundle, serverName: 'target.test' }, null],
    ['insecure', strange, { insecure: true }, 'strange'],
  ]
  gateway.write(
    cases.map(([name, to, upstream], i) =>
      forward(name.replaceAll(' ', '-'), 8500 + i, [{ host: lab.backend.address4, port: to.port }], {
        tls: { mode: 'terminate-and-reencrypt', certificate: 'self-signed', upstream },
      }),
    ),
  )
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  const answers: [string, string | null][] = []
  for (const [i, [name]] of cases.entries()) answers.push([name, (await visit(lab.client, host, 8500 + i)).answer])
  expect(answers).toEqual(cases.map(([name, , , answer]) => [name, answer]))
  expect([right.heard.length, strange.heard.length]).toEqual([1, 1])
  const reasons = (await gateway.recordsOf(6)).map(({ reason }) => reason)
  expect(reasons.filter((reason) => reason === 'target_tls_failed').length).toBe(4)
}, 60_000)

test('I2, I3: a blocked client is cut off in every mode: no handshake, no record, and no target hears of it', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  await lab.client.must(['ip', 'addr', 'add', '10.99.1.3/24', 'dev', 'uplink'])
  const plain = backend(lab.backend, 'answer plain')
  const to = [{ host: lab.backend.address4, port: plain.port }]
  await using gateway = await Gateway.start(lab, [])
  const handler = file(gateway.directory, 'echo.ts', `export default { async connect(socket) { await socket.readable.pipeTo(socket.writable) } }`) // prettier-ignore
  const terminate = { tls: { mode: 'terminate', certificate: 'self-signed' } }
  const rest = { security: { ipBlockList: ['10.99.1.3'] } }
  const routes = [
    forward('kernel', 8500, to, {}, rest),
    forward('user', 8501, to, { forwardingEngine: 'user' }, rest),
    forward('through', 8502, to, { tls: { mode: 'passthrough' } }, named('a.test', rest)),
    // Whoever is blocked by the route of the name does not fall through to the next one (E4).
    forward('wider', 8502, to, { tls: { mode: 'passthrough' } }),
    forward('terminate', 8503, to, terminate, rest),
    forward('named', 8504, to, terminate, named('a.test', rest)),
    forward('again', 8505, to, { tls: { ...terminate.tls, mode: 'terminate-and-reencrypt' } }, rest),
    { name: 'handler', match: { ports: 8506 }, action: { type: 'socket-handler', handler }, ...rest },
    { name: 'redirect', match: { ports: 8507 }, action: { type: 'redirect', to: 'https://{host}{path}' }, ...rest },
  ]
  gateway.write(routes)
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  const modes = ['kernel', 'user', 'through', 'terminate', 'named', 'again', 'handler', 'redirect']
  for (const [i, mode] of modes.entries()) {
    const { subject, answer } = await visit(lab.client, host, 8500 + i, '-bind', '10.99.1.3')
    expect([mode, subject, answer]).toEqual([mode, null, null])
  }
  for (const mode of modes)
    await until(
      async () => ((await gateway.route(mode)) as never as { refused: Record<string, number> }).refused.route_ip_blocked! >= 1,
      8000,
      `the refusal of ${mode} is counted`,
    ) // prettier-ignore
  expect(plain.accepted).toBe(0)
  expect(await gateway.connections()).toEqual([])
  expect(gateway.records().filter(({ event }) => event === 'closed')).toEqual([])
  // Somebody else is let in.
  expect((await visit(lab.client, host, 8503, '-bind', lab.client.address4)).answer).toBe('plain')
}, 60_000)

test('F1: a handshake that does not go on ends by its deadline; other protocols on a TLS port end at once', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const plain = backend(lab.backend, 'answer plain')
  const tls = { mode: 'terminate', certificate: 'self-signed' }
  const timeouts = { handshake: '1s', firstByte: '1s' }
  const to = [{ host: lab.backend.address4, port: plain.port }]
  await using gateway = await Gateway.start(lab, [
    forward('any', 8443, to, { tls }, { timeouts }),
    forward('name', 8444, to, { tls }, named('a.test', { timeouts })),
  ])
  const cases: [number, string, string][] = [
    [8443, '', 'handshake_timeout'],
    [8444, '', 'first_byte_timeout'],
    [8443, '\x16\x03\x01\x01\x00\x01\x00\x00', 'handshake_timeout'],
    [8444, '\x16\x03\x01\x01\x00\x01\x00\x00', 'first_byte_timeout'],
    [8443, 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n', 'handshake_failed'],
    [8444, 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n', 'malformed_hello'],
    [8443, 'SSH-2.0-x\r\n', 'handshake_failed'],
    [8444, 'SSH-2.0-x\r\n', 'malformed_hello'],
  ]
  for (const [i, [port, bytes, reason]] of cases.entries()) {
    const { promise, resolve } = Promise.withResolvers<void>()
    const socket = await lab.client.connect(host, port, { close: () => resolve(), error: () => {} })
    if (bytes) socket.write(Buffer.from(bytes, 'latin1'))
    await promise
    expect([port, bytes, (await gateway.recordsOf(i + 1))[i]!.reason as string]).toEqual([port, bytes, reason])
  }
  expect(plain.accepted).toBe(0)
  expect((await visit(lab.client, host, 8444)).answer).toBe('plain')
}, 60_000)
