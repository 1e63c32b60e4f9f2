// plan(): every route's carrier with its reason, route numbers, who owns a port, slots. Pure, so tested purely.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import type { Route } from '../../src/config/schema.ts'
import { assignSlots, SLOTS } from '../../src/plan/kernel-state.ts'
import { plan } from '../../src/plan/plan.ts'
import type { Facts } from '../../src/plan/types.ts'

const facts = (more: Partial<Facts> = {}): Facts => ({
  kernelUnusable: null,
  numbers: {},
  numbersInUse: [],
  resolved: {},
  markBase: 0x51000000,
  programVersion: 'test',
  ...more,
})
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

function made(routes: Route[], more: Partial<Facts> = {}) {
  const checked = check({ routes })
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
    [
      'lists',
      forward('a', 80, {}, { security: { ipBlockList: ['10.0.0.1'] } }),
      {},
      'user: its lists and limits are enforced in user space',
    ],
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

  test('a route for some clients keeps the kernel off its port', () => {
    const routes = made([forward('some', 80, {}, {}, { clientIps: ['10.0.0.0/8'] }), forward('rest', 80)]).routes
    expect(routes.map((route) => route.carrier)).toEqual(['user', 'user'])
  })
})

describe('H4: elements', () => {
  test('one listener, one target: whole state', () => {
    const { kernel } = made([forward('web', 8400)])
    expect(Object.fromEntries(Object.entries(kernel).filter(([, elements]) => Object.keys(elements).length))).toEqual({
      routes: { '0x51000001': { comment: 'web' } },
      program: { '0x00000001': { value: '0x51000000', comment: 'test' } },
      listen: { '8400': { value: '0x51000001' } },
      target4: { '0x51000001': { value: '10.0.0.5 . 80' } },
    })
  })

  test('E1: ranges give way to narrower routes, whatever carries those', () => {
    const { kernel } = made([
      forward('range', [{ from: 8000, to: 8010 }]),
      forward('one', 8005, { targets: [{ host: '10.0.0.6', port: 1 }] }),
      { name: 'hand', match: { ports: 8007 }, action: { type: 'socket-handler', handler: 'x' } } as Route,
    ])
    expect(Object.entries(kernel.listen!).map(([ports, element]) => `${ports} ${element.value}`)).toEqual(
      expect.arrayContaining(['8000-8004 0x51000001', '8005 0x51000002', '8006 0x51000001', '8008-8010 0x51000001']),
    )
    expect(Object.keys(kernel.listen!)).toHaveLength(4)
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
    expect(kernel.listen4).toEqual({ '10.0.0.1 . 80': { value: '0x51000000' } })
    expect(kernel.listen).toEqual({ '80': { value: '0x51000001' } })
  })

  test('E6/H12: families and kept ports go to maps of their own', () => {
    const { kernel } = made([
      forward('a', 80, {
        targets: [
          { host: '10.0.0.5', port: 'preserve' },
          { host: '2001:db8::5', port: 8 },
        ],
        preserveSourceIp: true,
      }),
    ])
    expect([kernel.keep4, kernel.target6, kernel.preserve]).toEqual([
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
    const counts = Map.groupBy(Object.values(kernel.slot4!), (element) => element.value)
    expect([...counts].map(([target, slots]) => [target, slots.length])).toEqual([
      ['10.0.0.1 . 1', 192],
      ['10.0.0.2 . 1', 64],
    ])
  })

  test('source-hash fills the hash maps', () => {
    const { kernel } = made([
      forward('a', 80, {
        balance: 'source-hash',
        targets: [
          { host: '10.0.0.1', port: 1 },
          { host: '10.0.0.2', port: 1 },
        ],
      }),
    ])
    expect(Object.keys(kernel.hash4!)).toHaveLength(SLOTS)
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
      { key: '[::]:443', address: '::', port: 443, peek: true, routes: ['first', 'exact', 'wild', 'any'] },
    ])
  })
  test('a range over 256 ports has no twins', () =>
    expect(made([forward('r', [{ from: 1000, to: 1256 }])]).listeners).toEqual([]))
})

test('slots: shares by largest remainder, every slot given, neighbours differ', () => {
  for (let round = 0; round < 200; round++) {
    const weights = Array.from({ length: 2 + Math.floor(Math.random() * 20) }, () => 1 + Math.floor(Math.random() * 50))
    const slots = assignSlots(weights)
    expect(slots).toHaveLength(SLOTS)
    const total = weights.reduce((sum, weight) => sum + weight, 0)
    weights.forEach((weight, i) =>
      expect(Math.abs(slots.filter((slot) => slot === i).length - (weight / total) * SLOTS)).toBeLessThan(1),
    )
  }
  expect(assignSlots([1, 1]).slice(0, 4)).toEqual([0, 1, 0, 1])
})
