// The end of the access log, read back: which flows have their line.
import { expect, test } from 'bun:test'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { keyOfId } from '../../src/connections/native-flow.ts'
import { writtenSince } from '../../src/observe/written.ts'

const T = Date.parse('2026-01-01T00:00:00.000Z')
const line = (id: string, closedMs: number, more: object = {}) =>
  `${JSON.stringify({ event: 'closed', id, carrier: 'kernel', closedAt: new Date(closedMs).toISOString(), ...more })}\n`

async function withLog(text: string, work: (path: string) => Promise<void>) {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-written-'))
  try {
    await writeFile(join(directory, 'access.jsonl'), text)
    await work(join(directory, 'access.jsonl'))
  } finally {
    await rm(directory, { recursive: true })
  }
}

test('H8: kernel flows with their line, whatever else stands there and however the last line ends', () =>
  withLog(
    [
      line('k1-a', T - 1000),
      line('u1', T + 1, { carrier: 'user' }),
      'no JSON\n',
      '{"event":"refused","route":"web","count":3}\n',
      line('k2-a', T + 5),
      line('k3-a', T + 6).slice(0, 40),
    ].join(''),
    async (path) => {
      expect(await writtenSince(path, T)).toEqual(
        new Map([
          [keyOfId('k2-a')!, T + 5],
          [keyOfId('k1-a')!, T - 1000],
        ]),
      )
    },
  ))

test('H8: of a long log no more than is needed is read, and no line is torn', () => {
  const lines = Array.from({ length: 30_000 }, (_, i) => line(`k${i}-a`, T + i * 10, { client: 'ä'.repeat(i % 90) }))
  return withLog(lines.join(''), async (path) => {
    const found = await writtenSince(path, T + 290_000)
    // Piece by piece from the end, without a gap.
    const ids = Array.from({ length: found.size }, (_, i) => `k${30_000 - found.size + i}-a`)
    expect(new Set(found.keys())).toEqual(new Set(ids.map((id) => keyOfId(id)!)))
    expect(found.size).toBeGreaterThanOrEqual(2000)
    expect(found.size).toBeLessThan(20_000)
    expect((await writtenSince(path, 0)).size).toBe(30_000)
  })
})

test('H8: no log, no lines', async () => {
  expect((await writtenSince('/nowhere/access.jsonl', 0)).size).toBe(0)
})
