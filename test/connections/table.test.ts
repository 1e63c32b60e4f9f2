// Totals of routes and targets: what they add up to, that they never go back, and that they continue over a restart.
import { describe, expect, test } from 'bun:test'
import { TARGET_TOTALS_MAX } from '../../src/base/limits.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { ConnectionTable, type TotalsSnapshot } from '../../src/connections/table.ts'

const A = '10.0.0.5:80'
const B = '10.0.0.6:80'
const carried = (bytesIn: number, bytesOut: number, packetsIn = 0, packetsOut = 0) => ({
  bytesIn,
  bytesOut,
  packetsIn,
  packetsOut,
})
const record = (more: Partial<ConnectionRecord> = {}): ConnectionRecord => ({
  id: 'u1',
  route: 'web',
  carrier: 'user',
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: A,
  state: 'open',
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 0,
  bytesOut: 0,
  ...more,
})
const none = { opened: [], changed: [], settled: [], refused: [] }
const flow = (more: Partial<ConnectionRecord>) =>
  record({ carrier: 'kernel', state: 'closed', reason: 'finished', ...more })

describe('I8: totals of proxied connections', () => {
  test('a connection counts where it is, also before its target and route are known', () => {
    const table = new ConnectionTable()
    table.ingest({ ...none, opened: [record({ route: '', target: null })] })
    expect(table.totals('')).toMatchObject({ now: 1, total: 1 })
    table.ingest({ ...none, changed: [{ id: 'u1', route: 'web', target: A, bytesIn: 100 }] })
    expect(table.totals('')).toMatchObject({ now: 0, total: 0, bytesIn: 0 })
    table.ingest({ ...none, changed: [{ id: 'u1', target: B }] })
    table.sampled([{ id: 'u1', bytesIn: 150, bytesOut: 7, state: 'open' }])
    const { targets } = table.totals('web')
    expect([targets.get(A), targets.get(B)]).toMatchObject([
      { now: 0, total: 0, bytesIn: 0 },
      { now: 1, total: 1, bytesIn: 150, bytesOut: 7 },
    ])
    table.ingest({ ...none, settled: [record({ target: B, bytesIn: 200, bytesOut: 9, reason: 'finished' })] })
    const end = { now: 0, total: 1, ...carried(200, 9), reasons: { finished: 1 } }
    expect([table.totals('web'), targets.get(B)]).toMatchObject([end, end])
    expect([table.size, table.anomalies]).toEqual([0, 0])
  })

  test('opened and settled in one batch, and ended with its worker', () => {
    const table = new ConnectionTable()
    table.ingest({ ...none, settled: [record({ id: 'w1-1', bytesIn: 5, reason: 'finished' })] })
    table.ingest({ ...none, opened: [record({ id: 'w1-2' })] })
    table.workerDied('w1-', 0)
    const end = { now: 0, total: 2, bytesIn: 5, reasons: { finished: 1, worker_died: 1 } }
    expect([table.totals('web'), table.totals('web').targets.get(A)]).toMatchObject([end, end])
  })

  test('one that is settled twice is an anomaly', () => {
    const table = new ConnectionTable()
    table.flowOpened('web', A, 1)
    table.flowSettled(flow({}), carried(0, 0))
    expect(table.anomalies).toBe(0)
    table.flowSettled(flow({}), carried(0, 0))
    expect(table.anomalies).toBe(1)
  })

  test('what is refused and what would have been are counted apart', () => {
    const table = new ConnectionTable()
    const refused = { route: 'web', reason: 'route_limit' as const, count: 2 }
    table.ingest({ ...none, refused: [refused, { ...refused, observed: true }, refused] })
    expect(table.totals('web')).toMatchObject({ refused: { route_limit: 4 }, observed: { route_limit: 2 } })
  })

  test('targets that come and go do not pile up', () => {
    const table = new ConnectionTable()
    table.ingest({ ...none, opened: [record({ id: 'stays', target: 'first:1' })] })
    for (let i = 0; i < TARGET_TOTALS_MAX * 2; i++)
      table.ingest({ ...none, settled: [record({ id: `u${i}`, target: `10.0.0.1:${i}`, reason: 'finished' })] })
    const { targets, total } = table.totals('web')
    expect([targets.size, targets.get('first:1')?.now, total]).toEqual([
      TARGET_TOTALS_MAX,
      1,
      TARGET_TOTALS_MAX * 2 + 1,
    ])
  })
})

describe('H8: totals of kernel flows', () => {
  test('what live flows carry is in them at once, and an estimate that is corrected does not take them back', () => {
    const table = new ConnectionTable()
    table.flowOpened('web', A, 1)
    table.flowCarried('web', A, 1, carried(100, 1000, 2, 3))
    expect(table.totals('web')).toMatchObject({ now: 1, total: 1, ...carried(100, 1000, 2, 3) })
    table.flowCarried('web', A, 1, carried(-60, 500, 2, 2))
    expect(table.totals('web')).toMatchObject(carried(100, 1500, 4, 5))
    table.flowCarried('web', A, 1, carried(50, 0))
    expect(table.totals('web')).toMatchObject({ bytesIn: 100, bytesOut: 1500 })
    table.flowCarried('web', A, 1, carried(50, 0))
    expect(table.totals('web')).toMatchObject({ bytesIn: 140, bytesOut: 1500 })
    table.flowSettled(flow({}), carried(140, 1500, 4, 5))
    const end = { now: 0, total: 1, ...carried(140, 1500, 4, 5), reasons: { finished: 1 } }
    expect([table.totals('web'), table.totals('web').targets.get(A)]).toMatchObject([end, end])
  })
})

describe('H8: totals over a restart', () => {
  /** Two flows, one of each target, one flow that ended, one proxied connection; stored at 1000. */
  function before(): TotalsSnapshot {
    const table = new ConnectionTable()
    table.flowOpened('web', A, 500)
    table.flowCarried('web', A, 500, carried(10, 100, 1, 1))
    table.flowOpened('web', B, 600)
    table.flowCarried('web', B, 600, carried(20, 200, 2, 2))
    table.flowOpened('web', A, 700)
    table.flowCarried('web', A, 700, carried(3, 3, 3, 3))
    table.flowSettled(flow({ id: 'k3' }), carried(3, 3, 3, 3))
    table.ingest({ ...none, opened: [record({ bytesIn: 1 })] })
    table.ingest({ ...none, refused: [{ route: 'web', reason: 'route_rate', count: 3 }] })
    expect(table.totals('web')).toMatchObject({ now: 3, total: 4, ...carried(34, 303, 6, 6) })
    // As a file gives it back.
    return JSON.parse(JSON.stringify(table.snapshot(1000))) as TotalsSnapshot
  }
  const restored = () => {
    const table = new ConnectionTable()
    table.restore(before())
    return { table, web: table.totals('web') }
  }

  test('live flows are counted again from their first byte, and are in the totals once', () => {
    const { table, web } = restored()
    expect(web).toMatchObject({
      now: 0,
      total: 4,
      ...carried(34, 303, 6, 6),
      reasons: { finished: 1 },
      refused: { route_rate: 3 },
    })
    // Adopted with what they had carried and more; B's has ended in between.
    table.flowOpened('web', A, 500)
    table.flowCarried('web', A, 500, carried(15, 150, 2, 2))
    table.flowOpened('web', B, 600)
    table.flowCarried('web', B, 600, carried(20, 250, 2, 3))
    table.flowSettled(flow({ target: B }), carried(20, 250, 2, 3))
    // Opened and ended while nobody listened.
    table.flowOpened('web', B, 1500)
    table.flowCarried('web', B, 1500, carried(7, 7, 1, 1))
    table.flowSettled(flow({ target: B }), carried(7, 7, 1, 1))
    table.adopted()
    expect(web).toMatchObject({
      now: 1,
      total: 5,
      ...carried(34 + 5 + 7, 303 + 50 + 50 + 7, 8, 9),
      reasons: { finished: 3 },
    })
    expect([web.targets.get(A), web.targets.get(B)]).toMatchObject([
      { now: 1, total: 3, ...carried(1 + 3 + 15, 3 + 150, 5, 5) },
      { now: 0, total: 2, ...carried(27, 257, 3, 4) },
    ])
  })

  test('a flow that ended without a trace keeps what was known of it, and the next ones count in full', () => {
    const { table, web } = restored()
    table.flowOpened('web', A, 500)
    table.flowCarried('web', A, 500, carried(10, 100, 1, 1))
    table.adopted()
    expect(web).toMatchObject({ now: 1, total: 4, ...carried(34, 303, 6, 6) })
    table.flowOpened('web', B, 900)
    table.flowCarried('web', B, 900, carried(1, 1, 1, 1))
    expect(web).toMatchObject({ now: 2, total: 5, ...carried(35, 304, 7, 7) })
  })

  test('a second restart before the first one has seen every flow', () => {
    const { table } = restored()
    table.flowOpened('web', A, 500)
    table.flowCarried('web', A, 500, carried(10, 100, 1, 1))
    const again = new ConnectionTable()
    const stored = table.snapshot(2000)
    // What ended since the first snapshot has not been counted yet.
    expect(stored.at).toBe(1000)
    again.restore(stored)
    again.flowOpened('web', A, 500)
    again.flowCarried('web', A, 500, carried(10, 100, 1, 1))
    again.flowOpened('web', B, 600)
    again.flowCarried('web', B, 600, carried(20, 200, 2, 2))
    again.adopted()
    expect(again.totals('web')).toMatchObject({ now: 2, total: 4, ...carried(34, 303, 6, 6) })
  })

  test('random lives with random restarts: never less than before, and right at the end', () => {
    let seed = 7
    const random = (n: number) => ((seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 8) % n
    let table = new ConnectionTable()
    const live = new Map<number, { opened: number; bytes: number }>()
    let [opened, bytes, shown] = [0, 0, 0]
    const look = (now: number) => {
      const { total, bytesIn, now: open } = table.totals('web')
      expect(bytesIn).toBeGreaterThanOrEqual(shown)
      expect([now, total, bytesIn, open]).toEqual([now, opened, bytes, live.size])
      shown = bytesIn
    }
    for (let now = 1; now < 3000; now++) {
      const act = random(20)
      const some = [...live.keys()][random(live.size)]
      if (act < 8) {
        live.set(now, { opened: now, bytes: 0 })
        opened++
        table.flowOpened('web', A, now)
      } else if (act < 14 && some !== undefined) {
        const one = live.get(some)!
        const more = random(100)
        one.bytes += more
        bytes += more
        table.flowCarried('web', A, one.opened, carried(more, 0))
      } else if (act < 19 && some !== undefined) {
        const one = live.get(some)!
        live.delete(some)
        table.flowSettled(flow({}), carried(one.bytes, 0))
      } else if (act === 19) {
        const stored = table.snapshot(now)
        table = new ConnectionTable()
        table.restore(stored)
        for (const one of live.values()) {
          const more = random(10)
          one.bytes += more
          bytes += more
          table.flowOpened('web', A, one.opened)
          table.flowCarried('web', A, one.opened, carried(one.bytes, 0))
        }
        table.adopted()
      }
      look(now)
    }
    expect(opened).toBeGreaterThan(500)
  })

  test('a file that was edited by hand is no reason to fail', () => {
    const table = new ConnectionTable()
    table.restore({
      at: 5,
      routes: { web: { total: 'many', bytesIn: -4, reasons: null, targets: { [A]: 7 } } },
    } as never)
    table.flowOpened('web', A, 1)
    expect(table.totals('web')).toMatchObject({ now: 1, total: 1, bytesIn: 0 })
  })
})
