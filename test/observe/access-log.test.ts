// What the access log says beside closed connections: refusals in few lines, and connections that last.
import { expect, test } from 'bun:test'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { ConnectionTable } from '../../src/connections/table.ts'
import { AccessLog } from '../../src/observe/access-log.ts'
import { OpenReports } from '../../src/observe/open.ts'
import { RefusalLog, type RefusedLine } from '../../src/observe/refusals.ts'

const record = (id: string, openedAt: string): ConnectionRecord => ({
  id,
  route: 'web',
  carrier: 'kernel',
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: '10.0.0.5:80',
  state: 'open',
  openedAt,
  bytesIn: 1,
  bytesOut: 2,
})

async function logFile() {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-log-'))
  const path = join(directory, 'access.jsonl')
  const log = await AccessLog.open(path, (message) => {
    throw new Error(message)
  })
  const lines = async () =>
    (await readFile(path, 'utf8'))
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Record<string, unknown>)
  return {
    log,
    lines,
    async [Symbol.asyncDispose]() {
      await log.close()
      await rm(directory, { recursive: true })
    },
  }
}

test('I10: a flood of refusals is one line for each route and reason', () => {
  const lines: RefusedLine[] = []
  const table = new ConnectionTable()
  const refusals = new RefusalLog((line) => void lines.push(line))
  table.observe(refusals)
  const before = new Date().toISOString()
  for (let i = 0; i < 10_000; i++)
    table.ingest({
      opened: [],
      changed: [],
      settled: [],
      refused: [
        { route: 'web', reason: 'route_rate', count: 2 },
        { route: 'web', reason: 'route_rate', count: 1, observed: true },
        { route: i % 2 ? 'web' : 'mail', reason: 'route_ip_blocked', count: 1 },
      ],
    })
  expect(lines).toEqual([])
  refusals.flush()
  expect(lines.map(({ since, ...line }) => [line, since >= before])).toEqual([
    [{ route: 'web', reason: 'route_rate', count: 20_000 }, true],
    [{ route: 'web', reason: 'route_rate', mode: 'observe', count: 10_000 }, true],
    [{ route: 'mail', reason: 'route_ip_blocked', count: 5000 }, true],
    [{ route: 'web', reason: 'route_ip_blocked', count: 5000 }, true],
  ])
  refusals.flush()
  expect(lines).toHaveLength(4)
})

test('I10: the line comes by itself, and the next one counts from nothing', async () => {
  const lines: RefusedLine[] = []
  let wrote = Promise.withResolvers<void>()
  const refusals = new RefusalLog((line) => {
    lines.push(line)
    wrote.resolve()
  }, 5)
  refusals.refused('web', 'no_target', 7, false)
  await wrote.promise
  wrote = Promise.withResolvers()
  refusals.refused('web', 'no_target', 2, false)
  await wrote.promise
  expect(lines.map(({ count }) => count)).toEqual([7, 2])
})

test('I8: connections that last have a line with their counts so far, young ones have none', async () => {
  await using file = await logFile()
  const now = Date.parse('2026-01-01T01:00:00.000Z')
  const live = [
    record('old', '2026-01-01T00:00:00.000Z'),
    record('just', '2026-01-01T00:50:00.000Z'),
    record('young', '2026-01-01T00:50:00.001Z'),
  ]
  const reports = new OpenReports({
    live: async () => live,
    write: (one) => file.log.line('open', one),
    written: () => file.log.flushed(),
    onError: (error) => {
      throw error
    },
  })
  expect(await reports.report(now)).toBe(2)
  file.log.settled({ ...live[0]!, state: 'closed', reason: 'finished' })
  await file.log.flushed()
  expect(await file.lines()).toMatchObject([
    { event: 'open', id: 'old', bytesIn: 1, bytesOut: 2, state: 'open' },
    { event: 'open', id: 'just' },
    { event: 'closed', id: 'old', reason: 'finished' },
  ])
})

test('I8: very many of them are written bit by bit: nothing is dropped and others have their turn', async () => {
  await using file = await logFile()
  const count = 60_000
  function* live() {
    for (let i = 0; i < count; i++) yield record(`k${i}`, '2026-01-01T00:00:00.000Z')
  }
  const reports = new OpenReports({
    live: async () => live(),
    write: (one) => file.log.line('open', one),
    written: () => file.log.flushed(),
    onError: (error) => {
      throw error
    },
  })
  let turns = 0
  const turning = setInterval(() => turns++, 1)
  const again = reports.report(Date.now())
  expect(await reports.report(Date.now())).toBe(0) // one at a time
  expect(await again).toBe(count)
  clearInterval(turning)
  await file.log.flushed()
  expect([(await file.lines()).length, file.log.dropped]).toEqual([count, 0])
  expect(turns).toBeGreaterThan(5)

  // A stop does not wait for the rest.
  const stopping = reports.report(Date.now())
  reports.stop()
  expect(await stopping).toBeLessThan(count)
})
