// The totals in a file, so that they go on where they were after a restart or a crash: written every few seconds while they
// change, and at the end.
import { RECENT_FLOWS_MAX } from '../base/limits.ts'
import type { Written } from '../connections/flows.ts'
import type { ConnectionTable, TotalsSnapshot } from '../connections/table.ts'
import type { Left } from '../kernel/index.ts'
import type { Log } from '../observe/log.ts'
import { object, recall, remember } from './memory.ts'

/** What a kill may cost of what proxied connections carried; kernel flows are made up for from the kernel. */
const EVERY_MS = 10_000
const VERSION = 1

export class TotalsFile {
  #timer: ReturnType<typeof setInterval> | undefined
  #written = ''
  #writing: Promise<void> | null = null
  #failed = false
  #left: Left | undefined

  private constructor(
    private readonly path: string,
    private readonly table: ConnectionTable,
    private readonly log: Log,
    /** When the totals that were taken over were written; null: there were none. */
    readonly since: number | null,
    /** Kernel flows whose end was told around then, when the life before came to an orderly end. */
    public told: Written | null,
  ) {}

  /** Call before anything is counted. */
  static async load(path: string, table: ConnectionTable, log: Log, nowMs = Date.now()): Promise<TotalsFile> {
    const found = await recall(path, parseTotals, log)
    // The clock may have been set back since: no flow of this life has a part in what was stored.
    const snapshot = found && { ...found, at: Math.min(found.at, nowMs) }
    if (snapshot) table.restore(snapshot)
    const told = snapshot?.told && new Map(snapshot.told.map((key) => [key, snapshot.at]))
    return new TotalsFile(path, table, log, snapshot?.at ?? null, told ?? null)
  }

  start() {
    this.#timer ??= setInterval(() => void this.save(), EVERY_MS)
    // A first life that is killed at once: what ends after it is counted from here on.
    if (this.since === null) void this.save()
  }

  /** Resolves when the totals as they are at the call, or later ones, are on disk. */
  async save(): Promise<void> {
    await this.#writing
    this.#writing ??= this.#save().finally(() => {
      this.#writing = null
    })
    return this.#writing
  }

  async #save() {
    const { at, routes } = this.table.snapshot(this.#left?.atMs ?? Date.now())
    const text = JSON.stringify(routes)
    if (text === this.#written && !this.#left) return
    // The same time as of the totals that were taken over: flows of the life before have not been seen yet.
    if (at !== this.since) this.told = null
    const told = this.told ? [...this.told.keys()] : this.#left?.told
    try {
      await remember(this.path, `${JSON.stringify({ version: VERSION, at, routes, told })}\n`)
      this.#written = text
      this.#failed = false
    } catch (error) {
      // Said once: it is tried again every few seconds.
      if (!this.#failed) this.log('warn', `Cannot keep the totals: ${(error as Error).message}`)
      this.#failed = true
    }
  }

  /** @param left how the kernel was left; what began after it is not counted here. */
  async stop(left?: Left): Promise<void> {
    this.#left = left
    clearInterval(this.#timer)
    this.#timer = undefined
    await this.save()
  }
}

/** What stands in an account is checked where it is restored; here only that there are accounts. */
export function parseTotals(found: unknown): TotalsSnapshot & { told?: number[] } {
  const { version, at, routes, told } = object(found, 'it')
  if (version !== VERSION) throw new Error(`version ${String(version)} is not ${VERSION}`)
  if (typeof at !== 'number' || !(at > 0)) throw new Error('"at" is no time')
  for (const [name, route] of Object.entries(object(routes, '"routes"')))
    object(object(route, `route "${name}"`).targets ?? {}, `targets of route "${name}"`)
  const keys = Array.isArray(told) && told.length <= 2 * RECENT_FLOWS_MAX ? { told: told.filter(Number.isFinite) } : {}
  return { at, routes: routes as TotalsSnapshot['routes'], ...keys }
}
