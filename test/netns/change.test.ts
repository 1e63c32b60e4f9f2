// Routes that come, go and move while traffic goes on: no connection is dropped, and the table says exactly what is wanted.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { elements, forward, Gateway, until } from './gateway.ts'
import { crowd, echoBackend, Talker, visitors } from './traffic.ts'

/** How many elements the maps of our table hold, "program" left out; maps without any are not named. */
async function counts(lab: Lab) {
  const all = (await elements(lab.gateway))!
  return Object.fromEntries(
    Object.entries(all)
      .filter(([name, list]) => name !== 'program' && list.length > 0)
      .map(([name, list]) => [name, list.length]),
  )
}

test('H9: removed, changed and moved between carriers under traffic: nothing dropped, nothing stale', async () => {
  await using lab = await Lab.create()
  const [one, two] = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const to = (backend: { port: number }) => [{ host: lab.backend.address4, port: backend.port }]
  const engine = (forwardingEngine: string) => ({ forwardingEngine })
  await using gateway = await Gateway.start(lab, [forward('steady', 8400, to(one)), forward('moving', 8401, to(one))])
  expect(await counts(lab)).toEqual({ routes: 2, listen: 2, target4: 2, timeouts: 2 })
  const host = lab.gateway.clientSide4
  const standing = [await crowd(lab.client, host, 8400, 10), await crowd(lab.client, host, 8401, 10)]
  const coming = [visitors(lab.client, host, 8400), visitors(lab.client, host, 8401)]

  for (let round = 0; round < 3; round++)
    for (const moving of [
      forward('moving', 8401, to(two)),
      forward('moving', 8401, to(two), engine('user')),
      forward('moving', 8401, to(one)),
      forward('moving', 8401, [...to(one), ...to(two)]),
      forward('moving', 8401, to(one), engine('user')),
      forward('moving', 8401, to(one)),
    ]) {
      gateway.write([forward('steady', 8400, to(one)), moving])
      expect((await gateway.reload()).changes).toMatchObject({ changed: ['moving'], untouched: ['steady'] })
      await gateway.settled()
      const before = coming[1]!.served
      await until(() => coming[1]!.served > before + 3, 5000, 'new connections are served')
    }
  expect(await counts(lab)).toEqual({ routes: 2, listen: 2, target4: 2, timeouts: 2 })

  // Gone: nobody new, and those that stand go on.
  const late = coming.pop()!
  expect(await late.stop()).toEqual([])
  gateway.write([forward('steady', 8400, to(one))])
  expect((await gateway.reload()).changes).toMatchObject({ removed: ['moving'] })
  await until(async () => (await counts(lab)).listen === 1, 5000, 'its elements are gone')
  expect(await counts(lab)).toEqual({ routes: 1, listen: 1, target4: 1, timeouts: 1 })
  await expect(Talker.connect(lab.client, host, 8401)).rejects.toThrow('refused')
  for (const talker of standing[1]!.talkers) await until(() => talker.rounds > 0 && !talker.ended, 1000, 'it goes on')

  // A route that comes now must not inherit the number, and with it the flows, of the one that has gone.
  gateway.write([forward('steady', 8400, to(one)), forward('fresh', 8402, to(two))])
  await gateway.reload()
  await gateway.settled()
  const live = await gateway.connections()
  expect(live.filter((connection) => connection.route === 'fresh')).toEqual([])
  expect(live.filter((connection) => connection.route === 'moving').length).toBe(10)

  for (const them of [...standing, ...coming]) expect(await them.stop()).toEqual([])
  const served = coming[0]!.served + late.served
  const records = await gateway.recordsOf(20 + served)
  expect(records.filter((record) => record.reason !== 'finished')).toEqual([])
  expect(new Set(records.map((record) => record.id)).size).toBe(records.length)
  expect([...one.failures, ...two.failures]).toEqual([])
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

test('H9: drain: cut ends the flows of a removed route at once, a deadline later, finish never', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const route = (name: string, port: number, drain: string, engine = 'auto') =>
    forward(name, port, to, { forwardingEngine: engine }, { drain })
  await using gateway = await Gateway.start(lab, [
    route('k-cut', 8400, 'cut'),
    route('k-later', 8401, '1s'),
    route('k-finish', 8402, 'finish'),
    route('u-cut', 8410, 'cut', 'user'),
    route('u-later', 8411, '1s', 'user'),
    route('u-finish', 8412, 'finish', 'user'),
    forward('stays', 8420, to),
  ])
  const talkers: Record<string, Talker> = {}
  for (const port of [8400, 8401, 8402, 8410, 8411, 8412]) {
    talkers[port] = await Talker.connect(lab.client, lab.gateway.clientSide4, port)
    await talkers[port].say()
  }
  gateway.write([forward('stays', 8420, to)])
  await gateway.reload()
  await Promise.all([talkers[8400]!.gone.promise, talkers[8410]!.gone.promise])
  for (const port of [8401, 8402, 8411, 8412]) await talkers[port]!.say('still')
  await Promise.all([talkers[8401]!.gone.promise, talkers[8411]!.gone.promise])
  for (const port of [8402, 8412]) await talkers[port]!.say('and on')
  const records = await gateway.recordsOf(4)
  expect(records.map((record) => record.reason)).toEqual(['drained', 'drained', 'drained', 'drained'])
  for (const port of [8402, 8412]) await talkers[port]!.close()
  await gateway.recordsOf(6)
})

test('E14: a bad reload is refused with every problem, and what runs does not notice', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('one', 8400, to)])
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()
  const before = await elements(lab.gateway)
  gateway.write([forward('one', 0, to), forward('one', 8401, [{ host: 'not a host', port: 1 }])])
  const refused = await gateway.reload()
  expect(refused.status).toBe(422)
  expect(refused.problems!.map((problem) => problem.path)).toEqual(
    expect.arrayContaining(['routes[0].match.ports', 'routes[1].action.targets[0].host', 'routes[1].name']),
  )
  for (const problem of refused.problems!) expect(problem.remedy).toBeTruthy()
  expect((await gateway.putRoutes([{ nonsense: true }])).status).toBe(422)
  // A port that another program has: all or nothing.
  const taken = lab.gateway.listen({ data() {} }, { port: 8405 })
  expect(
    (await gateway.putRoutes([forward('one', 8400, to), forward('taken', 8405, to)])).problems![0]!.message,
  ).toContain('8405')
  taken.stop()
  expect((await gateway.routes()).map((route) => route.name)).toEqual(['one'])
  expect(await elements(lab.gateway)).toEqual(before)
  await talker.say()
  expect((await gateway.putRoutes([forward('one', 8400, to), forward('taken', 8405, to)])).status).toBe(200)
  await gateway.settled()
  await talker.close()
})

test('H9: many changes at once: each is refused or carried out whole, the last one counts', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('base', 8400, to)])
  const coming = visitors(lab.client, lab.gateway.clientSide4, 8400)
  const lists = Array.from({ length: 30 }, (_, i) => [
    forward('base', 8400, to),
    ...Array.from({ length: i % 7 }, (_, j) => forward(`r${i}-${j}`, 8500 + j, to)),
  ])
  const answers = await Promise.all(lists.map((list) => gateway.putRoutes(list)))
  expect(answers.map((answer) => answer.status)).toEqual(lists.map(() => 200))
  await gateway.putRoutes(lists[20]!)
  await gateway.settled()
  expect((await gateway.routes()).map((route) => route.name)).toEqual(lists[20]!.map((route) => route.name))
  await until(async () => (await counts(lab)).listen === lists[20]!.length, 5000, 'the table has what is wanted')
  expect(await counts(lab)).toEqual({ routes: 7, listen: 7, target4: 7, timeouts: 7 })
  expect(await coming.stop()).toEqual([])
})
