// Short connections by the thousand: each has one record, opened once and closed once, whichever plane carried it.
import { expect, test } from 'bun:test'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

const COUNT = 2000
const AT_ONCE = 50

/** `count` connections that say one line each, AT_ONCE at a time. */
async function storm(from: Namespace, host: string, port: number, count: number) {
  let left = count
  const one = async () => {
    while (left-- > 0) {
      const talker = await Talker.connect(from, host, port)
      await talker.say('hello')
      await talker.close()
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, one))
}

for (const carrier of ['kernel', 'user'] as const)
  test(`H7, H8: ${COUNT} short connections through ${carrier} are ${COUNT} records, none left`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    const engine = carrier === 'user' ? 'user' : 'auto'
    await using gateway = await Gateway.start(lab, [
      forward('short', 8400, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: engine }),
    ])
    await storm(lab.client, lab.gateway.clientSide4, 8400, COUNT)
    const records = await gateway.recordsOf(COUNT)
    expect(new Set(records.map((record) => record.id)).size).toBe(COUNT)
    expect(records.every((record) => record.carrier === carrier && record.event === 'closed')).toBe(true)
    expect(records.filter((record) => record.reason !== 'finished')).toEqual([])
    expect(records.filter((record) => record.bytesIn !== 5 || record.bytesOut !== 5)).toEqual([])
    expect(new Set(records.map((record) => record.client)).size).toBe(COUNT)
    await until(async () => (await gateway.connections()).length === 0, 2000, 'no connection is left')
    const [route, status] = [await gateway.route('short'), await gateway.status()]
    expect(route).toMatchObject({ connections: 0, total: COUNT, reasons: { finished: COUNT } })
    expect(status.anomalies).toBe(0)
    expect(status.connections).toEqual({ kernel: 0, proxied: 0 })
    // Nobody settles a flow twice: a dump right after the storm finds only TIME_WAIT.
    expect(gateway.records().length).toBe(COUNT)
  }, 60_000)

test('M4: how a connection ended is told: refused, reset by the client, reset by the target, nobody there', async () => {
  await using lab = await Lab.create()
  const rude = lab.backend.listen({ data: (socket) => void socket.terminate() })
  const echo = echoBackend(lab.backend)
  const to = (port: number) => [{ host: lab.backend.address4, port }]
  const user = { forwardingEngine: 'user' }
  await using gateway = await Gateway.start(lab, [
    forward('kernel-refused', 8401, to(9)),
    forward('kernel-rude', 8402, to(rude.port)),
    forward('kernel-echo', 8403, to(echo.port)),
    forward('user-refused', 8411, to(9), user),
    forward('user-rude', 8412, to(rude.port), user),
    forward('user-echo', 8413, to(echo.port), user),
  ])
  await expect(Talker.connect(lab.client, lab.gateway.clientSide4, 8401)).rejects.toThrow('refused')
  // Accepted and reset: the client may see the one before the other, or only the other.
  await Talker.connect(lab.client, lab.gateway.clientSide4, 8411).then(
    (talker) => talker.gone.promise,
    () => {},
  )
  for (const port of [8402, 8412]) {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, port)
    await expect(talker.say()).rejects.toThrow()
  }
  for (const port of [8403, 8413]) {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, port)
    await talker.say()
    talker.reset()
    await talker.gone.promise
  }
  const records = await gateway.recordsOf(6)
  expect(Object.fromEntries(records.map((record) => [record.route, record.reason]))).toEqual({
    'kernel-refused': 'target_refused',
    'kernel-rude': 'target_reset',
    'kernel-echo': 'client_reset',
    'user-refused': 'target_refused',
    'user-rude': 'target_reset',
    'user-echo': 'client_reset',
  })
  expect((await gateway.status()).anomalies).toBe(0)
})

test('H8: what the API lists is what the kernel tracks', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  const talkers = await Promise.all(
    Array.from({ length: 20 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8400)),
  )
  for (const talker of talkers) await talker.say('x'.repeat(1000))
  const listed = await until(
    async () => {
      const all = await gateway.connections()
      return all.length === 20 && all.every((one) => one.bytesIn >= 1000) && all
    },
    3000,
    'all flows are listed with their bytes',
  )
  expect(listed.map((one) => one.client).toSorted()).toEqual(
    talkers.map((talker) => `${lab.client.address4}:${talker.localPort}`).toSorted(),
  )
  for (const one of listed)
    expect(one).toMatchObject({
      route: 'kernel',
      carrier: 'kernel',
      listener: `${lab.gateway.clientSide4}:8400`,
      target: `${lab.backend.address4}:${backend.port}`,
      state: 'open',
      bytesIn: 1000,
      bytesOut: 1000,
    })
  for (const talker of talkers) await talker.close()
  const records = await gateway.recordsOf(20)
  expect(records.map((record) => record.id).toSorted()).toEqual(listed.map((one) => one.id).toSorted())
})

test('H8: an entry that somebody deletes has its record closed, once', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()
  await until(async () => (await gateway.connections()).length === 1, 2000, 'the flow is listed')
  await lab.gateway.must(['conntrack', '-D', '-p', 'tcp', '--orig-port-dst', '8400'])
  const [record] = await gateway.recordsOf(1)
  expect(record).toMatchObject({ bytesIn: 'round 0'.length, reason: 'conntrack_flushed' })
  await expect(talker.say()).rejects.toThrow() // the next packet meets no NAT, and is answered by a reset
  expect(await gateway.connections()).toEqual([])
  expect(gateway.records().length).toBe(1)
})
