// What live connections have carried is told as it grows, whoever carries them, and only what is new.
import { expect, test } from 'bun:test'
import type { ConnectionCounts } from '../../src/channel/messages.ts'
import { COUNTS_PER_TURN } from '../../src/base/limits.ts'
import { countsOf } from '../../src/user/counts.ts'
import type { Connection } from '../../src/user/connection.ts'
import { client, connected, echo, forward, open, route, type Bench } from './plane.ts'

async function told(bench: Bench): Promise<ConnectionCounts[]> {
  const all: ConnectionCounts[] = []
  await bench.plane.tellCounts((counts) => void all.push(...counts))
  return all
}

for (const carrier of ['user', 'splice'] as const)
  test(`G19 M2: counts of a live ${carrier} connection are told while it lives, and what did not grow is not told again`, async () => {
    const one = route('r', { carrier, action: forward(await echo()) })
    const bench = await open([one], { peek: carrier === 'splice' })
    const [talking, silent] = [client(bench.port), client(bench.port)]
    await Promise.all([talking, silent].map(connected))
    let heard = 0
    const say = async (bytes: number) => {
      const wanted = heard + bytes
      talking.write(Buffer.alloc(bytes, 'no TLS '))
      await new Promise<void>((resolve) =>
        talking.on('data', function hear(piece: Buffer) {
          heard += piece.length
          if (heard < wanted) return
          talking.off('data', hear)
          resolve()
        }),
      )
    }
    // The relay counts a moment after the bytes have left.
    const toldAs = async (bytes: number) => {
      for (let known: ConnectionCounts[] = []; known[0]?.bytesOut !== bytes; await Bun.sleep(1)) {
        const more = await told(bench)
        if (more.length > 0) known = more
        if (known[0]?.bytesOut === bytes) return expect(known).toMatchObject([{ bytesIn: bytes, bytesOut: bytes }])
      }
    }
    await say(7000)
    await toldAs(7000)
    expect(await told(bench)).toEqual([])
    await say(500)
    await toldAs(7500)
    expect(await told(bench)).toEqual([])
    expect(bench.settled).toEqual([])
  })

test('M2: counts of very many connections are told in pieces, each before others have their turn', async () => {
  const many = 3 * COUNTS_PER_TURN + 5
  const carried = new Map<string, number>()
  const connections = Array.from({ length: many }, (_, i) => {
    carried.set(`c${i}`, i % 2)
    return [`c${i}`, { id: `c${i}`, counts: () => ({ bytesIn: carried.get(`c${i}`)!, bytesOut: 0 }) }] as const
  })
  const table = new Map(connections) as unknown as Map<string, Connection>
  const tell = countsOf(table)
  const pieces: number[] = []
  const ids = new Set<string>()
  let last = 0
  const note = (counts: ConnectionCounts[], isLast: boolean) => {
    pieces.push(counts.length)
    for (const { id } of counts) ids.add(id)
    last += isLast ? 1 : 0
  }
  await tell(note)
  expect(pieces).toEqual([500, 500, 500, 2])
  expect([ids.size, last]).toEqual([Math.floor(many / 2), 1])
  // Two who ask at once hear of everything between them; one that has gone meanwhile is not told.
  for (const id of carried.keys()) carried.set(id, 7)
  pieces.length = 0
  const both = [tell(note), tell(note)]
  table.delete(`c${many - 1}`)
  await Promise.all(both)
  expect(pieces.reduce((sum, count) => sum + count, 0)).toBe(many - 1)
  expect(last).toBe(3)
  const began = performance.now()
  await tell(note)
  console.log(`${many} connections, nothing new: ${(performance.now() - began).toFixed(2)} ms`)
})
