// Short kernel flows over several lives of the gateway: whoever was served is in the log once and in the totals once.
import { expect, test } from 'bun:test'
import { forward, Gateway, until, type Connection } from './gateway.ts'
import { Lab } from './lab.ts'
import { crowd, echoBackend, visitors } from './traffic.ts'

const STANDING = 5

/** One life after another, begun by `next`, while visitors come and go; resolves to how many were served. */
async function visited(lab: Lab, gateway: Gateway, next: () => Promise<void>): Promise<number> {
  const host = lab.gateway.clientSide4
  const standing = await crowd(lab.client, host, 8400, STANDING)
  const coming = Array.from({ length: 3 }, () => visitors(lab.client, host, 8400, 1))
  const served = () => coming.reduce((sum, one) => sum + one.served, 0)
  for (let i = 0; i < 3; i++) {
    const before = served()
    await until(() => served() > before + 50, 5000, 'visitors come and go')
    await next()
  }
  for (const one of coming) expect(await one.stop()).toEqual([])
  expect(await standing.stop()).toEqual([])
  const total = async () => (await gateway.route('kernel')) as { total: number; connections: number }
  await until(async () => (await total()).connections === 0, 5000, 'all have gone')
  expect((await total()).total).toBe(served() + STANDING)
  return served() + STANDING
}

async function expectEach(records: () => Connection[], count: number) {
  await until(() => records().length >= count, 5000, `${count} records`)
  const all = records()
  expect(all.filter(({ route, reason }) => route !== 'kernel' || reason !== 'finished')).toEqual([])
  expect([all.length, new Set(all.map(({ id }) => id)).size]).toEqual([count, count])
}

test('H8, H10: stopped and started again under load, with a log that cannot be read back: each visitor is told once and counted once', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('kernel', 8400, [{ host: lab.backend.address4, port: echo.port }])],
    { talks: true, config: { kernel: { onStop: 'keep' }, log: { access: 'stdout' } } },
  )
  const written: Promise<string>[] = []
  const read = () => void written.push(new Response(gateway.process.stdout as ReadableStream).text())
  read()
  const count = await visited(lab, gateway, async () => {
    expect(await gateway.stop()).toBe(0)
    await gateway.restart()
    read()
  })
  expect(await gateway.stop()).toBe(0)
  const lines = (await Promise.all(written)).join('').split('\n').filter(Boolean)
  const records = lines.map((line) => JSON.parse(line) as Connection & { event: string })
  await expectEach(() => records.filter(({ event }) => event === 'closed'), count)
}, 60_000)

test('H8, H10: killed, stopped and killed again under load: each visitor is told once and counted once', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('kernel', 8400, [{ host: lab.backend.address4, port: echo.port }])],
    { config: { kernel: { onStop: 'keep' } } },
  )
  let life = 0
  const count = await visited(lab, gateway, async () => {
    if (++life === 2) expect(await gateway.stop()).toBe(0)
    else await gateway.kill9()
    await gateway.restart()
  })
  await expectEach(() => gateway.records().filter(({ event }) => event === 'closed'), count)
}, 60_000)
