// The totals in a file, so that they go on where they were after a restart or a crash: written every few seconds while they
// change, and at the end.
import type { ConnectionTable, TotalsSnapshot } from '../connections/table.ts'
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
  #untilMs: number | undefined

  private constructor(
    private readonly path: string,
    private readonly table: ConnectionTable,
    private readonly log: Log,
    /** When the totals that were taken over were written; null: there were none. */
    readonly since: number | null,
  ) {}

  /** Call before anything is counted. */
  static async load(path: string, table: ConnectionTable, log: Log, nowMs = Date.now()): Promise<TotalsFile> {
    const found = await recall(path, parseTotals, log)
    // The clock may have been set back since: no flow of this life has a part in what was stored.
    const snapshot = found && { ...found, at: Math.min(found.at, nowMs) }
    if (snapshot) table.restore(snapshot)
    return new TotalsFile(path, table, log, snapshot?.at ?? null)
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
    const { at, routes } = this.table.snapshot(this.#untilMs ?? Date.now())
    const text = JSON.stringify(routes)
    if (text === this.#written) return
    try {
      await remember(this.path, `{"version":${VERSION},"at":${at},"routes":${text}}\n`)
      this.#written = text
      this.#failed = false
    } catch (error) {
      // Said once: it is tried again every few seconds.
      if (!this.#failed) this.log('warn', `Cannot keep the totals: ${(error as Error).message}`)
      this.#failed = true
    }
  }

  /** @param untilMs when the kernel was last heard of; what began after it is not counted here. */
  async stop(untilMs?: number): Promise<void> {
    this.#untilMs = untilMs
    clearInterval(this.#timer)
    this.#timer = undefined
    await this.save()
  }
}

/** What stands in an account is checked where it is restored; here only that there are accounts. */
export function parseTotals(found: unknown): TotalsSnapshot {
  const { version, at, routes } = object(found, 'it')
  if (version !== VERSION) throw new Error(`version ${String(version)} is not ${VERSION}`)
  if (typeof at !== 'number' || !(at > 0)) throw new Error('"at" is no time')
  for (const [name, route] of Object.entries(object(routes, '"routes"')))
    object(object(route, `route "${name}"`).targets ?? {}, `targets of route "${name}"`)
  return { at, routes: routes as TotalsSnapshot['routes'] }
}
