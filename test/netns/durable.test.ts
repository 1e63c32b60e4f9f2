// log.access.durable: a connection's opening is on disk before anything of it leaves, to whomever. Shown by a control that is
// stopped (nothing leaves, whatever the route does), and by one that is killed when the first byte has arrived at a target.
import { expect, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { hello, sni } from '../user/hellos.ts'
import { forward, Gateway, halt } from './gateway.ts'
import { Lab, type Namespace } from './lab.ts'
import { echoBackend, Talker } from './traffic.ts'

/** Says something at once; resolves with all that it heard when it is over. */
function caller(from: Namespace, host: string, port: number, says: Uint8Array): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let heard = ''
  from
    .connect(host, port, {
      open: (socket) => void socket.write(says),
      data: (_, bytes) => void (heard += bytes.toString('latin1')),
      close: () => resolve(heard),
      error: () => {},
    })
    .catch(reject)
  return promise
}

const handler = `
export default {
  async connect(socket) {
    const writer = socket.writable.getWriter()
    await writer.write(new TextEncoder().encode('hello from the handler'))
    await writer.close()
  },
}
`

test('C1: a durable access log and a control that is stopped: no SYN, no byte, whatever the route does', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const request = Buffer.from('GET / HTTP/1.1\r\nHost: a.test\r\n\r\n')
  const selfSigned = { mode: 'terminate', certificate: 'self-signed' }
  const kinds: { says: Uint8Array; route: (port: number) => { name: string } & object }[] = [
    { says: request, route: (port) => forward('plain', port, to) },
    {
      says: hello(sni('a.test')),
      route: (port) => forward('named', port, to, { tls: { mode: 'passthrough' } }, { match: { domains: 'a.test' } }),
    },
    {
      says: request,
      route: (port) => forward('headed', port, to, { sendProxyProtocol: 'v1' }),
    },
    { says: hello(sni('a.test')), route: (port) => forward('terminated', port, to, { tls: selfSigned }) },
    {
      says: request,
      route: (port) => ({
        name: 'handled',
        match: { ports: port },
        action: { type: 'socket-handler', handler: './handler.mjs' },
      }),
    },
    {
      says: request,
      route: (port) => ({
        name: 'redirected',
        match: { ports: port },
        action: { type: 'redirect', to: 'https://{host}{path}' },
      }),
    },
  ]
  const routes = kinds.map(({ route }, i) => route(8400 + i))
  await using gateway = await Gateway.start(lab, [], { durable: true })
  writeFileSync(join(gateway.directory, 'handler.mjs'), handler)
  gateway.write(routes)
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  expect(await gateway.route('plain')).toMatchObject({ carrier: 'user', reason: 'durable log' })
  const callAll = () =>
    Promise.all(kinds.map(({ says }, i) => caller(lab.client, lab.gateway.clientSide4, 8400 + i, says)))

  await halt(gateway.process.pid)
  // They are over when the gateway has waited for long enough.
  expect(await callAll()).toEqual(kinds.map(() => ''))
  expect(backend.clients).toEqual([])
  expect(gateway.records()).toEqual([])

  gateway.process.kill('SIGCONT')
  const names = routes.map(({ name }) => name).toSorted()
  const records = await gateway.recordsOf(2 * kinds.length)
  for (const [event, reason] of [
    ['opened', undefined],
    ['closed', 'not_logged'],
  ] as const) {
    const those = records.filter((record) => record.event === event)
    expect(those.map(({ route }) => route).toSorted()).toEqual(names)
    expect(new Set(those.map((record) => record.reason))).toEqual(new Set([reason]))
  }
  expect(backend.clients).toEqual([])

  // And when it does not stop, all of them get what they came for.
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()
  await talker.close()
  const [handled, redirected] = await Promise.all(
    [4, 5].map((i) => caller(lab.client, lab.gateway.clientSide4, 8400 + i, request)),
  )
  expect(handled).toBe('hello from the handler')
  expect(redirected).toStartWith('HTTP/1.1 308')
}, 60_000)

test('C1: of many connections at once none reaches its target before its line is in the file', async () => {
  await using lab = await Lab.create()
  let arrived = 0
  const early: number[] = []
  let file = ''
  const lines = () => readFileSync(file, 'utf8').split('"event":"opened"').length - 1
  const { port } = lab.backend.listen({
    open() {
      arrived++
      if (lines() < arrived) early.push(arrived)
    },
    data: (socket, bytes) => void socket.write(bytes),
    end: (socket) => void socket.end(),
    error: () => {},
  })
  const to = [{ host: lab.backend.address4, port }]
  await using gateway = await Gateway.start(lab, [forward('plain', 8400, to)], { durable: true })
  file = gateway.accessLog
  const visits = Array.from({ length: 100 }, async () => {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
    await talker.say()
    await talker.close()
  })
  await Promise.all(visits)
  expect(arrived).toBe(100)
  expect(early).toEqual([])
  const records = await gateway.recordsOf(200)
  // Each has its opened line before its closed one.
  const seen = new Map<string, string[]>()
  for (const { id, event } of records) seen.set(id, [...(seen.get(id) ?? []), event])
  expect([...seen.values()]).toEqual(Array.from({ length: 100 }, () => ['opened', 'closed']))
  expect(records.find((record) => record.event === 'opened')).toMatchObject({
    route: 'plain',
    carrier: 'user',
    state: 'opening',
    target: null,
  })
  expect(await gateway.stop()).toBe(0)
}, 60_000)

test('C1: a gateway that is killed when a first byte has arrived: the opening is in the file', async () => {
  await using lab = await Lab.create()
  const arrived = Promise.withResolvers<string>()
  let gateway!: Gateway
  const { port } = lab.backend.listen({
    data(socket) {
      gateway.process.kill('SIGKILL')
      arrived.resolve(readFileSync(gateway.accessLog, 'utf8'))
      socket.terminate()
    },
    error: () => {},
  })
  const routes = [forward('plain', 8400, [{ host: lab.backend.address4, port }])]
  await using started = await Gateway.start(lab, routes, { durable: true })
  gateway = started
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  const client = `${lab.client.address4}:${talker.localPort}`
  talker.say().catch(() => {})
  const opened = JSON.parse((await arrived.promise).trim()) as Record<string, unknown>
  expect(opened).toMatchObject({ event: 'opened', route: 'plain', client, state: 'opening' })
}, 30_000)
