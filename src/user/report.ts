// What happened, in batches: one timer of a few milliseconds while something is pending, so that a storm of connections
// costs one message for many of them.
import type { ConnectionEvents, ConnectionRecord } from '../connections/record.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import { REPORT_INTERVAL_MS } from '../base/limits.ts'

/** What is reported: announced at most once, settled exactly once. */
export interface Reported {
  /** `opened` for it was handed out. */
  announced: boolean
  /** Waits in the list of changes. */
  changed: boolean
  settled: boolean
  record(): ConnectionRecord
}

export class Reporter {
  #opened: Reported[] = []
  #changed: Reported[] = []
  #settled: ConnectionRecord[] = []
  #refused = new Map<string, ConnectionEvents['refused'][number]>()
  #timer: Timer | undefined
  #hurried: NodeJS.Immediate | undefined
  /** Control answers when the openings that it was told are on disk, and connections wait for that. */
  durable = false

  constructor(readonly report: (events: ConnectionEvents) => void) {}

  opened(one: Reported) {
    this.#opened.push(one)
    this.#schedule()
  }

  changed(one: Reported) {
    // One that was not announced yet is reported with its newest state anyway.
    if (!one.announced || one.changed || one.settled) return
    one.changed = true
    this.#changed.push(one)
    this.#schedule()
  }

  settled(one: Reported) {
    this.#settled.push(one.record())
    this.#schedule()
  }

  /** @param observed it would have been refused. */
  refused(route: string, reason: RefusalReason, observed = false) {
    const key = `${reason} ${observed} ${route}`
    const entry = this.#refused.get(key)
    if (entry) entry.count++
    else this.#refused.set(key, { route, reason, count: 1, observed })
    this.#schedule()
  }

  /** With the end of this turn: a connection waits for the answer. What came in the same turn goes along. */
  hurry() {
    this.#hurried ??= setImmediate(() => this.flush())
  }

  flush() {
    clearTimeout(this.#timer)
    clearImmediate(this.#hurried)
    this.#timer = this.#hurried = undefined
    const events: ConnectionEvents = {
      opened: [],
      changed: [],
      settled: this.#settled,
      refused: [...this.#refused.values()],
    }
    for (const one of this.#opened) {
      if (one.settled) continue
      one.announced = true
      events.opened.push(one.record())
    }
    for (const one of this.#changed) {
      one.changed = false
      if (!one.settled) events.changed.push(one.record())
    }
    this.#opened = []
    this.#changed = []
    this.#settled = []
    this.#refused = new Map()
    if (events.opened.length + events.changed.length + events.settled.length + events.refused.length > 0)
      this.report(events)
  }

  #schedule() {
    this.#timer ??= setTimeout(() => this.flush(), REPORT_INTERVAL_MS)
  }
}
