// Which endpoints of each route can be used, from what checks and connections say of them. A state machine on times that
// are given: it knows neither sockets nor timers.
import { isoTime } from '../base/clock.ts'
import { HEALTH_PAUSE_MS_MAX, HEALTH_PAUSE_MS_MIN } from '../base/limits.ts'

/** A route whose endpoints are watched. */
export interface WatchedRoute {
  name: string
  /** Good checks in a row until an endpoint is used again; bad checks, or failed connections, until it is not. */
  rise: number
  fall: number
  /** Health is configured: an endpoint may go down although none is left then. Else a wrong guess would do more harm than a
   *  dead target. */
  strict: boolean
  endpoints: {
    key: string
    /** Checks are made, and only they bring it back. Without them it is tried again after a pause. */
    checked: boolean
    /** It would take connections if it is up: neither drained nor without weight. */
    usable: boolean
  }[]
}

export interface HealthChange {
  route: string
  endpoint: string
  up: boolean
  why: string
}

export interface HealthView {
  route: string
  endpoint: string
  up: boolean
  /** ISO 8601: how long it has been so. */
  since: string
  lastError: string | null
  checks: number
  failures: number
}

/** A connection that did not come about: refused, not answered or unreachable; or reset before it had brought anything. */
export interface Failure {
  /** ISO 8601, when the connection was opened. */
  openedAt: string
  kind: 'connect' | 'reset'
  why: string
}

interface State {
  route: WatchedRoute
  readonly key: string
  checked: boolean
  usable: boolean
  up: boolean
  sinceMs: number
  /** Checks in a row. */
  good: number
  bad: number
  /** Failed connections in a row, in the order in which they were opened: one that began before the last good one says nothing
   *  of now, and neither does one that was served long ago and ends today. */
  failed: number
  lastGood: string
  lastFailed: string
  /** Up again after a pause: one failure is enough to take it down, for twice as long. */
  trial: boolean
  pauseMs: number
  retryAtMs: number | null
  lastError: string | null
  checks: number
  failures: number
}

interface Route {
  readonly states: Map<string, State>
  readonly preserves: boolean
}

export class HealthStates {
  #routes = new Map<string, Route>()
  /** Those that wait to be tried again. */
  readonly #paused = new Set<State>()

  /** The routes to watch from now on: all of them. What is known of an endpoint that stays is kept. */
  set(routes: WatchedRoute[], nowMs: number): HealthChange[] {
    const before = this.#routes
    this.#routes = new Map()
    const changes: HealthChange[] = []
    for (const route of routes) {
      this.#set(route, before.get(route.name), nowMs, changes)
      before.delete(route.name)
    }
    for (const { states } of before.values()) for (const state of states.values()) this.#paused.delete(state)
    return changes
  }

  /** These routes anew; the others stay. */
  update(routes: WatchedRoute[], nowMs: number): HealthChange[] {
    const changes: HealthChange[] = []
    for (const route of routes) this.#set(route, this.#routes.get(route.name), nowMs, changes)
    return changes
  }

  #set(rules: WatchedRoute, before: Route | undefined, nowMs: number, changes: HealthChange[]) {
    const states = new Map<string, State>()
    let preserves = false
    let left = false
    for (const { key, checked, usable } of rules.endpoints) {
      const state = states.get(key) ?? before?.states.get(key) ?? newState(rules, key, nowMs)
      before?.states.delete(key)
      state.route = rules
      state.checked = checked
      state.usable = usable
      states.set(key, state)
      if (!state.up) this.#await(state, state.retryAtMs ?? nowMs + state.pauseMs)
      preserves ||= key.endsWith(PRESERVE)
      left ||= state.up && usable
    }
    if (before) for (const state of before.states.values()) this.#paused.delete(state)
    this.#routes.set(rules.name, { states, preserves })
    // The endpoint that was left in its place has gone, or has been drained.
    if (!rules.strict && !left)
      for (const state of states.values())
        if (!state.up) changes.push(this.#rise(state, nowMs, 'no other target is left', true))
  }

  /** The result of a check: null for a good one. */
  checked(route: string, endpoint: string, error: string | null, nowMs: number): HealthChange | undefined {
    const state = this.#routes.get(route)?.states.get(endpoint)
    // The answer to a check of an earlier configuration.
    if (!state?.checked) return undefined
    const { rise, fall } = state.route
    state.checks++
    if (error === null) {
      state.bad = 0
      state.good++
      if (state.up || state.good < rise) return undefined
      return this.#rise(state, nowMs, state.good === 1 ? 'a check was good' : `${state.good} checks were good`, false)
    }
    state.good = 0
    state.bad++
    state.failures++
    state.lastError = error
    if (!state.up || state.bad < fall) return undefined
    return this.#fall(state, nowMs, `${plural(state.bad, 'check')} failed: ${error}`)
  }

  /** A connection to "address:port" (or a unix socket) did not come about. */
  failed(route: string, target: string, failure: Failure, nowMs: number): HealthChange | undefined {
    const state = this.#find(route, target)
    if (!state?.up) return undefined
    const now = isoTime(nowMs)
    // A clock that was set back must not make everything older than what is remembered.
    if (state.lastGood > now) state.lastGood = ''
    if (state.sinceMs > nowMs) state.sinceMs = nowMs
    if (failure.openedAt < state.lastGood || failure.openedAt < isoTime(state.sinceMs)) return undefined
    state.failed++
    state.failures++
    state.lastError = failure.why
    if (failure.openedAt > state.lastFailed) state.lastFailed = failure.openedAt
    if (state.failed < (state.trial ? 1 : state.route.fall)) return undefined
    // A reset can be a client's doing, who says what no target accepts: it must not close a route for everyone.
    const mayBeLast = state.route.strict && failure.kind === 'connect'
    if (!mayBeLast && this.#isLast(state)) return undefined
    return this.#fall(state, nowMs, `${plural(state.failed, 'connection')} failed: ${failure.why}`)
  }

  /** A connection was served. Called for every one. */
  succeeded(route: string, target: string, openedAt: string, nowMs: number) {
    const state = this.#find(route, target)
    if (!state) return
    if (openedAt > state.lastGood) state.lastGood = openedAt
    if ((state.failed === 0 && !state.trial) || !state.up) return
    if (openedAt < state.lastFailed && state.lastFailed <= isoTime(nowMs)) return
    state.failed = 0
    if (openedAt < isoTime(state.sinceMs)) return
    state.trial = false
    state.pauseMs = HEALTH_PAUSE_MS_MIN
  }

  /** When due() has something to do next; null: never. */
  nextDueMs(): number | null {
    let next: number | null = null
    for (const { retryAtMs } of this.#paused) if (next === null || retryAtMs! < next) next = retryAtMs
    return next
  }

  /** Brings back those whose pause is over. */
  due(nowMs: number): HealthChange[] {
    const changes: HealthChange[] = []
    for (const state of [...this.#paused]) {
      const leftMs = state.retryAtMs! - nowMs
      // More left than the whole pause: the clock was set back.
      if (leftMs <= 0 || leftMs > state.pauseMs)
        changes.push(this.#rise(state, nowMs, `tried again after ${Math.round(state.pauseMs / 1000)} s`, true))
    }
    return changes
  }

  /** undefined: it is not watched. */
  of(route: string, endpoint: string): Pick<HealthView, 'up' | 'lastError'> | undefined {
    return this.#routes.get(route)?.states.get(endpoint)
  }

  *view(): Generator<HealthView> {
    for (const [route, { states }] of this.#routes)
      for (const { key, up, sinceMs, lastError, checks, failures } of states.values())
        yield { route, endpoint: key, up, since: isoTime(sinceMs), lastError, checks, failures }
  }

  #find(name: string, target: string): State | undefined {
    const route = this.#routes.get(name)
    if (!route) return undefined
    const state = route.states.get(target)
    return state || !route.preserves ? state : route.states.get(target.slice(0, target.lastIndexOf(':')) + PRESERVE)
  }

  #isLast(state: State): boolean {
    for (const other of this.#routes.get(state.route.name)!.states.values())
      if (other !== state && other.up && other.usable) return false
    return true
  }

  #fall(state: State, nowMs: number, why: string): HealthChange {
    if (state.trial) state.pauseMs = Math.min(state.pauseMs * 2, HEALTH_PAUSE_MS_MAX)
    turn(state, false, nowMs)
    this.#await(state, nowMs + state.pauseMs)
    return { route: state.route.name, endpoint: state.key, up: false, why }
  }

  #rise(state: State, nowMs: number, why: string, trial: boolean): HealthChange {
    turn(state, true, nowMs)
    state.trial = trial
    if (!trial) state.pauseMs = HEALTH_PAUSE_MS_MIN
    state.retryAtMs = null
    this.#paused.delete(state)
    return { route: state.route.name, endpoint: state.key, up: true, why }
  }

  /** Checks bring back what they watch; the rest waits for its next trial. */
  #await(state: State, untilMs: number) {
    state.retryAtMs = state.checked ? null : untilMs
    if (state.checked) this.#paused.delete(state)
    else this.#paused.add(state)
  }
}

const PRESERVE = ':preserve'
const plural = (count: number, what: string) => (count === 1 ? `a ${what}` : `${count} ${what}s`)

function turn(state: State, up: boolean, nowMs: number) {
  state.up = up
  state.sinceMs = nowMs
  state.good = state.bad = state.failed = 0
}

const newState = (route: WatchedRoute, key: string, nowMs: number): State => ({
  route,
  key,
  checked: false,
  usable: true,
  up: true,
  sinceMs: nowMs,
  good: 0,
  bad: 0,
  failed: 0,
  lastGood: '',
  lastFailed: '',
  trial: false,
  pauseMs: HEALTH_PAUSE_MS_MIN,
  retryAtMs: null,
  lastError: null,
  checks: 0,
  failures: 0,
})
