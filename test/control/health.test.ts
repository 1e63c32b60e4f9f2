// Control's side of health: what is watched and checked, what the records of both planes count as, and changes in one piece.
import { afterEach, expect, test } from 'bun:test'
import type { HealthCheck } from '../../src/channel/messages.ts'
import type { Route } from '../../src/config/schema.ts'
import type { HealthChange } from '../../src/connections/health.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { TargetHealth } from '../../src/control/health.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import type { Facts } from '../../src/plan/types.ts'

type Forward = Extract<Route['action'], { type: 'forward' }>

const running: TargetHealth[] = []
afterEach(() => {
  for (const health of running.splice(0)) health.stop()
})

const route = (name: string, hosts: string[], more: Partial<Forward> = {}, rest: Partial<Route> = {}): Route => ({
  name,
  match: { ports: 80 },
  action: { type: 'forward', targets: hosts.map((host) => ({ host, port: 8080 })), ...more },
  ...rest,
})

function follow(routes: Route[], facts: Partial<Facts> = {}) {
  const batches: HealthChange[][] = []
  const checks: HealthCheck[][] = []
  let wake = () => {}
  const health = new TargetHealth({
    onChange: (changes) => {
      batches.push(changes)
      wake()
    },
    check: (list) => checks.push(list),
  })
  running.push(health)
  const again = (next: Route[], known: Partial<Facts> = {}, names?: Set<string>) =>
    health.follow(
      next,
      plan({ routes: next }, { ...noFacts(0x51000000, 'x'), down: health.down(), ...known }).routes,
      names,
    )
  again(routes, facts)
  return {
    health,
    batches,
    checks,
    again,
    async changes(n: number) {
      while (batches.length < n) await new Promise<void>((resolve) => (wake = resolve))
      return batches.map((batch) =>
        batch.map(({ route, endpoint, up }) => `${route} ${endpoint} ${up ? 'up' : 'down'}`),
      )
    },
  }
}

let ids = 0
const record = (target: string, more: Partial<ConnectionRecord> = {}): ConnectionRecord => ({
  id: `k${++ids}`,
  route: 'r',
  carrier: 'kernel',
  client: '10.9.0.1:40000',
  listener: '10.0.0.1:80',
  target,
  state: 'closed',
  openedAt: new Date().toISOString(),
  bytesIn: 0,
  bytesOut: 0,
  reason: 'target_refused',
  ...more,
})
const times = (n: number, act: () => void) => {
  for (let i = 0; i < n; i++) act()
}

test('E7: checks have the defaults, the names that clients would use, and go where something listens', () => {
  const { checks, again } = follow(
    [
      route('plain', ['10.0.0.1', 'fd00::1', 'unix:/run/app.sock'].slice(0, 2), { health: {} }),
      route('unchecked', ['10.0.0.1', '10.0.0.2'], {}, { match: { ports: 81 } }),
      route('socket', [], { health: {}, targets: [{ host: 'unix:/run/app.sock' }] }, { match: { ports: 82 } }),
      route(
        'named',
        ['db.internal'],
        { health: { interval: '1s', timeout: '300ms', rise: 1, fall: 5, type: 'tls' } },
        { match: { ports: 83 } },
      ),
      route('kept', [], { health: {}, targets: [{ host: '10.0.0.1' }] }, { match: { ports: [84, 85] } }),
      route('sni', ['10.0.0.7'], { health: { type: 'tls' }, tls: { mode: 'passthrough' } }, { match: { ports: 443, domains: ['*.a.test', 'b.test'] } }),
      route('asked', ['10.0.0.8'], { health: { type: { http: '/ok' } } }, { match: { ports: 86 } }),
      route('off', ['10.0.0.9'], { health: {} }, { match: { ports: 87 }, enabled: false }),
    ],
    { resolved: { 'db.internal': ['10.0.1.1', '10.0.1.2'] } },
  ) // prettier-ignore
  expect(checks.length).toBe(1)
  const usual = { type: 'tcp', name: null, sendProxyProtocol: null, intervalMs: 5000, timeoutMs: 2000 }
  const named = { ...usual, type: 'tls', name: 'db.internal', intervalMs: 1000, timeoutMs: 300 }
  expect(checks[0]).toEqual([
    { ...usual, route: 'plain', endpoint: '10.0.0.1:8080', host: '10.0.0.1', port: 8080 },
    { ...usual, route: 'plain', endpoint: '[fd00::1]:8080', host: 'fd00::1', port: 8080 },
    { ...usual, route: 'socket', endpoint: 'unix:/run/app.sock', host: 'unix:/run/app.sock', port: 0 },
    { ...named, route: 'named', endpoint: '10.0.1.1:8080', host: '10.0.1.1', port: 8080 },
    { ...named, route: 'named', endpoint: '10.0.1.2:8080', host: '10.0.1.2', port: 8080 },
    { ...usual, type: 'tls', name: 'b.test', route: 'sni', endpoint: '10.0.0.7:8080', host: '10.0.0.7', port: 8080 },
    { ...usual, type: { http: '/ok' }, route: 'asked', endpoint: '10.0.0.8:8080', host: '10.0.0.8', port: 8080 },
  ] as HealthCheck[])
  // The same again is no message; a route that goes takes its checks with it.
  const asked = route('asked', ['10.0.0.8'], { health: { type: { http: '/ok' } } })
  again([asked])
  again([asked])
  expect(checks.map((list) => list.length)).toEqual([7, 1])
  again([{ ...asked, action: { ...asked.action, health: undefined } as Forward }], {}, new Set(['asked']))
  expect(checks.map((list) => list.length)).toEqual([7, 1, 0])
})

test('E7: three refused or unanswered kernel flows, or resets before any answer, are a dead target', async () => {
  for (const reason of ['target_refused', 'connect_timeout', 'target_reset'] as const) {
    const { health, changes } = follow([route('r', ['10.0.0.1', '10.0.0.2'])])
    times(2, () => health.settled(record('10.0.0.1:8080', { reason })))
    // An answer, also one that is cut off, shows that it lives.
    health.settled(record('10.0.0.1:8080', { reason: 'target_reset', bytesOut: 5 }))
    times(2, () => health.settled(record('10.0.0.1:8080', { reason })))
    // What the client, the operator or user space did says nothing.
    for (const other of ['client_reset', 'killed', 'nftables_closed', 'idle_timeout'] as const)
      health.settled(record('10.0.0.1:8080', { reason: other }))
    health.settled(record('10.0.0.1:8080', { reason: 'target_refused', carrier: 'user' }))
    health.settled(record('10.0.0.9:8080', { reason }))
    health.settled({ ...record('', { reason }), target: null })
    expect(health.down()).toEqual({})
    health.settled(record('10.0.0.1:8080', { reason }))
    expect(health.down()).toEqual({ r: { '10.0.0.1:8080': true } })
    expect(await changes(1)).toEqual([['r 10.0.0.1:8080 down']])
    expect(health.view()).toMatchObject([
      { route: 'r', endpoint: '10.0.0.1:8080', up: false, lastError: reason, checks: 0 },
      { route: 'r', endpoint: '10.0.0.2:8080', up: true, lastError: null, failures: 0 },
    ])
  }
})

test('E7: a flow that both sides closed in order was served, whatever it carried', () => {
  const { health } = follow([route('r', ['10.0.0.1', '10.0.0.2'])])
  for (let i = 0; i < 9; i++) {
    health.settled(record('10.0.0.1:8080'))
    if (i % 2 === 1) health.settled(record('10.0.0.1:8080', { reason: 'finished' }))
  }
  expect(health.down()).toEqual({})
})

test('K4: what the worker dials counts the same', async () => {
  const { health, changes } = follow([route('r', ['10.0.0.1', '10.0.0.2'])])
  const at = () => new Date().toISOString()
  const dialed = (failures: number, succeededAt?: string) =>
    health.dialed([
      { route: 'r', endpoint: '10.0.0.1:8080', failures, failedAt: at(), reason: 'target_refused', succeededAt },
    ])
  dialed(2)
  dialed(2, at())
  expect(health.down()).toEqual({})
  dialed(7)
  expect(await changes(1)).toEqual([['r 10.0.0.1:8080 down']])
})

test('E7: what many targets say within a moment is one change, and what has passed meanwhile is none', async () => {
  const names = Array.from({ length: 20 }, (_, i) => `r${i}`)
  const { health, batches, changes } = follow(
    names.map((name, i) =>
      route(name, ['10.0.0.1', '10.0.0.2'], { health: { rise: 1 } }, { match: { ports: 100 + i } }),
    ),
  )
  const results = (ok: boolean, some = names) =>
    some.map((name) => ({ route: name, endpoint: '10.0.0.1:8080', ok, error: 'connection refused', ms: 1 }))
  times(3, () => health.checked(results(false)))
  // One comes back before anybody was told.
  health.checked(results(true, ['r7']))
  expect(batches).toEqual([])
  const [batch] = await changes(1)
  expect(batch!.length).toBe(19)
  expect(batches[0]![0]!.why).toBe('3 checks failed: connection refused')
  health.checked(results(true))
  expect((await changes(2))[1]).toEqual(batch!.map((text) => text.replace('down', 'up')))
})

test('E7: a target that goes from the configuration while it is down is new when it comes back', async () => {
  const both = [route('r', ['10.0.0.1', '10.0.0.2'])]
  const { health, again, changes } = follow(both)
  times(3, () => health.settled(record('10.0.0.1:8080')))
  await changes(1)
  again([route('r', ['10.0.0.2', '10.0.0.3'])], {}, new Set(['r']))
  expect(health.down()).toEqual({})
  again(both, {}, new Set(['r']))
  times(3, () => health.settled(record('10.0.0.1:8080')))
  expect(await changes(2)).toEqual([['r 10.0.0.1:8080 down'], ['r 10.0.0.1:8080 down']])
})

test('E7: a single target without health is not watched; a target drained by an operator is no replacement', async () => {
  const { health, again } = follow([route('r', ['10.0.0.1'])])
  times(9, () => health.settled(record('10.0.0.1:8080')))
  expect([health.view(), health.down()]).toEqual([[], {}])
  again([route('r', ['10.0.0.1', '10.0.0.2'])], { drained: { '10.0.0.2:8080': true } })
  times(9, () => health.settled(record('10.0.0.1:8080')))
  expect(health.down()).toEqual({})
  // One target again, by a partial change.
  again([route('r', ['10.0.0.1'])], {}, new Set(['r']))
  expect(health.view()).toEqual([])
  again([route('r', ['10.0.0.1'], { health: {} })])
  times(3, () => health.settled(record('10.0.0.1:8080')))
  expect(health.down()).toEqual({ r: { '10.0.0.1:8080': true } })
})
