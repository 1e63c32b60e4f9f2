// The flow table: each flow opened once and settled once, whatever the order of events, dumps and our own acts.
import { describe, expect, test } from 'bun:test'
import { FlowTable } from '../../src/connections/flows.ts'
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
  }
  const table = new FlowTable((number) => `route${number}`, {
    opened: () => seen.opened++,
    carried: (_number, _target, _opened, more) => {
      for (const key of Object.keys(more) as (keyof Carried)[]) seen.carried[key] += more[key]
    },
    settled: (record) => settled.push(record),
    lost: () => seen.lost++,
    // What the kernel would still know of a flow: nothing, that both FINs have passed, or that it goes on.
    readEntry: (native) => {
      if (entries === 'gone') return false
      if (entries === 'alive') return true
      new DataView(native.buffer).setUint32(4, 0x51000001 | ENDS.FINS, true)
      native.set(nativeFlow('CLOSED', flow, { counters }).subarray(96, 128), 96)
      return true
    },
    dumped: (request, error) => seen.dumped.push([request, error]),
    nftChanged: (pid) => seen.nft.push(pid),
  })
  return { table, settled, seen, live: () => [...table.records()] }
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
    ['an entry expires', gone({ status: STATUS.DNAT | STATUS.ASSURED }), 'nftables_closed'],
    ['somebody deletes an entry', gone({ status: STATUS.DNAT | STATUS.ASSURED, timeout: 300 }), 'conntrack_flushed'],
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
    const { table, settled, live, seen } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.ingest(nativeFlow('NEW', { id: 2 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMPED', { id: 1 }, { state: TCP.ESTABLISHED, counters, request: 3 }))
    table.ingest(nativeFlow('NEW', { id: 3 }, { state: TCP.SYN_SENT }))
    table.ingest(nativeFlow('DUMP_END', { id: 0 }, { request: 3 }))
    expect([
      live().map((record) => record.id.split('-')[0]),
      settled.map((record) => record.reason),
      seen.dumped,
    ]).toEqual([['k1', 'k3'], ['nftables_closed'], [[3, 0]]])
  })

  test('an entry of a dump that ended meanwhile is not opened again', () => {
    const { table, settled, seen } = setUp()
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('CLOSED', flow, { ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DUMPED', flow, { state: TCP.ESTABLISHED, counters }))
    table.ingest(nativeFlow('DUMP_END', flow))
    expect([table.size, settled.length, seen.opened]).toEqual([0, 1, 1])
  })

  test('a flow that a dump shows in TIME_WAIT has ended, and is not opened', () => {
    const { table, settled, seen } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMPED', { id: 1 }, { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DUMPED', { id: 2 }, { state: TCP.TIME_WAIT, ends: ENDS.FINS, counters }))
    table.ingest(nativeFlow('DUMP_END', flow))
    expect([table.size, settled.length, seen.opened]).toEqual([0, 1, 1])
  })

  test('an end whose event was lost is told by the entry, when there is one', () => {
    const { table, settled } = setUp('ended')
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow))
    expect(settled).toEqual([expect.objectContaining({ reason: 'finished', bytesIn: 100, bytesOut: 1_000_000 })])
  })

  test('a flow whose entry lives is not closed by a dump that does not list it', () => {
    const { table, settled } = setUp('alive')
    table.ingest(nativeFlow('NEW', flow, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow))
    expect([settled.length, table.size]).toEqual([0, 1])
  })

  test('a dump that failed settles nothing', () => {
    const { table, settled, seen } = setUp()
    table.ingest(nativeFlow('NEW', { id: 1 }, { state: TCP.SYN_SENT }))
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow, { request: 1, error: 4 }))
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

  test('memory: below 400 bytes a flow at 100,000, and given back when they are gone', () => {
    const { table } = setUp()
    for (let n = 0; n < 100_000; n++)
      table.ingest(
        nativeFlow(
          'NEW',
          { id: Math.imul(n, 2654435761) >>> 0, client: [`10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`, 1] },
          { state: TCP.SYN_SENT },
        ),
      )
    expect(table.bytes / table.size).toBeLessThan(400)
    table.beginDump()
    table.ingest(nativeFlow('DUMP_END', flow))
    expect([table.size, table.bytes < 1024 * 1024]).toEqual([0, true])
  })
})
