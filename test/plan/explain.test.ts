// sluice explain: what would become of a connection, from the plan and what is known now; test/netns/explain.test.ts asks the
// connections themselves.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import { parseAsked, type Asked } from '../../src/plan/asked.ts'
import { explain } from '../../src/plan/explain.ts'
import { nothingKnown, type Now } from '../../src/plan/explanation.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import type { Facts } from '../../src/plan/types.ts'

const target = (host: string, more: object = {}) => ({ host, port: 80, ...more })
const forward = (name: string, ports: unknown, match: object = {}, action: object = {}, more: object = {}) => ({
  name,
  match: { ports, ...match },
  action: { type: 'forward', targets: [target('10.0.0.5')], ...action },
  ...more,
})
const passthrough = { tls: { mode: 'passthrough' } }
const terminate = { tls: { mode: 'terminate', certificate: 'self-signed' } }

const ROUTES = [
  forward('web', 80),
  forward('pair', 81, {}, { targets: [target('10.0.0.5', { weight: 3 }), target('10.0.0.6'), target('10.0.0.7', { weight: 0 })] }),
  forward('a', 443, { domains: 'a.test' }, passthrough),
  forward('all-of-b', 443, { domains: '*.b.test' }, terminate),
  forward('office', 443, { domains: 'a.test', clientIps: ['192.0.2.0/24'] }, terminate),
  { name: 'up', match: { ports: 8080 }, action: { type: 'redirect', to: 'https://{host}{path}' } },
  { name: 'no', match: { ports: 23 }, action: { type: 'block' } },
  forward('listed', 82, {}, {}, { security: { ipBlockList: ['198.51.100.0/24'], maxConnections: 5, connectionRatePerIp: '3/minute' } }),
  forward('watched', 83, {}, {}, { security: { ipBlockList: ['198.51.100.0/24'], mode: 'observe' } }),
  forward('own', 80, { addresses: ['203.0.113.9'] }, { preserveSourceIp: true }),
  forward('range', [{ from: 20000, to: 29999 }], {}, { targets: [target('10.0.0.5', { port: 'preserve' })] }),
  forward('dns', 53, { protocol: 'udp' }, { targets: [target('10.0.0.5', { port: 53 })] }),
  forward('six', 84, {}, { targets: [target('2001:db8::5')] }),
  forward('quiet', 85, {}, { forwardingEngine: 'user' }),
  { name: 'run', match: { ports: 86 }, action: { type: 'socket-handler', handler: './echo.ts' } },
  forward('behind', 87, {}, {}, { acceptProxyProtocol: { from: ['192.0.2.1'] } }),
] // prettier-ignore

function asked(client: string, listener: string, name?: string): Asked {
  const question = parseAsked(client, listener, name)
  if ('error' in question) throw new Error(question.error)
  return question
}

function answer(
  words: [string, string, string?],
  more: { now?: Partial<Now>; facts?: Partial<Facts>; config?: object } = {},
) {
  const checked = check({ routes: ROUTES, ...more.config })
  if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
  const facts = { ...noFacts(0x51000000, 'v'), ...more.facts }
  const made = plan(checked.config, facts)
  return explain(made, facts, asked(...words), { ...nothingKnown(made), ...more.now })
}
const brief = (...given: Parameters<typeof answer>) => {
  const { outcome, reason, route, carrier, targets } = answer(...given)
  return [outcome, reason, route, carrier, targets.map(({ target, share }) => `${target} ${share}`).join(', ')]
}

describe('what would become of it', () => {
  const one = '10.0.0.5:80 1'
  test.each<[[string, string, string?], (string | null)[]]>([
    [['192.0.2.7', '80'], ['carried', null, 'web', 'kernel', one]],
    [['192.0.2.7:4711', '203.0.113.8:80'], ['carried', null, 'web', 'kernel', one]],
    [['192.0.2.7', '203.0.113.9:80'], ['carried', null, 'own', 'kernel', one]],
    [['192.0.2.7', '81'], ['carried', null, 'pair', 'kernel', '10.0.0.5:80 0.75, 10.0.0.6:80 0.25']],
    [['198.51.100.1', '443', 'a.test'], ['carried', null, 'a', 'splice', one]],
    [['192.0.2.7', '443', 'a.test'], ['carried', null, 'office', 'user', one]],
    [['192.0.2.7', '443', 'X.B.test.'], ['carried', null, 'all-of-b', 'user', one]],
    [['192.0.2.7', '443', 'c.test'], ['closed', 'no_route', null, null, '']],
    [['192.0.2.7', '443'], ['closed', 'no_route', null, null, '']],
    [['192.0.2.7', '8080'], ['answered', 'responded', 'up', 'user', '']],
    [['192.0.2.7', '23'], ['refused', 'blocked', 'no', null, '']],
    [['198.51.100.1', '82'], ['refused', 'route_ip_blocked', 'listed', null, '']],
    [['192.0.2.7', '82'], ['carried', null, 'listed', 'kernel', one]],
    [['198.51.100.1', '83'], ['carried', null, 'watched', 'kernel', one]],
    [['192.0.2.7', '25001'], ['carried', null, 'range', 'kernel', '10.0.0.5:25001 1']],
    [['192.0.2.7', '53/udp'], ['carried', null, 'dns', 'kernel', '10.0.0.5:53 1']],
    [['192.0.2.7', '53'], ['not ours', null, null, null, '']],
    [['192.0.2.7', '54/udp'], ['not ours', null, null, null, '']],
    [['2001:db8::7', '84'], ['carried', null, 'six', 'kernel', '[2001:db8::5]:80 1']],
    // The kernel does not change the family: its twin in user space does.
    [['192.0.2.7', '84'], ['carried', null, 'six', 'user', '[2001:db8::5]:80 1']],
    [['2001:db8::7', '53/udp'], ['not ours', null, 'dns', null, '']],
    [['192.0.2.7', '85'], ['carried', null, 'quiet', 'user', one]],
    [['192.0.2.7', '86'], ['carried', null, 'run', 'user', '']],
    [['192.0.2.1', '87'], ['carried', null, 'behind', 'splice', one]],
    // Rules do not see what stays on a loopback interface.
    [['127.0.0.1', '127.0.0.1:80'], ['carried', null, 'web', 'user', one]],
    [['::1', '80'], ['carried', null, 'web', 'user', one]],
    [['::ffff:192.0.2.7', '[::]:80'], ['carried', null, 'web', 'kernel', one]],
  ])('%p: %p', (words, expected) => expect(brief(words)).toEqual(expected)) // prettier-ignore

  test('drained, down and full are told apart', () => {
    const all = { '10.0.0.5:80': true as const, '10.0.0.6:80': true as const }
    expect(brief(['192.0.2.7', '80'], { facts: { draining: { web: true } } })).toEqual(['refused', 'draining', 'web', null, '']) // prettier-ignore
    expect(brief(['192.0.2.7', '81'], { facts: { drained: all } })).toEqual(['refused', 'no_target', 'pair', null, ''])
    const down = answer(['192.0.2.7', '81'], { facts: { down: { pair: { '10.0.0.5:80': true } } } })
    expect(down.targets).toEqual([{ target: '10.0.0.6:80', share: 1 }])
    expect(down.steps.map(({ detail }) => detail)).toContain('10.0.0.5:80 gets none: it is down')
    expect(down.steps.map(({ detail }) => detail)).toContain('10.0.0.7:80 gets none: it is of weight 0')
    const counts = { listed: { now: 5, ofClient: 1 } }
    expect(brief(['192.0.2.7', '82'], { now: { counts } })).toEqual(['refused', 'route_limit', 'listed', null, ''])
    const config = { limits: { maxConnectionsPerIp: 2 } }
    for (const port of ['80', '85'])
      expect(brief(['192.0.2.7', port], { config, now: { counts: { '': { now: 9, ofClient: 2 } } } })).toEqual([
        'refused',
        'global_ip_limit',
        port === '80' ? 'web' : 'quiet',
        null,
        '',
      ])
  })

  test('without our rules everything is carried in user space, and it is said why', () => {
    const now = { kernel: null, kernelReason: 'nft is not installed' }
    const facts = { kernelUnusable: 'nft is not installed' }
    expect(brief(['192.0.2.7', '80'], { now, facts })).toEqual(['carried', null, 'web', 'user', '10.0.0.5:80 1'])
    expect(answer(['192.0.2.7', '80'], { now, facts }).steps[1]!.detail).toContain('nft is not installed')
    expect(brief(['198.51.100.1', '82'], { now, facts })[1]).toBe('route_ip_blocked')
    expect(brief(['192.0.2.7', '53/udp'], { now, facts })).toEqual(['not ours', null, 'dns', null, ''])
  })

  test("H17: somebody else's chain that drops it is named, with what mends it; it stops no client of this machine", () => {
    const foreign = [{ family: 'inet', table: 'fw', chain: 'fwd', drops: 'policy drop', commands: ['nft mend it'] }]
    const dropped = answer(['192.0.2.7', '80'], { now: { foreign } })
    expect([dropped.outcome, dropped.route]).toEqual(['dropped', 'web'])
    expect(dropped.steps.at(-2)).toEqual({
      step: 'other rules',
      verdict: 'stop',
      detail: 'chain fwd of table inet fw drops it (policy drop); to mend it: nft mend it',
    })
    expect(brief(['192.0.2.7', '80'], { now: { foreign: [{ ...foreign[0]!, family: 'ip6' }] } })[0]).toBe('carried')
    expect(brief(['192.0.2.7', '85'], { now: { foreign } })[0]).toBe('carried')
    expect(brief(['203.0.113.8', '80'], { now: { foreign, addresses: new Set(['203.0.113.8']) } })[0]).toBe('carried')
  })

  test('an address that is not of this machine is not listened on', () => {
    const addresses = new Set(['203.0.113.8'])
    expect(brief(['192.0.2.7', '203.0.113.8:80'], { now: { addresses } })[0]).toBe('carried')
    expect(brief(['192.0.2.7', '203.0.113.7:80'], { now: { addresses } })[0]).toBe('not ours')
  })
})

describe('the steps', () => {
  const steps = (...given: Parameters<typeof answer>) =>
    answer(...given).steps.map(({ step, detail }) => `${step}: ${detail}`)

  test('of a kernel route, from the packet to the source that its target sees', () => {
    expect(steps(['192.0.2.7', '81'])).toEqual([
      'client: 192.0.2.7',
      'kernel: our rules give port 81 to route "pair" from the port alone',
      'lists and limits: route "pair" lets it in',
      'carrier: kernel: nothing has to be read',
      'target: 10.0.0.5:80: 75 % of new connections, in turns',
      'target: 10.0.0.6:80: 25 % of new connections, in turns',
      'target: 10.0.0.7:80 gets none: it is of weight 0',
      "source: masquerade: the target sees the gateway's address",
      'verdict: the kernel carries it to one of 2 targets',
    ])
    expect(steps(['192.0.2.7', '203.0.113.9:80'])).toContain('source: the target sees 192.0.2.7')
  })

  test('of a name: which routes were considered, and why not', () => {
    expect(steps(['198.51.100.1', '443', 'a.test'])).toEqual([
      'client: 198.51.100.1',
      'kernel: our rules say nothing of port 443: user space decides',
      'socket: [::]:443 of routes "office", "a", "all-of-b"',
      'first bytes: read; taken to be TLS for a.test',
      'considered: not "office": it is for other clients',
      'considered: not "all-of-b": a.test is none of its names',
      'route: "a"',
      'lists and limits: route "a" lets it in',
      'carrier: splice: the server name has to be read, the rest not',
      'target: 10.0.0.5:80',
      "source: the target sees the gateway's address",
      'verdict: user space carries it to 10.0.0.5:80',
    ])
  })

  test('of limits, as far as they are known', () => {
    expect(steps(['192.0.2.7', '82'], { now: { counts: { listed: { now: 2, ofClient: 1 } } } })).toContain('lists and limits: 2 of at most 5 connections') // prettier-ignore
    expect(steps(['192.0.2.7', '82']).join()).toContain('an unknown number of at most 5 connections')
    expect(steps(['198.51.100.1', '83']).join()).toContain(
      'would be refused (route_ip_blocked), but the route only observes',
    )
  })

  test('of a port that nobody has: the nearest', () => {
    expect(steps(['192.0.2.7', '444']).at(-1)).toBe(
      'verdict: no route listens for TCP on port 444; the nearest: 443 ("a", "all-of-b", "office"), 87 ("behind"), 86 ("run")',
    )
  })

  test('of the challenge port: a CA is answered first, and everything else goes where it went', () => {
    const acme = { email: 'a@a.test', termsAgreed: true }
    const auto = forward('auto', 8443, { domains: 'c.test' }, { tls: { mode: 'terminate' } })
    const awaited = {
      config: { acme, routes: [...ROUTES.filter(({ name }) => name !== 'own'), auto] },
      facts: { challenging: true },
    }
    expect(brief(['192.0.2.7', '80'], awaited)).toEqual(['carried', null, 'web', 'splice', '10.0.0.5:80 1'])
    expect(steps(['192.0.2.7', '80'], awaited).join()).toContain('a certificate authority is awaited')
    const alone = { config: { acme, routes: [auto] } }
    expect(brief(['192.0.2.7', '80'], alone)).toEqual(['closed', 'no_route', null, null, ''])
  })
})

test('a question that is none is refused in words, harmless to a terminal', () => {
  const wrong: [string, string, string?][] = [
    ['x', '80'],
    ['10.0.0.1:0', '80'],
    ['10.0.0.1:99999', '80'],
    ['10.0.0.1', '0'],
    ['10.0.0.1', '65536'],
    ['10.0.0.1', '10.0.0.1'],
    ['10.0.0.1', '80/sctp'],
    ['10.0.0.1', '[::1'],
    ['10.0.0.1', '80', 'a b'],
    ['\u001b[2J', '80'],
    ['10.0.0.1', '\n'],
  ]
  for (const words of wrong) {
    const found = parseAsked(...words)
    expect([words, 'error' in found && /^[ -~]+$/.test(found.error)]).toEqual([words, true])
  }
})
