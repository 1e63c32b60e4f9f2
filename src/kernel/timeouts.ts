// Deadlines of kernel flows: what user space does to a connection that does not open, goes silent or stays half closed is
// done to flows as well, by looking at the packets that conntrack counts. The kernel's own timeouts stay behind as a backstop.
import { PHASE, STATE_TIMEOUTS_S, IPPROTO_TCP } from '../connections/native-flow.ts'
import type { FlowTable, FlowTimes } from '../connections/flows.ts'
import type { CloseReason } from '../connections/reasons.ts'
import { inTurns } from '../base/turns.ts'
import type { PlannedRoute } from '../plan/types.ts'
import { FLOW_CUTS_PER_TURN, FLOW_READS_MAX, RESYNC_MS_MAX, RESYNC_MS_MIN } from '../base/limits.ts'

export interface FlowTimeouts {
  connect: number
  idle: number
  halfClosed: number
  parity: number
  allowHalfOpen: boolean
}

export const timeoutsByNumber = (routes: readonly PlannedRoute[]): Map<number, FlowTimeouts> =>
  new Map(
    routes.map(({ number, user: { action, timeoutsMs } }) => {
      const { connect, idle, halfClosed, parity } = timeoutsMs
      const allowHalfOpen = action.type === 'forward' && action.allowHalfOpen
      return [number, { connect, idle, halfClosed, parity, allowHalfOpen }]
    }),
  )

const SWEEP_MS = 1000
/** Looking at the kernel's list takes at most one part in this many of the time. */
const RESYNC_SHARE = 50

/** Why a flow's time is up; undefined while it is not. Times are those of a clock that is never set. */
export function dueReason(flow: FlowTimes, timeouts: FlowTimeouts, nowMs: number): CloseReason | undefined {
  if (flow.phase === PHASE.CLOSING) return undefined
  if (flow.protocol === IPPROTO_TCP && flow.phase === PHASE.OPENING)
    return nowMs - flow.bornMs >= timeouts.connect ? 'connect_timeout' : undefined
  const silent = nowMs - flow.activeMs
  if (flow.phase === PHASE.HALF_CLOSED && silent >= halfClosedLimit(timeouts)) return 'half_closed_timeout'
  return silent >= timeouts.idle ? 'idle_timeout' : undefined
}

const halfClosedLimit = ({ halfClosed, parity, idle, allowHalfOpen }: FlowTimeouts) =>
  allowHalfOpen ? Math.min(parity, idle) : halfClosed

/** How often the counters have to be looked at: a tenth of the shortest limit, or 5 s; with very many flows less often.
 *  @param resyncMs how long the last look took. */
export const resyncEveryMs = (shortestMs: number, resyncMs: number) =>
  Math.min(RESYNC_MS_MAX, Math.max(RESYNC_MS_MIN, shortestMs / 10, resyncMs * RESYNC_SHARE))

export interface Deadlines {
  /** By route number. Numbers of routes that are gone keep what they had while they have flows. */
  set(byNumber: ReadonlyMap<number, FlowTimeouts>): void
  stop(): void
}

/** Looks once a second. */
export function watchDeadlines(
  flows: FlowTable,
  act: {
    /** Brings a slot up to date with its entry; false when that has gone. */
    refresh(slot: number): boolean
    cut(slot: number, reason: CloseReason): void
    resync(): Promise<void>
    /** When the last resync ended, and how long it took. */
    lastResync(): { atMs: number; tookMs: number }
    onError(error: Error): void
  },
): Deadlines {
  let timeouts = new Map<number, FlowTimeouts>()
  let sweeping = false
  const isDue = (flow: FlowTimes, nowMs: number) => {
    const own = timeouts.get(flow.number)
    return own && dueReason(flow, own, nowMs)
  }

  /** Its counters may be older than the last dump was due: the entry itself decides. */
  function check(slot: number) {
    const before = flows.times(slot)
    if (!before || !isDue(before, performance.now()) || !act.refresh(slot)) return
    const now = flows.times(slot)
    const reason = now && isDue(now, performance.now())
    if (reason) act.cut(slot, reason)
  }

  async function sweep() {
    let shortestMs = Infinity
    const due = () =>
      flows.due((flow) => {
        const own = timeouts.get(flow.number)
        if (!own) return false
        shortestMs = Math.min(shortestMs, own.idle, flow.protocol === IPPROTO_TCP ? halfClosedLimit(own) : Infinity)
        return dueReason(flow, own, performance.now()) !== undefined
      })
    let slots = due()
    // One look at all of them is cheaper than one at each.
    if (slots.length > FLOW_READS_MAX) {
      await act.resync()
      slots = due()
    }
    await inTurns(slots, FLOW_CUTS_PER_TURN, (slot) => {
      if (timer) check(slot)
    })
    const { atMs, tookMs } = act.lastResync()
    if (timer && performance.now() - atMs >= resyncEveryMs(shortestMs, tookMs)) await act.resync()
  }

  let timer: ReturnType<typeof setInterval> | undefined = setInterval(() => {
    if (sweeping) return
    sweeping = true
    void sweep()
      .catch(act.onError)
      .finally(() => {
        sweeping = false
      })
  }, SWEEP_MS)

  return {
    set(byNumber) {
      const live = flows.numbers()
      const kept = [...timeouts].filter(([number]) => live.has(number))
      timeouts = new Map([...kept, ...byNumber])
    },
    stop() {
      clearInterval(timer)
      timer = undefined
    },
  }
}

// ---- the kernel's own ----

const STATES = [
  '',
  'syn_sent',
  'syn_recv',
  'established',
  'fin_wait',
  'close_wait',
  'last_ack',
  'time_wait',
  'close',
  'syn_sent',
]

/** Seconds that conntrack remembers a TCP flow in each state, as this machine has them. */
export const readStateTimeouts = (): Promise<number[]> =>
  Promise.all(
    STATES.map(async (state, i) => {
      const text = await Bun.file(`/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_${state}`)
        .text()
        .catch(() => '')
      return Number(text) || STATE_TIMEOUTS_S[i]!
    }),
  )
