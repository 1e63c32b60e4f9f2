// Kernel flows whose entries somebody else deletes, and what the kernel carried while the program was down.
import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { Lab } from './lab.ts'
import { forward, Gateway, until, type RouteState } from './gateway.ts'
import { echoBackend, Talker, visit, visitors } from './traffic.ts'

const COUNT = 300

for (const [what, command] of [
  ['conntrack -F', ['conntrack', '-F']],
  ['conntrack -D of the route', ['conntrack', '-D', '-p', 'tcp', '--orig-port-dst', '8400']],
] as const)
  test(`H8: ${what} ends ${COUNT} live flows: both peers reset at once, one record each, new ones served`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    await using gateway = await Gateway.start(lab, [
      forward('live', 8400, [{ host: lab.backend.address4, port: backend.port }]),
      forward('other', 8401, [{ host: lab.backend.address4, port: backend.port }]),
    ])
    const host = lab.gateway.clientSide4
    const coming = visitors(lab.client, host, 8401)
    const talkers = await Promise.all(Array.from({ length: COUNT }, () => Talker.connect(lab.client, host, 8400)))
    for (const talker of talkers) await talker.say('x')
    await until(async () => (await gateway.route('live')).connections === COUNT, 5000, 'all flows are known')
    const ports = talkers.map((talker) => talker.localPort).toSorted((a, b) => a - b)
    const started = performance.now()
    await lab.gateway.must([...command])
    await visit(lab.client, host, 8400)
    // Idle ones too: nobody of them says anything.
    await Promise.all(talkers.map((talker) => until(() => talker.ended, 5000, `${talker.localPort} hears of it`)))
    await until(() => backend.open.size <= 1, 5000, 'the target hears of it')
    console.log(`${what}: ${COUNT} flows, both ends told within ${(performance.now() - started).toFixed(0)} ms`)
    const records = await until(
      () => {
        const found = gateway.records().filter((record) => record.route === 'live' && record.reason !== 'finished')
        return found.length >= COUNT && found
      },
      5000,
      'records',
    )
    expect(records.map((record) => record.reason)).toEqual(records.map(() => 'conntrack_flushed'))
    expect(records.map((record) => Number(record.client.split(':')[1])).toSorted((a, b) => a - b)).toEqual(ports)
    expect(records.every((record) => record.bytesIn === 1 && record.bytesOut === 1)).toBe(true)
    const served = coming.served
    await until(() => coming.served > served + 3, 5000, 'new connections are served')
    await coming.stop()
    await until(async () => (await gateway.route('live')).connections === 0, 5000, 'none is left')
    // A dump says nothing else.
    await gateway.connections()
    expect(await gateway.route('live')).toMatchObject({
      total: COUNT + 1,
      reasons: { conntrack_flushed: COUNT, finished: 1 },
    })
    expect((await gateway.status()).anomalies).toBe(0)
    const written = () => gateway.records().filter((record) => record.route === 'live').length
    await until(() => written() >= COUNT + 1, 5000, 'the last record is written')
    expect(written()).toBe(COUNT + 1)
  }, 30_000)

test('H8: a flush in the middle of new connections: whoever has an answer yet is told, nobody hangs, every record closes', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('live', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  let tried = 0
  const failures: string[] = []
  const run = async () => {
    for (let i = 0; i < 40; i++) {
      tried++
      const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400).catch(() => null)
      await talker?.say().catch((error: Error) => failures.push(error.message))
      if (talker && !talker.ended) await talker.close()
    }
  }
  const runs = Promise.all(Array.from({ length: 10 }, run))
  for (let i = 0; i < 10; i++) await lab.gateway.must(['conntrack', '-F'])
  await runs
  // "no answer within" would be one that hangs.
  expect(failures.filter((message) => message.includes('no answer'))).toEqual([])
  await until(async () => (await gateway.connections()).length === 0, 5000, 'no flow is left')
  const all = await until(
    async () => {
      const { total, reasons, connections } = await gateway.route('live')
      const closed = Object.values(reasons).reduce((sum, count) => sum + count, 0)
      return connections === 0 && closed === total && gateway.records().length === total && { total, reasons }
    },
    5000,
    'a record for each, and one only',
  )
  console.log(`${tried} tried, ${JSON.stringify(all)}`)
  expect(all.total).toBeGreaterThan(0)
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

test('H8: what the kernel carries while the program is down is counted and written after the restart, all of it once', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('live', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  const host = lab.gateway.clientSide4
  const many = (count: number) =>
    Promise.all(Array.from({ length: count }, () => visit(lab.client, host, 8400, 'hello')))
  const route = () => gateway.route('live') as Promise<RouteState & { bytesIn: number; bytesOut: number }>
  const lasting = await Talker.connect(lab.client, host, 8400)
  await lasting.say('one')
  const leaving = await Talker.connect(lab.client, host, 8400)
  await leaving.say('two')
  await many(100)
  await until(async () => (await route()).connections === 2 && gateway.records().length === 100, 5000, '100 have ended')
  // Killed before and after the totals are stored: what was written since is counted, and not written again.
  for (let life = 1; life <= 2; life++) {
    await gateway.kill9()
    await many(50)
    if (life === 1) await leaving.close()
    await lasting.say('more')
    await gateway.restart()
    const ended = 100 + 50 * life + 1 + (life - 1) * 20
    const all = await until(
      async () => {
        const found = await route()
        return found.total === ended + 1 && gateway.records().length === ended && found
      },
      5000,
      `${ended} records, and as many counted`,
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}: ${gateway.records().length} records, ${JSON.stringify(await route())}`)
    })
    expect(all.connections).toBe(1)
    expect(all.reasons).toEqual({ finished: ended })
    await gateway.connections()
    expect((await route()).bytesIn).toBe((ended - 1) * 5 + 3 + 3 + 4 * life)
    await many(20)
    await until(() => gateway.records().length === ended + 20, 5000, '20 more')
    // The totals are stored now and then: the first kill came before that, the second comes after.
    const stored = join(gateway.directory, 'state/totals.json')
    const total = async () =>
      ((await Bun.file(stored).json()) as { routes: { live: { total: number } } }).routes.live.total
    if (life === 1) await until(async () => (await total()) === ended + 21, 20_000, 'the totals are stored')
  }
  const records = gateway.records()
  expect(new Set(records.map((record) => record.id)).size).toBe(records.length)
  expect(records.filter((record) => record.bytesIn !== 5).map((record) => record.bytesIn)).toEqual([3])
  expect((await gateway.status()).anomalies).toBe(0)
  await lasting.close()
}, 90_000)
