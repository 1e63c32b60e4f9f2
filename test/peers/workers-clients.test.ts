// Clients that others wrote for the Workers runtime, unchanged, in handlers: they speak through cloudflare:sockets to real
// servers, over TLS from the first byte, over TLS that begins later (STARTTLS, PostgreSQL's SSLRequest), and without.
import { expect } from 'bun:test'
import { chmodSync } from 'node:fs'
import { resolve } from 'node:path'
import { authority, type Pair } from '../user/authority.ts'
import { Gateway } from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { testIf } from '../support.ts'
import { Place, postgres, serve, startPostgres, startRedis } from './peers.ts'

const handler = (
  name: string,
  port: number,
  fixture: string,
  env: object,
  reach: object | null = { private: true },
) => ({
  name,
  match: { ports: port },
  action: {
    type: 'socket-handler',
    handler: resolve(import.meta.dir, `fixtures/${fixture}.mjs`),
    env,
    ...(reach && { reach }),
  },
})

/** All that a route says before it closes. */
function said(lab: Lab, port: number): Promise<string> {
  const { promise, resolve: over } = Promise.withResolvers<string>()
  const pieces: Uint8Array[] = []
  lab.client
    .connect(lab.gateway.clientSide4, port, {
      data: (_socket, bytes) => void pieces.push(bytes),
      close: () => over(Buffer.concat(pieces).toString()),
      error: () => {},
    })
    // One that fails at once is over before it is known to be there. Why stands in its record.
    .catch(() => over(''))
  return promise
}

/** The certificate of a server, in files. */
function files(place: Place, { cert, key }: Pair) {
  const paths = { cert: place.file('cert.pem', cert), key: place.file('key.pem', key) }
  // PostgreSQL takes no key that others may read.
  chmodSync(paths.key, 0o600)
  return paths
}

const reasonsOf = async (gateway: Gateway, count: number) =>
  Object.fromEntries((await gateway.recordsOf(count)).map(({ route, reason }) => [route, reason]))

testIf(postgres('postgres') !== null && postgres('initdb') !== null, 'needs PostgreSQL')(
  'A1, A14, A16, A18: node-postgres with its Workers socket, with SSL and without',
  async () => {
    await using lab = await Lab.create()
    using place = new Place()
    const [ours, theirs] = await Promise.all([authority('ours'), authority('theirs')])
    const { cert, key } = files(place, await ours.issue([lab.backend.address4]))
    await using server = await startPostgres(lab, place, { ssl: 'on', ssl_cert_file: cert, ssl_key_file: key })
    const database = { host: lab.backend.address4, port: 5432, user: 'tester', database: 'postgres' }
    await using gateway = await Gateway.start(lab, [
      handler('plain', 8400, 'postgres', database),
      handler('encrypted', 8401, 'postgres', { ...database, ssl: { ca: ours.ca } }),
      handler('distrusted', 8402, 'postgres', { ...database, ssl: { ca: theirs.ca } }),
      handler('unreachable', 8403, 'postgres', database, null),
    ])
    const bytes = 2_000_000
    const explain = () => `${gateway.logText()}\n${server.output()}`
    expect(await said(lab, 8400), explain()).toBe(JSON.stringify({ answer: 42, ssl: false, version: null, bytes }))
    expect(JSON.parse((await said(lab, 8401)) || explain())).toEqual({
      answer: 42,
      ssl: true,
      version: 'TLSv1.3',
      bytes,
    })
    expect(await said(lab, 8402)).toBe('')
    expect(await said(lab, 8403)).toBe('')
    expect(await reasonsOf(gateway, 4)).toEqual({
      plain: 'finished',
      encrypted: 'finished',
      distrusted: 'handler_failed',
      unreachable: 'handler_failed',
    })
  },
  30_000,
)

testIf(Bun.which('redis-server') !== null, 'needs Redis')(
  'A1, A2: a Redis client of Workers, with TLS and without',
  async () => {
    await using lab = await Lab.create()
    using place = new Place()
    const ours = await authority('ours')
    const { cert, key } = files(place, await ours.issue([lab.backend.address4]))
    const tls = ['--tls-port', '6380', '--tls-cert-file', cert, '--tls-key-file', key, '--tls-auth-clients', 'no']
    await using server = await startRedis(lab, place, ['--port', '6379', ...tls], 6380)
    const host = lab.backend.address4
    await using gateway = await Gateway.start(
      lab,
      [
        handler('plain', 8400, 'redis', { host, port: 6379, tls: false }),
        handler('encrypted', 8401, 'redis', { host, port: 6380, tls: true }),
        // Redis waits for the rest of what it takes for a command.
        { ...handler('mistaken', 8402, 'redis', { host, port: 6379, tls: true }), timeouts: { handshake: '500ms' } },
      ],
      // The client has no word for whom it trusts.
      { env: { NODE_EXTRA_CA_CERTS: place.file('ca.pem', ours.ca) } },
    )
    for (const port of [8400, 8401])
      expect(await said(lab, port), `${gateway.logText()}\n${server.output()}`).toBe('["value",42]')
    expect(await said(lab, 8402)).toBe('')
    expect(await reasonsOf(gateway, 3)).toEqual({
      plain: 'finished',
      encrypted: 'finished',
      mistaken: 'handler_failed',
    })
  },
  30_000,
)

testIf(Bun.which('aiosmtpd') !== null, 'needs aiosmtpd')(
  'A14, A15: a mail client of Workers, which begins TLS with STARTTLS',
  async () => {
    await using lab = await Lab.create()
    using place = new Place()
    const ours = await authority('ours')
    const { cert, key } = files(place, await ours.issue([lab.backend.address4]))
    const host = lab.backend.address4
    // Debian's own Python has Debian's packages.
    const script = resolve(import.meta.dir, 'fixtures/smtp-server.py')
    await using secured = await serve(lab.backend, ['/usr/bin/python3', '-u', script, host, '2525', cert, key], [2525])
    const unbuffered = ['env', 'PYTHONUNBUFFERED=1']
    const listen = ['--nosetuid', '--listen', `${host}:2526`]
    await using plain = await serve(lab.backend, [...unbuffered, 'aiosmtpd', ...listen], [2526])
    const credentials = { username: 'user', password: 'secret' }
    await using gateway = await Gateway.start(
      lab,
      [
        handler('secured', 8400, 'smtp', { host, port: 2525, credentials, subject: 'encrypted' }),
        handler('plain', 8401, 'smtp', { host, port: 2526, subject: 'TLS is not offered' }),
        handler('stranger', 8402, 'smtp', {
          ...{ host, port: 2525, subject: 'refused' },
          credentials: { ...credentials, password: 'guess' },
        }),
      ],
      { env: { NODE_EXTRA_CA_CERTS: place.file('ca.pem', ours.ca) } },
    )
    for (const port of [8400, 8401])
      expect(await said(lab, port), `${gateway.logText()}\n${secured.output()}\n${plain.output()}`).toBe('sent')
    expect(secured.output()).toContain('Subject: encrypted')
    expect(plain.output()).toContain('Subject: TLS is not offered')
    expect(await said(lab, 8402)).toBe('')
    expect(secured.output()).not.toContain('refused')
    expect(await reasonsOf(gateway, 3)).toEqual({
      secured: 'finished',
      plain: 'finished',
      stranger: 'handler_failed',
    })
  },
  30_000,
)
