// sluice explain against the connections themselves: what it says of route, carrier, target and refusal is what they get.
import { expect, test } from 'bun:test'
import { captureHello } from '../user/hellos.ts'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Talker, echoBackend } from './traffic.ts'

interface Said {
  status: number
  outcome: string
  reason: string | null
  route: string | null
  carrier: string | null
  targets: { target: string; share: number }[]
  steps: { step: string; verdict: string; detail: string }[]
  error?: string
}

/** What became of one connection, as far as its client can tell. */
interface Met {
  client: string | null
  how: 'refused' | 'over'
}

const helloOf = (name: string | null) =>
  captureHello((port) => ['openssl', 's_client', '-connect', `127.0.0.1:${port}`, ...(name ? ['-servername', name] : ['-noservername'])]) // prettier-ignore

/** Says these bytes, takes the first answer or the end, and goes. */
async function meet(
  from: Namespace,
  host: string,
  port: number,
  bytes: Uint8Array | string,
  localAddress?: string,
): Promise<Met> {
  const over = Promise.withResolvers<void>()
  let client: string | null = null
  try {
    await from.connect(
      host,
      port,
      {
        open(socket) {
          const { localAddress: ip, localPort } = socket as unknown as { localAddress: string; localPort: number }
          client = ip.includes(':') ? `[${ip}]:${localPort}` : `${ip}:${localPort}`
          socket.write(bytes)
        },
        data: (socket) => void socket.end(),
        end: (socket) => void socket.end(),
        close: () => over.resolve(),
        error: () => {},
      },
      localAddress ? { localAddress } : {},
    )
    await over.promise
    return { client, how: 'over' }
  } catch {
    return { client, how: 'refused' }
  }
}

test('E4, E5, H13: for every kind of connection, what explain says is what it gets', async () => {
  await using lab = await Lab.create()
  await lab.client.must(['ip', 'addr', 'add', '10.99.1.3/24', 'dev', 'uplink'])
  await lab.gateway.must(['ip', 'addr', 'add', '10.99.1.9/24', 'dev', 'to-client'])
  const backend = lab.backend.listen({
    data: (socket) => void socket.write('here'),
    end: (socket) => void socket.end(),
    error: () => {},
  })
  const echo = echoBackend(lab.backend)
  const to4 = [{ host: lab.backend.address4, port: backend.port }]
  const to6 = [{ host: lab.backend.address6, port: backend.port }]
  const passthrough = { tls: { mode: 'passthrough' } }
  const terminate = { tls: { mode: 'terminate', certificate: 'self-signed' } }
  const blocked = { security: { ipBlockList: ['10.99.1.3'] } }
  await using gateway = await Gateway.start(lab, [
    forward('web', 8400, to4),
    forward('six', 8401, to6),
    forward('named', 8443, to4, passthrough, { match: { domains: 'a.test' } }),
    forward('office', 8443, to4, passthrough, { match: { domains: 'a.test', clientIps: ['10.99.1.3'] } }),
    forward('below', 8443, to4, terminate, { match: { domains: '*.b.test' } }),
    forward('listed', 8443, to4, passthrough, { match: { domains: 'c.test' }, ...blocked }),
    forward('user', 8402, to4, { forwardingEngine: 'user' }),
    { name: 'up', match: { ports: 8403 }, action: { type: 'redirect', to: 'https://{host}{path}' } },
    { name: 'no', match: { ports: 8404 }, action: { type: 'block' } },
    forward('kernel-listed', 8405, to4, {}, blocked),
    forward('watched', 8406, to4, {}, { security: { ...blocked.security, mode: 'observe' } }),
    forward('few', 8407, to4, {}, { match: { clientIps: ['10.99.1.3'] } }),
    forward('rest', 8407, to4, {}, { priority: -1 }),
    forward('drained', 8408, to4),
    forward('drained-user', 8409, to4, { forwardingEngine: 'user' }),
    forward('one', 8410, [{ host: lab.backend.address4, port: echo.port }], {}, { security: { maxConnections: 1 } }),
    forward('own', 8411, to4, {}, { match: { addresses: ['10.99.1.9'] } }),
    forward('range', [{ from: 20_000, to: 20_999 }], to4),
    // Its port is taken out of the range, which gets what is left over there.
    forward('inside', 20_700, to4, passthrough, { match: { domains: 'a.test' } }),
    forward('empty', 8412, [{ host: '10.99.2.77', port: 7 }]),
  ])
  for (const body of [{ route: 'drained' }, { route: 'drained-user' }, { target: '10.99.2.77:7' }])
    expect(await gateway.ask<{ status: number }>('/v1/drain', 'POST', body)).toMatchObject({ status: 200 })
  const held = await Talker.connect(lab.client, lab.gateway.clientSide4, 8410)
  await held.say()
  await gateway.settled()

  const [a, b, c, other, nameless] = await Promise.all(
    ['a.test', 'x.b.test', 'c.test', 'd.test', null].map((name) => helloOf(name)),
  )
  const request = 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n'
  const [host, six] = [lab.gateway.clientSide4, lab.gateway.clientSide6]
  const [usual, third] = ['10.99.1.2', '10.99.1.3']
  const plain = 'hello'
  const cases: [string, number, string | Uint8Array, string, string?][] = [
    [host, 8400, plain, usual],
    [six, 8400, plain, 'fd00:99:1::2'],
    [host, 8401, plain, usual],
    [six, 8401, plain, 'fd00:99:1::2'],
    [host, 8443, a!, usual, 'a.test'],
    [host, 8443, a!, third, 'a.test'],
    [host, 8443, b!, usual, 'x.b.test'],
    [host, 8443, c!, usual, 'c.test'],
    [host, 8443, c!, third, 'c.test'],
    [host, 8443, other!, usual, 'd.test'],
    [host, 8443, nameless!, usual],
    [host, 8402, plain, usual],
    [host, 8403, request, usual],
    [host, 8404, plain, usual],
    [host, 8405, plain, usual],
    [host, 8405, plain, third],
    [host, 8406, plain, third],
    [host, 8407, plain, usual],
    [host, 8407, plain, third],
    [host, 8408, plain, usual],
    [host, 8409, plain, usual],
    [host, 8410, plain, usual],
    ['10.99.1.9', 8411, plain, usual],
    [host, 8411, plain, usual],
    [host, 20_500, plain, usual],
    [host, 20_700, a!, usual, 'a.test'],
    [host, 20_700, plain, usual],
    [host, 8412, plain, usual],
    [host, 8499, plain, usual],
  ]
  const ask = (client: string, at: string, port: number, name?: string) => {
    const listener = at.includes(':') ? `[${at}]:${port}` : `${at}:${port}`
    return gateway.ask<Said>(`/v1/explain?${new URLSearchParams({ client, listener, ...(name && { sni: name }) })}`)
  }
  const seen: { what: string; said: Said; met: Met }[] = []
  for (const [at, port, bytes, client, name] of cases) {
    const said = await ask(client, at, port, name)
    const met = await meet(lab.client, at, port, bytes, client)
    seen.push({ what: `${client} → ${at}:${port} ${name ?? ''}`, said, met })
  }
  const inside = await ask('127.0.0.1', '127.0.0.1', 8400)
  seen.push({ what: 'inside', said: inside, met: await meet(lab.gateway, '127.0.0.1', 8400, plain) })
  await held.close()

  /** Of an admitted connection; the lines of the log come in any order. */
  const withRecord = seen.filter(({ said }) => !['refused', 'not ours', 'dropped'].includes(said.outcome))
  const records = await gateway.recordsOf(withRecord.length + 1)
  for (const { what, said, met } of seen) {
    const record = records.find((one) => one.client === met.client)
    const { outcome, reason, route, carrier, targets } = said
    if (outcome === 'refused' || outcome === 'not ours') {
      expect([what, said.outcome, record]).toEqual([what, outcome, undefined])
      continue
    }
    expect([what, met.how, record?.route, record?.carrier]).toEqual([what, 'over', route ?? '', carrier ?? 'user'])
    if (outcome === 'closed' || outcome === 'answered') expect([what, record!.reason]).toEqual([what, reason!])
    // The one whose TLS ends here never got as far.
    else if (route !== 'below') expect([what, targets]).toEqual([what, [{ target: record!.target!, share: 1 }]])
  }
  const outcomes = Object.groupBy(seen, ({ said }) => said.reason ?? said.outcome)
  expect(Object.fromEntries(Object.entries(outcomes).map(([what, those]) => [what, those!.length]))).toEqual({
    carried: 18,
    no_route: 2,
    responded: 1,
    route_ip_blocked: 2,
    blocked: 1,
    draining: 2,
    route_limit: 1,
    no_target: 1,
    'not ours': 2,
  })
  // What was refused was counted by the route and for the reason that it said.
  for (const { said } of seen.filter(({ said }) => said.outcome === 'refused'))
    await until(
      async () =>
        ((await gateway.route(said.route!)) as unknown as { refused: Record<string, number> }).refused[said.reason!],
      8000,
      `${said.route} has counted ${said.reason}`,
    )
}, 60_000)

test('H17: a foreign chain that drops what is forwarded is found, with the words that mend it; without a gateway the configuration is asked', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('web', 8400, to)])
  const words = ['explain', '--admin', gateway.socket, '10.99.1.2:4711', '8400']
  const before = await gateway.cli(...words)
  expect([before.exitCode, before.stdout.split('\n').at(-2)]).toEqual([
    0,
    `verdict           the kernel carries it to ${lab.backend.address4}:${backend.port}`,
  ])
  await lab.gateway.nft(`table inet fw {
    chain strict { type filter hook forward priority filter; policy accept; reject with tcp reset
    }
  }`)
  await expect(Talker.connect(lab.client, lab.gateway.clientSide4, 8400)).rejects.toThrow('refused')
  const after = await gateway.cli(...words)
  expect([after.exitCode, after.stdout.split('\n').at(-2)]).toEqual([
    1,
    "verdict           somebody else's rules drop it: chain strict of table inet fw",
  ])
  // What it says mends it.
  const { steps } = JSON.parse((await gateway.cli(...words, '--json')).stdout) as Said
  const command = /to mend it: nft '(.*)'$/.exec(steps.at(-2)!.detail)![1]!
  await lab.gateway.nft(command)
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()
  await talker.close()
  expect((await gateway.cli(...words)).exitCode).toBe(0)

  // Wrong words, and no gateway: from the configuration alone.
  expect((await gateway.cli('explain', 'nobody', '8400')).exitCode).toBe(2)
  expect((await gateway.ask<Said>('/v1/explain?client=x&listener=y')).status).toBe(400)
  await gateway.stop()
  const alone = await gateway.cli('explain', '--config', gateway.file, '10.99.1.2', '8400')
  expect([alone.exitCode, alone.stdout.includes('the kernel carries it'), alone.stderr]).toEqual([
    0,
    true,
    'sluice: no gateway runs there: explained from the configuration alone\n',
  ])
}, 60_000)
