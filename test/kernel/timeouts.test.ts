// Deadlines of kernel flows: which reason, and when, by a clock of the test's own.
import { describe, expect, test } from 'bun:test'
import { RESYNC_MS_MAX, RESYNC_MS_MIN } from '../../src/base/limits.ts'
import { FlowTable } from '../../src/connections/flows.ts'
import { dueReason, resyncEveryMs, type FlowTimeouts } from '../../src/kernel/timeouts.ts'
import { ENDS, nativeFlow, TCP, type Flow } from '../connections/native-flow.ts'

const timeouts: FlowTimeouts = { connect: 10_000, idle: 60_000, halfClosed: 5000, parity: 30_000, allowHalfOpen: false }
const WALL = 1_700_000_000_000
const flow: Flow = { id: 7 }
const packets = (n: number): [number, number, number, number] => [n, n * 52, n, n * 52]

/** A table, and what is due in it at a time. */
function setUp() {
  const nothing = () => {}
  const table = new FlowTable(String, {
    opened: nothing, carried: nothing, settled: nothing, established: nothing, orphaned: nothing, lost: nothing,
    readEntry: () => true, dumped: nothing, nftChanged: nothing,
  }) // prettier-ignore
  const at = (ms: number, message: Uint8Array) => table.ingest(message, ms, WALL + ms)
  const reasonAt = (ms: number, own: Partial<FlowTimeouts> = {}) => {
    const reasons = table
      .due((flow) => dueReason(flow, { ...timeouts, ...own }, ms) !== undefined)
      .map((slot) => dueReason(table.times(slot)!, { ...timeouts, ...own }, ms))
    return reasons[0]
  }
  return { table, at, reasonAt }
}

describe('G14: a kernel flow whose time is up', () => {
  test('it does not open: its age counts, not the SYNs that are sent again', () => {
    const { at, reasonAt } = setUp()
    at(0, nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: WALL }))
    at(8000, nativeFlow('DUMPED', flow, { state: TCP.SYN_SENT, counters: [4, 240, 0, 0], eventMs: WALL + 8000 }))
    expect([reasonAt(9999), reasonAt(10_000)]).toEqual([undefined, 'connect_timeout'])
  })

  test('it opens in time', () => {
    const { at, reasonAt } = setUp()
    at(0, nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: WALL }))
    at(500, nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED }))
    expect([reasonAt(10_000), reasonAt(59_999), reasonAt(60_000)]).toEqual([undefined, undefined, 'idle_timeout'])
  })

  test('each packet that was counted begins its idleness anew', () => {
    const { at, reasonAt } = setUp()
    at(0, nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: WALL }))
    at(30_000, nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters: packets(5) }))
    at(60_000, nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters: packets(5) }))
    expect([reasonAt(89_999), reasonAt(90_000)]).toEqual([undefined, 'idle_timeout'])
    at(90_000, nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters: packets(6) }))
    expect([reasonAt(149_999), reasonAt(150_000)]).toEqual([undefined, 'idle_timeout'])
  })

  test.each([
    ['by the bits in its mark', { state: TCP.ESTABLISHED, ends: ENDS.FIN_TARGET }],
    ['by its state', { state: TCP.FIN_WAIT }],
  ])('G13: half closed, told %s', (_how, told) => {
    const { at, reasonAt } = setUp()
    at(0, nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: WALL }))
    at(20_000, nativeFlow('DUMPED', flow, { ...told, counters: packets(5) }))
    expect([reasonAt(24_999), reasonAt(25_000)]).toEqual([undefined, 'half_closed_timeout'])
    // An active stream survives, an idle one goes after parity.
    const open = { allowHalfOpen: true }
    expect([reasonAt(49_999, open), reasonAt(50_000, open)]).toEqual([undefined, 'half_closed_timeout'])
    at(45_000, nativeFlow('DUMPED', flow, { ...told, counters: packets(50) }))
    expect([reasonAt(74_999, open), reasonAt(75_000, open)]).toEqual([undefined, 'half_closed_timeout'])
    expect(reasonAt(55_000, { ...open, idle: 10_000 })).toBe('half_closed_timeout')
  })

  test('one that is closing waits for its counts; UDP has idleness only', () => {
    const { at, reasonAt } = setUp()
    at(0, nativeFlow('NEW', flow, { state: TCP.ESTABLISHED, eventMs: WALL }))
    at(0, nativeFlow('CLOSED', flow, { ends: ENDS.FINS }))
    expect(reasonAt(1e9)).toBeUndefined()
    const udp = setUp()
    udp.at(0, nativeFlow('NEW', { ...flow, protocol: 17 }, { eventMs: WALL }))
    expect([udp.reasonAt(59_999), udp.reasonAt(60_000)]).toEqual([undefined, 'idle_timeout'])
  })

  test('an adopted flow has the age it has; a clock that is set changes nothing', () => {
    const { table, reasonAt } = setUp()
    table.ingest(
      nativeFlow('DUMPED', flow, { state: TCP.SYN_SENT, counters: [4, 240, 0, 0], startMs: WALL - 9000 }),
      0,
      WALL,
    )
    expect([reasonAt(999), reasonAt(1000)]).toEqual([undefined, 'connect_timeout'])
    table.ingest(nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters: packets(9) }), 2000, WALL + 86_400_000)
    expect([reasonAt(61_999), reasonAt(62_000)]).toEqual([undefined, 'idle_timeout'])
  })
})

test('G14: counters are looked at every tenth of the shortest limit, within bounds, and for a small part of the time', () => {
  expect([resyncEveryMs(5000, 10), resyncEveryMs(200_000, 10), resyncEveryMs(2 ** 31 - 1, 10)]).toEqual([
    RESYNC_MS_MIN,
    20_000,
    RESYNC_MS_MAX,
  ])
  expect([resyncEveryMs(5000, 300), resyncEveryMs(Infinity, 0)]).toEqual([15_000, RESYNC_MS_MAX])
})
