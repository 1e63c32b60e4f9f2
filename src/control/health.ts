// Control's side of the health of targets: which endpoints to watch and to check, what the worker and both planes say of
// them, and the changes, a few milliseconds of them at a time, so that many are one transaction.
import { own } from '../base/own.ts'
import { parseDuration } from '../base/units.ts'
import type { CheckResult, DialReport, HealthCheck } from '../channel/messages.ts'
import type { Forward, Health, Route } from '../config/schema.ts'
import { HealthStates, type HealthChange, type HealthView, type WatchedRoute } from '../connections/health.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { ConnectionObserver } from '../connections/table.ts'
import type { Endpoint, PlannedRoute } from '../plan/types.ts'

/** Three targets on one dead machine are noticed in one batch of events, or in a few that follow each other. */
const COALESCE_MS = 10
const DEFAULTS = { interval: '5s', timeout: '2s', rise: 2, fall: 3, type: 'tcp' } as const

export class TargetHealth implements ConnectionObserver {
  readonly #states = new HealthStates()
  /** The newest of each endpoint, and what was known before the first. */
  #changes = new Map<string, { before: boolean; change: HealthChange }>()
  /** By route, and as text to compare with. */
  readonly #checks = new Map<string, { text: string; checks: HealthCheck[] }>()
  #soon: ReturnType<typeof setTimeout> | undefined
  #retry: ReturnType<typeof setTimeout> | undefined

  constructor(
    private readonly out: {
      onChange(changes: HealthChange[]): void
      /** The whole list, when it has changed. */
      check(checks: HealthCheck[]): void
    },
  ) {}

  /** The routes as they are configured and planned now: all of them, or those of these names anew. */
  follow(configured: Route[], planned: PlannedRoute[], names?: ReadonlySet<string>) {
    const endpointsOf = new Map(planned.map(({ name, endpoints }) => [name, endpoints]))
    const watched: WatchedRoute[] = []
    let different = false
    if (!names) {
      const now = new Set(configured.map((route) => route.name))
      for (const name of this.#checks.keys()) if (!now.has(name)) different = this.#checks.delete(name)
    }
    for (const route of configured) {
      if (names && !names.has(route.name)) continue
      const endpoints = endpointsOf.get(route.name)?.filter(hasAddress) ?? []
      const health = route.action.type === 'forward' ? route.action.health : undefined
      const checks = health ? endpoints.filter(canBeChecked).map((one) => checkOf(route, health, one)) : []
      different = this.#expect(route.name, checks) || different
      // A single target has nobody to be left out for, unless health says that none is better than a dead one.
      if (health ? endpoints.length > 0 : endpoints.length > 1) watched.push(this.#watch(route.name, health, endpoints))
      else if (names) watched.push(this.#watch(route.name, health, []))
    }
    const nowMs = Date.now()
    this.#note(...(names ? this.#states.update(watched, nowMs) : this.#states.set(watched, nowMs)))
    this.#awaitDue()
    if (different) this.out.check([...this.#checks.values()].flatMap(({ checks }) => checks))
  }

  #watch(name: string, health: Health | undefined, endpoints: Endpoint[]): WatchedRoute {
    return {
      name,
      rise: health?.rise ?? DEFAULTS.rise,
      fall: health?.fall ?? DEFAULTS.fall,
      strict: health !== undefined,
      endpoints: endpoints.map((one) => ({
        key: one.key,
        checked: health !== undefined && canBeChecked(one),
        // What is down has no share, but would have.
        usable: one.share > 0 || (one.weight > 0 && this.#states.of(name, one.key)?.up === false),
      })),
    }
  }

  /** true: the checks of this route are others than before. */
  #expect(name: string, checks: HealthCheck[]): boolean {
    if (checks.length === 0) return this.#checks.delete(name)
    const text = JSON.stringify(checks)
    if (this.#checks.get(name)?.text === text) return false
    this.#checks.set(name, { text, checks })
    return true
  }

  // ---- what is heard ----

  /** A connection of either plane is over. */
  settled({ route, target, carrier, reason, openedAt, bytesOut }: ConnectionRecord) {
    if (target === null) return
    if (bytesOut > 0) return this.#states.succeeded(route, target, openedAt, Date.now())
    // How user space dials is told by dialed(), also of the targets that were tried before the last.
    const failed = reason === 'target_reset' || (carrier === 'kernel' && NOT_CONNECTED.has(reason))
    if (failed) {
      const kind = reason === 'target_reset' ? 'reset' : 'connect'
      this.#note(this.#states.failed(route, target, { openedAt, kind, why: reason! }, Date.now()))
    } else if (carrier === 'kernel' && reason === 'finished')
      this.#states.succeeded(route, target, openedAt, Date.now())
  }

  dialed(dials: DialReport[]) {
    const nowMs = Date.now()
    for (const { route, endpoint, succeededAt, failedAt, failures, reason } of dials) {
      if (succeededAt !== undefined) this.#states.succeeded(route, endpoint, succeededAt, nowMs)
      for (let i = 0; i < failures; i++) {
        const failure = { openedAt: failedAt!, kind: 'connect', why: reason! } as const
        const change = this.#states.failed(route, endpoint, failure, nowMs)
        this.#note(change)
        if (change) break
      }
    }
  }

  checked(results: CheckResult[]) {
    const nowMs = Date.now()
    for (const { route, endpoint, ok, error } of results)
      this.#note(this.#states.checked(route, endpoint, ok ? null : (error ?? 'it failed'), nowMs))
  }

  // ---- what is known ----

  /** The endpoints that are down, by route name, as the plan wants it. */
  down(): Record<string, Record<string, true>> {
    const down: Record<string, Record<string, true>> = {}
    for (const { route, endpoint, up } of this.#states.view())
      if (!up) (down[route] = own(down, route) ?? {})[endpoint] = true
    return down
  }

  /** undefined: it is not watched. */
  of(route: string, endpoint: string): Pick<HealthView, 'up' | 'lastError'> | undefined {
    return this.#states.of(route, endpoint)
  }

  view(): HealthView[] {
    return [...this.#states.view()]
  }

  stop() {
    clearTimeout(this.#soon)
    clearTimeout(this.#retry)
    this.#changes.clear()
  }

  // ---- changes ----

  #note(...changes: (HealthChange | undefined)[]) {
    for (const change of changes) {
      if (!change) continue
      const key = `${change.endpoint} ${change.route}`
      this.#changes.set(key, { before: this.#changes.get(key)?.before ?? !change.up, change })
      this.#soon ??= setTimeout(() => this.#tell(), COALESCE_MS)
    }
  }

  #tell() {
    this.#soon = undefined
    // What went down and came back meanwhile is no change.
    const changes = [...this.#changes.values()].flatMap(({ before, change }) => (change.up === before ? [] : [change]))
    this.#changes = new Map()
    this.#awaitDue()
    if (changes.length > 0) this.out.onChange(changes)
  }

  #awaitDue() {
    clearTimeout(this.#retry)
    const dueMs = this.#states.nextDueMs()
    this.#retry =
      dueMs === null
        ? undefined
        : setTimeout(
            () => {
              this.#note(...this.#states.due(Date.now()))
              this.#awaitDue()
            },
            Math.max(1, dueMs - Date.now()),
          )
  }
}

const NOT_CONNECTED = new Set<CloseReason | undefined>(['connect_timeout', 'target_refused'])
/** A name that is not resolved has none; with its addresses it becomes as many endpoints. */
const hasAddress = ({ host }: Endpoint) => host.kind !== 'name'
/** The port of a client that does not exist is none. */
const canBeChecked = ({ host, port }: Endpoint) => host.kind === 'unix' || port !== null

function checkOf(route: Route, health: Health, endpoint: Endpoint): HealthCheck {
  const { host, port, key } = endpoint
  return {
    route: route.name,
    endpoint: key,
    host: host.kind === 'ip' ? host.address : key,
    port: port ?? 0,
    type: health.type ?? DEFAULTS.type,
    name: nameOf(route, endpoint),
    sendProxyProtocol: (route.action as Forward).sendProxyProtocol ?? null,
    intervalMs: parseDuration(health.interval ?? DEFAULTS.interval)!,
    timeoutMs: parseDuration(health.timeout ?? DEFAULTS.timeout)!,
  }
}

/** What a client would ask this target for: some answer nobody who does not name them. */
function nameOf(route: Route, { name }: Endpoint): string | null {
  const action = route.action as Forward
  const domain = [route.match.domains ?? []].flat().find((one) => !one.includes('*'))
  return action.tls?.upstream?.serverName ?? name ?? domain ?? null
}
