// Who is let in: lists, limits, rates; which route they get; and the redirect, which the gateway answers itself.
import { expect, test } from 'bun:test'
import net from 'node:net'
import { canonicalIp, ipBytes } from '../../src/base/addresses.ts'
import { RATE_CLIENTS_MAX } from '../../src/base/limits.ts'
import { Balancer } from '../../src/user/balance.ts'
import { fill } from '../../src/user/redirect.ts'
import { LiveRoute } from '../../src/user/route.ts'
import { Counters, Everyone, NetworkList, Rate, refusalFor } from '../../src/user/security.ts'
import { Timed, Timers } from '../../src/user/timers.ts'
import { client, connected, echo, forward, gone, open, readAll, reasons, route, server, target } from './plane.ts'

test('I1: networks, overlapping and in any order, both families and every spelling', () => {
  const list = new NetworkList([
    '10.0.0.0/8',
    '10.1.0.0/16',
    '192.168.*',
    '203.0.113.5',
    '2001:db8::/32',
    '10.255.255.255-11.0.0.3',
    '::ffff:198.51.100.0/120',
  ])
  const inside = [
    '10.0.0.0',
    '10.1.2.3',
    '10.255.255.255',
    '11.0.0.3',
    '192.168.255.1',
    '203.0.113.5',
    '::ffff:203.0.113.5',
    '2001:db8:ffff::1',
    '198.51.100.9',
  ]
  const outside = ['9.255.255.255', '11.0.0.4', '192.169.0.0', '203.0.113.6', '2001:db9::', '::1', '::ffff:203.0.113.4']
  expect(inside.filter((ip) => !list.has(ipBytes(ip)))).toEqual([])
  expect(outside.filter((ip) => list.has(ipBytes(ip)))).toEqual([])
  expect(new NetworkList([]).has(ipBytes(canonicalIp('127.0.0.1')))).toBe(false)
})

test('I2 I3 E4: a blocked client is refused by the route it matches, without a record and without the target', async () => {
  let accepted = 0
  const port = await server((socket) => (accepted++, void socket.end()))
  for (const security of [{ block: ['127.0.0.0/8'], allow: ['127.0.0.1'] }, { allow: ['10.0.0.0/8'] }]) {
    const bench = await open([
      route('first', { action: forward(port), security }),
      route('second', { action: forward(port) }),
    ])
    await gone(client(bench.port))
    bench.plane.reporter.flush()
    expect(bench.refused).toEqual(new Map([['route_ip_blocked', 1]]))
    expect([bench.opened, bench.settled]).toEqual([[], []])
    expect(bench.plane.size).toBe(0)
  }
  expect(accepted).toBe(0)
})

test('I5 I6 I8: limits refuse the one too many and free its slot', async () => {
  const bench = await open(
    [
      route('total', { action: forward(await echo()), security: { maxConnections: 2 } }),
      route('each', { action: forward(await echo()), security: { maxConnectionsPerIp: 1 } }),
      route('rate', { action: forward(await echo()), security: { rate: { count: 3, perMs: 3_600_000 } } }),
      route('watched', { action: forward(await echo()), security: { maxConnections: 1, observe: true } }),
      route('block', { action: { type: 'block' } }),
    ],
    { listeners: ['total', 'each', 'rate', 'watched', 'block'].map((name) => ({ routes: [name], peek: false })) },
  )
  const admitted = async (port: number) => {
    const socket = client(port)
    socket.write('x')
    const answer = await Promise.race([
      new Promise((resolve) => socket.once('data', () => resolve(true))),
      gone(socket).then(() => false),
    ])
    return { socket, answer }
  }
  for (const [i, expected] of [
    [true, true, false],
    [true, false],
    [true, true, true, false, false],
    [true, true],
    [false],
  ].entries()) {
    const got = []
    for (const _ of expected) got.push(await admitted(bench.ports[i]!))
    expect(got.map((one) => one.answer)).toEqual(expected)
    const before = bench.settled.length
    for (const { socket } of got) socket.destroy()
    await bench.settle(before + expected.filter(Boolean).length)
    if (i < 2) expect((await admitted(bench.ports[i]!)).answer).toBe(true)
  }
  bench.plane.reporter.flush()
  expect(Object.fromEntries(bench.refused)).toEqual({ route_limit: 2, route_ip_limit: 1, route_rate: 2, blocked: 1 })
})

test('I6: a burst never has more than its limit, not for a moment; what is refused has no record', async () => {
  let [now, most, accepted] = [0, 0, 0]
  const port = await server((socket) => {
    accepted++
    most = Math.max(most, ++now)
    socket.on('close', () => now--)
    socket.pipe(socket)
  })
  const bench = await open([route('r', { action: forward(port), security: { maxConnections: 10 } })])
  const clients = Array.from({ length: 200 }, () => client(bench.port))
  const over = clients.map(gone)
  while ((bench.refused.get('route_limit') ?? 0) < 190) await Bun.sleep(1)
  expect(bench.plane.size).toBe(10)
  for (const socket of clients) socket.destroy()
  await Promise.all(over)
  await bench.settle(10)
  bench.plane.reporter.flush()
  expect(Object.fromEntries(bench.refused)).toEqual({ route_limit: 190 })
  expect([most <= 10, accepted <= 10, bench.settled.length, bench.plane.size]).toEqual([true, true, 10, 0])
})

test('I5, I7: the limits of all routes together, over what user space carries; a close makes room', async () => {
  const to = await echo()
  const bench = await open([route('a', { action: forward(to) }), route('b', { action: forward(to) })], {
    listeners: ['a', 'b'].map((name) => ({ routes: [name], peek: false })),
    limits: { maxConnections: 2, maxConnectionsPerIp: null, rate: null },
  })
  const talk = async (i: number) => {
    const socket = client(bench.ports[i]!)
    socket.write('x')
    await new Promise((resolve) => socket.once('data', resolve))
    return socket
  }
  const [first] = [await talk(0), await talk(1)]
  await gone(client(bench.ports[1]!))
  first.destroy()
  await bench.settle(1)
  await talk(1)
  bench.plane.reporter.flush()
  expect(Object.fromEntries(bench.refused)).toEqual({ global_limit: 1 })
})

test('I5: the limits of all routes: each client has its own, and its own rate', () => {
  const everyone = new Everyone()
  everyone.set({ maxConnections: null, maxConnectionsPerIp: 1, rate: { count: 2, perMs: 1000 } })
  expect(everyone.refusalFor('a', 0)).toBeUndefined()
  everyone.counters.enter('a')
  expect([everyone.refusalFor('a', 0), everyone.refusalFor('b', 0)]).toEqual(['global_ip_limit', undefined])
  everyone.counters.leave('a')
  expect([everyone.refusalFor('a', 0), everyone.refusalFor('a', 0), everyone.refusalFor('a', 600)]).toEqual([
    undefined,
    'global_rate',
    undefined,
  ])
  everyone.set(null)
  expect(everyone.refusalFor('a', 0)).toBeUndefined()
})

test('I8: a rate remembers a bounded number of clients, and forgets those that have not come for a while', () => {
  const rate = new Rate(2, 1000)
  for (let i = 0; i < RATE_CLIENTS_MAX * 1.5; i++) rate.take(String(i), 100)
  expect(rate.clients).toBe(RATE_CLIENTS_MAX)
  expect([1, 2, 3].map(() => rate.take('x', 1500))).toEqual([true, true, false])
  expect([rate.take('x', 2000), rate.take('x', 2000)]).toEqual([true, false]) // half a second fills in one of two a second
  for (let i = 0; i < RATE_CLIENTS_MAX; i++) rate.take('y', 9000 + i * 1000)
  expect(rate.clients).toBe(1)
})

test('I1: block beats allow; nothing listed: everybody; something allowed: nobody else; mapped spellings are equal', () => {
  const verdict = (block: string[], allow: string[], client: string) => {
    const live = new LiveRoute(route('r', { security: { block, allow } }), new Counters())
    return refusalFor(live, client, { clientBytes: ipBytes(client) }, 0) ?? 'admitted'
  }
  const cases: [string[], string[], string, boolean][] = [
    [[], [], '192.0.2.1', true],
    [[], [], '2001:db8::1', true],
    [['192.0.2.0/24'], ['192.0.2.1'], '192.0.2.1', false],
    [['192.0.2.0/24'], [], '192.0.3.1', true],
    [[], ['192.0.2.0/24'], '192.0.3.1', false],
    // A list of one family says nothing good of the other.
    [[], ['192.0.2.0/24'], '2001:db8::1', false],
    [['0.0.0.0/0'], [], '2001:db8::1', true],
    [['::/0'], [], '192.0.2.1', true],
    [['::ffff:192.0.2.1'], [], '192.0.2.1', false],
    [['192.0.2.1'], [], '::ffff:192.0.2.1', false],
    [['192.0.2.1'], [], '::ffff:c000:201', false],
    [[], ['::ffff:192.0.2.0/120'], '192.0.2.77', true],
    [['10.?.?.1'], [], '10.1.2.1', false],
    [['10.?.?.1'], [], '10.11.2.1', true],
    [['192.168.*'], [], '192.168.255.255', false],
    [['10.0.0.250-10.0.1.5'], [], '10.0.1.5', false],
    [['10.0.0.250-10.0.1.5'], [], '10.0.1.6', true],
  ]
  for (const [block, allow, client, admitted] of cases)
    expect([block, allow, client, verdict(block, allow, client)]).toEqual([block, allow, client, admitted ? 'admitted' : 'route_ip_blocked']) // prettier-ignore
})

test('I8: 100,000 clients, again and again: each counted once and given back once, and the heap is flat', () => {
  const counters = new Counters()
  const rate = new Rate(3, 60_000)
  const heaps: number[] = []
  for (let round = 0; round < 6; round++) {
    for (let i = 0; i < 100_000; i++) {
      const client = `10.${round}.${i >> 8}.${i & 255}`
      counters.enter(client)
      counters.enter(client)
      rate.take(client, round * 120_000)
      counters.leave(client)
    }
    expect([counters.total, counters.byClient.size]).toEqual([100_000, 100_000])
    for (let i = 0; i < 100_000; i++) counters.leave(`10.${round}.${i >> 8}.${i & 255}`)
    expect([counters.total, counters.byClient.size]).toEqual([0, 0])
    expect(rate.clients).toBeLessThanOrEqual(RATE_CLIENTS_MAX)
    Bun.gc(true)
    heaps.push(process.memoryUsage().heapUsed)
  }
  // Without the pruning 100,000 more would be 10 MB a round.
  expect(heaps.at(-1)! - heaps[1]!).toBeLessThan(8 * 1024 * 1024)
}, 30_000)

test('I8: connections from 1,000 addresses leave no trace of them, however they ended', async () => {
  const bench = await open([route('r', { action: forward(await echo()), security: { maxConnectionsPerIp: 2 } })])
  let left = 1000
  const visitor = async () => {
    for (let i = left--; i > 0; i = left--) {
      const socket = net.connect({ port: bench.port, host: '127.0.0.1', localAddress: `127.1.${i >> 8}.${i & 255}` })
      socket.on('error', () => {})
      await connected(socket)
      if (i % 3 === 0) socket.resetAndDestroy()
      else socket.end('x')
      await gone(socket.resume())
    }
  }
  await Promise.all(Array.from({ length: 20 }, visitor))
  await bench.settle(1000)
  const { total, byClient } = bench.plane.everyone.counters
  expect([total, byClient.size, bench.plane.size]).toEqual([0, 0, 0])
}, 20_000)

test('I10: what clients can cause at will is a line a second, and the next one tells how many there were', () => {
  const live = new LiveRoute(route('r', {}), new Counters())
  const lines = Array.from({ length: 5000 }, (_, i) => live.logLine(`failed ${i}`, i)).filter(
    (line) => line !== undefined,
  )
  expect(lines).toEqual(['failed 0', 'failed 1000 (and 999 more since the last line)', 'failed 2000 (and 999 more since the last line)', 'failed 3000 (and 999 more since the last line)', 'failed 4000 (and 999 more since the last line)']) // prettier-ignore
})

test('E8: a client that no route wants is closed at once, 20 times', async () => {
  const bench = await open([route('r', { clientIps: ['10.0.0.0/8'], action: forward(1) })])
  for (let i = 0; i < 20; i++) await gone(client(bench.port))
  expect(new Set(reasons(await bench.settle(20)))).toEqual(new Set(['no_route']))
  expect(bench.plane.size).toBe(0)
})

test('E7: source-hash keeps a client with its target, and least-connections evens out', () => {
  const targets = [target(1), target(2), target(3, 2)]
  const hash = new Balancer(targets, 'source-hash')
  const share = [0, 0, 0]
  for (let i = 0; i < 4000; i++) {
    const slot = hash.pick(`10.0.${i >> 8}.${i & 255}`, [])!
    expect(hash.pick(`10.0.${i >> 8}.${i & 255}`, [])).toBe(slot)
    share[slot.target.port! - 1]!++
  }
  expect(share[0]).toBeWithin(800, 1200)
  expect(share[2]).toBeWithin(1800, 2200)
  const least = new Balancer(targets, 'least-connections')
  for (let i = 0; i < 40; i++) least.pick('', [])!.active++
  expect(least.slots.map((slot) => slot.active)).toEqual([10, 10, 20])
})

test('L1: a redirect keeps path and query, checks the host, and closes', async () => {
  const bench = await open([
    route('r', { action: { type: 'redirect', to: 'https://{host}:8443{path}', status: 308, tls: null } }),
  ])
  const ask = async (request: string) => {
    const socket = client(bench.port)
    socket.write(request)
    const { bytes } = await readAll(socket)
    socket.end()
    return bytes.toString()
  }
  const answer = await ask('GET /a/b?c=d%20e HTTP/1.1\r\nHost: Example.com:8080\r\n\r\n')
  expect(answer).toStartWith('HTTP/1.1 308 Permanent Redirect\r\n')
  expect(answer).toContain('\r\nLocation: https://example.com:8443/a/b?c=d%20e\r\n')
  expect(answer).toContain('\r\nConnection: close\r\n')
  expect(await ask('GET / HTTP/1.1\r\nHost: a\u0000b\r\n\r\n')).toStartWith('HTTP/1.1 400 ')
  expect(await ask(`GET /${'x'.repeat(20_000)} HTTP/1.1\r\n\r\n`)).toStartWith('HTTP/1.1 431 ')
  expect(await ask('SSH-2.0-x\r\n\r\n')).toBe('')
  const records = await bench.settle(4)
  expect(reasons(records)).toEqual(['responded', 'responded', 'responded', 'malformed_hello'])
  const slow = client(bench.port)
  for (const byte of 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n') {
    slow.write(byte)
    await new Promise((resolve) => setImmediate(resolve))
  }
  expect((await readAll(slow)).bytes.toString()).toContain('https://a.test:8443/\r\n')
  expect(fill('{host}{path}{nothing}', { host: '{path}', port: '1', path: '/{host}' })).toBe('{path}/{host}{nothing}')
})

test('E13: redirects by Host beside a name that is passed through', async () => {
  const bench = await open(
    [
      route('a', { domains: ['a.test'], action: { type: 'redirect', to: 'https://a{path}', status: 301, tls: null } }),
      route('any', {
        domains: ['*.b.test'],
        action: { type: 'redirect', to: 'https://b{path}', status: 302, tls: null },
      }),
    ],
    { peek: true },
  )
  const ask = async (host: string) => {
    const socket = client(bench.port)
    socket.write(`GET /p HTTP/1.1\r\nHost: ${host}\r\n\r\n`)
    const { bytes } = await readAll(socket)
    socket.end()
    return /Location: (.*)\r/.exec(bytes.toString())?.[1]
  }
  expect([await ask('a.test'), await ask('x.b.test'), await ask('c.test')]).toEqual([
    'https://a/p',
    'https://b/p',
    undefined,
  ])
  expect(reasons(await bench.settle(3)).sort()).toEqual(['no_route', 'responded', 'responded'])
})

test('IPv4 clients of a dual-stack listener have one spelling', async () => {
  const bench = await open([route('r', { action: forward(await echo()) })], {
    listeners: [{ routes: ['r'], peek: false, address: '::' }],
  })
  const socket = client(bench.port)
  await connected(socket)
  const local = socket.localPort
  socket.destroy()
  expect((await bench.settle(1))[0]).toMatchObject({
    client: `127.0.0.1:${local}`,
    listener: `127.0.0.1:${bench.port}`,
  })
})

test('G14 G18: deadlines far and near, moved and cleared; the wheel stops when nothing is armed', async () => {
  const timers = new Timers()
  const fired: string[] = []
  class One extends Timed {
    constructor(readonly name: string) {
      super()
    }
    override expired() {
      fired.push(this.name)
      if (this.name === 'twice' && fired.filter((name) => name === 'twice').length < 2) timers.arm(this, 100)
      if (this.name === 'killer') timers.disarm(victim)
    }
  }
  const victim = new One('victim')
  const [early, late, never, moved, twice, killer, far] = [
    'early',
    'late',
    'never',
    'moved',
    'twice',
    'killer',
    'far',
  ].map((name) => new One(name)) as [One, One, One, One, One, One, One]
  timers.arm(victim, 250)
  timers.arm(killer, 250) // of one slot, the last armed is the first to expire
  timers.arm(early, 50)
  timers.arm(late, 400)
  timers.arm(never, 100)
  timers.arm(moved, 100)
  timers.arm(twice, 100)
  timers.arm(far, 2 ** 31)
  timers.disarm(never)
  timers.arm(moved, 500)
  while (!fired.includes('moved')) await Bun.sleep(20)
  expect(fired.toSorted()).toEqual(['early', 'killer', 'late', 'moved', 'twice', 'twice'])
  timers.disarm(far)
  timers.disarm(far)
  expect(timers.armed).toBe(0)
})
