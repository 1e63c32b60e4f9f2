// Refused connections in the access log: one line for each route and reason in ten seconds at most, with how many they were.
// A flood of them costs a few lines, not a full disk.
import type { RefusalReason } from '../connections/reasons.ts'
import type { ConnectionObserver } from '../connections/table.ts'

const EVERY_MS = 10_000

export interface RefusedLine {
  route: string
  reason: RefusalReason
  /** Only of a route that observes: it would have been refused. */
  mode?: 'observe'
  count: number
  /** ISO 8601: when the first of them was heard of. */
  since: string
}

/** As many entries as there are routes and reasons. */
export class RefusalLog implements ConnectionObserver {
  #lines = new Map<string, RefusedLine>()
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(
    private readonly write: (line: RefusedLine) => void,
    private readonly everyMs = EVERY_MS,
  ) {}

  refused(route: string, reason: RefusalReason, count: number, observed: boolean) {
    const key = `${reason} ${observed} ${route}`
    const line = this.#lines.get(key)
    if (line) line.count += count
    else
      this.#lines.set(key, {
        route,
        reason,
        ...(observed ? { mode: 'observe' as const } : {}),
        count,
        since: new Date().toISOString(),
      })
    this.#timer ??= setTimeout(() => this.flush(), this.everyMs)
  }

  flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const lines = this.#lines
    this.#lines = new Map()
    for (const line of lines.values()) this.write(line)
  }
}
