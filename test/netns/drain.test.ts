// Draining routes and targets of a real gateway: no new connections, the ones that are there finish or are cut, and it holds
// over a restart and a crash.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

interface Target {
  route: string
  target: string
  state: string
  up: boolean
  connections: number
  total: number
  bytesIn: number
  bytesOut: number
}
interface Drain {
  route?: string
  target?: string
  state: string
  left: number
  until: string | null
}

const targets = async (gateway: Gateway) => (await gateway.ask<{ targets: Target[] }>('/v1/targets')).targets
const target = async (gateway: Gateway, route: string, name: string) =>
  (await targets(gateway)).find((one) => one.route === route && one.target === name)!
const drains = async (gateway: Gateway) => (await gateway.ask<{ drains: Drain[] }>('/v1/drains')).drains
const drain = (gateway: Gateway, body: object) =>
  gateway.ask<{ status: number; drain?: Drain | null; error?: string }>('/v1/drain', 'POST', body)

const ENGINES = ['nftables', 'user'] as const

/** One route for each plane, to the same two targets. */
async function bench() {
  const lab = await Lab.create()
  const backends = [echoBackend(lab.backend, { name: 'a' }), echoBackend(lab.backend, { name: 'b' })] as const
  const to = backends.map(({ port }) => ({ host: lab.backend.address4, port }))
  const names = to.map(({ host, port }) => `${host}:${port}`) as [string, string]
  const routes = ENGINES.map((engine, i) => forward(engine, 8400 + i, to, { forwardingEngine: engine }))
  const gateway = await Gateway.start(lab, routes)
  const port = { nftables: 8400, user: 8401 }
  const connect = async (engine: (typeof ENGINES)[number]) => {
    const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, port[engine])
    return { talker, on: (await talker.read(2)).trim() as 'a' | 'b' }
  }
  return {
    lab,
    gateway,
    routes,
    backends,
    names,
    port,
    connect,
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]()
      await lab[Symbol.asyncDispose]()
    },
  }
}

for (const engine of ENGINES) {
  test(`H9: a drained target takes no new connections, old ones finish, undo puts it back (${engine})`, async () => {
    await using place = await bench()
    const { gateway, names, connect } = place
    const before = await Promise.all(Array.from({ length: 8 }, () => connect(engine)))
    const onA = before.filter(({ on }) => on === 'a')
    expect(onA.length).toBeGreaterThan(0)
    await until(
      async () => (await target(gateway, engine, names[0])).connections === onA.length,
      5000,
      'all are counted',
    )

    const answer = await drain(gateway, { target: names[0] })
    expect(answer).toMatchObject({ status: 200, drain: { target: names[0], state: 'draining', left: onA.length } })
    const after = await Promise.all(Array.from({ length: 12 }, () => connect(engine)))
    expect(after.map(({ on }) => on)).toEqual(after.map(() => 'b'))
    // Old ones go on for as long as they like.
    for (const { talker } of before) await talker.say()
    expect(await target(gateway, engine, names[0])).toMatchObject({ state: 'draining', up: true })
    expect((await target(gateway, engine, names[1])).state).toBe('up')
    for (const { talker } of onA) await talker.close()
    await until(async () => (await drains(gateway))[0]!.state === 'drained', 5000, 'nothing is left')
    expect((await target(gateway, engine, names[0])).state).toBe('drained')

    expect(await drain(gateway, { target: names[0], undo: true })).toMatchObject({ status: 200, drain: null })
    const back = await Promise.all(Array.from({ length: 16 }, () => connect(engine)))
    expect(new Set(back.map(({ on }) => on))).toEqual(new Set(['a', 'b']))
    expect(await drains(gateway)).toEqual([])
  }, 30_000)

  test(`H9: a drained route refuses, counts what it refuses, and cuts what is left when its time is over (${engine})`, async () => {
    await using place = await bench()
    const { gateway, connect } = place
    const other = ENGINES.find((one) => one !== engine)!
    const live = await Promise.all([connect(engine), connect(engine), connect(other)])
    await until(async () => (await gateway.route(engine)).connections === 2, 5000, 'both are counted')
    expect(await drain(gateway, { route: engine, for: '1s' })).toMatchObject({
      drain: { route: engine, left: 2, until: expect.any(String) },
    })
    // The kernel answers with a reset, user space closes what it accepted: either way nothing comes.
    await expect(connect(engine)).rejects.toThrow()
    await connect(other)
    for (const { talker } of live) await talker.say()

    await Promise.all([live[0]!.talker.gone.promise, live[1]!.talker.gone.promise])
    const closed = () => gateway.records().filter((one) => one.event === 'closed' && one.route === engine)
    await until(() => closed().length === 2, 5000, 'both have their record')
    expect(closed().map(({ reason }) => reason)).toEqual(['drained', 'drained'])
    await live[2]!.talker.say()
    const refused = (route: object) => (route as { refused: Record<string, number> }).refused.draining ?? 0
    await until(async () => refused(await gateway.route(engine)) >= 1, 5000, 'the refusal is counted')
    expect(await drain(gateway, { route: engine, undo: true })).toMatchObject({ status: 200 })
    await connect(engine)
  }, 30_000)
}

test('H9: a drain holds over a restart and a crash, and over a reload', async () => {
  await using place = await bench()
  const { gateway, names, connect } = place
  await drain(gateway, { target: names[0] })
  await drain(gateway, { route: 'user' })
  const check = async () => {
    const { on } = await connect('nftables')
    expect(on).toBe('b')
    await expect(connect('user')).rejects.toThrow()
    expect((await drains(gateway)).map((one) => one.target ?? one.route).toSorted()).toEqual(
      [names[0], 'user'].toSorted(),
    )
  }
  await check()
  await gateway.kill9()
  // From the first connection of the next life on.
  await gateway.restart()
  for (let i = 0; i < 4; i++) await check()
  expect(await gateway.stop()).toBe(0)
  await gateway.restart()
  await check()
  gateway.write([...place.routes, forward('more', 8402, [{ host: place.lab.backend.address4, port: 9 }])])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await check()
  await drain(gateway, { route: 'user', undo: true })
  await connect('user')
}, 60_000)

test('H9: a route that forwards nothing can be drained too, and both listings say so', async () => {
  await using lab = await Lab.create()
  const redirect = { type: 'redirect', to: 'https://a.test{path}' }
  await using gateway = await Gateway.start(lab, [{ name: 'moved', match: { ports: 8400 }, action: redirect }])
  const get = async () => {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const socket = await lab.client.connect(lab.gateway.clientSide4, 8400, {
      data: (_, bytes) => resolve(bytes.toString().slice(0, 12)),
      close: () => reject(new Error('closed without an answer')),
      error: () => {},
    })
    socket.write('GET / HTTP/1.1\r\nHost: a.test\r\n\r\n')
    return promise
  }
  expect(await get()).toBe('HTTP/1.1 308')
  expect(await drain(gateway, { route: 'moved' })).toMatchObject({ status: 200, drain: { route: 'moved' } })
  await expect(get()).rejects.toThrow()
  const drained = await until(
    async () => {
      const route = (await gateway.route('moved')) as unknown as { refused: Record<string, number> }
      return route.refused.draining !== undefined && route
    },
    5000,
    'the refusal is told',
  )
  expect(drained).toMatchObject({ draining: true, state: 'active', refused: { draining: 1 } })
  expect(await targets(gateway)).toEqual([])
  expect(await gateway.ask<object>('/v1/status')).toMatchObject({ drains: 1 })
  expect((await gateway.cli('routes', '--admin', gateway.socket)).stdout).toMatch(/moved +\*:8400 +user +draining/)
  await drain(gateway, { route: 'moved', undo: true })
  expect(await get()).toBe('HTTP/1.1 308')
})

test('H9: requests that make no sense are refused, by status and sentence', async () => {
  await using place = await bench()
  const { gateway } = place
  expect(await drain(gateway, { route: 'nobody' })).toMatchObject({ status: 404, error: 'no route nobody' })
  expect(await drain(gateway, { target: '192.0.2.1:1' })).toMatchObject({ status: 404 })
  expect(await drain(gateway, { route: 'user', undo: true })).toMatchObject({ status: 404 })
  expect(await drain(gateway, { route: 'user', for: 'ever' })).toMatchObject({ status: 400 })
  expect(await drain(gateway, [])).toMatchObject({ status: 400 })
  expect(await drains(gateway)).toEqual([])
})

test('H9: the command line: targets, a drain that is watched to its end, interrupted, and undone', async () => {
  await using place = await bench()
  const { gateway, names, connect } = place
  const admin = ['--admin', gateway.socket]
  const live = await Promise.all(Array.from({ length: 4 }, () => connect('nftables')))
  const onA = live.filter(({ on }) => on === 'a')
  await until(async () => (await target(gateway, 'nftables', names[0])).connections === onA.length, 5000, 'counted')

  const text = (await gateway.cli('targets', ...admin)).stdout
  expect(text.split('\n')[0]).toMatch(/^ROUTE +TARGET +STATE +WEIGHT +NOW +TOTAL/)
  expect(text).toMatch(new RegExp(`nftables +${names[0]} +up +1 +${onA.length} +${onA.length} `))
  const json = JSON.parse((await gateway.cli('targets', '--json', ...admin)).stdout) as { targets: Target[] }
  expect(json.targets.map((one) => [one.route, one.target])).toEqual(
    ENGINES.flatMap((engine) => names.map((name) => [engine, name])),
  )

  // Interrupted: the drain goes on.
  const watched = gateway.namespace.spawn(gateway.command('drain', names[0], ...admin), {
    stdout: 'pipe',
    stderr: 'pipe',
  })
  await until(async () => (await drains(gateway)).length === 1, 5000, 'it has begun')
  const reader = (watched.stdout as ReadableStream<Uint8Array>).getReader()
  const first = Buffer.from((await reader.read()).value!).toString()
  expect(first).toBe(`${names[0]}: ${onA.length} ${onA.length === 1 ? 'connection' : 'connections'} left\n`)
  watched.kill('SIGINT')
  expect(await watched.exited).toBe(1)
  const said = await new Response(watched.stderr as ReadableStream).text()
  expect(said).toContain('the drain goes on without being watched')
  expect(said).toContain(`sluice drain --undo ${names[0]}`)
  expect(await drains(gateway)).toMatchObject([{ target: names[0], state: 'draining' }])

  // To its end, as lines of JSON.
  const ending = gateway.cli('drain', names[0], '--json', ...admin)
  for (const { talker } of onA) await talker.close()
  const { stdout, exitCode } = await ending
  const lines = stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Drain)
  expect([exitCode, lines.at(-1)]).toMatchObject([0, { target: names[0], state: 'drained', left: 0 }])

  const undone = await gateway.cli('drain', '--undo', names[0], ...admin)
  expect([undone.exitCode, undone.stdout]).toEqual([0, `${names[0]} takes connections again\n`])

  // With a time: what is left is cut.
  const cut = await gateway.cli('drain', 'nftables', '--for', '500ms', ...admin)
  expect([cut.exitCode, cut.stdout.split('\n').at(-2)]).toEqual([0, 'nftables is drained'])
  for (const { talker } of live) await talker.gone.promise

  const wrong = async (...words: string[]) => {
    const { exitCode, stderr } = await gateway.cli('drain', ...words, ...admin)
    return [exitCode, stderr]
  }
  expect(await wrong('nobody')).toEqual([1, 'sluice: there is no route and no target nobody\n'])
  expect(await wrong('user', '--undo')).toEqual([1, 'sluice: route user is not drained\n'])
  expect(await wrong('user', '--for', 'ever')).toEqual([2, 'sluice: --for ever: expected a duration such as "10m"\n'])
  expect((await wrong('user', '--for', '1m', '--undo'))[0]).toBe(2)
  expect((await gateway.cli('drain', ...admin)).exitCode).toBe(2)
}, 60_000)
