// F5, F6, E13: the port on which a CA is answered: who has it, what is read there, and what becomes of the routes beside it.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import type { Config } from '../../src/config/schema.ts'
import { CHALLENGE_ROUTE, challengesFor } from '../../src/plan/challenge.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import type { Facts, Plan } from '../../src/plan/types.ts'

const acme = { email: 'ops@example.com', termsAgreed: true }
const targets = [{ host: '10.0.0.5', port: 80 }]
const forward = (name: string, ports: unknown, match: object = {}, action: object = {}, more: object = {}) => ({
  name,
  match: { ports, ...match },
  action: { type: 'forward', targets, ...action },
  ...more,
})
const secure = (
  name: string,
  domains: string | string[],
  ports: unknown = 443,
  more: object = {},
  certificate: unknown = 'auto',
) => forward(name, ports, { domains }, { tls: { mode: 'terminate', certificate } }, more)
const module = { module: './certificates.ts' }
const passthrough = { tls: { mode: 'passthrough' } }

function configured(routes: unknown[], more: object = {}): Config {
  const checked = check({ routes, acme, ...more })
  if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
  return checked.config
}
const made = (routes: unknown[], challenging = false, more: object = {}, facts: Partial<Facts> = {}): Plan =>
  plan(configured(routes, more), { ...noFacts(0x51000000, 'v'), challenging, ...facts })
const onPort = ({ listeners }: Plan, port: number) => listeners.filter((listener) => listener.port === port)
const carrierOf = ({ routes }: Plan, name: string) => {
  const { carrier, reason } = routes.find((route) => route.name === name)!
  return `${carrier}: ${reason}`
}
/** The listen elements that a packet to this port could find. */
const elementsOf = ({ kernel }: Plan) =>
  Object.values(kernel.groups).flatMap((group) =>
    ['listen', 'listen_range', 'listen4', 'listen4_range'].flatMap((map) => Object.keys(group[map] ?? {})),
  )

describe('the challenge port', () => {
  test('F6: is held for as long as a CA may be asked for a name, whether or not it is asked now', () => {
    const routes = [secure('a', 'a.test')]
    for (const challenging of [false, true]) {
      const { routes: planned, listeners } = made(routes, challenging)
      expect(planned.map(({ name }) => name)).toEqual(['a', CHALLENGE_ROUTE])
      expect(planned[1]).toMatchObject({
        carrier: 'user',
        reason: 'answers the CA',
        user: { action: { type: 'challenge' } },
      })
      expect(listeners.map(({ key }) => key)).toEqual(['[::]:443', '[::]:80'])
      expect(listeners[1]).toEqual({
        key: '[::]:80',
        address: '::',
        port: 80,
        peek: challenging,
        challenge: true,
        optional: true,
        trusted: [],
        routes: [CHALLENGE_ROUTE],
      })
    }
  })

  test("F6: is nobody's where no CA is asked", () => {
    const none = (routes: unknown[], more: object = {}) => onPort(made(routes, true, more), 80).length === 0
    expect(none([secure('a', 'a.test', 443, {}, 'self-signed')])).toBe(true)
    expect(none([secure('a', 'a.test', 443, { enabled: false })])).toBe(true)
    expect(none([secure('a', '*.a.test', 443, {}, module)], { acme: undefined })).toBe(true)
    expect(none([secure('a', '*.a.test', 443, {}, module)])).toBe(false)
    expect(none([secure('a', 'a.test')], { acme: { ...acme, challengePort: 8080 } })).toBe(true)
  })

  test('F5: is shared: the others are tried first, on every address that they have', () => {
    const routes = [
      secure('a', 'a.test'),
      forward('web', 80, { addresses: ['10.0.0.1'] }),
      { name: 'up', match: { ports: 80 }, action: { type: 'redirect', to: 'https://{host}{path}' } },
    ]
    const shared = onPort(made(routes, true), 80)
    expect(Object.fromEntries(shared.map(({ key, routes }) => [key, routes]))).toEqual({
      '10.0.0.1:80': ['web', 'up', CHALLENGE_ROUTE],
      '[::]:80': ['up', CHALLENGE_ROUTE],
    })
    for (const listener of shared) {
      expect(listener).toMatchObject({ challenge: true, peek: true })
      expect(listener.optional).toBeUndefined()
    }
    for (const listener of onPort(made(routes), 80)) expect(listener).toMatchObject({ challenge: true, peek: false })
    expect(onPort(made(routes, true), 443)[0]!.challenge).toBeUndefined()
  })

  test("F5: an address of another route that is not on all addresses still gets the CA's questions", () => {
    const shared = onPort(made([secure('a', 'a.test'), forward('web', 80, { addresses: ['10.0.0.1'] })]), 80)
    expect(Object.fromEntries(shared.map(({ key, routes, optional }) => [key, [routes, optional]]))).toEqual({
      '10.0.0.1:80': [['web', CHALLENGE_ROUTE], undefined],
      '[::]:80': [[CHALLENGE_ROUTE], true],
    })
  })
})

describe('F5/E13: routes on the challenge port', () => {
  const routes = [secure('a', 'a.test'), forward('web', [80, 81]), forward('other', 82)]

  test('go from the kernel to splice while a CA is awaited, and back', () => {
    expect(carrierOf(made(routes), 'web')).toBe('kernel: nothing has to be read')
    const awaited = made(routes, true)
    expect(carrierOf(awaited, 'web')).toBe('splice: acme challenge')
    expect(carrierOf(awaited, 'other')).toBe('kernel: nothing has to be read')
    expect(elementsOf(awaited)).toEqual(['tcp . 82'])
    expect(elementsOf(made(routes)).toSorted()).toEqual(['tcp . 80-81', 'tcp . 82'])
    // The numbers of all stay what they were, in either plane.
    const numbers = (plan: Plan) => plan.routes.map(({ name, number }) => [name, number])
    expect(numbers(awaited)).toEqual(numbers(made(routes)))
  })

  test.each<[string, object, string]>([
    ['that user space has anyhow', forward('r', 80, {}, { forwardingEngine: 'user' }), "user: forwardingEngine is 'user'"],
    ['with a header to read', forward('r', 80, {}, {}, { acceptProxyProtocol: { from: ['10.0.0.0/8'] } }), 'splice: the PROXY protocol header has to be read, the rest not'],
    ['that redirect', { name: 'r', match: { ports: 80 }, action: { type: 'redirect', to: 'https://{host}{path}' } }, 'user: the gateway answers itself'],
    ['that block', { name: 'r', match: { ports: 80 }, action: { type: 'block' } }, 'user: connections are refused at accept'],
    ['with TLS of theirs', forward('r', 80, { domains: 'b.test' }, passthrough), 'splice: the server name has to be read, the rest not'],
  ])('say what they said before: %s', (_what, route, expected) => {
    for (const challenging of [false, true])
      expect(carrierOf(made([secure('a', 'a.test'), route], challenging), 'r')).toBe(expected)
  }) // prettier-ignore

  test('with a name to read beside them say whose', () => {
    const shared = [secure('a', 'a.test'), forward('named', 80, { domains: 'b.test' }, passthrough), forward('r', 80)]
    for (const challenging of [false, true])
      expect(carrierOf(made(shared, challenging), 'r')).toBe(
        'splice: shares port 80 with "named", whose server name has to be read',
      )
    // On another port than the challenge's as well.
    const two = [
      secure('a', 'a.test'),
      forward('named', 8443, { domains: 'b.test' }, passthrough),
      forward('r', [80, 8443]),
    ]
    expect(carrierOf(made(two, true), 'r')).toBe(
      'splice: shares port 8443 with "named", whose server name has to be read',
    )
  })

  test('a list of theirs, or a block, is not for the CA: the kernel leaves the port alone', () => {
    const lists = { security: { ipAllowList: ['10.0.0.0/8'] } }
    const strict = [
      secure('a', 'a.test'),
      forward('r', 80, {}, {}, lists),
      { name: 'none', match: { ports: 80, addresses: ['10.0.0.1'] }, action: { type: 'block' } },
    ]
    expect(elementsOf(made(strict)).toSorted()).toEqual(['10.0.0.1 . tcp . 80', 'tcp . 80'])
    expect(elementsOf(made(strict, true))).toEqual([])
    // Limits of all routes are.
    const limited = made(strict, true, { limits: { maxConnections: 100 } })
    expect(elementsOf(limited).toSorted()).toEqual([
      '10.0.0.1 . tcp . 443',
      '10.0.0.1 . tcp . 80',
      'tcp . 443',
      'tcp . 80',
    ])
  })

  test('E1: a wide range stays in the kernel but for that port, which it then shares', () => {
    const wide = [secure('a', 'a.test', 8443), forward('r', [{ from: 1, to: 1000 }]), forward('in', 500)]
    const awaited = made(wide, true)
    expect(elementsOf(awaited).toSorted()).toEqual(['tcp . 1-79', 'tcp . 500', 'tcp . 501-1000', 'tcp . 81-499'])
    expect(carrierOf(awaited, 'r')).toBe(
      'kernel: nothing has to be read (ports 1-1000 are too many for sockets: user space serves only those that other routes share, such as 80)',
    )
    expect(onPort(awaited, 80)).toMatchObject([{ routes: ['r', CHALLENGE_ROUTE], peek: true }])
    expect(elementsOf(made(wide)).toSorted()).toEqual(['tcp . 1-499', 'tcp . 500', 'tcp . 501-1000'])
  })

  test('H15: the kernel keeps what it must have, where every name does with the port of TLS', () => {
    const demanding = [secure('a', 'a.test'), forward('r', 80, {}, { forwardingEngine: 'nftables' })]
    const awaited = made(demanding, true)
    expect(carrierOf(awaited, 'r')).toBe('kernel: nothing has to be read')
    expect(onPort(awaited, 80)).toMatchObject([{ routes: ['r'], peek: false }])
    expect(challengesFor(configured(demanding), 'a.test')).toEqual(['tls-alpn-01'])
  })

  test('C1: a durable log says so, but for the time of a challenge', () => {
    const log = { log: { access: { file: '/tmp/a', durable: true } } }
    expect(carrierOf(made(routes, false, log), 'web')).toBe('user: durable log')
    expect(carrierOf(made(routes, true, log), 'web')).toBe('splice: acme challenge')
  })
})

describe('E8: the default route', () => {
  const defaults = { defaults: { target: { host: '10.0.0.9', port: 'preserve' } } }
  test("is behind others on the challenge port, and before the CA's; a port that only the CA needs is not its own", () => {
    const routes = [secure('a', 'a.test'), forward('few', 80, { clientIps: ['10.0.0.0/8'] })]
    const [shared] = onPort(made(routes, true, defaults), 80)
    expect(shared!.routes).toEqual(['few', '_default', CHALLENGE_ROUTE])
    expect(onPort(made([secure('a', 'a.test')], true, defaults), 80)[0]!.routes).toEqual([CHALLENGE_ROUTE])
  })
  test('gets nothing of a port that a CA is answered on and another route has as a whole', () => {
    const shared = onPort(made([secure('a', 'a.test'), forward('web', 80)], true, defaults), 80)
    expect(shared[0]!.routes).toEqual(['web', CHALLENGE_ROUTE])
  })
  test('its lists are not for the CA', () => {
    const security = { ...defaults.defaults, security: { ipAllowList: ['10.0.0.0/8'] } }
    const { routes } = made([secure('a', 'a.test')], true, { defaults: security })
    expect(routes.find(({ name }) => name === CHALLENGE_ROUTE)!.user.security.allow).toEqual([])
  })
})

test('F5: which challenge a name can answer, the one without a second port first', () => {
  const config = configured([
    secure('a', ['A.test', 'b.test']),
    secure('far', ['c.test'], 8443),
    secure('own', '*.own.test', 443, {}, module),
    secure('off', 'off.test', 443, { enabled: false }),
  ])
  const of = (name: string) => challengesFor(config, name)
  for (const name of ['a.test', 'B.TEST', 'x.own.test']) expect(of(name)).toEqual(['tls-alpn-01', 'http-01'])
  for (const name of ['c.test', 'off.test', 'unknown.test']) expect(of(name)).toEqual(['http-01'])
  expect(challengesFor(configured([], {}), 'a.test')).toEqual([])
})
