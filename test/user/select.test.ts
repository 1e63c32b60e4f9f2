// E4, E5: which route a connection gets, against a slow reading of the same sentence; in the order in which plans list them.
import { expect, test } from 'bun:test'
import { ipBytes } from '../../src/base/addresses.ts'
import { matchesName, narrowness } from '../../src/base/names.ts'
import { check } from '../../src/config/check.ts'
import type { Route } from '../../src/config/schema.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import { LiveRoute } from '../../src/user/route.ts'
import { Counters } from '../../src/user/security.ts'
import { selectRoute, type FirstBytes } from '../../src/plan/choose.ts'

const byName = (name: string, domains: string | string[], more: object = {}, match: object = {}) => ({
  name,
  match: { ports: 443, domains, ...match },
  action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 80 }], tls: { mode: 'passthrough' } },
  ...more,
})

function listening(routes: unknown[]): LiveRoute[] {
  const checked = check({ routes })
  if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
  const made = plan(checked.config, noFacts(0x51000000, 'v'))
  return made.listeners[0]!.routes.map(
    (name) => new LiveRoute(made.routes.find((route) => route.name === name)!.user, new Counters()),
  )
}

const chosen = (routes: LiveRoute[], name: string | undefined, client = '192.0.2.1', first: FirstBytes = 'tls') =>
  selectRoute(routes, first, name, { clientBytes: ipBytes(client) })?.name

test('E5: priority, then the pattern that fits best, then told-apart clients; disabled ones are not there', () => {
  const routes = listening([
    byName('any', '*'),
    byName('wild', '*.example.com'),
    byName('narrow', ['*.api.example.com', 'other.test']),
    byName('exact', 'x.api.example.com'),
    byName('office', '*.example.com', {}, { clientIps: ['10.0.0.0/8'] }),
    byName('off', 'y.api.example.com', { enabled: false, priority: 9 }),
    byName('first', '*.first.example.com', { priority: 5 }),
    byName('second', 'a.first.example.com'),
    // One of its patterns is exact: for other names it is no better than what says more.
    byName('mixed', ['one.test', '*.com', '*']),
  ])
  expect(
    Object.fromEntries(
      [
        'x.api.example.com',
        'y.api.example.com',
        'z.example.com',
        'a.first.example.com',
        'one.test',
        'q.com',
        'q.org',
      ].map((name) => [name, chosen(routes, name)]),
    ),
  ).toEqual({
    'x.api.example.com': 'exact',
    'y.api.example.com': 'narrow',
    'z.example.com': 'wild',
    'a.first.example.com': 'first',
    'one.test': 'mixed',
    'q.com': 'mixed',
    'q.org': 'mixed',
  })
  expect(chosen(routes, 'z.example.com', '10.1.2.3')).toBe('office')
  expect(chosen(routes, 'x.api.example.com', '10.1.2.3')).toBe('exact')
  expect(chosen(routes, undefined)).toBe('mixed')
})

test('E4: who is blocked by the route that fits best is not given to the next one', () => {
  const routes = listening([
    byName('closed', 'a.test', { security: { ipBlockList: ['192.0.2.0/24'] } }),
    byName('open', '*.test'),
    byName('any', '*'),
  ])
  expect(chosen(routes, 'a.test', '192.0.2.1')).toBe('closed')
})

for (const [listeners, size] of [
  [2000, 6],
  [300, 60],
] as const)
  test(`E5: ${listeners} random listeners of up to ${size} routes choose what the sentence says`, () => {
    const random = (n: number) => Math.floor(Math.random() * n)
    const one = <T>(items: readonly T[]): T => items[random(items.length)]!
    const patterns = [
      '*',
      '*.test',
      '*.a.test',
      'x.a.test',
      'y.a.test',
      'a.*',
      '*.a.*',
      'x*.a.test',
      '*x.a.test',
      'a.test',
    ] as const
    const found = new Set<string | undefined>()
    for (let round = 0; round < listeners; round++) {
      const configured: Route[] = []
      for (let i = 0; i < 1 + random(size); i++) {
        const domains = Array.from({ length: 1 + random(3) }, () => one(patterns))
        const match = random(3) === 0 ? { clientIps: [one(['10.0.0.0/8', '192.0.2.0/24'])] } : {}
        configured.push(byName(`r${i}`, domains, { priority: random(2) }, match) as Route)
      }
      const seen = new Set<string>()
      // The same match twice would be refused.
      const differing = configured.filter((route) => {
        const key = JSON.stringify([
          [...new Set([route.match.domains].flat())].toSorted(),
          route.match.clientIps,
          route.priority,
        ])
        return !seen.has(key) && seen.add(key)
      })
      const routes = listening(differing)
      for (const name of ['x.a.test', 'xx.a.test', 'y.a.test', 'z.test', 'a.test', 'a.com', undefined])
        for (const client of ['10.1.1.1', '192.0.2.9', '203.0.113.1']) {
          const got = chosen(routes, name, client)
          found.add(got)
          const fits = differing.flatMap((route) => {
            const list = route.match.clientIps?.[0]
            if (list && !client.startsWith(list === '10.0.0.0/8' ? '10.' : '192.0.2.')) return []
            const by = [route.match.domains!].flat().filter((pattern) => matchesName(pattern, name))
            if (by.length === 0) return []
            const rank = [route.priority!, Math.max(...by.map(narrowness)), list ? 1 : 0]
            return [{ name: route.name, rank: rank[0]! * 1e6 + rank[1]! * 10 + rank[2]! }]
          })
          const top = Math.max(...fits.map(({ rank }) => rank))
          const allowed = fits.filter(({ rank }) => rank === top).map(({ name }) => name as string | undefined)
          if (allowed.length === 0) allowed.push(undefined)
          if (!allowed.includes(got)) expect({ differing, name, client, got }).toEqual({ differing, name, client, got: allowed[0] }) // prettier-ignore
        }
    }
    expect(found.size).toBeGreaterThan(6)
  })

test('E1: what a match may say: ports, names, addresses, clients, in every form and together', () => {
  const keys = (ports: unknown, more: object = {}) => {
    const checked = check({ routes: [{ name: 'r', match: { ports, ...more }, action: { type: 'block' } }] })
    if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
    return plan(checked.config, noFacts(0x51000000, 'v')).listeners.map(({ key }) => key)
  }
  expect(keys(80)).toEqual(['[::]:80'])
  expect(keys([80, 443])).toEqual(['[::]:80', '[::]:443'])
  expect(keys([{ from: 8000, to: 8002 }, 80, { from: 81, to: 81 }])).toEqual(['[::]:8000', '[::]:8001', '[::]:8002', '[::]:80', '[::]:81']) // prettier-ignore
  expect(keys([80, { from: 79, to: 80 }])).toEqual(['[::]:80', '[::]:79'])
  expect(keys([80, 81], { addresses: ['192.0.2.1', '2001:DB8:0::1'] })).toEqual([
    '192.0.2.1:80',
    '192.0.2.1:81',
    '[2001:db8::1]:80',
    '[2001:db8::1]:81',
  ])
  expect(keys(80, { protocol: 'tcp', domains: ['a.test', '*.b.test'] })).toEqual(['[::]:80'])
  const routes = listening([byName('r', ['A.test', '*.b.test'], {}, { clientIps: ['192.0.2.0/24', '2001:db8::/32'] })])
  const cases: [string | undefined, string, boolean][] = [
    ['a.test', '192.0.2.1', true],
    ['x.b.test', '2001:db8::9', true],
    ['a.test', '203.0.113.1', false],
    ['c.test', '192.0.2.1', false],
    [undefined, '192.0.2.1', false],
    ['a.test', '2001:db9::', false],
  ]
  for (const [name, client, matches] of cases)
    expect([name, client, chosen(routes, name, client)]).toEqual([name, client, matches ? 'r' : undefined])
})

test('E5: of equals the one with an address of its own, then the one with fewer ports', () => {
  const routes = [
    byName('wide', '*.a.test', {}, { ports: [443, 444, 445] }),
    byName('narrow', '*.b.test', {}, { ports: [443, 444] }),
    byName('own', '*.c.test', {}, { addresses: ['192.0.2.1'], ports: [443, 444, 445, 446] }),
  ]
  const checked = check({ routes })
  if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
  const { listeners } = plan(checked.config, noFacts(0x51000000, 'v'))
  expect(listeners.find(({ key }) => key === '192.0.2.1:443')!.routes).toEqual(['own', 'narrow', 'wide'])
  expect(listeners.find(({ key }) => key === '[::]:443')!.routes).toEqual(['narrow', 'wide'])
})

test('E2: ten thousand names on one port: the right one is found, and so is nobody', () => {
  const routes = listening(
    Array.from({ length: 10_000 }, (_, i) => byName(`r${i}`, i % 2 ? `h${i}.test` : [`*.w${i}.test`, `api-*.v${i}.test`])),
  ) // prettier-ignore
  for (let i = 0; i < 10_000; i += 7) {
    const name = i % 2 ? `h${i}.test` : i % 4 ? `a.b.w${i}.test` : `api-1.v${i}.test`
    if (chosen(routes, name) !== `r${i}`) expect([name, chosen(routes, name)]).toEqual([name, `r${i}`])
  }
  expect([chosen(routes, 'w2.test'), chosen(routes, 'test'), chosen(routes, undefined)]).toEqual([undefined, undefined, undefined]) // prettier-ignore
})
