// plan(): every route's carrier with its reason, route numbers, who owns a port, slots. Pure, so tested purely.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import type { Route } from '../../src/config/schema.ts'
import { emptyState } from '../../src/plan/kernel-state.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import { assignSlots } from '../../src/plan/slots.ts'
import type { Facts, KernelElement, KernelState } from '../../src/plan/types.ts'

const facts = (more: Partial<Facts> = {}): Facts => ({ ...noFacts(0x51000000, 'test'), ...more })

/** The elements of all groups, by set or map. */
function maps(state: KernelState): Record<string, Record<string, KernelElement>> {
  const out: Record<string, Record<string, KernelElement>> = {}
  for (const group of Object.values(state.groups))
    for (const [map, elements] of Object.entries(group)) out[map] = { ...out[map], ...elements }
  return out
}
const forward = (
  name: string,
  ports: Route['match']['ports'],
  action: object = {},
  more: object = {},
  match: object = {},
): Route =>
  ({
    name,
    match: { ports, ...match },
    action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 80 }], ...action },
    ...more,
  }) as Route

function made(routes: Route[], more: Partial<Facts> = {}, config: object = {}) {
  const checked = check({ routes, ...config })
  if (!checked.ok) throw new Error(JSON.stringify(checked.problems))
  return plan(checked.config, facts(more))
}
const carrierOf = (route: Route, more: Partial<Facts> = {}) => {
  const { carrier, reason } = made([route], more).routes[0]!
  return `${carrier}: ${reason}`
}

describe('H1/H15: the carrier follows from what the route needs', () => {
  test.each<[string, Route, Partial<Facts>, string]>([
    ['plain', forward('a', 80), {}, 'kernel: nothing has to be read'],
    ['user on request', forward('a', 80, { forwardingEngine: 'user' }), {}, "user: forwardingEngine is 'user'"],
    [
      'passthrough without a name',
      forward('a', 443, { tls: { mode: 'passthrough' } }),
      {},
      'kernel: nothing has to be read',
    ],
    [
      'passthrough by name',
      forward('a', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'x.test' }),
      {},
      'splice: the server name has to be read, the rest not',
    ],
    [
      'terminate',
      forward('a', 443, { tls: { mode: 'terminate', certificate: 'self-signed' } }),
      {},
      'user: TLS ends here',
    ],
    [
      're-encrypt',
      forward('a', 443, { tls: { mode: 'terminate-and-reencrypt', certificate: 'self-signed' } }),
      {},
      'user: TLS ends here and begins again to the target',
    ],
    [
      'loopback target',
      forward('a', 80, { targets: [{ host: '127.0.0.1', port: 1 }] }),
      {},
      'user: target 127.0.0.1 is a loopback address, which the kernel does not forward to',
    ],
    [
      'unix target',
      forward('a', 80, { targets: [{ host: 'unix:/run/x' }] }),
      {},
      'user: target unix:/run/x is a unix socket',
    ],
    [
      'unresolved name',
      forward('a', 80, { targets: [{ host: 'db.test', port: 1 }] }),
      {},
      'user: target db.test is not resolved yet',
    ],
    [
      'resolved name',
      forward('a', 80, { targets: [{ host: 'db.test', port: 1 }] }),
      { resolved: { 'db.test': ['10.0.0.9'] } },
      'kernel: nothing has to be read',
    ],
    ['lists', forward('a', 80, {}, { security: { ipBlockList: ['10.0.0.1'] } }), {}, 'kernel: nothing has to be read'],
    ['no nft', forward('a', 80), { kernelUnusable: 'nft is not installed' }, 'user: nft is not installed'],
    [
      'handler',
      { name: 'a', match: { ports: 7 }, action: { type: 'socket-handler', handler: './x.ts' } } as Route,
      {},
      'user: a handler reads the bytes',
    ],
  ])('%s', (_name, route, more, expected) => expect(carrierOf(route, more)).toBe(expected))

  test('a route that shares its port with a name to read is spliced, and says with whom', () => {
    const routes = made([
      forward('named', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'x.test' }),
      forward('rest', 443),
    ]).routes
    expect(routes.map((route) => [route.name, route.carrier])).toEqual([
      ['named', 'splice'],
      ['rest', 'splice'],
    ])
    expect(routes[1]!.reason).toBe('shares port 443 with "named", whose server name has to be read')
  })

  test('a route that goes before the named one takes all of the port into the kernel', () => {
    const routes = made([
      forward('named', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'x.test' }),
      forward('all', 443, {}, { priority: 5 }),
    ]).routes
    expect(routes.find((route) => route.name === 'all')!.carrier).toBe('kernel')
  })

  test('C1: a durable log keeps the kernel off everything; what says more is said', () => {
    const routes = [
      forward('plain', 80),
      forward('named', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'x.test' }),
      forward('asked', 81, { forwardingEngine: 'user' }),
    ]
    const log = { access: { file: '/var/log/access.jsonl', durable: true } }
    const carriers = made(routes, {}, { log }).routes.map(({ name, carrier, reason }) => [name, carrier, reason])
    expect(carriers).toEqual([
      ['plain', 'user', 'durable log'],
      ['named', 'splice', 'the server name has to be read, the rest not'],
      ['asked', 'user', "forwardingEngine is 'user'"],
    ])
    const not = made(routes, {}, { log: { access: { ...log.access, durable: false } } })
    expect(not.routes[0]!.carrier).toBe('kernel')
  })

  test('a route for some clients keeps the kernel off its port', () => {
    const routes = made([forward('some', 80, {}, {}, { clientIps: ['10.0.0.0/8'] }), forward('rest', 80)]).routes
    expect(routes.map((route) => route.carrier)).toEqual(['user', 'user'])
  })
})

describe('H4: elements', () => {
  test('one listener, one target: whole state', () => {
    const { kernel } = made([forward('web', 8400)])
    expect(maps(kernel)).toEqual({
      routes: { '0x51000001': { comment: 'web' } },
      program: { '0x00000001': { value: '0x51000000', comment: 'test' } },
      listen: { 'tcp . 8400': { value: '0x51000001' } },
      target4: { '0x51000001': { value: '10.0.0.5 . 80' } },
      timeouts: { '0x51000001': { value: 'jump timeout_tcp_15840_65_70' } },
    })
  })

  test('E1: ranges give way to narrower routes, whatever carries those', () => {
    const { kernel } = made([
      forward('range', [{ from: 8000, to: 8010 }]),
      forward('one', 8005, { targets: [{ host: '10.0.0.6', port: 1 }] }),
      { name: 'hand', match: { ports: 8007 }, action: { type: 'socket-handler', handler: 'x' } } as Route,
    ])
    const { listen, listen_range } = maps(kernel)
    expect([listen, listen_range]).toEqual([
      { 'tcp . 8005': { value: '0x51000002' }, 'tcp . 8006': { value: '0x51000001' } },
      { 'tcp . 8000-8004': { value: '0x51000001' }, 'tcp . 8008-8010': { value: '0x51000001' } },
    ])
  })

  test('E1: an address of its own in user space does not fall through to a kernel route on all addresses', () => {
    const { kernel } = made([
      forward('all', 80),
      {
        name: 'hand',
        match: { ports: 80, addresses: ['10.0.0.1'] },
        action: { type: 'socket-handler', handler: 'x' },
      } as Route,
    ])
    const { listen, listen4, divert } = maps(kernel)
    expect([listen4, listen, divert]).toEqual([
      { '10.0.0.1 . tcp . 80': { value: '0x51000000' } },
      { 'tcp . 80': { value: '0x51000001' } },
      { '0x51000000': { value: 'goto user_space' } },
    ])
  })

  test('E6/H12: families and kept ports go to maps of their own', () => {
    const { kernel } = made([
      forward('a', [{ from: 80, to: 81 }], {
        targets: [
          { host: '10.0.0.5', port: 'preserve' },
          { host: '2001:db8::5', port: 8 },
        ],
        preserveSourceIp: true,
      }),
    ])
    const { keep4, target6, preserve } = maps(kernel)
    expect([keep4, target6, preserve]).toEqual([
      { '0x51000001': { value: '10.0.0.5' } },
      { '0x51000001': { value: '2001:db8::5 . 8' } },
      { '0x51000001': {} },
    ])
  })

  test('several targets share the slots by weight', () => {
    const { kernel } = made([
      forward('a', 80, {
        targets: [
          { host: '10.0.0.1', port: 1, weight: 3 },
          { host: '10.0.0.2', port: 1 },
          { host: '10.0.0.3', port: 1, weight: 0 },
        ],
      }),
    ])
    const { slot4, balance } = maps(kernel)
    const counts = Map.groupBy(Object.values(slot4!), (element) => element.value)
    expect([...counts].map(([target, slots]) => [target, slots.length])).toEqual([
      ['10.0.0.1 . 1', 12],
      ['10.0.0.2 . 1', 4],
    ])
    expect(balance).toEqual({ '0x51000001': { value: 'goto turn_1_16_0' } })
  })

  test('E7: source-hash chooses the slot by the client', () => {
    const { kernel } = made([
      forward('a', 80, {
        balance: 'source-hash',
        targets: [
          { host: '10.0.0.1', port: 1 },
          { host: '10.0.0.2', port: 1 },
        ],
      }),
    ])
    expect(maps(kernel).balance).toEqual({ '0x51000001': { value: 'goto hash_16_0' } })
  })
})

describe('route numbers', () => {
  const numbers = (routes: Route[], more: Partial<Facts> = {}) =>
    Object.fromEntries(made(routes, more).routes.map((route) => [route.name, route.number]))

  test('a name keeps its number, a new one is above all that ever were', () => {
    expect(numbers([forward('a', 1), forward('b', 2)])).toEqual({ a: 1, b: 2 })
    expect(numbers([forward('c', 3), forward('b', 2)], { numbers: { a: 1, b: 2 } })).toEqual({ b: 2, c: 3 })
  })
  test('H9: a number that live flows carry is not given to a new route', () =>
    expect(numbers([forward('new', 1)], { numbersInUse: [1, 7] })).toEqual({ new: 8 }))
  test('numbers wrap around past those in use', () =>
    expect(numbers([forward('new', 1), forward('next', 2)], { numbersInUse: [1, 0xffffff] })).toEqual({
      new: 2,
      next: 3,
    }))
})

describe('listeners', () => {
  test('E5/E8: one per port and address, its routes in the order in which they are tried', () => {
    const { listeners } = made([
      forward('any', 443),
      forward('wild', 443, { tls: { mode: 'passthrough' } }, {}, { domains: '*.x.test' }),
      forward('exact', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'a.x.test' }),
      forward('first', 443, { tls: { mode: 'passthrough' } }, { priority: 1 }, { domains: '*.test' }),
      forward('off', 443, {}, { enabled: false, priority: 9 }),
    ])
    expect(listeners).toEqual([
      { key: '[::]:443', address: '::', port: 443, peek: true, trusted: [], routes: ['first', 'exact', 'wild', 'any'] },
    ])
  })
  test('a range over 256 ports has no twins', () =>
    expect(made([forward('r', [{ from: 1000, to: 1256 }])]).listeners).toEqual([]))
})

describe('slot tables', () => {
  const shares = (weights: number[]) => weights.map((weight, i) => ({ value: `t${i}`, weight }))
  const random = (n: number) => Math.floor(Math.random() * n)
  const count = (slots: string[], value: string) => slots.filter((slot) => slot === value).length

  test('E7: a power of two, and every weight within 5 %', () => {
    for (let round = 0; round < 300; round++) {
      const weights = Array.from({ length: 2 + random(8) }, () => 1 + random(10))
      const slots = assignSlots(shares(weights))
      expect(Math.log2(slots.length) % 1).toBe(0)
      const total = weights.reduce((sum, weight) => sum + weight, 0)
      weights.forEach((weight, i) => {
        const exact = (weight / total) * slots.length
        expect(Math.abs(count(slots, `t${i}`) - exact)).toBeLessThanOrEqual(exact * 0.05)
      })
    }
  })

  test('E7: turns: neighbours differ', () =>
    expect(assignSlots(shares([1, 1])).slice(0, 4)).toEqual(['t0', 't1', 't0', 't1']))

  test('E7: a change of targets moves at most 1.2 times the ideal share, through a whole history of changes', () => {
    let [moved, ideal] = [0, 0]
    for (let round = 0; round < 100; round++) {
      const present = new Map(Array.from({ length: 3 + random(6) }, (_, i) => [`t${i}`, 1]))
      let slots = assignSlots([...present].map(([value, weight]) => ({ value, weight })))
      for (let step = 0; step < 6; step++) {
        const before = new Map(present)
        if (random(2) === 0 && present.size > 2) present.delete([...present.keys()][random(present.size)]!)
        else present.set(`n${round}-${step}`, 1)
        const next = assignSlots(
          [...present].map(([value, weight]) => ({ value, weight })),
          slots,
        )
        const same = next.filter((value, slot) => value === slots[slot % slots.length]).length
        // The share of connections that cannot stay: of targets that are gone, or that now have less.
        const share = (of: Map<string, number>, value: string) => (of.get(value) ?? 0) / of.size
        const gone = [...before.keys()].reduce((sum, v) => sum + Math.max(0, share(before, v) - share(present, v)), 0)
        moved += 1 - same / next.length
        ideal += gone
        slots = next
      }
    }
    expect(moved / ideal).toBeLessThanOrEqual(1.2)
  })

  test('E7: source-hash: a target that goes moves nobody but its own clients, one that comes only to itself', () => {
    // As the kernel does it: reciprocal_scale, no remainder.
    const slotOf = (slots: string[], hash: number) => slots[Math.floor((hash / 4096) * slots.length)]!
    const four = assignSlots(shares([1, 1, 1, 1]), [], 'hash')
    const three = assignSlots(shares([1, 1, 1]), four, 'hash')
    const five = assignSlots(shares([1, 1, 1, 1, 1]), four, 'hash')
    expect([four.length, three.length, five.length]).toEqual([16, 128, 128])
    for (let hash = 0; hash < 4096; hash++) {
      if (slotOf(four, hash) !== 't3') expect(slotOf(three, hash)).toBe(slotOf(four, hash))
      if (slotOf(five, hash) !== 't4') expect(slotOf(five, hash)).toBe(slotOf(four, hash))
    }
  })

  test('E7: the table in the kernel is kept: a plan moves only what it must', () => {
    const route = (hosts: string[]) => forward('a', 80, { targets: hosts.map((host) => ({ host, port: 1 })) })
    const three = made([route(['10.0.0.1', '10.0.0.2', '10.0.0.3'])]).kernel
    const four = made([route(['10.0.0.4', '10.0.0.3', '10.0.0.2', '10.0.0.1'])], {
      before: three,
      numbers: { a: 1 },
    }).kernel
    const [before, after] = [maps(three).slot4!, maps(four).slot4!]
    const moved = Object.keys(after).filter((slot) => after[slot]!.value !== before[slot]!.value)
    expect(moved.every((slot) => after[slot]!.value === '10.0.0.4 . 1')).toBe(true)
    expect(moved.length).toBe(Object.keys(after).length / 4)
  })
})

describe('lists and limits', () => {
  test('H13/I1: networks become intervals without overlaps, block and allow apart, both families', () => {
    const { kernel } = made([
      forward(
        'a',
        80,
        {},
        {
          security: {
            ipAllowList: ['10.0.0.0/8', '10.1.*', '::ffff:192.0.2.1', '2001:db8::/32'],
            ipBlockList: ['10.0.0.7'],
          },
        },
      ),
    ])
    const { allow4, allow6, allowed, block4, gate } = maps(kernel)
    expect({ allow4, allow6, allowed, block4, gate }).toEqual({
      allow4: { '0x51000001 . 10.0.0.0-10.255.255.255': {}, '0x51000001 . 192.0.2.1': {} },
      allow6: { '0x51000001 . 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff': {} },
      allowed: { '0x51000001': {} },
      block4: { '0x51000001 . 10.0.0.7': {} },
      gate: { '0x51000001': { value: 'jump limits' } },
    })
  })

  test('H14/I5: limits of a route in user space are in the kernel too, and its connections go to user space', () => {
    const { kernel } = made([
      {
        name: 'hand',
        match: { ports: 80 },
        action: { type: 'socket-handler', handler: 'x' },
        security: { maxConnections: 5, maxConnectionsPerIp: 2, connectionRatePerIp: '3/minute' },
      } as Route,
    ])
    const { max, client_max, client_rate, gate, divert, listen } = maps(kernel)
    expect({ max, client_max, client_rate, gate, divert, listen }).toEqual({
      max: { '0x51000001': { over: 5 } },
      client_max: { '0x51000001': { value: 'jump client_max_2' } },
      client_rate: { '0x51000001': { value: 'jump client_rate_3_minute' } },
      gate: { '0x51000001': { value: 'jump limits' } },
      divert: { '0x51000001': { value: 'goto user_space' } },
      listen: { 'tcp . 80': { value: '0x51000001' } },
    })
  })

  test('I5: global limits see every port, also those whose route only user space can tell', () => {
    const { kernel } = made(
      [forward('plain', 80), forward('named', 443, { tls: { mode: 'passthrough' } }, {}, { domains: 'a.test' })],
      {},
      { limits: { maxConnections: 9, connectionRatePerIp: '5/second' } },
    )
    const { max_all, client_rate_all, gate, listen, divert } = maps(kernel)
    expect({ max_all, client_rate_all, gate, listen, divert }).toEqual({
      max_all: { '0x51000000': { over: 9 } },
      client_rate_all: { '0x51000000': { value: 'jump client_rate_all_5_second' } },
      gate: { '0x51000000': { value: 'jump limits' }, '0x51000001': { value: 'jump limits' } },
      listen: { 'tcp . 80': { value: '0x51000001' }, 'tcp . 443': { value: '0x51000000' } },
      divert: { '0x51000000': { value: 'goto user_space' } },
    })
  })

  test('nothing for the kernel to do: nothing but the program', () =>
    expect(made([forward('a', 80)], { kernelUnusable: 'no' }).kernel.groups).toEqual({
      '': { program: { '0x00000001': { value: '0x51000000', comment: 'test' } } },
    }))
})

describe('targets that are down, drained or not there', () => {
  const two = forward('a', 80, {
    targets: [
      { host: '10.0.0.1', port: 1 },
      { host: '10.0.0.2', port: 1 },
    ],
  })
  test('E7: one that is down has no slots, one that is left needs none', () =>
    expect(maps(made([two], { down: { a: { '10.0.0.1:1': true } } }).kernel).target4).toEqual({
      '0x51000001': { value: '10.0.0.2 . 1' },
    }))
  test('when none is left, or the route is drained, connections are refused and user space knows', () => {
    const none = made([two], { down: { a: { '10.0.0.1:1': true } }, drained: { '10.0.0.2:1': true } })
    expect(maps(none.kernel).divert).toEqual({ '0x51000001': { value: 'goto refuse_no_target' } })
    expect(
      (none.routes[0]!.user.action as { targets: { weight: number }[] }).targets.map(({ weight }) => weight),
    ).toEqual([0, 0])
    const draining = made([two], { draining: { a: true } })
    expect(maps(draining.kernel).divert).toEqual({ '0x51000001': { value: 'goto refuse_draining' } })
    expect(draining.routes[0]!.user.draining).toBe(true)
  })
  test('E7: shares are for routes that choose by connections, and for the kernel only', () => {
    const shares = { a: { '10.0.0.1:1': 1, '10.0.0.2:1': 63 } }
    expect(made([two], { shares }).routes[0]!.endpoints.map(({ share }) => share)).toEqual([1, 1])
    const least = { ...two, action: { ...two.action, balance: 'least-connections' } } as Route
    const [planned] = made([least], { shares }).routes
    expect(planned!.endpoints.map(({ share }) => share)).toEqual([1, 63])
    expect((planned!.user.action as { targets: { weight: number }[] }).targets.map(({ weight }) => weight)).toEqual([
      1, 1,
    ])
  })
  test('E6: a name shares its weight among its addresses', () =>
    expect(
      made([forward('a', 80, { targets: [{ host: 'db.test', port: 5 }] })], {
        resolved: { 'db.test': ['10.0.0.8', '10.0.0.9'] },
      }).routes[0]!.endpoints,
    ).toMatchObject([
      { key: '10.0.0.8:5', target: 'db.test:5', name: 'db.test', weight: 0.5 },
      { key: '10.0.0.9:5', target: 'db.test:5', name: 'db.test', weight: 0.5 },
    ]))
})

describe('UDP', () => {
  test('H12: is carried by the kernel, its port held by a socket, beside TCP of the same port', () => {
    const { kernel, reservations, listeners } = made([forward('t', 53), forward('u', 53, {}, {}, { protocol: 'udp' })])
    expect([reservations.map(({ key }) => key), listeners.map(({ routes }) => routes)]).toEqual([['[::]:53'], [['t']]])
    const { listen, timeouts } = maps(kernel)
    expect([listen, timeouts!['0x51000002']]).toEqual([
      { 'tcp . 53': { value: '0x51000001' }, 'udp . 53': { value: '0x51000002' } },
      { value: 'jump timeout_udp_180' },
    ])
  })
  test('H15: what needs user space is refused by name', () => {
    const checked = check({
      routes: [
        forward(
          'a',
          53,
          { targets: [{ host: '127.0.0.1', port: 53 }] },
          {},
          { protocol: 'udp', addresses: ['127.0.0.1'] },
        ),
        forward('b', 54, { tls: { mode: 'passthrough' } }, {}, { protocol: 'udp', domains: 'a.test' }),
      ],
    })
    expect(checked.ok ? [] : checked.problems.map(({ path }) => path)).toEqual([
      'routes[0].action.targets[0].host',
      'routes[0].match.addresses[0]',
      'routes[1].match.protocol',
    ])
  })
})

test('a plan that changes one route leaves the groups of the others the same objects', () => {
  const one = made([forward('a', 80), forward('b', 81)])
  const two = made([forward('a', 80), forward('b', 81, { targets: [{ host: '10.0.0.9', port: 1 }] })], {
    before: one.kernel,
    numbers: { a: 1, b: 2 },
  })
  expect(two.kernel.groups['0x51000001']).toBe(one.kernel.groups['0x51000001']!)
  expect(two.kernel.groups['0x51000002']).not.toBe(one.kernel.groups['0x51000002']!)
  expect(emptyState().groups).toEqual({})
})

test('E9: routes and targets may be named like what every object has', () => {
  const names = ['constructor', 'toString', 'valueOf', 'hasOwnProperty']
  const routes = names.map((name, i) => forward(name, 7000 + i, { targets: [{ host: name.toLowerCase(), port: 80 }] }))
  const made = plan({ routes }, facts())
  expect(made.routes.map(({ number }) => number)).toEqual([1, 2, 3, 4])
  expect(made.routes.map(({ endpoints }) => endpoints.map(({ key }) => key))).toEqual([
    ['constructor:80'],
    ['tostring:80'],
    ['valueof:80'],
    ['hasownproperty:80'],
  ])
})
