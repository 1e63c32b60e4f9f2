// How connections are ended: one by one on request, and all of them when the gateway stops.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, listening, tables, until } from './gateway.ts'
import { bulk, digestOf, echoBackend, MIB, move, moverBackend, Talker } from './traffic.ts'

const ENGINES = { kernel: 'auto', user: 'user' }

for (const [carrier, forwardingEngine] of Object.entries(ENGINES)) {
  test(`close ID ends a ${carrier} connection at both ends at once, also an idle one; the others stay`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    await using gateway = await Gateway.start(lab, [
      forward('r', [8400, 8401], [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine }),
    ])
    const talkers = await Promise.all(
      Array.from({ length: 3 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8400)),
    )
    for (const talker of talkers) await talker.say()
    const listed = await until(
      async () => {
        const all = await gateway.connections()
        return all.length === 3 && all
      },
      3000,
      'all are listed',
    )
    const [victim, ...others] = talkers
    const id = listed.find((one) => one.client.endsWith(`:${victim!.localPort}`))!.id
    expect((await gateway.close(id)).status).toBe(200)
    expect(await victim!.gone.promise).toMatchObject({ code: 'ECONNRESET' })
    await until(() => backend.open.size === 2, 2000, 'the target has been told')
    expect(backend.failures.map((error) => (error as { code?: string }).code)).toEqual(['ECONNRESET'])
    const [record] = await gateway.recordsOf(1)
    expect(record).toMatchObject({ id, reason: 'killed', carrier, bytesIn: 7, bytesOut: 7 })
    for (const talker of others) await talker.say('still here')
    expect((await gateway.close(id)).status).toBe(404)
    expect((await gateway.close('nonsense')).status).toBe(404)
    expect((await gateway.connections()).length).toBe(2)
    // The same client port again is a new connection with a record of its own.
    const again = await Talker.connect(lab.client, lab.gateway.clientSide4, 8401, { localPort: victim!.localPort! })
    await again.say()
    for (const talker of [...others, again]) await talker.close()
    const records = await gateway.recordsOf(4)
    expect(records.filter((one) => one.id === id).length).toBe(1)
    expect((await gateway.status()).anomalies).toBe(0)
  })

  test(`close ID in the middle of a transfer: ${carrier}, one record`, async () => {
    await using lab = await Lab.create()
    const backend = moverBackend(lab.backend, 1024 * MIB)
    await using gateway = await Gateway.start(lab, [
      forward('r', 8400, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine }),
    ])
    for (let round = 1; round <= 3; round++) {
      const mover = await move(lab.client, lab.gateway.clientSide4, 8400, 1024 * MIB)
      const [one] = await until(
        async () => {
          const all = await gateway.connections()
          return all.length === 1 && mover.received > MIB && all
        },
        3000,
        'it is listed',
      )
      expect((await gateway.close(one!.id)).status).toBe(200)
      await expect(mover.done).rejects.toThrow()
      const records = await gateway.recordsOf(round)
      expect(records.filter((record) => record.id === one!.id).length).toBe(1)
      expect(records.at(-1)!.bytesOut).toBeGreaterThan(MIB / 2)
    }
    await until(async () => (await gateway.connections()).length === 0, 2000, 'none is left')
    expect(gateway.records().map((record) => record.reason)).toEqual(['killed', 'killed', 'killed'])
  }, 30_000)
}

test('SIGTERM: what ends within the grace period completes, the rest is cut, and nothing is left', async () => {
  await using lab = await Lab.create()
  const bytes = bulk(64)
  const mass = moverBackend(lab.backend, bytes)
  const echo = echoBackend(lab.backend)
  const to = (port: number) => [{ host: lab.backend.address4, port }]
  const user = { forwardingEngine: 'user' }
  await using gateway = await Gateway.start(
    lab,
    [
      forward('k-bulk', 8400, to(mass.port)),
      forward('u-bulk', 8401, to(mass.port), user),
      forward('k-idle', 8402, to(echo.port)),
      forward('u-idle', 8403, to(echo.port), user),
    ],
    { config: { timeouts: { grace: '3s' } } },
  )
  const host = lab.gateway.clientSide4
  const idle = [await Talker.connect(lab.client, host, 8402), await Talker.connect(lab.client, host, 8403)]
  for (const talker of idle) await talker.say()
  const movers = [await move(lab.client, host, 8400, bytes), await move(lab.client, host, 8401, bytes)]
  await until(() => movers.every((mover) => mover.received > 0), 3000, 'both transfers run')
  gateway.process.kill('SIGTERM')
  await until(async () => !(await listening(lab.gateway)).some((one) => /:840[0-3]$/.test(one)), 3000, 'nobody listens')
  await expect(Talker.connect(lab.client, host, 8403)).rejects.toThrow('refused')
  for (const talker of idle) await talker.say('in the grace period')
  await Promise.all(movers.map((mover) => mover.done))
  expect(movers.map((mover) => mover.digest)).toEqual([digestOf('down', bytes), digestOf('down', bytes)])
  await Promise.all(idle.map((talker) => talker.gone.promise))
  expect(await gateway.exited()).toBe(0)
  const reasons = Object.fromEntries((await gateway.recordsOf(4)).map((record) => [record.route, record.reason]))
  expect(reasons).toEqual({ 'k-bulk': 'finished', 'u-bulk': 'finished', 'k-idle': 'drained', 'u-idle': 'drained' })
  await until(() => echo.open.size === 0, 2000, 'the targets of the idle ones have been told')
  expect(await tables(lab.gateway)).toEqual([])
  expect(await listening(lab.gateway)).toEqual([])
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe('0')
}, 30_000)

test('SIGTERM with nothing to wait for ends at once', async () => {
  await using lab = await Lab.create()
  await using gateway = await Gateway.start(lab, [forward('r', 8400, [{ host: lab.backend.address4, port: 9 }])], {
    config: { timeouts: { grace: '10s' } },
  })
  const started = performance.now()
  expect(await gateway.stop()).toBe(0)
  console.log(`stopped after ${(performance.now() - started).toFixed(0)} ms`)
  expect(performance.now() - started).toBeLessThan(9000)
}, 20_000)
