// Reloading as an operator does it: what a change is to live connections, changes that have to be confirmed, and hundreds of them
// in a row under load.
import { expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { elements, forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { crowd, echoBackend, Talker, visit, visitors } from './traffic.ts'

interface Answer {
  status: number
  changes: {
    added: string[]
    changed: string[]
    removed: string[]
    untouched: string[]
    routes: { route: string; change: string; what: string[]; keeps: number; drains: number; cuts: number }[]
  }
  unconfirmedUntil?: string
  problems?: { path: string; message: string }[]
  error?: string
}
const engine = (forwardingEngine: string) => ({ forwardingEngine })
/** Without the numbers that routes have: one that has gone and comes back is another one. */
const rulesOf = async (lab: Lab) => JSON.stringify(await elements(lab.gateway)).replaceAll(/13589\d+/g, 'mark')

test('issue 7.1: a change says how many connections of each route go on, drain or are cut, before and after it is made', async () => {
  await using lab = await Lab.create()
  const [one, two] = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const host = lab.gateway.clientSide4
  const to = (...ports: number[]) => ports.map((port) => ({ host: lab.backend.address4, port }))
  const before = [
    forward('stays', 8400, to(one.port)),
    forward('finishes', 8401, to(one.port), engine('user')),
    forward('is cut', 8402, to(one.port), {}, { drain: 'cut' }),
    forward('loses a target', 8403, to(one.port, two.port), engine('user'), { drain: '1s' }),
    forward('goes', 8404, to(one.port), {}, { drain: 'cut' }),
  ].map((route) => ({ ...route, name: route.name.replaceAll(' ', '-') }))
  await using gateway = await Gateway.start(lab, before)
  const talkers = await Promise.all(
    [8400, 8401, 8401, 8402, 8402, 8402, 8403, 8403, 8404].map((port) => Talker.connect(lab.client, host, port)),
  )
  for (const talker of talkers) await talker.say()
  await until(async () => (await gateway.connections()).length === 9, 5000, 'all are known')

  const after = [
    before[0]!,
    { ...before[1]!, action: { ...before[1]!.action, targets: to(two.port) } },
    { ...before[2]!, action: { ...before[2]!.action, targets: to(two.port) } },
    { ...before[3]!, action: { ...before[3]!.action, targets: to(two.port) } },
    forward('comes', 8405, to(one.port)),
  ]
  gateway.write(after)
  const expected = [
    { route: 'finishes', change: 'changed', what: ['targets'], keeps: 2, drains: 0, cuts: 0 },
    { route: 'is-cut', change: 'changed', what: ['targets'], keeps: 0, drains: 0, cuts: 3 },
    { route: 'loses-a-target', change: 'changed', what: ['targets'], keeps: 1, drains: 1, cuts: 0, drainMs: 1000 },
    { route: 'comes', change: 'added', what: [], keeps: 0, drains: 0, cuts: 0 },
    { route: 'goes', change: 'removed', what: [], keeps: 0, drains: 0, cuts: 1 },
  ]
  const rules = await rulesOf(lab)
  const shown = await gateway.cli('plan', '--config', gateway.file, '--json')
  expect(JSON.parse(shown.stdout).changes).toMatchObject({ untouched: ['stays'], routes: expected })
  const words = (await gateway.cli('plan', '--config', gateway.file)).stdout
  expect(words).toMatch(/is-cut +changed +targets +0 +0 +3/)
  expect(words).toContain('3 changed, 1 added, 1 removed, 1 untouched')
  // Only looked at.
  expect(await rulesOf(lab)).toBe(rules)
  expect(talkers.filter((talker) => talker.ended)).toEqual([])

  expect(await gateway.ask<Answer>('/v1/reload', 'POST')).toMatchObject({ status: 200, changes: { routes: expected } })
  await gateway.settled()
  await until(() => talkers.filter((talker) => talker.ended).length === 5, 10_000, 'five have ended')
  const ended = talkers.map((talker, i) => (talker.ended ? i : -1)).filter((i) => i >= 0)
  expect(ended.filter((i) => ![6, 7].includes(i))).toEqual([3, 4, 5, 8])
  for (const talker of talkers) if (!talker.ended) await talker.say()
}, 60_000)

test('issue 7.1: a change that is not confirmed is taken back, rules included; also when the gateway is killed meanwhile', async () => {
  await using lab = await Lab.create()
  const [one, two] = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const host = lab.gateway.clientSide4
  const to = (port: number) => [{ host: lab.backend.address4, port }]
  const before = [forward('web', 8400, to(one.port)), forward('old', 8401, to(one.port))]
  const after = [forward('web', 8400, to(two.port)), forward('new', 8402, to(two.port))]
  await using gateway = await Gateway.start(lab, before)
  const rules = await rulesOf(lab)
  const names = async () => (await gateway.routes()).map(({ name }) => name).toSorted()
  const reload = (confirm: unknown) => gateway.ask<Answer>('/v1/reload', 'POST', { confirm })

  gateway.write(after)
  for (const wrong of ['soon', '0s', '100ms', '2h', 5, {}])
    expect(await reload(wrong)).toMatchObject({ status: 422, problems: [{ path: 'confirm' }] })
  expect(await names()).toEqual(['old', 'web'])

  // Not confirmed: everything as it was. Meanwhile no other change.
  const answer = await reload('1s')
  expect(answer.status).toBe(200)
  expect(Date.parse(answer.unconfirmedUntil!)).toBeGreaterThan(Date.now() - 1000)
  expect(await names()).toEqual(['new', 'web'])
  expect(await gateway.putRoutes(before)).toMatchObject({ status: 422, problems: [{ path: '(the gateway)' }] })
  await until(async () => (await names()).includes('old'), 10_000, 'it is taken back')
  await gateway.settled()
  expect(await rulesOf(lab)).toBe(rules)
  expect((await gateway.status()) as object).toMatchObject({ unconfirmedUntil: null })
  await visit(lab.client, host, 8401)
  expect(existsSync(join(gateway.directory, 'state/unconfirmed.json'))).toBe(false)

  // Confirmed: it stays.
  expect((await gateway.cli('reload', '--admin', gateway.socket, '--confirm', '60s')).stdout).toContain(
    'sluice confirm',
  )
  expect((await gateway.cli('confirm', '--admin', gateway.socket)).exitCode).toBe(0)
  expect((await gateway.cli('confirm', '--admin', gateway.socket)).stderr).toContain('nothing waits')
  expect(await names()).toEqual(['new', 'web'])

  // Killed before anybody could say anything: the next life begins without the change, and says so.
  gateway.write(before)
  expect((await reload('1h')).status).toBe(200)
  const upgraded = await gateway.cli('upgrade', '--admin', gateway.socket)
  expect([upgraded.exitCode, upgraded.stderr]).toEqual([1, expect.stringContaining('"sluice confirm"')])
  await gateway.settled()
  await gateway.kill9()
  await gateway.restart()
  expect(await names()).toEqual(['new', 'web'])
  expect(gateway.logText()).toContain('was never confirmed')
  expect((await reload(undefined)).status).toBe(200)
  expect(await names()).toEqual(['old', 'web'])
  await gateway.stop()
  await gateway.restart()
  expect(await names()).toEqual(['old', 'web'])
}, 60_000)

test('issue 7.1, E9: single routes are put and removed; a bad one is refused and changes nothing', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(lab, [forward('a', 8400, to), forward('b', 8401, to)])
  const put = (name: string, route: unknown) => gateway.ask<Answer>(`/v1/routes/${name}`, 'PUT', route)
  const names = async () => (await gateway.routes()).map(({ name }) => name)
  expect(await put('c', forward('c', 8402, to))).toMatchObject({ status: 200, changes: { added: ['c'] } })
  const { name: _, ...nameless } = forward('b', 8403, to)
  expect(await put('b', nameless)).toMatchObject({ status: 200, changes: { changed: ['b'], untouched: ['a', 'c'] } })
  expect(await names()).toEqual(['a', 'b', 'c'])
  await visit(lab.client, lab.gateway.clientSide4, 8403)
  expect(await put('b', forward('other', 8404, to))).toMatchObject({ status: 422, problems: [{ path: 'name' }] })
  expect(await put('b', { ...nameless, match: { ports: 0 } })).toMatchObject({ status: 422 })
  for (const nonsense of [null, 7, [], 'text']) expect(await put('b', nonsense)).toMatchObject({ status: 422 })
  const remove = (name: string) => gateway.ask<Answer>(`/v1/routes/${name}`, 'DELETE')
  expect(await remove('none')).toMatchObject({ status: 404 })
  expect(await remove('a')).toMatchObject({ status: 200, changes: { removed: ['a'] } })
  expect(await names()).toEqual(['b', 'c'])
}, 60_000)

test('E9, E10: eighty routes that are put at once all listen', async () => {
  await using lab = await Lab.create()
  await using gateway = await Gateway.start(lab, [])
  const route = (i: number) => ({ match: { ports: 8500 + i }, action: { type: 'block' } })
  for (let round = 0; round < 3; round++) {
    const answers = await Promise.all(
      Array.from({ length: 80 }, (_, i) => gateway.ask<Answer>(`/v1/routes/p${i}`, 'PUT', route(i))),
    )
    expect(answers.filter(({ status }) => status !== 200)).toEqual([])
    await until(async () => (await gateway.routes()).every(({ state }) => state === 'active'), 5000, 'all listen')
    await gateway.putRoutes([])
  }
}, 60_000)

test('issue 7.1: with --watch a changed file is carried out, and a broken one is not', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(lab, [forward('a', 8400, to)], { arguments: ['--watch'] })
  const names = async () => (await gateway.routes()).map(({ name }) => name).join()
  gateway.write([forward('a', 8400, to), forward('b', 8401, to)])
  await until(async () => (await names()) === 'a,b', 10_000, 'the second route is there')
  gateway.write([forward('c', 0, to)])
  await until(() => gateway.logText().includes('Not reloaded: routes[0].match.ports'), 10_000, 'it is refused')
  expect(await names()).toBe('a,b')
  gateway.write([forward('c', 8402, to)])
  await until(async () => (await names()) === 'c', 10_000, 'what is mended is carried out')
}, 60_000)

test('issue 7.1, E10: 200 reloads in a row that add, remove and change routes under load: nobody fails', async () => {
  await using lab = await Lab.create()
  const [one, two] = [echoBackend(lab.backend), echoBackend(lab.backend)]
  const host = lab.gateway.clientSide4
  const to = (i: number) => [{ host: lab.backend.address4, port: (i % 2 ? one : two).port }]
  const steady = [forward('kernel', 8400, to(0)), forward('user', 8401, to(0), engine('user'))]
  const version = (i: number) => [
    ...steady,
    forward('changes', 8402, to(i)),
    forward('moves', 8403, to(i), engine(i % 3 ? 'auto' : 'user')),
    ...(i % 2 ? [forward('comes-and-goes', 8404, to(i))] : []),
  ]
  await using gateway = await Gateway.start(lab, version(0))
  const standing = await Promise.all([8400, 8401, 8402, 8403].map((port) => crowd(lab.client, host, port, 5)))
  const coming = [8400, 8401, 8402, 8403].flatMap((port) => [0, 1, 2].map(() => visitors(lab.client, host, port, 1)))
  const served = () => coming.reduce((sum, one) => sum + one.served, 0)
  const [began, before] = [performance.now(), served()]
  for (let i = 1; i <= 200; i++) {
    gateway.write(version(i))
    const { problems = [], changes } = await gateway.ask<Answer>('/v1/reload', 'POST')
    expect(problems).toEqual([])
    expect(changes.untouched).toContain('kernel')
    expect(changes.untouched).toContain('user')
  }
  const seconds = (performance.now() - began) / 1000
  const perSecond = Math.round((served() - before) / seconds)
  console.log(`200 reloads in ${seconds.toFixed(1)} s, with ${perSecond} new connections a second`)
  await gateway.settled()
  for (const each of coming) expect(await each.stop()).toEqual([])
  for (const each of standing) expect(await each.stop()).toEqual([])
  await until(async () => (await gateway.connections()).length === 0, 10_000, 'nobody is left')
  expect(new Set(gateway.records().map(({ reason }) => reason))).toEqual(new Set(['finished']))
  expect((await gateway.status()).anomalies).toBe(0)
}, 120_000)

test('issue 7.1: 10,000 idle connections on 100 routes: one route changes, and no connection of the others notices', async () => {
  await using lab = await Lab.create()
  // In a process of its own: this one has enough descriptors for one side.
  const backend = lab.backend.spawn(
    [
      process.execPath,
      '-e',
      `let open = 0
       const server = Bun.listen({ hostname: '0.0.0.0', port: 0, socket: { data: (s, b) => void s.write(b), open() { open++ }, close() { open-- } } })
       console.log(server.port)`,
    ],
    { stdout: 'pipe', stderr: 'inherit' },
  )
  const reader = (backend.stdout as ReadableStream<Uint8Array>).getReader()
  const port = Number(Buffer.from((await reader.read()).value!).toString())
  const host = lab.gateway.clientSide4
  const to = [{ host: lab.backend.address4, port }]
  const route = (i: number, action: object = {}) =>
    forward(`r${i}`, 9000 + i, to, { ...engine(i % 2 ? 'user' : 'auto'), ...action }, { drain: 'cut' })
  const routes = Array.from({ length: 100 }, (_, i) => route(i))
  await using gateway = await Gateway.start(lab, routes)
  let [ended, heard] = [0, 0]
  const each = 100
  const sockets = new Map<number, Awaited<ReturnType<typeof lab.client.connect>>[]>()
  for (let i = 0; i < routes.length; i++)
    sockets.set(
      i,
      await Promise.all(
        Array.from({ length: each }, () =>
          lab.client.connect(host, 9000 + i, { close: () => void ended++, error() {}, data: () => void heard++ }),
        ),
      ),
    )
  const total = () => gateway.status().then(({ connections }) => connections.kernel + connections.proxied)
  await until(async () => (await total()) === 10_000, 60_000, 'all are known')
  const began = performance.now()
  gateway.write(routes.with(7, route(7, { targets: [{ host: lab.backend.address4, port: port + 1 }] })))
  const { changes } = await gateway.ask<Answer>('/v1/reload', 'POST')
  console.log(`10,000 connections on 100 routes: changed one in ${Math.round(performance.now() - began)} ms`)
  expect(changes.untouched).toHaveLength(99)
  expect(changes.routes).toMatchObject([{ route: 'r7', keeps: 0, cuts: each }])
  await until(() => ended >= each, 10_000, 'those of the changed route are cut')
  await until(async () => (await total()) === 10_000 - each, 10_000, 'all others are there')
  expect(ended).toBe(each)
  // They carry: one of each route says something and hears it.
  await gateway.recordsOf(each)
  for (const [i, [socket]] of sockets) if (i !== 7) socket!.write('still here')
  await until(() => heard === 99, 10_000, 'all of them are answered')
  for (const [i, list] of sockets) if (i !== 7) for (const socket of list) socket.terminate()
  backend.kill()
  await backend.exited
}, 180_000)
