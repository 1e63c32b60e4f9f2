// Health of targets: when one goes down, when it comes back, and when it must not go. All on given times.
import { expect, test } from 'bun:test'
import { isoTime } from '../../src/base/clock.ts'
import { HEALTH_PAUSE_MS_MAX, HEALTH_PAUSE_MS_MIN } from '../../src/base/limits.ts'
import { HealthStates, type Failure, type HealthChange, type WatchedRoute } from '../../src/connections/health.ts'

const T0 = Date.UTC(2026, 0, 1)
const [A, B] = ['10.0.0.1:80', '10.0.0.2:80']

function watched(keys: string[], more: Partial<WatchedRoute> & { checked?: boolean } = {}): WatchedRoute {
  const { checked = false, ...rest } = more
  return {
    name: 'r',
    rise: 2,
    fall: 3,
    strict: false,
    endpoints: keys.map((key) => ({ key, checked, usable: true })),
    ...rest,
  }
}

/** A machine with a clock of its own that says how many changes there were. */
function machine(...routes: WatchedRoute[]) {
  const states = new HealthStates()
  let nowMs = T0
  const changes: HealthChange[] = []
  const note = (change: HealthChange | undefined) => {
    if (change) changes.push(change)
    return change
  }
  changes.push(...states.set(routes, nowMs))
  const self = {
    states,
    changes,
    get nowMs() {
      return nowMs
    },
    pass(ms: number) {
      nowMs += ms
      const due = states.due(nowMs)
      changes.push(...due)
      return due
    },
    set: (...next: WatchedRoute[]) => {
      const made = states.set(next, nowMs)
      changes.push(...made)
      return made
    },
    /** Opened at `ago` before now, and failed now. */
    fail: (target: string, { ago = 0, kind = 'connect' }: { ago?: number; kind?: Failure['kind'] } = {}) =>
      note(states.failed('r', target, { openedAt: isoTime(nowMs - ago), kind, why: 'target_refused' }, nowMs)),
    serve: (target: string, ago = 0) => states.succeeded('r', target, isoTime(nowMs - ago), nowMs),
    check: (target: string, error: string | null) => note(states.checked('r', target, error, nowMs)),
    up: (target: string) => states.of('r', target)?.up,
    one: (target: string) => [...states.view()].find((view) => view.endpoint === target)!,
  }
  return self
}

test('E7 K4: checks take a target down after `fall` bad ones in a row and bring it back after `rise` good ones', () => {
  const m = machine(watched([A, B], { strict: true, checked: true }))
  for (const error of ['refused', 'refused', null, 'refused', 'refused']) expect(m.check(A, error)).toBeUndefined()
  expect(m.check(A, 'refused')).toEqual({ route: 'r', endpoint: A, up: false, why: '3 checks failed: refused' })
  expect([m.up(A), m.up(B)]).toEqual([false, true])
  for (const error of ['refused', null, 'refused', null]) expect(m.check(A, error)).toBeUndefined()
  expect(m.check(A, null)).toEqual({ route: 'r', endpoint: A, up: true, why: '2 checks were good' })
  // Only a good check brings it back: no pause has run.
  expect(m.states.nextDueMs()).toBeNull()
  expect(m.one(A)).toMatchObject({ up: true, checks: 11, failures: 7, lastError: 'refused' })
})

test('E7: `rise` and `fall` are the route’s own', () => {
  const m = machine(watched([A], { strict: true, checked: true, rise: 1, fall: 1 }))
  expect(m.check(A, 'timed out')).toMatchObject({ up: false, why: 'a check failed: timed out' })
  expect(m.check(A, null)).toMatchObject({ up: true, why: 'a check was good' })
})

test('E7: the third failed connection in a row takes a target down, one that was served starts the count anew', () => {
  const m = machine(watched([A, B]))
  m.fail(A)
  m.fail(A)
  m.pass(10)
  m.serve(A)
  m.pass(10)
  expect([m.fail(A), m.fail(A)]).toEqual([undefined, undefined])
  expect(m.fail(A)).toEqual({ route: 'r', endpoint: A, up: false, why: '3 connections failed: target_refused' })
  // What ends later says nothing new.
  expect(m.fail(A)).toBeUndefined()
  m.serve(A)
  expect(m.up(A)).toBe(false)
})

test('E7: connections count in the order in which they were opened', () => {
  const m = machine(watched([A, B]))
  m.pass(60_000)
  m.fail(A)
  m.fail(A)
  // It was served before the target died, and ends with it: no sign of life.
  m.serve(A, 30_000)
  expect(m.fail(A)).toMatchObject({ up: false })

  const late = machine(watched([A, B]))
  late.pass(60_000)
  late.serve(A, 1000)
  // Overloaded for a moment: unanswered, but a later one was served.
  for (let i = 0; i < 5; i++) expect(late.fail(A, { ago: 10_000 })).toBeUndefined()
  expect(late.one(A).failures).toBe(0)
  expect([late.fail(A), late.fail(A), late.fail(A)?.up]).toEqual([undefined, undefined, false])
})

test('E7: without checks it is tried again after a pause that doubles; one failure takes it down again, one success ends that', () => {
  const m = machine(watched([A, B]))
  const kill = (count: number) => {
    for (let i = 1; i < count; i++) expect(m.fail(A)).toBeUndefined()
    expect(m.fail(A)).toMatchObject({ up: false })
  }
  kill(3)
  let pause = HEALTH_PAUSE_MS_MIN
  for (let round = 0; round < 8; round++) {
    expect(m.states.nextDueMs()).toBe(m.nowMs + pause)
    expect(m.pass(pause - 1)).toEqual([])
    // Opened before the trial began.
    m.pass(1)
    expect(m.fail(A, { ago: 5000 })).toBeUndefined()
    expect(m.changes.at(-1)).toEqual({
      route: 'r',
      endpoint: A,
      up: true,
      why: `tried again after ${pause / 1000} s`,
    })
    m.pass(100)
    kill(1)
    pause = Math.min(pause * 2, HEALTH_PAUSE_MS_MAX)
  }
  expect(pause).toBe(HEALTH_PAUSE_MS_MAX)
  m.pass(pause)
  m.serve(A)
  m.pass(1)
  kill(3)
  expect(m.states.nextDueMs()).toBe(m.nowMs + HEALTH_PAUSE_MS_MIN)
})

test('E7: the last target stays where no health is configured, and goes where it is', () => {
  for (const strict of [false, true]) {
    const m = machine(watched([A, B], { strict }))
    for (const target of [A, B]) for (let i = 0; i < 3; i++) m.fail(target)
    expect([m.up(A), m.up(B)]).toEqual([false, !strict])
    // As soon as there is another, the next failure is enough.
    m.pass(HEALTH_PAUSE_MS_MIN)
    expect(m.up(A)).toBe(true)
    if (!strict) expect(m.fail(B)).toMatchObject({ endpoint: B, up: false })
  }
})

test('E7: a drained target, or one without weight, is nothing to choose instead', () => {
  const route = watched([A, B])
  route.endpoints[1]!.usable = false
  const m = machine(route)
  for (let i = 0; i < 9; i++) expect(m.fail(A)).toBeUndefined()
  // Undrained: now there is.
  m.set(watched([A, B]))
  expect(m.fail(A)).toMatchObject({ up: false })
  // Drained again: the dead one is better than none.
  expect(m.set(route)).toEqual([{ route: 'r', endpoint: A, up: true, why: 'no other target is left' }])
})

test('E7: what a client can cause by what it says does not take the last target', () => {
  const m = machine(watched([A, B], { strict: true, checked: true }))
  for (const target of [A, B]) for (let i = 0; i < 9; i++) m.fail(target, { kind: 'reset' })
  expect([m.up(A), m.up(B)]).toEqual([false, true])
  expect(m.fail(B)).toMatchObject({ endpoint: B, up: false })
})

test('E7: a target found dead by connections comes back by its checks where it has some', () => {
  const m = machine(watched([A, B], { strict: true, checked: true }))
  m.check(A, null)
  for (let i = 0; i < 3; i++) m.fail(A)
  expect(m.up(A)).toBe(false)
  expect([m.states.nextDueMs(), m.pass(HEALTH_PAUSE_MS_MAX)]).toEqual([null, []])
  m.check(A, null)
  expect(m.check(A, null)).toMatchObject({ up: true })
})

test('E7: a reload keeps what is known of the targets that stay, and forgets the others', () => {
  const m = machine(watched([A, B]))
  for (let i = 0; i < 3; i++) m.fail(A)
  m.set(watched([A, B, '10.0.0.3:80']))
  expect([m.up(A), m.states.nextDueMs()]).toEqual([false, m.nowMs + HEALTH_PAUSE_MS_MIN])
  // Checks come and go: whoever brings it back is the one that is there.
  m.set(watched([A, B], { strict: true, checked: true }))
  expect(m.states.nextDueMs()).toBeNull()
  m.set(watched([A, B]))
  expect(m.states.nextDueMs()).toBe(m.nowMs + HEALTH_PAUSE_MS_MIN)
  m.set(watched([B]))
  expect([m.states.nextDueMs(), [...m.states.view()].map((view) => view.endpoint)]).toEqual([null, [B]])
  m.set(watched([A, B]))
  expect(m.up(A)).toBe(true)
  expect(m.fail('10.0.0.9:80')).toBeUndefined()
  expect(m.check(A, 'a check of the configuration before')).toBeUndefined()
})

test('E7: where the port of the client is kept, all ports are one target', () => {
  for (const [keep, other, targets] of [
    ['10.0.0.1:preserve', '10.0.0.2:preserve', ['10.0.0.1:80', '10.0.0.1:443', '10.0.0.1:9000']],
    ['[fd00::1]:preserve', '[fd00::2]:preserve', ['[fd00::1]:80', '[fd00::1]:443', '[fd00::1]:9000']],
  ] as const) {
    const m = machine(watched([keep, other]))
    expect(targets.map((target) => m.fail(target)?.endpoint)).toEqual([undefined, undefined, keep])
  }
})

test('E7: a clock that is set back neither blinds nor holds a target down', () => {
  const m = machine(watched([A, B]))
  m.pass(7_200_000)
  m.serve(A)
  m.pass(-3_600_000)
  for (let i = 0; i < 3; i++) m.fail(A)
  expect(m.up(A)).toBe(false)
  m.pass(-3_600_000)
  expect(m.up(A)).toBe(true)
})
