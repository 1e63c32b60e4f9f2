// Targets that die in the real kernel: killed, black-holed, all of them; noticed by traffic and by checks, in both carriers.
import { expect, test } from 'bun:test'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

const ENGINES = { kernel: 'nftables', user: 'user' }
/** Three bad checks within a second, and timeouts that black holes do not stretch. */
const quick = { health: { interval: '200ms', timeout: '300ms', rise: 2, fall: 3 } }

/** Who answers a new connection; an error when none does. */
async function whoAnswers(lab: Lab, port = 8400): Promise<string> {
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, port)
  try {
    return (await talker.read(1)).trim()
  } finally {
    talker.reset()
  }
}

/** Answers `name` to whoever comes, again and again, on ports of its own. */
const named = (lab: Lab, name: string, port?: number) => echoBackend(lab.backend, { name, port })

const target = (lab: Lab, port: number) => ({ host: lab.backend.address4, port })
const key = (lab: Lab, port: number) => `${lab.backend.address4}:${port}`

const drop = (where: Namespace, what: string) =>
  where.nft(`table inet hole {\n chain in { type filter hook input priority 0; ${what} drop; }\n}\n`)
/** The backend's machine drops what comes to this port. */
const blackHole = (where: Namespace, port: number) => drop(where, `tcp dport ${port}`)
const heal = (where: Namespace) => where.must(['nft', 'delete', 'table', 'inet', 'hole'])

/** The last that the log says of a target. */
const says = (gateway: Gateway, endpoint: string, what: 'up' | 'down') =>
  gateway
    .logText()
    .split('\n')
    .findLast((line) => line.includes(`Target ${endpoint} of route`))
    ?.includes(` is ${what}: `) === true
const saysDown = (gateway: Gateway, endpoint: string) => says(gateway, endpoint, 'down')
const saysUp = (gateway: Gateway, endpoint: string) => says(gateway, endpoint, 'up')

/** New connections go to b from some moment on; the log speaks when that is decided, not when it is done. */
async function onlyB(lab: Lab) {
  let inARow = 0
  await until(
    async () => {
      inARow = (await whoAnswers(lab).catch(() => '')) === 'b' ? inARow + 1 : 0
      return inARow === 20
    },
    5000,
    'twenty connections in a row reach the target that is left',
  )
}

for (const [carrier, forwardingEngine] of Object.entries(ENGINES)) {
  test(`E7 K4: a killed target is noticed by the connections that meet it (${carrier})`, async () => {
    await using lab = await Lab.create()
    const [a, b] = [named(lab, 'a'), named(lab, 'b')]
    await using gateway = await Gateway.start(lab, [
      forward('r', 8400, [target(lab, a.port), target(lab, b.port)], { forwardingEngine }),
    ])
    expect(new Set([await whoAnswers(lab), await whoAnswers(lab)])).toEqual(new Set(['a', 'b']))
    const live = await Promise.all(
      Array.from({ length: 4 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8400)),
    )
    const names = await Promise.all(live.map(async (talker) => (await talker.read(2)).trim()))
    // Its listener goes, what it has accepted stays: a process that hangs in its shutdown.
    a.stop(false)
    let refused = 0
    let refusedAt = 0
    await until(
      async () => {
        await whoAnswers(lab).catch(() => {
          refused++
          refusedAt = performance.now()
        })
        return saysDown(gateway, key(lab, a.port))
      },
      5000,
      'the log says that it is down',
    )
    const ms = (performance.now() - refusedAt).toFixed(0)
    if (refused > 0)
      console.log(`${carrier}: ${refused} clients were refused, the last ${ms} ms before the log said so`)
    // In user space another target is dialled instead, so that no client is refused at all.
    if (carrier === 'kernel') expect(refused).toBeGreaterThanOrEqual(3)
    else expect(refused).toBe(0)
    // Its connections are closed, so that their clients connect again; the others stay.
    const ended = await Promise.all(
      live.map((talker, i) => (names[i] === 'a' ? talker.gone.promise : talker.say('still here').then(() => 'alive'))),
    )
    for (const [i, how] of ended.entries())
      expect(names[i] === 'a' ? (how as { code?: string }).code : how).toBe(names[i] === 'a' ? 'ECONNRESET' : 'alive')
    await onlyB(lab)
    await until(
      () => gateway.records().filter((one) => one.reason === 'target_down').length >= 2,
      3000,
      'records say why',
    )
    const closed = gateway.records().filter((one) => one.reason === 'target_down')
    expect(new Set(closed.map((one) => one.target))).toEqual(new Set([key(lab, a.port)]))
    expect(closed.length).toBe(names.filter((name) => name === 'a').length)
    for (const talker of live) if (!talker.ended) await talker.close()
    expect((await gateway.status()).anomalies).toBe(0)
  }, 30_000)

  test(`E7: a black-holed target is noticed by the connections that get no answer (${carrier})`, async () => {
    await using lab = await Lab.create()
    const [a, b] = [named(lab, 'a'), named(lab, 'b')]
    await using gateway = await Gateway.start(
      lab,
      [forward('r', 8400, [target(lab, a.port), target(lab, b.port)], { forwardingEngine })],
      { config: { timeouts: { connect: '1s' } } },
    )
    await blackHole(lab.backend, a.port)
    const waiting = Array.from({ length: 8 }, () => whoAnswers(lab).catch((error: Error) => error))
    const answers = await Promise.all(waiting)
    await until(() => saysDown(gateway, key(lab, a.port)), 5000, 'the log says that it is down')
    // In user space each went on to the other one.
    if (carrier === 'user') expect(new Set(answers)).toEqual(new Set(['b']))
    await onlyB(lab)
  }, 30_000)

  test(`E7 K4: checks find a dead target without any traffic, and bring it back (${carrier})`, async () => {
    await using lab = await Lab.create()
    const [a, b] = [named(lab, 'a'), named(lab, 'b')]
    await using gateway = await Gateway.start(lab, [
      forward('r', 8400, [target(lab, a.port), target(lab, b.port)], { forwardingEngine, ...quick }),
    ])
    a.stop()
    const before = performance.now()
    await until(() => saysDown(gateway, key(lab, a.port)), 5000, 'the log says that it is down')
    console.log(`${carrier}: found dead after ${(performance.now() - before).toFixed(0)} ms`)
    await onlyB(lab)
    const { targets } = await gateway.ask<{ targets: object[] }>('/v1/targets')
    expect(targets).toMatchObject([
      { target: key(lab, a.port), state: 'down', share: 0, lastError: 'connection refused' },
      { target: key(lab, b.port), state: 'up', share: 1 },
    ])
    const again = named(lab, 'a', a.port)
    await until(() => saysUp(gateway, key(lab, a.port)), 5000, 'the log says that it is up')
    const seen = new Set<string>()
    await until(async () => seen.add(await whoAnswers(lab)).size === 2, 3000, 'it is used again')
    again.stop()
    await blackHole(lab.backend, b.port)
    await until(() => saysDown(gateway, key(lab, b.port)), 5000, 'the other one is found silent')
  }, 30_000)

  test(`E7: where no target is left, clients are reset at once; the first that is back serves them (${carrier})`, async () => {
    await using lab = await Lab.create()
    const [a, b] = [named(lab, 'a'), named(lab, 'b')]
    await using gateway = await Gateway.start(
      lab,
      [forward('r', 8400, [target(lab, a.port), target(lab, b.port)], { forwardingEngine, ...quick })],
      { config: { timeouts: { connect: '20s' } } },
    )
    const live = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
    await live.read(2)
    await drop(lab.backend, 'meta l4proto tcp')
    await until(() => saysDown(gateway, key(lab, a.port)) && saysDown(gateway, key(lab, b.port)), 5000, 'both are down')
    expect(await live.gone.promise).toMatchObject({ code: 'ECONNRESET' })
    await until(async () => (await gateway.route('r')).state === 'active', 5000, 'the rules say so too')
    for (let i = 0; i < 3; i++) {
      const before = performance.now()
      const how = await whoAnswers(lab).catch((error: Error & { code?: string }) => error)
      console.log(`${carrier}: reset after ${(performance.now() - before).toFixed(1)} ms`)
      // The kernel answers the SYN; user space has accepted before it can say no.
      expect(String(how)).toMatch(carrier === 'kernel' ? /ECONNREFUSED|refused/i : /ECONNRESET|closed|ended/i)
    }
    const route = await until(
      async () => {
        const found = (await gateway.route('r')) as unknown as { refused: Record<string, number> }
        return (found.refused.no_target ?? 0) >= 3 && found
      },
      5000,
      'the refusals are counted',
    )
    expect(route.refused.no_target).toBe(3)
    await heal(lab.backend)
    await until(() => saysUp(gateway, key(lab, a.port)) || saysUp(gateway, key(lab, b.port)), 5000, 'one is back')
    await until(async () => ['a', 'b'].includes(await whoAnswers(lab)), 3000, 'clients are served')
  }, 30_000)
}

test('E7: checks by http and tls tell a program that accepts from one that works; a new worker makes them too', async () => {
  await using lab = await Lab.create()
  let status = 200
  const port = 8080
  const web = lab.backend.listen(
    {
      data: (socket) => void socket.end(`HTTP/1.1 ${status} Any\r\nContent-Length: 0\r\n\r\n`),
      error: () => {},
    },
    { port },
  )
  await using gateway = await Gateway.start(lab, [
    forward('r', 8400, [target(lab, web.port)], { health: { ...quick.health, type: { http: '/healthz' } } }),
  ])
  status = 503
  await until(() => saysDown(gateway, key(lab, port)), 5000, '503 is no answer')
  expect(gateway.logText()).toContain('3 checks failed: status 503')
  const { worker } = await gateway.status()
  await lab.gateway.must(['kill', '-9', String(worker.pid)])
  await until(async () => (await gateway.status()).worker.restarts === 1, 5000, 'the next worker')
  status = 301
  await until(() => saysUp(gateway, key(lab, port)), 10_000, '301 is one')
  gateway.write([forward('r', 8400, [target(lab, web.port)], { health: { ...quick.health, type: 'tls' } })])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await until(() => /3 checks failed: TLS: /.test(gateway.logText()), 5000, 'it speaks no TLS')
}, 40_000)
