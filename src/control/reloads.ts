// Changes of the running configuration: from its file, from the admin API, or from a program that has the gateway inside. Each is
// checked whole, and what did not change is not touched. A change may wait to be confirmed; one that is not, is taken back.
import { join } from 'node:path'
import { rm } from 'node:fs/promises'
import { CHANGES_LOGGED_MAX, CONFIRM_MS_MAX, CONFIRM_MS_MIN, TAKE_BACK_AGAIN_MS } from '../base/limits.ts'
import { parseDuration } from '../base/units.ts'
import { check, type Checked, type Problem } from '../config/check.ts'
import { loadConfig } from '../config/load.ts'
import type { Config, Route } from '../config/schema.ts'
import type { Changes, ConfirmAnswer, ReloadResult } from '../observe/admin.ts'
import type { Log } from '../observe/log.ts'
import type { Plan } from '../plan/types.ts'
import { changesOf, fixedChanges, GatewayError, ProblemsError, type Live } from './changes.ts'
import { object, recall, remember } from './memory.ts'

export interface Reloadable {
  log: Log
  configFile: string | undefined
  stateDir: string
  live: Live
  running(): { config: Config; plan: Plan }
  /** One change after the other; rejects when there are to be none any more. */
  serially<T>(work: () => Promise<T>): Promise<T>
  /** What a configuration would come to now; nothing is done. */
  plan(config: Config): Promise<Plan>
  /** Files beside the configuration that are in use, since who reloads may have changed them. Answers which are no good: what was
   *  read of them before stays in use. */
  readAgain(config: Config): Promise<Problem[]>
  /** Throws before anything was changed when it cannot be done.
   *  @param partly also without the routes whose certificates cannot be read now. */
  carryOut(config: Config, partly: boolean): Promise<void>
}

interface Unconfirmed {
  /** What comes back unless the change is confirmed. */
  before: Config
  until: number
  timer: ReturnType<typeof setTimeout>
  /** Why it could not be taken back, the last time. */
  failure?: string
}

const VERSION = 1

export class Reloads {
  #unconfirmed: Unconfirmed | null = null
  /** The file is read by one reload after the other: what was read last counts. */
  #reading: Promise<unknown> = Promise.resolve()
  /** One that has not begun: it sees what whoever asks meanwhile is about. */
  #next: Promise<ReloadResult> | null = null
  #stopped = false
  readonly #memory: string

  constructor(private readonly gateway: Reloadable) {
    this.#memory = join(gateway.stateDir, 'unconfirmed.json')
  }

  /** When a change that waits for its confirmation is taken back, ISO 8601; null: none waits. */
  get unconfirmedUntil(): string | null {
    return this.#unconfirmed && new Date(this.#unconfirmed.until).toISOString()
  }

  /** The configuration to start with: a life that ended while a change was not confirmed is followed by one without the change. */
  async begin(config: Config): Promise<Config> {
    const { log, configFile } = this.gateway
    const before = await recall(this.#memory, parseMemory, log)
    if (!before || fixedChanges(config, before).length > 0) return config
    log('warn', 'The last change was never confirmed: starting with the configuration from before it', {
      unused: configFile ?? null,
      remedy: 'sluice reload',
    })
    return before
  }

  // ---- what changes ----

  /** The configuration file again.
   *  @param confirm a duration in which confirm() has to come; else everything is as it was before. */
  async reload(confirm?: unknown): Promise<ReloadResult> {
    const confirmMs = confirm === undefined ? null : (parseDuration(String(confirm)) ?? NaN)
    if (confirmMs !== null && !(confirmMs >= CONFIRM_MS_MIN && confirmMs <= CONFIRM_MS_MAX))
      return refused('confirm', 'not a duration between 1 s and 1 h', 'such as "60s"')
    const file = this.gateway.configFile
    if (!file) return refused('(the configuration)', 'the gateway was started without a file', 'use PUT /v1/routes')
    if (confirmMs === null && this.#next) return this.#next
    const result = this.#reading.then(async () => {
      if (this.#next === result) this.#next = null
      const loaded = await loadConfig(file)
      return loaded.ok ? this.#replace(() => loaded, confirmMs) : loaded
    })
    this.#reading = result.catch(() => {})
    if (confirmMs === null) this.#next = result
    return result
  }

  /** Level-triggered: the whole configuration. */
  setConfig(config: Config): Promise<ReloadResult> {
    return this.#replace(() => ({ ok: true, config }))
  }

  setRoutes(routes: unknown): Promise<ReloadResult> {
    return this.#replace((running) => check({ ...running, routes }))
  }

  /** Adds it, or replaces the one of that name. */
  setRoute(name: string, route: unknown): Promise<ReloadResult> {
    const named = typeof route === 'object' && route !== null ? { name, ...route } : route
    if ((named as Partial<Route> | null)?.name !== name)
      return Promise.resolve(refused('name', `is not "${name}"`, 'a route has the name that the path says'))
    return this.#replace((running) => {
      const at = running.routes.findIndex((one) => one.name === name)
      return check({
        ...running,
        routes: at < 0 ? [...running.routes, named] : running.routes.with(at, named as Route),
      })
    })
  }

  /** null: there is no such route. */
  async removeRoute(name: string): Promise<ReloadResult | null> {
    let known = true
    const result = await this.#replace((running) => {
      known = running.routes.some((one) => one.name === name)
      return check({ ...running, routes: running.routes.filter((one) => one.name !== name) })
    })
    return known ? result : null
  }

  /** What a configuration would change. */
  async preview(input: unknown): Promise<ReloadResult> {
    const checked = check(input)
    if (!checked.ok) return checked
    const { config, plan } = this.gateway.running()
    const fixed = fixedChanges(config, checked.config)
    if (fixed.length > 0) return { ok: false, problems: fixed }
    return { ok: true, changes: changesOf(plan, await this.gateway.plan(checked.config), this.gateway.live) }
  }

  /** @param make from the configuration that runs when its turn has come: those before it count. */
  async #replace(make: (running: Config) => Checked, confirmMs: number | null = null): Promise<ReloadResult> {
    try {
      return await this.gateway.serially(async (): Promise<ReloadResult> => {
        if (this.#unconfirmed)
          return refused(
            '(the gateway)',
            `a change waits for its confirmation until ${this.unconfirmedUntil}`,
            'confirm it with "sluice confirm", or wait until it is taken back',
          )
        const { config: before, plan } = this.gateway.running()
        const made = make(before)
        if (!made.ok) return made
        const fixed = fixedChanges(before, made.config)
        if (fixed.length > 0) return { ok: false, problems: fixed }
        // Not when a change is taken back: what is in use is good.
        const warnings = await this.gateway.readAgain(made.config)
        // Counted before it: afterwards some are gone already.
        const changes = changesOf(plan, await this.gateway.plan(made.config), this.gateway.live)
        if (confirmMs !== null) await remember(this.#memory, JSON.stringify({ version: VERSION, before }))
        try {
          await this.gateway.carryOut(made.config, false)
          if (confirmMs !== null) this.#await(before, confirmMs)
        } finally {
          if (!this.#unconfirmed) await this.#forget()
        }
        const { unconfirmedUntil } = this
        this.gateway.log(
          'info',
          changes.routes.length > 0 ? 'Changed the configuration' : 'No route has changed',
          inBrief(changes),
        )
        return {
          ...{ ok: true, changes },
          ...(unconfirmedUntil === null ? {} : { unconfirmedUntil }),
          ...(warnings.length === 0 ? {} : { warnings }),
        }
      })
    } catch (error) {
      if (error instanceof ProblemsError) return { ok: false, problems: error.problems }
      if (error instanceof GatewayError)
        return refused('(the gateway)', error.message, 'the running configuration is unchanged')
      throw error
    }
  }

  // ---- confirmation ----

  #await(before: Config, ms: number) {
    const timer = setTimeout(() => void this.#takeBack(waiting), ms)
    const waiting: Unconfirmed = { before, until: Date.now() + ms, timer }
    this.#unconfirmed = waiting
    this.gateway.log('info', 'The change is taken back unless it is confirmed', { until: this.unconfirmedUntil })
  }

  async confirm(): Promise<ConfirmAnswer> {
    const confirmed = this.gateway.serially(async (): Promise<ConfirmAnswer> => {
      if (!this.#unconfirmed) return { ok: false, error: 'nothing waits for a confirmation' }
      await this.#forget()
      this.gateway.log('info', 'The change is confirmed')
      return { ok: true }
    })
    return confirmed.catch((error: Error) => ({ ok: false, error: error.message }))
  }

  /** Through the same door as every change: rules, listeners and certificates as they were. What may have locked somebody out goes
   *  in any case: without a route whose certificate is gone by now, and later when somebody has taken a port. */
  async #takeBack(waiting: Unconfirmed) {
    const { gateway } = this
    try {
      await gateway.serially(async () => {
        if (this.#unconfirmed !== waiting) return
        if (!waiting.failure) gateway.log('warn', 'The change was not confirmed in time: taking it back')
        await gateway.carryOut(waiting.before, true)
        await this.#forget()
        gateway.log('warn', 'The configuration is what it was before the change')
      })
    } catch (error) {
      if (this.#stopped) return
      const { message } = error as Error
      if (message !== waiting.failure)
        gateway.log('error', `Cannot take back the change: ${message}`, { againInSeconds: TAKE_BACK_AGAIN_MS / 1000 })
      waiting.failure = message
      waiting.timer = setTimeout(() => void this.#takeBack(waiting), TAKE_BACK_AGAIN_MS)
    }
  }

  async #forget() {
    clearTimeout(this.#unconfirmed?.timer)
    this.#unconfirmed = null
    await rm(this.#memory, { force: true })
  }

  /** What waits is taken back by the next start. */
  stop() {
    this.#stopped = true
    clearTimeout(this.#unconfirmed?.timer)
  }
}

/** There may be ten thousand. */
const inBrief = ({ added, removed, changed, untouched }: Changes) => ({
  ...Object.fromEntries(
    Object.entries({ added, removed, changed })
      .filter(([, names]) => names.length > 0)
      .map(([what, names]) => [what, names.length > CHANGES_LOGGED_MAX ? names.length : names]),
  ),
  untouched: untouched.length,
})

const refused = (path: string, message: string, remedy: string): { ok: false; problems: Problem[] } => ({
  ok: false,
  problems: [{ path, message, remedy }],
})

function parseMemory(found: unknown): Config {
  const { version, before } = object(found, 'it')
  if (version !== VERSION) throw new Error(`version ${String(version)} is not ${VERSION}`)
  const checked = check(before)
  if (!checked.ok) throw new Error('the configuration in it is none')
  return checked.config
}
