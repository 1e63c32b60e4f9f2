// The flow table: each flow opened once and settled once, whatever the order of events, dumps and our own acts.
import { describe, expect, test } from 'bun:test'
import { RECENT_FLOWS_MAX } from '../../src/base/limits.ts'
import { FlowTable } from '../../src/connections/flows.ts'
import { keyOf, keyOfId } from '../../src/connections/native-flow.ts'
import { recentFlows } from '../../src/connections/recent.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { NOTHING_CARRIED, type Carried } from '../../src/connections/totals.ts'
import { ENDS, nativeFlow, STATUS, TCP, type Flow } from './native-flow.ts'

function setUp(entries: 'gone' | 'ended' | 'alive' = 'gone') {
  const settled: ConnectionRecord[] = []
  const seen = {
    opened: 0,
    lost: 0,
    dumped: [] as [number, number][],
    nft: [] as number[],
    carried: { ...NOTHING_CARRIED },
    written: [] as string[],
    established: [] as unknown[],
    orphaned: 0,
  }
  const table = new FlowTable((number) => `route${number}`, {
    opened: () => seen.opened++,
    carried: (_number, _target, _opened, more) => {
      for (const key of Object.keys(more) as (keyof Carried)[]) seen.carried[key] += more[key]
    },
    settled: (record, _number, _carried, written) => {
      settled.push(record)
      if (written) seen.written.push(record.id)
    },
    established: (...sample) => seen.established.push(sample),
    orphaned: () => seen.orphaned++,
    lost: () => seen.lost++,
    // What the kernel would still know of a flow: nothing, that both FINs have passed, or that it goes on.
    readEntry: (native) => {
      if (entries === 'gone') return false
      if (entries === 'alive') return true
      new DataView(native.buffer).setUint32(4, 0x51000001 | ENDS.FINS, true)
      native.set(nativeFlow('CLOSED', flow, { counters }).subarray(96), 96)
      return true
    },
    dumped: (request, error) => seen.dumped.push([request, error]),
    nftChanged: (pid) => seen.nft.push(pid),
  })
  /** The end of a dump, and what the kernel plane does then. */
  const dumpEnd = (more: object = {}, wallMs?: number) => {
    table.ingest(nativeFlow('DUMP_END', flow, more), undefined, wallMs)
    for (const slot of table.missing()) table.endMissing(slot)
  }
  return { table, settled, seen, dumpEnd, live: () => [...table.records()] }
}

const flow: Flow = { id: 7 }
// SYN, SYN+ACK …: packets and bytes of a connection that carried 100 bytes in and 1,000,000 out with timestamps.
const counters: [number, number, number, number] = [5, 5 * 52 + 8 + 100, 704, 704 * 52 + 8 + 1_000_000]

describe('H7/H8: kernel flows as records', () => {
  test('one flow from SYN to TIME_WAIT', () => {
    const { table, settled, seen, live } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: 1_700_000_000_000 }))
    expect(live()).toEqual([
      {
        id: expect.stringMatching(/^k7-/),
        route: 'route1',
        carrier: 'kernel',
        client: '10.0.0.2:40000',
        listener: '10.0.0.1:80',
        target: '10.1.0.2:8080',
        state: 'opening',
        openedAt: '2023-11-14T22:13:20.000Z',
        bytesIn: 0,
        bytesOut: 0,
      },
    ])
    table.ingest(nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED }))
    expect(live()[0]!.state).toBe('open')
    table.ingest(nativeFlow('UPDATE', flow, { state: TCP.FIN_WAIT }))
    expect(live()[0]!.state).toBe('half-closed')
    const id = live()[0]!.id
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters, eventMs: 1_700_000_001_000 }))
    expect(settled).toEqual([
      expect.objectContaining({
        id,
        state: 'closed',
        reason: 'finished',
        closedAt: '2023-11-14T22:13:21.000Z',
        bytesIn: 100,
        bytesOut: 1_000_000,
      }),
    ])
    table.ingest(nativeFlow('DESTROY', flow, { ends: ENDS.FINS, counters }))
    expect([settled.length, table.size, seen.opened]).toEqual([1, 0, 1])
  })

  const born = nativeFlow('NEW', flow, { state: TCP.SYN_SENT })
  const closed = (ends: number, status?: number) => [born, nativeFlow('CLOSED', flow, { ends, status, counters })]
  const gone = (more: object) => [
    born,
    nativeFlow('DESTROY', flow, { status: STATUS.DNAT, counters: [3, 180, 0, 0], ...more }),
  ]
  test.each<[string, Uint8Array[], string]>([
    ['both sides close', closed(ENDS.FINS), 'finished'],
    ['the client resets', closed(ENDS.RST_CLIENT), 'client_reset'],
    ['the target resets', closed(ENDS.RST_TARGET), 'target_reset'],
    ['the target resets after a FIN of the client', closed(ENDS.RST_TARGET | ENDS.FIN_CLIENT), 'target_reset'],
    ['a peer that had closed answers late bytes', closed(ENDS.RST_CLIENT | ENDS.FIN_CLIENT), 'finished'],
    ['the target refuses', closed(ENDS.RST_TARGET, STATUS.DNAT | STATUS.SEEN_REPLY), 'target_refused'],
    ['the target refuses, and the entry goes with it', gone({ counters: [1, 60, 1, 40] }), 'target_refused'],
    ['the target is silent', gone({}), 'connect_timeout'],
    ['the event of the end was lost', gone({ ends: ENDS.RST_CLIENT }), 'client_reset'],
    ['an entry expires', gone({ status: STATUS.DNAT | STATUS.ASSURED }), 'idle_timeout'],
    [
      'an entry expires after one FIN',
      gone({ status: STATUS.DNAT | STATUS.ASSURED, ends: ENDS.FIN_CLIENT }),
      'half_closed_timeout',
    ],
    ['somebody deletes an entry', gone({ status: STATUS.DNAT | STATUS.ASSURED, deletedBy: 4711 }), 'conntrack_flushed'],
    ['the kernel deletes one', gone({ status: STATUS.DNAT | STATUS.ASSURED, timeout: 300 }), 'conntrack_flushed'],
    ['somebody deletes one that is opening', gone({ deletedBy: 4711 }), 'conntrack_flushed'],
    [
      'somebody deletes the entry of a flow that had ended',
      [nativeFlow('NEW', flow), nativeFlow('DESTROY', flow, { ends: ENDS.FINS, deletedBy: 4711, counters })],
      'finished',
    ],
    [
      'udp goes silent',
      [nativeFlow('NEW', { ...flow, protocol: 17 }), nativeFlow('DESTROY', { ...flow, protocol: 17 }, { counters })],
      'idle_timeout',
    ],
  ])('M4: reason when %s', (_what, messages, reason) => {
    const { table, settled } = setUp()
    for (const message of messages) table.ingest(message)
    expect(settled.map((record) => record.reason as string)).toEqual([reason])
  })

  test('a short connection that the reader held back is one record, with its own start and reason', () => {
    const { table, settled, seen } = setUp()
    const times = { counters, startMs: 1_700_000_000_000, eventMs: 1_700_000_000_500 }
    table.ingest(nativeFlow('WHOLE', flow, { ends: ENDS.FINS, ...times }))
    table.ingest(nativeFlow('WHOLE', flow, { ends: ENDS.RST_TARGET, ...times }))
    table.ingest(nativeFlow('DESTROY', flow, { counters }))
    expect(settled.map((record) => record.reason as string)).toEqual(['finished', 'target_reset'])
    expect(settled[0]).toMatchObject({
      openedAt: '2023-11-14T22:13:20.000Z',
      closedAt: '2023-11-14T22:13:20.500Z',
      bytesIn: 100,
    })
    expect([seen.opened, table.size]).toEqual([2, 0])
  })

  test('an end whose counters could not be read waits for DESTROY, which has them', () => {
    const { table, settled, live } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.ingest(nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED }))
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS }))
    expect([settled.length, live()[0]!.state]).toEqual([0, 'closing'])
    table.ingest(nativeFlow('DESTROY', flow, { ends: ENDS.FINS, counters }))
    expect(settled).toEqual([expect.objectContaining({ reason: 'finished', bytesOut: 1_000_000 })])
  })

  test('two flows with the same CTA_ID are two records', () => {
    const { table, live } = setUp()
    table.ingest(nativeFlow('NEW', { id: 9, client: ['10.0.0.2', 1000] }, { state: TCP.SYN_SENT }))
    table.ingest(nativeFlow('NEW', { id: 9, client: ['10.0.0.3', 1000] }, { state: TCP.SYN_SENT }))
    const ids = live().map((record) => record.id)
    expect(new Set(ids).size).toBe(2)
    expect(ids.map((id) => table.record(table.slotOf(id)!).client)).toEqual(['10.0.0.2:1000', '10.0.0.3:1000'])
  })

  test('a port that is used again at once, for an entry in the same place of memory, is a record with an id of its own', () => {
    const { table, settled, live } = setUp()
    const first = () => table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    const close = () => table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters }))
    first()
    close()
    first()
    const [again] = live()
    expect(table.record(table.slotOf(again!.id)!)).toEqual(again!)
    close()
    table.ingest(nativeFlow('WHOLE', flow, { ends: ENDS.FINS, counters }))
    const ids = settled.map((record) => record.id)
    expect([ids.length, new Set(ids).size, ids[1]]).toEqual([3, 3, again!.id])
    expect(ids.map((id) => id.split('.')[0])).toEqual([ids[0]!, ids[0]!, ids[0]!])
  })

  test('killed: settled by us, and the DESTROY that follows finds nothing', () => {
    const { table, settled, live } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.end(table.slotOf(live()[0]!.id)!, 'killed', 1_700_000_002_000)
    // Told before it was killed, read after.
    table.ingest(nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED }))
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DESTROY', flow, { counters }))
    expect([settled.map((record) => record.reason as string), table.size]).toEqual([['killed'], 0])
  })

  test('IPv6 and the start that the kernel remembers', () => {
    const { table, live } = setUp()
    table.ingest(
      nativeFlow(
        'DUMPED',
        { id: 5, client: ['2001:db8::2', 5], listener: ['2001:db8::1', 80], target: ['fd00::2', 8080] },
        { state: TCP.ESTABLISHED, counters, startMs: 1_600_000_000_000 },
      ),
    )
    expect(live()[0]).toMatchObject({
      client: '[2001:db8::2]:5',
      target: '[fd00::2]:8080',
      openedAt: '2020-09-13T12:26:40.000Z',
      state: 'open',
    })
  })
})

describe('H8: dumps are the kernel’s truth', () => {
  test('what a dump does not list is over, what came during it is not', () => {
    const { table, settled, live, seen, dumpEnd } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.ingest(nativeFlow('NEW', { id: 2 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMPED', { id: 1 }, { state: TCP.ESTABLISHED, counters, request: 3 }))
    table.ingest(nativeFlow('NEW', { id: 3 }, { state: TCP.SYN_SENT }))
    dumpEnd({ request: 3 })
    expect([
      live().map((record) => record.id.split('-')[0]),
      settled.map((record) => record.reason),
      seen.dumped,
    ]).toEqual([['k1', 'k3'], ['nftables_closed'], [[3, 0]]])
  })

  test('an entry of a dump that ended meanwhile is not opened again', () => {
    const { table, settled, seen, dumpEnd } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters }))
    dumpEnd()
    expect([table.size, settled.length, seen.opened]).toEqual([0, 1, 1])
  })

  test('a flow that a dump shows in TIME_WAIT has ended, and is not opened', () => {
    const { table, settled, seen, dumpEnd } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMPED', { id: 1 }, { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DUMPED', { id: 2 }, { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters }))
    dumpEnd()
    expect([table.size, settled.length, seen.opened]).toEqual([0, 1, 1])
  })

  test('an end whose event was lost is told by the entry, when there is one', () => {
    const { table, settled, dumpEnd } = setUp('ended')
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    dumpEnd()
    expect(settled).toEqual([expect.objectContaining({ reason: 'finished', bytesIn: 100, bytesOut: 1_000_000 })])
  })

  test('a flow whose entry lives is not closed by a dump that does not list it', () => {
    const { table, settled, dumpEnd } = setUp('alive')
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    dumpEnd()
    expect([settled.length, table.size]).toEqual([0, 1])
  })

  test('a dump that failed settles nothing', () => {
    const { table, settled, seen, dumpEnd } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    dumpEnd({ request: 1, error: 4 })
    expect([table.size, settled.length, seen.dumped]).toEqual([1, 0, [[1, 4]]])
  })

  test('lost events and foreign nft changes are told', () => {
    const { table, seen } = setUp()
    const nft = nativeFlow('NFT_CHANGED', flow)
    new DataView(nft.buffer).setUint32(4, 4711, true)
    table.ingest(Buffer.concat([nativeFlow('LOST', flow), nft]))
    expect([seen.lost, seen.nft]).toEqual([1, [4711]])
  })
})

describe('H8: an entry that goes while both ends believe in the connection', () => {
  const status = STATUS.DNAT | STATUS.SEEN_REPLY
  const destroyed = (more: object) => nativeFlow('DESTROY', flow, { status, counters, ...more })
  test.each<[string, Uint8Array, number]>([
    ['deleted', destroyed({ deletedBy: 4711 }), 1],
    ['expired', destroyed({ status: STATUS.DNAT | STATUS.ASSURED }), 1],
    ['its protocol was over', destroyed({ deletedBy: 4711, ends: ENDS.FINS }), 0],
    [
      'the target had not answered: the client sends its SYN again',
      destroyed({ status: STATUS.DNAT, deletedBy: 1 }),
      0,
    ],
  ])('the peers are told, once: %s', (_what, message, told) => {
    const { table, seen, settled } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.ingest(message)
    table.ingest(message)
    expect([seen.orphaned, settled.length]).toEqual([told, 1])
  })

  test('found missing by a dump: deleted when it cannot have expired', () => {
    const { table, seen, settled, dumpEnd } = setUp()
    const eventMs = 1_700_000_000_000
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT, eventMs, timeout: 120 }))
    table.ingest(nativeFlow('NEW', { id: 2, protocol: 17 }, { eventMs, timeout: 30 }))
    table.beginDump()
    dumpEnd({}, eventMs + 60_000)
    expect([settled.map((record) => record.reason as string), seen.orphaned]).toEqual([
      ['conntrack_flushed', 'nftables_closed'],
      1,
    ])
  })
})

describe('H8: events that the kernel dropped', () => {
  const T = 1_700_000_000_000
  const lost = (from: number, to: number) => nativeFlow('LOST', flow, { startMs: from, eventMs: to })
  const ended = (id: number, startMs: number, more: object = {}) =>
    nativeFlow(
      'DUMPED',
      { id },
      { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters, startMs, eventMs: T + 9000, timeout: 113, ...more },
    )
  const ids = (records: ConnectionRecord[]) => records.map((record) => record.id.split('-')[0])
  /** Seen to open and to end before anything is dropped. */
  const told = (id: number, startMs: number) =>
    nativeFlow('WHOLE', { id }, { ends: ENDS.FINS, counters, startMs, eventMs: startMs + 5 })

  test('a flow that began and ended in the gap has its record, from its entry; those that were told have no second one', () => {
    const { table, settled, seen, dumpEnd } = setUp()
    table.ingest(told(1, T), 0, T + 1)
    table.ingest(Buffer.concat([told(2, T + 1005), lost(T + 1000, T + 2000)]), 0, T + 2000)
    expect([seen.lost, table.lossMs]).toEqual([1, T + 990])
    table.beginDump()
    table.ingest(Buffer.concat([ended(1, T), ended(2, T + 1005), ended(3, T + 1500), ended(4, T + 5000)]), 0, T + 9000)
    table.ingest(nativeFlow('DUMPED', { id: 5 }, { state: TCP.ESTABLISHED, counters, startMs: T + 1500 }), 0, T + 9000)
    dumpEnd({}, T + 9000)
    // 1 and 2 were told, 4 began after the gap: its events are there to come. 5 lives.
    expect([ids(settled), table.size, seen.opened, table.lossMs]).toEqual([['k1', 'k2', 'k3'], 1, 4, null])
    expect(settled[2]).toMatchObject({ reason: 'finished', bytesIn: 100, openedAt: new Date(T + 1500).toISOString() })
    // TIME_WAIT lasts 120 s, of which 113 are left.
    expect(settled[2]!.closedAt).toBe(new Date(T + 9000 - 7000).toISOString())
    table.ingest(nativeFlow('DESTROY', { id: 3 }, { ends: ENDS.FINS, counters, startMs: T + 1500 }), 0, T + 120_000)
    expect(settled.length).toBe(3)
  })

  test('a flow of the gap of which only the end of its entry is told has its record too', () => {
    const { table, settled } = setUp()
    table.ingest(lost(T + 1000, T + 2000), 0, T + 2000)
    const gone = nativeFlow('DESTROY', flow, {
      status: STATUS.DNAT,
      counters: [1, 60, 1, 40],
      startMs: T + 1500,
      eventMs: T + 1501,
    })
    table.ingest(Buffer.concat([gone, gone]), 0, T + 2000)
    expect(settled.map((record) => record.reason as string)).toEqual(['target_refused'])
  })

  test('a second loss during the dump keeps the gap open', () => {
    const { table, dumpEnd } = setUp()
    table.ingest(lost(T + 1000, T + 2000), 0, T + 2000)
    table.beginDump()
    table.ingest(Buffer.concat([lost(T + 2500, T + 3000), nativeFlow('DUMP_END', flow)]), 0, T + 3000)
    expect(table.lossMs).toBe(T + 990)
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow, { error: 4 }), 0, T + 3000)
    expect(table.lossMs).toBe(T + 990)
    table.beginDump()
    dumpEnd({}, T + 3000)
    expect(table.lossMs).toBe(null)
  })

  test('without a loss an ended entry is no news', () => {
    const { table, settled, seen, dumpEnd } = setUp()
    table.beginDump()
    table.ingest(ended(3, T))
    dumpEnd()
    expect([settled.length, seen.opened]).toEqual([0, 0])
  })

  test('what was settled lately is remembered for a while, within limits', () => {
    const recent = recentFlows()
    for (let i = 0; i < 3 * RECENT_FLOWS_MAX; i++) recent.add(i, i)
    expect([recent.has(0), recent.has(3 * RECENT_FLOWS_MAX - 1)]).toEqual([false, true])
    expect([recent.has(recent.sinceMs), recent.has(recent.sinceMs - 1)]).toEqual([true, false])
  })
})

describe('H8: what the kernel carried while nobody listened', () => {
  const T = 1_700_000_000_000
  const adopt = (written: Map<number, number> | null) => {
    const made = setUp()
    made.table.beginDump({ sinceMs: T, written, heardMs: T + 50_000 })
    return made
  }
  /** Ended `ago` seconds before T + 60 s. */
  const ended = (id: number, ago: number, startMs = T - 30_000) =>
    nativeFlow(
      'DUMPED',
      { id },
      { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters, startMs, eventMs: T + 60_000, timeout: 120 - ago },
    )
  const entries = Buffer.concat([ended(1, 62), ended(2, 59), ended(3, 1, T + 1000), nativeFlow('DUMP_END', flow)])

  test('flows that ended since have their record, opened and settled', () => {
    const { table, settled, seen } = adopt(null)
    table.ingest(entries)
    expect(settled.map((record) => record.closedAt)).toEqual(
      [T + 1000, T + 59_000].map((ms) => new Date(ms).toISOString()),
    )
    expect([seen.opened, seen.carried.bytesIn, seen.written, table.size]).toEqual([2, 200, [], 0])
  })

  test('those whose record was written before the kill are counted when the totals have them not, and not written again', () => {
    const { table, settled, seen } = adopt(null)
    table.ingest(entries)
    const [two] = settled.map((record) => record.id)
    const again = adopt(new Map([[keyOfId(two!)!, T + 400]]))
    again.table.ingest(entries)
    expect([again.settled.length, again.seen.written]).toEqual([2, [two!]])
    expect(again.settled[0]!.closedAt).toBe(new Date(T + 400).toISOString())
    const before = adopt(new Map([[keyOfId(two!)!, T - 1]]))
    before.table.ingest(entries)
    expect([before.settled.length, before.seen.written]).toEqual([1, []])
    expect([seen.opened, table.size]).toEqual([2, 0])
  })

  test('one that was heard of since we listen has its record already', () => {
    const { table, settled } = setUp()
    table.ingest(nativeFlow('WHOLE', { id: 3 }, { ends: ENDS.FINS, counters, startMs: T + 1000, eventMs: T + 59_500 }))
    table.beginDump({ sinceMs: T, written: null, heardMs: T + 50_000 })
    table.ingest(entries)
    expect(settled.map((record) => record.id.split('-')[0])).toEqual(['k3', 'k2'])
  })

  test('what ended a moment before the cut is told unless the life before has told it', () => {
    // An entry tells it to the second below: both have ended around T.
    const around = Buffer.concat([ended(5, 61), ended(6, 61), nativeFlow('DUMP_END', flow)])
    const first = setUp()
    first.table.ingest(
      nativeFlow('WHOLE', { id: 5 }, { ends: ENDS.FINS, counters, startMs: T - 30_000, eventMs: T - 1 }),
    )
    const next = adopt(new Map(first.table.settledLately().map((key) => [key, T])))
    next.table.ingest(around)
    expect(next.settled.map(({ id }) => id.split('-')[0])).toEqual(['k6'])
    expect(next.settled[0]!.closedAt).toBe(new Date(T + 1).toISOString())
    expect(next.seen.written).toEqual([])
    // Nor is the life after that, however soon it comes.
    expect(next.table.settledLately()).toHaveLength(2)
  })

  test('the key of an id is that of the flow, also when its port was used again', () => {
    const bytes = ended(7, 1)
    const key = keyOf(bytes, new DataView(bytes.buffer), 0)
    const { table, settled } = adopt(null)
    table.ingest(bytes)
    expect([keyOfId(settled[0]!.id), keyOfId(`${settled[0]!.id}.3`)]).toEqual([key, key])
    expect([keyOfId('u1-5'), keyOfId('k'), keyOfId('k1')]).toEqual([undefined, undefined, undefined])
  })

  test('one that began since we listen is told by its events, of which the list may be ahead', () => {
    const { table, settled, dumpEnd } = adopt(null)
    const counted = { ends: ENDS.FINS, counters, startMs: T + 59_000 }
    table.ingest(ended(4, 1, T + 59_000))
    expect(settled).toEqual([])
    table.ingest(nativeFlow('WHOLE', { id: 4 }, { ...counted, eventMs: T + 59_001 }))
    dumpEnd()
    expect(settled.map(({ id }) => id.split('-')[0])).toEqual(['k4'])
    expect(settled[0]!.id).not.toContain('.')
  })

  test('the next dump opens nothing of what ended', () => {
    const { table, settled, dumpEnd } = adopt(null)
    dumpEnd()
    table.beginDump()
    table.ingest(entries)
    expect(settled.length).toBe(0)
  })
})

describe('H8: setup latency', () => {
  test.each([
    [
      'in one piece',
      [nativeFlow('NEW', flow, { state: TCP.ESTABLISHED, eventMs: 1000, establishedMs: 1007, timed: true })],
      'kernel',
    ],
    [
      'later',
      [
        nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: 1000 }),
        nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED, eventMs: 1007, establishedMs: 1007 }),
      ],
      'receipt',
    ],
    [
      'of a short connection',
      [
        nativeFlow('WHOLE', flow, {
          ends: ENDS.FINS,
          counters,
          startMs: 1000,
          eventMs: 2000,
          establishedMs: 1007,
          timed: true,
        }),
      ],
      'kernel',
    ],
    [
      'with its end, after its beginning',
      [
        nativeFlow('NEW', flow, { state: TCP.SYN_SENT, eventMs: 1000 }),
        nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters, eventMs: 2000, establishedMs: 1007, timed: true }),
      ],
      'kernel',
    ],
  ] as [string, Uint8Array[], string][])('told once with its clock: %s', (_what, messages, clock) => {
    const { table, seen } = setUp()
    for (const message of messages) table.ingest(message)
    table.ingest(nativeFlow('UPDATE', flow, { state: TCP.ESTABLISHED, establishedMs: 9000 }))
    expect(seen.established).toEqual([[1, '10.1.0.2:8080', 7, clock]])
  })
})

describe('I8: targets', () => {
  test('live flows by target, of one route and of all', () => {
    const { table } = setUp()
    const six: Flow = { id: 4, client: ['2001:db8::2', 5], listener: ['2001:db8::1', 80], target: ['fd00::2', 8080] }
    for (const one of [{ id: 1 }, { id: 2 }, { id: 3, number: 2 }, six] as Flow[]) table.ingest(nativeFlow('NEW', one))
    expect(table.countByTarget(1)).toEqual(
      new Map([
        ['10.1.0.2:8080', 2],
        ['[fd00::2]:8080', 1],
      ]),
    )
    expect(table.countByTarget().get('10.1.0.2:8080')).toBe(3)
  })

  test('what live flows carry is told as dumps show it, and adds up to what they carried', () => {
    const { table, seen, dumpEnd } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters: [3, 3 * 52 + 8 + 10, 3, 3 * 52 + 8] }))
    dumpEnd()
    expect(seen.carried).toEqual({ bytesIn: 10, bytesOut: 0, packetsIn: 3, packetsOut: 3 })
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters }))
    expect(seen.carried).toEqual({ bytesIn: 100, bytesOut: 1_000_000, packetsIn: 5, packetsOut: 704 })
  })
})

describe('H8: against a plain model', () => {
  test('8,000 random acts on 3,000 flows: opened once, settled once, the same flows live', () => {
    const { table, settled, seen, live } = setUp()
    let seed = 42
    const random = (n: number) => ((seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 8) % n
    const model = new Map<number, string>()
    let opened = 0
    // Ids collide on purpose: 3,000 flows over 300 values of CTA_ID.
    const flowOf = (n: number): Flow => ({
      id: n % 300,
      client: [`10.0.${n >> 8}.${n & 255}`, 1024 + n],
      number: (n % 50) + 1,
    })
    for (let i = 0; i < 8_000; i++) {
      const n = random(3000)
      const alive = model.has(n)
      const act = random(10)
      if (act < 6) {
        table.ingest(nativeFlow(alive ? 'UPDATE' : 'NEW', flowOf(n), { state: alive ? TCP.ESTABLISHED : TCP.SYN_SENT }))
        if (!alive) opened++
        model.set(n, 'live')
      } else if (act < 9) {
        table.ingest(nativeFlow(act === 8 ? 'DESTROY' : 'CLOSED', flowOf(n), { ends: ENDS.FINS, counters }))
        model.delete(n)
      } else if (alive) {
        const id = live().find((record) => record.client === `10.0.${n >> 8}.${n & 255}:${1024 + n}`)!.id
        table.end(table.slotOf(id)!, 'killed', 0)
        model.delete(n)
      }
    }
    expect(table.size).toBe(model.size)
    expect(new Set(live().map((record) => record.client))).toEqual(
      new Set([...model.keys()].map((n) => `10.0.${n >> 8}.${n & 255}:${1024 + n}`)),
    )
    expect([seen.opened, settled.length]).toEqual([opened, opened - model.size])
  })

  test('slots that were remembered are looked at after the table was emptied', () => {
    const { table, dumpEnd } = setUp()
    for (let n = 0; n < 2000; n++)
      table.ingest(nativeFlow('NEW', { id: n, client: ['10.0.0.2', n + 1] }, { state: TCP.SYN_SENT }))
    const due = table.due(() => true)
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow))
    const missing = table.missing()
    dumpEnd()
    expect([due.length, missing.length, table.size]).toEqual([2000, 2000, 0])
    for (const slot of [...due, ...missing]) {
      expect(table.times(slot)).toBeNull()
      table.endMissing(slot)
    }
    expect(table.size).toBe(0)
  })

  test('memory: below 400 bytes a flow at 100,000, and given back when they are gone', () => {
    const { table, dumpEnd } = setUp()
    for (let n = 0; n < 100_000; n++)
      table.ingest(
        nativeFlow(
          'NEW',
          { id: Math.imul(n, 2654435761) >>> 0, client: [`10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`, 1] },
          { state: TCP.SYN_SENT },
        ),
      )
    expect(table.bytes / table.size).toBeLessThan(400)
    console.log(`${Math.round(table.bytes / table.size)} bytes a flow at 100,000`)
    table.beginDump()
    dumpEnd()
    expect([table.size, table.bytes < 1024 * 1024]).toEqual([0, true])
  })
})
