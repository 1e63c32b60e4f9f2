// E8: what matches no route goes to defaults.target, where there is anything left over; routes without their own security
// have that of defaults.
import { expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import type { Config } from '../../src/config/schema.ts'
import { configuredRoutes, DEFAULT_ROUTE } from '../../src/plan/default.ts'
import { noFacts, plan, retarget } from '../../src/plan/plan.ts'
import type { Facts } from '../../src/plan/types.ts'

const facts = (more: Partial<Facts> = {}): Facts => ({ ...noFacts(0x51000000, 'v'), ...more })
const target = { host: '10.0.0.9', port: 'preserve' }
const forward = (name: string, ports: unknown, action: object = {}, match: object = {}, more: object = {}) => ({
  name,
  match: { ports, ...match },
  action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 80 }], ...action },
  ...more,
})
const passthrough = { tls: { mode: 'passthrough' } }
const terminate = { tls: { mode: 'terminate', certificate: 'self-signed' } }

function configured(routes: unknown[], defaults: object = { target }): Config {
  const checked = check({ routes, defaults })
  if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
  return checked.config
}
const made = (routes: unknown[], defaults?: object) => plan(configured(routes, defaults), facts())
/** The listeners on which the default route is tried, and that it is tried last. */
const leftOver = (routes: unknown[]) =>
  made(routes).listeners.flatMap(({ key, routes }) => (routes.includes(DEFAULT_ROUTE) ? [[key, routes.at(-1)!]] : []))
const isLeft = (...routes: unknown[]) => leftOver(routes).length > 0

test('E8: the default route has a name that no configuration can have', () => {
  const checked = check({ routes: [forward(DEFAULT_ROUTE, 80)] })
  expect(checked.ok ? [] : checked.problems.map(({ path }) => path)).toEqual(['routes[0].name'])
})

test('E8: it is there where a name, a client or a protocol may match nothing', () => {
  expect(isLeft(forward('a', 80))).toBe(false)
  expect(isLeft(forward('a', 80, {}, { domains: '*' }))).toBe(false)
  expect(isLeft(forward('a', 443, terminate))).toBe(false)
  expect(isLeft({ name: 'r', match: { ports: 80 }, action: { type: 'redirect', to: 'https://{host}{path}' } })).toBe(false)
  expect(isLeft(forward('a', 443, passthrough, { domains: 'a.test' }))).toBe(true)
  expect(isLeft(forward('a', 443, passthrough, { domains: 'a.test' }), forward('any', 443))).toBe(false)
  // Plain bytes on a port that reads: nobody else speaks them.
  expect(isLeft(forward('a', 443, passthrough, { domains: 'a.test' }), forward('any', 443, passthrough))).toBe(true)
  expect(isLeft(forward('a', 443, passthrough, { domains: ['a.test', '*'] }))).toBe(true)
  expect(isLeft(forward('a', 80, {}, { clientIps: ['10.0.0.0/8'] }))).toBe(true)
  expect(isLeft(forward('a', 80, {}, { clientIps: ['10.0.0.0/8'] }), forward('b', 80, {}, {}, { priority: -1 }))).toBe(
    false,
  )
  expect(isLeft(forward('a', 80, {}, { clientIps: ['10.0.0.0/8'] }, { enabled: false }))).toBe(false)
}) // prettier-ignore

test('E8: only on the addresses and ports where something is left over', () => {
  const routes = [
    forward('one', [443, 8443], passthrough, { domains: 'a.test', addresses: ['192.0.2.1'] }),
    forward('any', 8443),
    forward('kernel', 80),
  ]
  expect(leftOver(routes)).toEqual([['192.0.2.1:443', DEFAULT_ROUTE]])
  const { routes: planned } = made(routes)
  expect(planned.at(-1)).toMatchObject({
    name: DEFAULT_ROUTE,
    carrier: 'splice',
    listens: [{ address: '192.0.2.1', from: 443, to: 443, protocol: 'tcp' }],
    endpoints: [{ key: '10.0.0.9:preserve', port: null }],
  })
  // It takes nothing away from the others.
  const carriers = (plan: { routes: { name: string; carrier: string }[] }) =>
    plan.routes.map(({ name, carrier }) => [name, carrier])
  expect(carriers(made(routes))).toEqual([...carriers(made(routes, {})), [DEFAULT_ROUTE, 'splice']])
})

test('E8: nothing is left over: there is no default route, whatever defaults say', () => {
  expect(made([forward('a', 80)]).routes.map(({ name }) => name)).toEqual(['a'])
  expect(made([forward('a', 443, passthrough, { domains: 'a.test' })], {}).routes.length).toBe(1)
})

test('E8, E7: its target is resolved, weighed and drained as those of others', () => {
  const config = configured([forward('a', 443, passthrough, { domains: 'a.test' })], {
    target: { host: 'Rest.internal', port: 443 },
  })
  expect(configuredRoutes(config).map(({ name }) => name)).toEqual(['a', DEFAULT_ROUTE])
  const resolved = { 'rest.internal': ['10.0.0.7', '10.0.0.8'] }
  const first = plan(config, facts({ resolved }))
  expect(first.routes[1]!.endpoints.map(({ key, share }) => [key, share])).toEqual([
    ['10.0.0.7:443', 0.5],
    ['10.0.0.8:443', 0.5],
  ])
  const down = { [DEFAULT_ROUTE]: { '10.0.0.7:443': true as const } }
  const next = retarget(first, config, facts({ resolved, down }), new Set([DEFAULT_ROUTE]))
  expect(next.routes[1]!.endpoints.map(({ share }) => share)).toEqual([0, 0.5])
})

test('E8, J1: who is believed on a port is believed for what is left over there', () => {
  const routes = [
    forward('a', 443, passthrough, { domains: 'a.test' }, { acceptProxyProtocol: { from: ['10.0.0.1'] } }),
  ]
  const { routes: planned, listeners } = made(routes)
  expect(planned[1]!.user.acceptProxyProtocol).toEqual(['10.0.0.1'])
  expect(listeners[0]!.trusted).toEqual(['10.0.0.1'])
})

test('E8: defaults.security is for routes without their own, whatever carries them, and for the default route', () => {
  const security = { ipBlockList: ['203.0.113.0/24'], maxConnectionsPerIp: 3 }
  const { routes, kernel } = made(
    [
      forward('kernel', 80),
      forward('splice', 443, passthrough, { domains: 'a.test' }),
      forward('user', 8443, terminate),
      forward('own', 81, {}, {}, { security: { maxConnections: 5 } }),
      forward('none', 82, {}, {}, { security: {} }),
    ],
    { target, security },
  )
  const rules = Object.fromEntries(routes.map(({ name, user }) => [name, [user.security.block, user.security.maxConnectionsPerIp, user.security.maxConnections]])) // prettier-ignore
  const given = [['203.0.113.0/24'], 3, null]
  expect(rules).toEqual({
    kernel: given,
    splice: given,
    user: given,
    own: [[], null, 5],
    none: [[], null, null],
    [DEFAULT_ROUTE]: given,
  })
  const blocked = Object.values(kernel.groups).flatMap((group) => Object.keys(group.block4 ?? {}))
  expect(blocked).toContain('0x51000001 . 203.0.113.0-203.0.113.255')
})

test('E14: a default target that cannot work is refused by its path', () => {
  const paths = (defaults: object) => {
    const checked = check({ routes: [], defaults })
    return checked.ok ? [] : checked.problems.map(({ path }) => path)
  }
  expect(paths({ target })).toEqual([])
  expect(paths({ target: { host: 'unix:/run/x', port: 1 } })).toEqual(['defaults.target.port'])
  expect(paths({ target: { host: '10.0.0.1', weight: 0 } })).toEqual(['defaults.target.weight'])
  expect(paths({ target: { host: 'a b' } })).toEqual(['defaults.target.host'])
  expect(paths({ security: { ipAllowList: ['10.0.0.0/33'] } })).toEqual(['defaults.security.ipAllowList[0]'])
})
