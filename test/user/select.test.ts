// E4, E5: which route a connection gets, against a slow reading of the same sentence; in the order in which plans list them.
import { expect, test } from 'bun:test'
import { ipBytes } from '../../src/base/addresses.ts'
import { matchesName, narrowness } from '../../src/base/names.ts'
import { check } from '../../src/config/check.ts'
import type { Route } from '../../src/config/schema.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import { LiveRoute } from '../../src/user/route.ts'
import { Counters } from '../../src/user/security.ts'
import { selectRoute, type FirstBytes } from '../../src/user/select.ts'

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

test('E5: 3,000 random listeners choose what the sentence says', () => {
  const random = (n: number) => Math.floor(Math.random() * n)
  const one = <T>(items: readonly T[]): T => items[random(items.length)]!
  const patterns = ['*', '*.test', '*.a.test', 'x.a.test', 'y.a.test', 'a.*', '*.a.*', 'x*.a.test', 'a.test'] as const
  const found = new Set<string | undefined>()
  for (let round = 0; round < 3000; round++) {
    const configured: Route[] = []
    for (let i = 0; i < 1 + random(6); i++) {
      const domains = Array.from({ length: 1 + random(3) }, () => one(patterns))
      const match = random(3) === 0 ? { clientIps: [one(['10.0.0.0/8', '192.0.2.0/24'])] } : {}
      configured.push(byName(`r${i}`, domains, { priority: random(2) }, match) as Route)
    }
    if (!check({ routes: configured }).ok) continue // the same match twice
    const routes = listening(configured)
    for (const name of ['x.a.test', 'y.a.test', 'z.test', 'a.test', 'a.com', undefined])
      for (const client of ['10.1.1.1', '192.0.2.9', '203.0.113.1']) {
        const got = chosen(routes, name, client)
        found.add(got)
        const fits = configured.flatMap((route) => {
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
        if (!allowed.includes(got)) expect({ configured, name, client, got }).toEqual({ configured, name, client, got: allowed[0] }) // prettier-ignore
      }
  }
  expect(found.size).toBe(7)
})
