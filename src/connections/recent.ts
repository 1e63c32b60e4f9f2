// The flows that were settled lately, each as a number (native-flow.ts, keyOf): so that one of which the kernel dropped some
// events is told once, whatever else is heard of it. Two generations; the older one is forgotten as a whole.
import { RECENT_FLOWS_MAX, RECENT_FLOWS_MS } from '../base/limits.ts'

export interface Recent {
  add(key: number, nowMs: number): void
  has(key: number): boolean
  keys(): number[]
  /** Everything since then is remembered. */
  readonly sinceMs: number
}

export function recentFlows(): Recent {
  let [older, newer] = [new Set<number>(), new Set<number>()]
  // Nothing was settled before: it remembers all of that.
  let [olderMs, newerMs] = [-Infinity, -Infinity]
  return {
    add(key, nowMs) {
      if (newer.size >= RECENT_FLOWS_MAX || nowMs - newerMs > RECENT_FLOWS_MS) {
        ;[older, newer] = [newer, new Set()]
        ;[olderMs, newerMs] = [newerMs, nowMs]
      }
      newer.add(key)
    },
    has: (key) => newer.has(key) || older.has(key),
    keys: () => [...new Set([...older, ...newer])],
    get sinceMs() {
      return olderMs
    },
  }
}
