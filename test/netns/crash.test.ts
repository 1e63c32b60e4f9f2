// kill -9 and what comes after: the kernel goes on, the next life takes over its flows and repairs what is not as configured.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { elements, forward, Gateway, tables, until } from './gateway.ts'
import { bulk, crowd, digestOf, echoBackend, MIB, move, moverBackend, Talker, visit } from './traffic.ts'

const BYTES = bulk(256)

test('H8, H10: kill -9 mid-transfer: it completes with equal hashes; its record is adopted, and closes once', async () => {
  await using lab = await Lab.create()
  const backend = moverBackend(lab.backend, BYTES)
  const echo = echoBackend(lab.backend)
  const routes = [
    forward('bulk', 8400, [{ host: lab.backend.address4, port: backend.port }]),
    forward('talk', 8401, [{ host: lab.backend.address4, port: echo.port }]),
  ]
  await using gateway = await Gateway.start(lab, routes)
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8401)
  await talker.say()
  const mover = await move(lab.client, lab.gateway.clientSide4, 8400, BYTES)
  const before = await until(
    async () => {
      const all = await gateway.connections()
      return all.length === 2 && mover.received > MIB && all
    },
    5000,
    'both flows are listed, and bytes move',
  )
  const earlier = await elements(lab.gateway)
  await gateway.kill9()
  expect(mover.digest).toBeUndefined() // it was in the middle of it
  await talker.say('without a master')
  await mover.done
  expect(mover.digest).toBe(digestOf('down', BYTES))
  await until(() => backend.movers[0]!.digest, 5000, 'the other end is done')
  expect(backend.movers[0]!.digest).toBe(digestOf('up', BYTES))
  expect(await elements(lab.gateway)).toEqual(earlier)

  await gateway.restart()
  const talk = before.find((one) => one.route === 'talk')!
  const [after] = (await gateway.connections()).filter((one) => one.route === 'talk')
  expect(after).toMatchObject({ id: talk.id, client: talk.client, target: talk.target, carrier: 'kernel' })
  expect(Math.abs(Date.parse(after!.openedAt) - Date.parse(talk.openedAt))).toBeLessThan(1000)
  await talker.say('with a new one')
  await talker.close()
  const records = await until(
    () => {
      const found = gateway.records().filter((record) => record.id === talk.id)
      return found.length > 0 && found
    },
    5000,
    'its record is written',
  )
  expect(records.length).toBe(1)
  expect(records[0]).toMatchObject({ reason: 'finished', route: 'talk' })
  expect(records[0]!.bytesIn).toBe('round 0without a masterwith a new one'.length)
  expect((await gateway.status()).anomalies).toBe(0)
  expect((await gateway.connections()).filter((one) => one.route === 'talk')).toEqual([])
}, 60_000)

test('H10: the restart purges what is no longer configured and repairs what drifted; numbers keep their meaning', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(lab, [
    forward('gone', 8400, to),
    forward('kept', 8401, to),
    forward('also', 8402, to),
  ])
  const numbers = Object.fromEntries((await gateway.routes()).map((route) => [route.name, route.number]))
  const [onGone, onKept] = [
    await Talker.connect(lab.client, lab.gateway.clientSide4, 8400),
    await Talker.connect(lab.client, lab.gateway.clientSide4, 8401),
  ]
  await onGone.say()
  await onKept.say()
  await until(async () => (await gateway.connections()).length === 2, 2000, 'both are listed')
  await gateway.kill9()
  // Somebody was here meanwhile.
  const mark = `0x${(0x51000000 | numbers.kept!).toString(16)}`
  await lab.gateway.must(['nft', 'delete', 'element', 'inet', 'sluice', 'listen', '{ tcp . 8401 }'])
  await lab.gateway.must(['nft', 'add', 'element', 'inet', 'sluice', 'listen', `{ tcp . 9999 : ${mark} }`])

  gateway.write([forward('fresh', 8403, to), forward('also', 8402, to), forward('kept', 8401, to)])
  await gateway.restart()
  const now = Object.fromEntries((await gateway.routes()).map((route) => [route.name, route.number]))
  expect(now.kept).toBe(numbers.kept!)
  expect(now.also).toBe(numbers.also!)
  expect(Object.values(numbers)).not.toContain(now.fresh!)
  const listen = (await elements(lab.gateway))!.listen!.map(
    (element) => (JSON.parse(element) as [{ concat: [string, number] }, number])[0].concat[1],
  )
  expect(listen.toSorted()).toEqual([8401, 8402, 8403])
  for (const port of [8401, 8402, 8403]) await visit(lab.client, lab.gateway.clientSide4, port)
  await onGone.say('finish')
  await onKept.say('finish')
  // The visits have been closed by their clients, which the gateway may not have heard yet.
  const live = await until(
    async () => {
      const all = await gateway.connections()
      return all.length <= 2 && all
    },
    3000,
    'the visits are over',
  )
  expect(live.map((one) => one.route).toSorted()).toEqual(['gone', 'kept'])
  await onGone.close()
  await onKept.close()
  await until(async () => (await gateway.connections()).length === 0, 3000, 'no flow is left')
}, 30_000)

test('H10: killed again and again under traffic: nothing drops in the kernel, nothing is left at the end', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('talk', 8400, [{ host: lab.backend.address4, port: echo.port }]),
  ])
  const before = { forward: '1', tables: ['table inet sluice', 'table inet sluice_anchor'] }
  const people = await crowd(lab.client, lab.gateway.clientSide4, 8400, 20)
  for (let life = 0; life < 3; life++) {
    await gateway.kill9()
    await gateway.restart()
    expect((await gateway.connections()).length).toBe(20)
    expect(await tables(lab.gateway)).toEqual(before.tables)
  }
  expect(await people.stop()).toEqual([])
  const records = await gateway.recordsOf(20)
  expect(new Set(records.map((record) => record.id)).size).toBe(20)
  expect(await gateway.stop()).toBe(0)
  expect(await tables(lab.gateway)).toEqual([])
  // The settings from before the first life, not those that the first life had made.
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe('0')
  expect(lab.gateway.sysctl('net.netfilter.nf_conntrack_acct')).toBe('0')
}, 60_000)

test('H10: a second gateway of the same configuration ends at once and touches nothing', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('talk', 8400, [{ host: lab.backend.address4, port: echo.port }]),
  ])
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  const before = await elements(lab.gateway)
  const { exitCode, stderr } = await gateway.cli('run', '--config', gateway.file)
  expect(exitCode).toBe(1)
  expect(stderr).toContain('another sluice answers there')
  expect(await elements(lab.gateway)).toEqual(before)
  await talker.say()
  expect((await gateway.status()).pid).toBe(gateway.process.pid)
  await talker.close()
})
