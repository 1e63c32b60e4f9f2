// E14: a wrong configuration is refused with every problem at once: path, what is wrong, what would be right.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import { schema } from '../../src/commands/init.ts'

const good = () => ({
  routes: [
    {
      name: 'web',
      match: { ports: [80, { from: 8000, to: 8010 }], addresses: ['10.0.0.1'] },
      action: {
        type: 'forward',
        targets: [{ host: 'db.internal', port: 80, weight: 2 }, { host: '10.0.0.2' }],
        balance: 'source-hash',
      },
    },
    {
      name: 'app',
      match: { ports: 443, domains: ['app.test', '*.app.test'] },
      action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 443 }], tls: { mode: 'passthrough' } },
    },
    {
      name: 'api',
      match: { ports: 443, domains: 'api.test' },
      action: {
        type: 'forward',
        targets: [{ host: '10.0.0.5', port: 80 }],
        tls: { mode: 'terminate', certificate: { cert: 'a.crt', key: 'a.key' }, alpn: ['h2'] },
      },
    },
    {
      name: 'echo',
      match: { ports: 7 },
      action: { type: 'socket-handler', handler: './echo.ts', env: { a: 1 } },
      security: { ipAllowList: ['10.*'], maxConnections: 5 },
    },
    { name: 'up', match: { ports: 81, domains: 'app.test' }, action: { type: 'redirect', to: 'https://{host}{path}' } },
  ],
  kernel: { table: 'sluice', markBase: 0x51000000, onStop: 'keep' },
  timeouts: { idle: '4h' },
  log: { access: 'off' },
  stateDir: '/var/lib/sluice',
})

const durable = { access: { file: './access.jsonl', durable: true } }

const problems = (input: unknown) => {
  const result = check(input)
  return result.ok ? [] : result.problems
}

describe('configuration', () => {
  test('E14: a good one is taken as it is', () => expect(check(good())).toEqual({ ok: true, config: good() as never }))

  test('E14: every problem at once, each with path, message and remedy', () => {
    const bad = good() as any
    bad.routes[0].match.ports = [0, { from: 9, to: 8 }]
    bad.routes[0].action.targets[1].hots = 'x'
    bad.routes[1].action.tls.mode = 'pass'
    bad.routes[3].name = 'web'
    bad.routes[4].action.status = 200
    bad.timeouts.idle = '4 hours'
    bad.unknown = 1
    const found = problems(bad)
    expect(found.map((problem) => problem.path).toSorted()).toEqual([
      'routes[0].action.targets[1].hots',
      'routes[0].match.ports[0]',
      'routes[0].match.ports[1]',
      'routes[1].action.tls.mode',
      'routes[3].name',
      'routes[4].action.status',
      'timeouts.idle',
      'unknown',
    ])
    for (const problem of found)
      expect([problem.path, problem.message.length > 3, problem.remedy.length > 3]).toEqual([problem.path, true, true])
  })

  test('E14: whatever it is, it is refused without a throw', () => {
    for (const input of [
      undefined,
      null,
      1,
      'x',
      [],
      { routes: 1 },
      { routes: [null] },
      { routes: [{}] },
      { routes: [{ action: null, match: 1 }] },
    ])
      expect(problems(input).length).toBeGreaterThan(0)
  })

  test('H5: hostile text in every string field is refused by its path', () => {
    const strings: (string | number)[][] = []
    const walk = (value: unknown, path: (string | number)[]) => {
      if (typeof value === 'string') strings.push(path)
      else if (Array.isArray(value)) value.forEach((item, i) => walk(item, [...path, i]))
      else if (value && typeof value === 'object')
        for (const [key, item] of Object.entries(value)) walk(item, [...path, key])
    }
    walk(good(), [])
    expect(strings.length).toBeGreaterThan(25)
    for (const hostile of ['x\n; flush ruleset', 'a" ; flush ruleset', '{ $x }\u0000'])
      for (const path of strings) {
        const input = good() as any
        const parent = path.slice(0, -1).reduce((at: any, key) => at[key], input)
        parent[path.at(-1)!] = hostile
        const text = path.reduce<string>(
          (so, key) => (typeof key === 'number' ? `${so}[${key}]` : so ? `${so}.${key}` : key),
          '',
        )
        // File names and URLs may hold quotes and braces: they never go near nft. Line breaks they may not hold either.
        if (!/[\n\u0000]/.test(hostile) && /cert|key$|handler|stateDir|access|action\.to|alpn/.test(text)) continue
        expect([
          text,
          problems(input).some((problem) => problem.path.startsWith(text) || text.startsWith(problem.path)),
        ]).toEqual([text, true])
      }
  })

  test('E14: what is said of a problem cannot write to a terminal', () => {
    const found = problems({ routes: [], ['\u001b[31mred\n']: 1, kernel: { table: '\u001b[2J' } })
    expect(found.length).toBe(2)
  })

  test.each([
    ['two routes for the same connections', (c: any) => (c.routes[4].match = c.routes[2].match), 'routes[4].match'],
    ['a name that nothing reads', (c: any) => delete c.routes[1].action.tls, 'routes[1].match.domains'],
    [
      'H15: nftables with a name to read',
      (c: any) => (c.routes[1].action.forwardingEngine = 'nftables'),
      'routes[1].action.forwardingEngine',
    ],
    [
      'H15: nftables with TLS ending here',
      (c: any) => (c.routes[2].action.forwardingEngine = 'nftables'),
      'routes[2].action.forwardingEngine',
    ],
    [
      'H15: preserveSourceIp without the kernel',
      (c: any) => (c.routes[1].action.preserveSourceIp = true),
      'routes[1].action.preserveSourceIp',
    ],
    [
      'a handler behind passthrough',
      (c: any) => (c.routes[3].action.tls = { mode: 'passthrough' }),
      'routes[3].action.tls.mode',
    ],
    ['every weight 0', (c: any) => (c.routes[1].action.targets[0].weight = 0), 'routes[1].action.targets'],
    [
      'a port on a unix socket',
      (c: any) => (c.routes[1].action.targets[0] = { host: 'unix:/run/x', port: 1 }),
      'routes[1].action.targets[0].port',
    ],
    [
      'F3: certificates that nobody issues',
      (c: any) => delete c.routes[2].action.tls.certificate,
      'routes[2].action.tls.certificate',
    ],
    ['H15: udp with a name to read', (c: any) => (c.routes[1].match.protocol = 'udp'), 'routes[1].match.protocol'],
    [
      'H15: udp with health checks',
      (c: any) => ((c.routes[0].match.protocol = 'udp'), (c.routes[0].action.health = {})),
      'routes[0].action.health',
    ],
    [
      'H15, C1: nftables with a durable log',
      (c: any) => ((c.log = durable), (c.routes[0].action.forwardingEngine = 'nftables')),
      'routes[0].action.forwardingEngine',
    ],
    [
      'H15, C1: preserveSourceIp with a durable log',
      (c: any) => ((c.log = durable), (c.routes[0].action.preserveSourceIp = true)),
      'routes[0].action.preserveSourceIp',
    ],
    [
      'C1: udp with a durable log',
      (c: any) => ((c.log = durable), (c.routes[0].match.protocol = 'udp')),
      'routes[0].match.protocol',
    ],
    [
      'H15: more ports than user space listens on, where the kernel cannot do it',
      (c: any) => (
        (c.routes[0].action.forwardingEngine = 'user'),
        (c.routes[0].match.ports = [{ from: 10000, to: 20000 }])
      ),
      'routes[0].match.ports',
    ],
    [
      'C1: more ports than user space listens on, with a durable log',
      (c: any) => ((c.log = durable), (c.routes[0].match.ports = [{ from: 10000, to: 20000 }])),
      'routes[0].match.ports',
    ],
    [
      'C1: a durable log that is no file',
      (c: any) => (c.log = { access: { ...durable.access, file: 'stdout' } }),
      'log.access.file',
    ],
    ['H15: udp to a handler', (c: any) => (c.routes[3].match.protocol = 'udp'), 'routes[3].match.protocol'],
  ])('H15/E14: refused: %s', (_what, change, path) => {
    const input = good()
    change(input)
    expect(problems(input).map((problem) => problem.path)).toContain(path)
  })

  test('the JSON Schema describes every field', () => {
    const missing: string[] = []
    const walk = (node: any, path: string) => {
      for (const [name, field] of Object.entries<any>(node?.properties ?? {})) {
        if (!field.description && field.const === undefined && !field.anyOf && field.type !== 'object')
          missing.push(`${path}.${name}`)
        walk(field, `${path}.${name}`)
      }
      for (const inner of [...(node?.anyOf ?? []), ...(node?.oneOf ?? []), node?.items].filter(Boolean))
        walk(inner, path)
    }
    walk(JSON.parse(schema()), '')
    expect(missing).toEqual([])
  })
})
