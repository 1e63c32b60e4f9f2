// M5: what the helpers make of a few words: routes that pass the check, and that are carried as one would expect.
import { expect, test } from 'bun:test'
import { check } from '../src/config/check.ts'
import { routes } from '../src/routes.ts'

const ACME = { email: 'a@example.com', termsAgreed: true }
/** As check() leaves it; a problem fails the test with its words. */
function checked(...all: object[]) {
  const result = check({ routes: all, acme: ACME })
  if (!result.ok) throw new Error(result.problems.map(({ path, message }) => `${path}: ${message}`).join('; '))
  return result.config.routes
}
const problems = (...all: object[]) => {
  const result = check({ routes: all, acme: ACME })
  return result.ok ? [] : result.problems.map(({ path }) => path)
}

test('M5: each helper makes the route that it is named for', () => {
  expect(
    checked(
      routes.http('10.0.0.5:8080', { ports: 8080 }),
      routes.httpsTerminate('app.example.com', '10.0.0.5:8080'),
      routes.httpsPassthrough(['a.example.com', '*.b.example.com'], '[2001:db8::5]:443'),
      routes.redirect('*'),
      routes.loadBalancer(5432, ['10.0.0.7:5432', { host: '10.0.0.8', port: 5432, weight: 2 }]),
      routes.socketHandler(2525, './smtp.ts', { env: { greeting: 'hello' } }),
      routes.nftables([53, { from: 1000, to: 1009 }], '10.0.0.53', { protocol: 'udp' }),
    ),
  ).toEqual([
    {
      name: 'http-8080',
      match: { ports: 8080 },
      action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 8080 }] },
    },
    {
      name: 'https-app.example.com',
      match: { ports: 443, domains: 'app.example.com' },
      action: {
        type: 'forward',
        targets: [{ host: '10.0.0.5', port: 8080 }],
        tls: { mode: 'terminate', certificate: 'auto' },
      },
    },
    {
      name: 'passthrough-a.example.com',
      match: { ports: 443, domains: ['a.example.com', '*.b.example.com'] },
      action: { type: 'forward', targets: [{ host: '2001:db8::5', port: 443 }], tls: { mode: 'passthrough' } },
    },
    {
      name: 'redirect-any',
      match: { ports: 80, domains: '*' },
      action: { type: 'redirect', to: 'https://{host}{path}' },
    },
    {
      name: 'balance-5432',
      match: { ports: 5432 },
      action: {
        type: 'forward',
        targets: [
          { host: '10.0.0.7', port: 5432 },
          { host: '10.0.0.8', port: 5432, weight: 2 },
        ],
        health: {},
      },
    },
    {
      name: 'handler-2525',
      match: { ports: 2525 },
      action: { type: 'socket-handler', handler: './smtp.ts', env: { greeting: 'hello' } },
    },
    {
      name: 'kernel-53',
      match: { ports: [53, { from: 1000, to: 1009 }], protocol: 'udp' },
      action: { type: 'forward', targets: [{ host: '10.0.0.53' }], forwardingEngine: 'nftables' },
    },
  ])
})

test('M5: options go where the configuration has them', () => {
  const security = { maxConnectionsPerIp: 10 }
  expect(
    checked(
      routes.httpsTerminate('a.test', ['10.0.0.5:80', 'app.internal:80'], {
        name: 'app',
        ports: 8443,
        clientIps: ['10.0.0.0/8'],
        balance: 'least-connections',
        tls: { certificate: 'self-signed', alpn: ['h2'] },
        security,
        priority: undefined,
      }),
      routes.redirect(['b.test', 'c.test'], { to: 'https://d.test/', status: 301, drain: 'cut' }),
      routes.http('unix:/run/app.sock', { addresses: ['192.0.2.1'], keepAlive: false, ports: 81 }),
    ),
  ).toEqual([
    {
      name: 'app',
      match: { ports: 8443, domains: 'a.test', clientIps: ['10.0.0.0/8'] },
      action: {
        type: 'forward',
        targets: [
          { host: '10.0.0.5', port: 80 },
          { host: 'app.internal', port: 80 },
        ],
        tls: { mode: 'terminate', certificate: 'self-signed', alpn: ['h2'] },
        balance: 'least-connections',
      },
      security,
    },
    {
      name: 'redirect-b.test',
      match: { ports: 80, domains: ['b.test', 'c.test'] },
      action: { type: 'redirect', to: 'https://d.test/', status: 301 },
      drain: 'cut',
    },
    {
      name: 'http-81',
      match: { ports: 81, addresses: ['192.0.2.1'] },
      action: { type: 'forward', targets: [{ host: 'unix:/run/app.sock' }] },
      keepAlive: false,
    },
  ])
})

test('M5: an inline handler stays the function that it is', () => {
  const handler = { connect() {} }
  const [route] = checked(routes.socketHandler(2525, handler))
  expect((route!.action as { handler: unknown }).handler).toBe(handler)
})

test('M5: what is wrong is refused by the check, under its own name', () => {
  expect(problems(routes.http('10.0.0.5:99999'))).toEqual(['routes[0].action.targets[0].port'])
  expect(problems(routes.http('not a host'))).toEqual(['routes[0].action.targets[0].host'])
  expect(problems(routes.http('10.0.0.5:80', { nonsense: 1 } as object))).toEqual(['routes[0].nonsense'])
  expect(problems(routes.redirect('*', { env: {} } as object))).toEqual(['routes[0].env'])
  expect(problems(routes.http('10.0.0.5:1'), routes.http('10.0.0.5:2'))).toContain('routes[1].name')
  const long = `${'a'.repeat(60)}.${'b'.repeat(60)}.test`
  expect(problems(routes.httpsPassthrough(long, '10.0.0.5:443'))).toEqual([])
})
