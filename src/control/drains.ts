// What operators have drained: routes and targets that take no new connections. A drain holds until it is undone, over
// reloads and restarts: a target that is taken out for work on it must not come back because the gateway did.
import { parseDuration, TIMER_MS_MAX } from '../base/units.ts'
import type { DrainAnswer, DrainRequest, DrainView } from '../observe/admin.ts'
import type { Log } from '../observe/log.ts'
import type { Facts } from '../plan/types.ts'
import { object, recall, remember } from './memory.ts'
import { canonicalTarget } from './targets.ts'

/** Each is an operator's act. More are refused. */
const DRAINS_MAX = 10_000
const VERSION = 1

export interface What {
  kind: 'route' | 'target'
  name: string
}
export interface Drain extends What {
  sinceMs: number
  /** What is left then is cut; null: drain waits. Wall clock, because it holds over a restart. */
  untilMs: number | null
}

export interface DrainsOptions {
  log: Log
  /** Is configured now. */
  exists(what: What): boolean
  /** New connections go by the drains as they are now, when it resolves. */
  apply(what: What): Promise<void>
  /** Connections that it still has. */
  left(what: What): number
  cut(what: What): void
}

export class Drains {
  readonly #timers = new Map<string, ReturnType<typeof setTimeout>>()
  #working: Promise<unknown> = Promise.resolve()
  #started = false

  private constructor(
    private readonly path: string,
    private readonly drains: Map<string, Drain>,
    private readonly options: DrainsOptions,
  ) {}

  /** Those of an earlier life hold from the first plan on. */
  static async load(path: string, options: DrainsOptions): Promise<Drains> {
    const found = (await recall(path, parseDrains, options.log)) ?? []
    return new Drains(path, new Map(found.map((drain) => [keyOf(drain), drain])), options)
  }

  /** Once the flows of an earlier life are known: what is overdue is cut now. */
  start() {
    if (this.#started) return
    this.#started = true
    for (const drain of this.drains.values()) this.#arm(drain)
  }

  stop() {
    this.#started = false
    for (const timer of this.#timers.values()) clearTimeout(timer)
    this.#timers.clear()
  }

  /** One after another, in the order in which they came. */
  request(request: unknown): Promise<DrainAnswer> {
    const answer = this.#working.then(() => this.#request(request))
    this.#working = answer.catch(() => {})
    return answer
  }

  async #request(request: unknown): Promise<DrainAnswer> {
    const asked = parseRequest(request)
    if (typeof asked === 'string') return { ok: false, status: 400, error: asked }
    const { what, forMs, undo } = asked
    const key = keyOf(what)
    const known = this.drains.get(key)
    if (!known && !this.options.exists(what)) return { ok: false, status: 404, error: `no ${what.kind} ${what.name}` }
    if (undo && !known) return { ok: false, status: 404, error: `${what.kind} ${what.name} is not drained` }
    if (!known && this.drains.size >= DRAINS_MAX)
      return { ok: false, status: 409, error: `${DRAINS_MAX} routes and targets are drained already` }
    clearTimeout(this.#timers.get(key))
    this.#timers.delete(key)
    const nowMs = Date.now()
    const drain: Drain = {
      ...what,
      sinceMs: known?.sinceMs ?? nowMs,
      untilMs: forMs === null ? null : nowMs + forMs,
    }
    if (undo) this.drains.delete(key)
    else this.drains.set(key, drain)
    // First of all remembered: killed from here on, the next life does it.
    await this.#remember()
    await this.options.apply(what)
    // The time that is left to connections begins when no new ones come.
    if (!undo) this.#arm(drain)
    this.options.log('info', `${undo ? 'No longer drained' : 'Drained'}: ${what.kind} ${what.name}`, {
      left: this.options.left(what),
      ...(forMs === null ? {} : { forMs }),
    })
    return { ok: true, drain: undo ? null : this.#view(drain) }
  }

  #arm(drain: Drain) {
    if (drain.untilMs === null || !this.#started) return
    const key = keyOf(drain)
    const timer = setTimeout(
      () => {
        this.#timers.delete(key)
        const left = this.options.left(drain)
        if (left === 0) return
        this.options.log('info', `Cutting what is left of ${drain.kind} ${drain.name}, its time is over`, { left })
        this.options.cut(drain)
      },
      Math.min(Math.max(drain.untilMs - Date.now(), 0), TIMER_MS_MAX),
    )
    this.#timers.set(key, timer)
  }

  async #remember() {
    const drains = [...this.drains.values()]
    await remember(this.path, `${JSON.stringify({ version: VERSION, drains }, null, 2)}\n`).catch((error: Error) =>
      this.options.log('warn', `A restart will not know what is drained: ${error.message}`),
    )
  }

  // ---- looking ----

  get size() {
    return this.drains.size
  }

  views(): DrainView[] {
    return Array.from(this.drains.values(), (drain) => this.#view(drain))
  }

  #view(drain: Drain): DrainView {
    const left = this.options.left(drain)
    return {
      ...(drain.kind === 'route' ? { route: drain.name } : { target: drain.name }),
      state: left > 0 ? 'draining' : 'drained',
      left,
      since: new Date(drain.sinceMs).toISOString(),
      until: drain.untilMs === null ? null : new Date(drain.untilMs).toISOString(),
    }
  }

  has(what: What): boolean {
    return this.drains.has(keyOf(what))
  }

  /** What plan() has to know. */
  facts(): Pick<Facts, 'draining' | 'drained'> {
    const names = (kind: What['kind']) =>
      Object.fromEntries(
        [...this.drains.values()].flatMap((drain) => (drain.kind === kind ? [[drain.name, true as const]] : [])),
      )
    return { draining: names('route'), drained: names('target') }
  }
}

const keyOf = ({ kind, name }: What) => `${kind} ${name}`

/** A sentence when it cannot be understood. */
export function parseRequest(request: unknown): { what: What; forMs: number | null; undo: boolean } | string {
  const fields = ['route', 'target', 'for', 'undo']
  if (typeof request !== 'object' || request === null) return 'expected an object with "route" or "target"'
  const unknown = Object.keys(request).find((name) => !fields.includes(name))
  if (unknown !== undefined) return `unknown field "${unknown}"; there are ${fields.join(', ')}`
  const { route, target, for: text, undo = false } = request as DrainRequest
  if ((route === undefined) === (target === undefined)) return 'expected either "route" or "target"'
  if (typeof (route ?? target) !== 'string') return 'expected "route" or "target" as text'
  if (typeof undo !== 'boolean') return 'expected true or false for "undo"'
  const forMs = text === undefined ? null : typeof text === 'string' ? parseDuration(text) : undefined
  if (forMs === undefined) return 'expected "for" as a duration such as "10m"'
  if (undo && forMs !== null) return '"undo" and "for" do not go together'
  if (route !== undefined) return { what: { kind: 'route', name: route }, forMs, undo }
  return { what: { kind: 'target', name: canonicalTarget(target!) ?? target! }, forMs, undo }
}

export function parseDrains(found: unknown): Drain[] {
  const { version, drains } = object(found, 'it')
  if (version !== VERSION) throw new Error(`version ${String(version)} is not ${VERSION}`)
  if (!Array.isArray(drains) || drains.length > DRAINS_MAX) throw new Error('"drains" is no list')
  return drains.map((entry: unknown) => {
    const { kind, name, sinceMs, untilMs } = object(entry, 'a drain')
    if ((kind !== 'route' && kind !== 'target') || typeof name !== 'string') throw new Error('a drain names nothing')
    const isTime = (value: unknown) => typeof value === 'number' && value > 0 && value < 8.64e15
    if (!isTime(sinceMs) || !(untilMs === null || isTime(untilMs))) throw new Error(`the times of ${kind} ${name}`)
    return { kind, name, sinceMs: sinceMs as number, untilMs: untilMs as number | null }
  })
}
