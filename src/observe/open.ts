// Connections that last for hours or days would be in the access log only at their end: every ten minutes each of them has a
// line with its counts so far.
import type { ConnectionRecord } from '../connections/record.ts'

const EVERY_MS = 10 * 60_000
/** Records made and written in one turn of the event loop. */
const CHUNK = 200

export interface OpenReportOptions {
  /** The live connections of both planes with fresh counts; read bit by bit while they come and go. */
  live(): Promise<Iterable<ConnectionRecord>>
  write(record: ConnectionRecord): void
  /** The lines so far are out: a hundred thousand must not pile up in memory. */
  written(): Promise<void>
  onError(error: Error): void
}

export class OpenReports {
  #timer: ReturnType<typeof setInterval> | undefined
  #running = false
  #stopped = false

  constructor(
    private readonly options: OpenReportOptions,
    private readonly everyMs = EVERY_MS,
  ) {}

  start() {
    this.#timer ??= setInterval(() => void this.report(Date.now()).catch(this.options.onError), this.everyMs)
  }

  /** Resolves to the number of lines. */
  async report(nowMs: number): Promise<number> {
    if (this.#running) return 0
    this.#running = true
    try {
      return await this.#report(new Date(nowMs - this.everyMs).toISOString())
    } finally {
      this.#running = false
    }
  }

  async #report(openedUntil: string): Promise<number> {
    let [looked, lines] = [0, 0]
    for (const record of await this.options.live()) {
      // As text: both are ISO 8601 in UTC.
      if (record.openedAt <= openedUntil) {
        this.options.write(record)
        lines++
      }
      if (++looked % CHUNK !== 0) continue
      await this.options.written()
      await new Promise((turn) => setImmediate(turn))
      if (this.#stopped) break
    }
    return lines
  }

  stop() {
    this.#stopped = true
    clearInterval(this.#timer)
  }
}
