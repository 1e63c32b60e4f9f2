// Looks every few seconds for connections that nothing would end any more: their sockets are gone, their deadline is missing or
// was not heard, native code has forgotten them. It should find nothing; what it finds is a mistake of ours, is told with its
// facts, and ended, so that the mistake does not become a leak.
import { DIAL_TARGETS_MAX, SWEEP_CONNECTIONS_PER_TURN, SWEEP_MS } from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { UserRoute } from '../plan/types.ts'
import type { Connection } from './connection.ts'
import type { End } from './end.ts'
import type { Timers } from './timers.ts'

/** there: its socket is. over: both directions are through, and it has gone as it should. gone: it should be there. */
export type Side = 'there' | 'over' | 'gone'

/** A connection as the sweep sees it. */
export interface Swept {
  settled: boolean
  state: ConnectionRecord['state']
  client: Side
  /** none: it has no target, or is still looking for one. */
  target: Side | 'none'
  /** Native code has its sockets: does it still know of it? undefined: TypeScript has them. */
  held: boolean | undefined
  armed: boolean
  /** Since its deadline should have been heard. */
  overdueMs: number
  openMs: number
  /** Since the last byte that TypeScript has seen. */
  idleMs: number
  /** null: no route has it yet. */
  timeoutsMs: UserRoute['timeoutsMs'] | null
}

export interface Finding {
  what: string
  /** It may be so for a moment: a report is on its way, a grace time runs. */
  patienceMs: number
}

/** What is wrong with it; undefined: nothing. */
export function wrongWith(view: Swept): Finding | undefined {
  const found = (what: string, patienceMs = SWEEP_MS) => ({ what, patienceMs })
  const { settled, state, client, target, held, armed, timeoutsMs } = view
  if (settled) return found('it has settled, and is still listed')
  if (held === false) return found('native code does not know it')
  if (held === undefined) {
    if (client !== 'there' && target !== 'there') return found('no socket of it is left')
    if (client === 'gone') return found('the socket of the client is gone')
    if (target === 'gone') return found('the socket of the target is gone')
  }
  if (view.overdueMs > SWEEP_MS) return found('its deadline has passed, and nothing happened')
  // What is being closed in native code has a grace time there.
  if (!armed) return found('it has no deadline', state === 'closing' ? (timeoutsMs?.grace ?? 0) + SWEEP_MS : SWEEP_MS)
  if (!timeoutsMs) return undefined
  if (state === 'opening' && view.openMs > longestOpening(timeoutsMs))
    return found('it opens for longer than all its limits')
  if (state === 'open' && held === undefined && view.idleMs > timeoutsMs.idle + SWEEP_MS)
    return found('it has been silent for longer than it may')
  return undefined
}

/** The first bytes (of a PROXY header, and of what follows), a handshake at each side, every target that may be tried. */
const longestOpening = ({ firstByte, handshake, connect, halfClosed, grace }: UserRoute['timeoutsMs']) =>
  2 * firstByte + 2 * handshake + DIAL_TARGETS_MAX * connect + halfClosed + grace + SWEEP_MS

function viewOf(connection: Connection, timers: Timers): Swept {
  const { client, target, attachment, state, settled, openedAt, idleMs, route } = connection
  return {
    settled,
    state,
    client: sideOf(client),
    // Before the two are joined, the target may be one that has just failed.
    target: client.other && target ? sideOf(target) : 'none',
    held: attachment?.held?.() ?? client.keeper?.held(),
    armed: connection.due > 0,
    overdueMs: timers.overdueMs(connection),
    openMs: Date.now() - openedAt,
    idleMs,
    timeoutsMs: route?.plan.timeoutsMs ?? null,
  }
}

const sideOf = ({ socket, ended, finished }: End): Side => (socket ? 'there' : ended && finished ? 'over' : 'gone')

export class Sweep {
  #suspects = new Map<Connection, { what: string; sinceMs: number }>()
  #timer: Timer | undefined
  #looking = false

  constructor(
    private readonly plane: {
      readonly table: ReadonlyMap<string, Connection>
      readonly timers: Timers
      /** Ended, and so many. */
      swept(count: number): void
    },
  ) {}

  start() {
    this.#timer ??= setInterval(() => void this.look(performance.now()), SWEEP_MS)
  }

  stop() {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#suspects.clear()
  }

  /** Resolves to how many were ended. */
  async look(nowMs: number): Promise<number> {
    if (this.#looking) return 0
    this.#looking = true
    try {
      return await this.#look(nowMs)
    } finally {
      this.#looking = false
    }
  }

  async #look(nowMs: number): Promise<number> {
    const suspects = new Map<Connection, { what: string; sinceMs: number }>()
    let count = 0
    await inTurns([...this.plane.table.values()], SWEEP_CONNECTIONS_PER_TURN, (connection) => {
      // It may have ended since the list was made.
      if (this.plane.table.get(connection.id) !== connection) return
      const view = viewOf(connection, this.plane.timers)
      const finding = wrongWith(view)
      if (!finding) return
      const before = this.#suspects.get(connection)
      const sinceMs = before?.what === finding.what ? before.sinceMs : nowMs
      if (nowMs - sinceMs < finding.patienceMs) suspects.set(connection, { what: finding.what, sinceMs })
      else {
        count++
        connection.swept(finding.what, view)
      }
    })
    this.#suspects = suspects
    if (count > 0) this.plane.swept(count)
    return count
  }
}
