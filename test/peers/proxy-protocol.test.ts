// The PROXY protocol with those who invented it and those who speak it most: HAProxy and nginx before and behind the gateway.
// The real client is asserted where it counts: in our record and in the log of the peer behind us.
import { expect } from 'bun:test'
import { resolve } from 'node:path'
import { signed } from '../certificates/tools.ts'
import { Lab, type Namespace } from '../netns/lab.ts'
import { forward, Gateway, until } from '../netns/gateway.ts'
import { echoBackend } from '../netns/traffic.ts'
import { testIf } from '../support.ts'
import { haproxy, nginx, type Peer, Place } from './peers.ts'

const hasHaproxy = Bun.which('haproxy') !== null
const hasNginx = Bun.which('nginx') !== null && (await Bun.file('/usr/lib/nginx/modules/ngx_stream_module.so').exists())
const programs = { HAProxy: hasHaproxy, nginx: hasNginx }
const withPeers = (...names: (keyof typeof programs)[]) =>
  testIf(
    names.every((name) => programs[name]),
    `needs ${names.join(' and ')}`,
  )

/** A client beside the proxy in its namespace, with addresses of its own. */
const REAL4 = '10.99.1.7'
const REAL6 = 'fd00:99:1::7'
const ECHO = resolve(import.meta.dir, '../user/fixtures/handlers.ts')
const selfSigned = { mode: 'terminate', certificate: 'self-signed' }
const pair = await signed(['a.test'])

async function realClient(lab: Lab) {
  await lab.client.must(['ip', 'addr', 'add', `${REAL4}/24`, 'dev', 'uplink'])
  await lab.client.must(['ip', '-6', 'addr', 'add', `${REAL6}/64`, 'dev', 'uplink', 'nodad'])
}

interface End {
  ip: string
  port: number
}
const text = ({ ip, port }: End) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`)

/** Says a line to an echo, hears it, and closes. Resolves to the end it spoke from. */
async function visit(from: Namespace, ip: string, to: End, serverName?: string): Promise<End> {
  const heard = Promise.withResolvers<void>()
  const gone = Promise.withResolvers<void>()
  let answer = ''
  const handlers = {
    data(_: unknown, bytes: Uint8Array) {
      answer += Buffer.from(bytes).toString()
      if (answer === 'a line') heard.resolve()
    },
    close: () => gone.resolve(),
    error: () => {},
  }
  void gone.promise.then(() => heard.reject(new Error(`${text(to)}: closed after ${JSON.stringify(answer)}`)))
  const plain = await from.connect(to.ip, to.port, serverName === undefined ? handlers : {}, { localAddress: ip })
  const end = { ip, port: plain.localPort }
  let socket: { end(): void } = plain
  if (serverName === undefined) plain.write('a line')
  else
    // Options that bun-types knows for clients only in part.
    socket = plain.upgradeTLS({
      data: undefined,
      tls: { serverName, rejectUnauthorized: false },
      socket: { ...handlers, handshake: (secure: { write(text: string): void }) => void secure.write('a line') },
    } as never)[1]
  await heard.promise
  socket.end()
  await gone.promise
  return end
}

const byClient = (a: { client: string }, b: { client: string }) => a.client.localeCompare(b.client)

// ---- before us ----

type StartSender = (lab: Lab, place: Place, hops: { from: number; to: number; tls: boolean }[]) => Promise<Peer>

const haproxySends =
  (how: string, more = ''): StartSender =>
  (lab, place, hops) => {
    const secure = how.includes('v2-ssl')
    const crt = secure ? `ssl crt ${place.file('pair.pem', pair.cert + pair.key)}` : ''
    const sections = hops.map(
      ({ from, to, tls }) => `
frontend in-${from}
  bind ${lab.client.address4}:${from} ${crt}
  bind [${lab.client.address6}]:${from} ${crt}
  ${more}
  default_backend out-${from}
backend out-${from}
  server gateway ${lab.gateway.clientSide4}:${to} ${how} ${secure && tls ? 'ssl verify none' : ''}`,
    )
    return haproxy(
      lab.client,
      place,
      sections.join('\n'),
      hops.map(({ from }) => from),
    )
  }

const nginxSends: StartSender = (lab, place, hops) =>
  nginx(
    lab.client,
    place,
    hops
      .map(
        ({ from, to }) => `server {
  listen ${lab.client.address4}:${from};
  listen [${lab.client.address6}]:${from};
  proxy_pass ${lab.gateway.clientSide4}:${to};
  proxy_protocol on;
}`,
      )
      .join('\n'),
    hops.map(({ from }) => from),
  )

const senders: [name: string, peer: keyof typeof programs, start: StartSender][] = [
  ['HAProxy send-proxy', 'HAProxy', haproxySends('send-proxy')],
  ['HAProxy send-proxy-v2', 'HAProxy', haproxySends('send-proxy-v2')],
  [
    'HAProxy send-proxy-v2 with crc32c and unique-id',
    'HAProxy',
    haproxySends('send-proxy-v2 proxy-v2-options crc32c,unique-id', 'unique-id-format %[uuid()]'),
  ],
  ['HAProxy send-proxy-v2-ssl', 'HAProxy', haproxySends('send-proxy-v2-ssl proxy-v2-options crc32c,ssl,cert-cn')],
  ['nginx proxy_protocol on', 'nginx', nginxSends],
]

const trusting = (lab: Lab) => ({ acceptProxyProtocol: { from: [lab.client.address4] } })

for (const [name, peer, start] of senders)
  withPeers(peer)(
    `J1, J2: ${name}: the real client in the record, of both families, on every carrier`,
    async () => {
      await using lab = await Lab.create()
      await realClient(lab)
      using place = new Place()
      const backend = echoBackend(lab.backend)
      const to = [{ host: lab.backend.address4, port: backend.port }]
      await using gateway = await Gateway.start(lab, [
        forward('splice', 8400, to, {}, trusting(lab)),
        forward('terminate', 8401, to, { tls: selfSigned }, trusting(lab)),
        {
          name: 'handler',
          match: { ports: 8402 },
          action: { type: 'socket-handler', handler: ECHO, env: { kind: 'echo' } },
          ...trusting(lab),
        },
      ])
      const hops = [
        { route: 'splice', carrier: 'splice', from: 9000, to: 8400, tls: false },
        { route: 'terminate', carrier: 'user', from: 9001, to: 8401, tls: true },
        { route: 'handler', carrier: 'user', from: 9002, to: 8402, tls: false },
      ]
      await using sender = await start(lab, place, hops)
      const secure = name.includes('v2-ssl')
      const expected: object[] = []
      for (const { route, carrier, from, tls } of hops)
        for (const [ip, at] of [
          [REAL4, lab.client.address4],
          [REAL6, lab.client.address6],
        ] as const) {
          const listener = { ip: at, port: from }
          const client = await visit(lab.client, ip, listener, tls || secure ? 'a.test' : undefined)
          const proxy = expect.stringMatching(/^10\.99\.1\.2:\d+$/)
          expected.push({ route, carrier, client: text(client), listener: text(listener), proxy, reason: 'finished' })
          // Payload only, whatever stood before it; in the order the visits were made.
          const records = await gateway.recordsOf(expected.length).catch((error: Error) => {
            throw new Error(`${error.message}\n${sender.output()}`)
          })
          expect(records.at(-1)).toMatchObject({ bytesIn: 6, bytesOut: 6 })
        }
      expect(gateway.records()).toMatchObject(expected)

      // The same addresses without a header: nobody is taken for a client who does not say so.
      await visit(lab.client, REAL4, { ip: lab.gateway.clientSide4, port: 8400 })
      const own = (await gateway.recordsOf(expected.length + 1)).at(-1)!
      expect(own).toMatchObject({ client: expect.stringContaining(REAL4), listener: '10.99.1.1:8400' })
      expect(own).not.toHaveProperty('proxy')
    },
    60_000,
  )

// ---- behind us ----

/** Listens at 9000 for header and text, at 9443 for header and TLS; `lines` are what it logged, as "client port listener port". */
type StartReceiver = (lab: Lab, place: Place, echo: number) => Promise<{ peer: Peer; lines(): string[] }>

const linesOf = (log: string) =>
  log
    .split('\n')
    .filter((line) => line.startsWith('said '))
    .map((line) => line.slice('said '.length))

const haproxyReceives: StartReceiver = async (lab, place, echo) => {
  const crt = place.file('pair.pem', pair.cert + pair.key)
  const sections = `
frontend plain
  bind ${lab.backend.address4}:9000 accept-proxy
  log-format "said %ci %cp %fi %fp"
  default_backend echo
frontend secure
  bind ${lab.backend.address4}:9443 accept-proxy ssl crt ${crt}
  log-format "said %ci %cp %fi %fp"
  default_backend echo
backend echo
  server echo 127.0.0.1:${echo}`
  const peer = await haproxy(lab.backend, place, sections, [9000, 9443])
  return { peer, lines: () => linesOf(peer.output()) }
}

const nginxReceives: StartReceiver = async (lab, place, echo) => {
  const [cert, key] = [place.file('cert.pem', pair.cert), place.file('key.pem', pair.key)]
  const log = place.file('access.log')
  const said = ['addr', 'port', 'server_addr', 'server_port'].map((what) => `$proxy_protocol_${what}`).join(' ')
  const servers = `log_format said 'said ${said}';
access_log ${log} said;
server {
  listen ${lab.backend.address4}:9000 proxy_protocol;
  proxy_pass 127.0.0.1:${echo};
}
server {
  listen ${lab.backend.address4}:9443 ssl proxy_protocol;
  ssl_certificate ${cert};
  ssl_certificate_key ${key};
  proxy_pass 127.0.0.1:${echo};
}`
  const peer = await nginx(lab.backend, place, servers, [9000, 9443])
  return { peer, lines: () => linesOf(place.read('access.log')) }
}

const receivers: [name: keyof typeof programs, start: StartReceiver][] = [
  ['HAProxy', haproxyReceives],
  ['nginx', nginxReceives],
]

for (const [name, start] of receivers)
  for (const version of ['v1', 'v2'])
    withPeers(name)(
      `J3: ${name} behind us, told in ${version}: the real client in its log, on every carrier`,
      async () => {
        await using lab = await Lab.create()
        await realClient(lab)
        using place = new Place()
        const backend = echoBackend(lab.backend)
        const { lines } = await start(lab, place, backend.port)
        const at = (port: number) => [{ host: lab.backend.address4, port }]
        const tell = { sendProxyProtocol: version }
        const reencrypt = { ...selfSigned, mode: 'terminate-and-reencrypt', upstream: { insecure: true } }
        const passthrough = { match: { domains: 'a.test' } }
        const cases = [
          ['splice', 'splice', false, forward('splice', 8400, at(9000), tell)],
          ['user', 'user', false, forward('user', 8401, at(9000), { ...tell, forwardingEngine: 'user' })],
          [
            'sni',
            'splice',
            true,
            forward('sni', 8402, at(9443), { ...tell, tls: { mode: 'passthrough' } }, passthrough),
          ],
          ['terminate', 'user', true, forward('terminate', 8403, at(9000), { ...tell, tls: selfSigned })],
          ['reencrypt', 'user', true, forward('reencrypt', 8404, at(9443), { ...tell, tls: reencrypt })],
        ] as const
        await using gateway = await Gateway.start(
          lab,
          cases.map(([, , , route]) => route),
        )
        const expectedLines: string[] = []
        const expectedRecords: { client: string; [field: string]: unknown }[] = []
        for (const [i, [route, carrier, tls]] of cases.entries())
          for (const [ip, listens] of [
            [REAL4, lab.gateway.clientSide4],
            [REAL6, lab.gateway.clientSide6],
          ] as const) {
            const listener = { ip: listens, port: 8400 + i }
            const client = await visit(lab.client, ip, listener, tls ? 'a.test' : undefined)
            expectedLines.push(`${ip} ${client.port} ${listens} ${listener.port}`)
            const counts = route === 'sni' ? {} : { bytesIn: 6, bytesOut: 6 }
            expectedRecords.push({ route, carrier, client: text(client), listener: text(listener), ...counts })
          }
        await until(() => lines().length >= expectedLines.length, 5000, 'the peer has logged every connection')
        expect(lines().toSorted()).toEqual(expectedLines.toSorted())
        // Records of two carriers that end together are written in either order.
        const records = await gateway.recordsOf(expectedRecords.length)
        expect(records.toSorted(byClient)).toMatchObject(expectedRecords.toSorted(byClient))
      },
      60_000,
    )

// ---- on both sides ----

withPeers('HAProxy')(
  'J2, J3: from HAProxy to HAProxy through us: the TLVs arrive, under a checksum of ours',
  async () => {
    await using lab = await Lab.create()
    await realClient(lab)
    using before = new Place()
    using behind = new Place()
    const backend = echoBackend(lab.backend)
    // A wrong checksum is refused by HAProxy before it logs a line of this format.
    await using receiver = await haproxy(
      lab.backend,
      behind,
      `
frontend in
  bind ${lab.backend.address4}:9000 accept-proxy
  log-format "said %ci %cp %[fc_pp_unique_id]"
  default_backend echo
backend echo
  server echo 127.0.0.1:${backend.port}`,
      [9000],
    )
    const start = haproxySends(
      'send-proxy-v2 proxy-v2-options crc32c,unique-id',
      'unique-id-format id-of-%ci-%cp\n  log-format "sent %ci %cp %ID"',
    )
    await using sender = await start(lab, before, [{ from: 9000, to: 8400, tls: false }])
    await using gateway = await Gateway.start(lab, [
      forward('chain', 8400, [{ host: lab.backend.address4, port: 9000 }], { sendProxyProtocol: 'v2' }, trusting(lab)),
    ])
    const client = await visit(lab.client, REAL4, { ip: lab.client.address4, port: 9000 })
    const words = `${REAL4} ${client.port} id-of-${REAL4}-${client.port}`
    await until(() => linesOf(receiver.output()).length > 0, 5000, 'the second has logged it')
    expect(linesOf(receiver.output())).toEqual([words])
    await until(() => sender.output().includes(`sent ${words}`), 5000, 'the first has logged the same')
    expect(await gateway.recordsOf(1)).toMatchObject([
      { client: text(client), carrier: 'splice', bytesIn: 6, bytesOut: 6 },
    ])
  },
  60_000,
)

for (const [name, start] of receivers)
  withPeers(name)(
    `J3, E7: health checks of ${name} say LOCAL, and it finds nothing wrong with them`,
    async () => {
      await using lab = await Lab.create()
      using place = new Place()
      const backend = echoBackend(lab.backend)
      const { peer, lines } = await start(lab, place, backend.port)
      const to = [{ host: lab.backend.address4, port: 9000 }]
      await using gateway = await Gateway.start(
        lab,
        (['v1', 'v2'] as const).map((version, i) =>
          forward(version, 8400 + i, to, { sendProxyProtocol: version, health: { interval: '1s', rise: 1, fall: 1 } }),
        ),
      )
      await until(() => lines().length >= 6, 15_000, 'the peer has logged some checks')
      // LOCAL: whom it names is the one who connects, or nobody.
      const named = new Set(lines().map((line) => line.split(' ')[0]))
      expect([...named]).toEqual([name === 'HAProxy' ? lab.gateway.backendSide4 : '-'])
      // A connection without a header is an error in HAProxy's log, and a broken one in that of nginx.
      const other = peer
        .output()
        .split('\n')
        .filter((line) => line !== '' && !line.startsWith('said '))
      expect(other).toEqual([])
      if (name === 'nginx') expect(place.read('error.log')).toBe('')
      const { targets } = await gateway.ask<{ targets: { state: string }[] }>('/v1/targets')
      expect(targets.map(({ state }) => state)).toEqual(['up', 'up'])
    },
    60_000,
  )
