// The totals on disk: they go on after a restart, a damaged file is put aside, and an unchanged table is not written again.
import { expect, test } from 'bun:test'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ConnectionTable } from '../../src/connections/table.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { TotalsFile } from '../../src/control/totals.ts'

const said: string[] = []
const log = (level: string, message: string) => void said.push(`${level}: ${message}`)

async function directory() {
  const path = await mkdtemp(join(tmpdir(), 'sluice-totals-'))
  said.length = 0
  return { path, file: join(path, 'state', 'totals.json'), [Symbol.asyncDispose]: () => rm(path, { recursive: true }) }
}

const settled = (id: string, more: Partial<ConnectionRecord> = {}): ConnectionRecord => ({
  id,
  route: 'web',
  carrier: 'user',
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: '10.0.0.5:80',
  state: 'closed',
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 10,
  bytesOut: 20,
  reason: 'finished',
  ...more,
})
const NOTHING = { opened: [], changed: [], settled: [], refused: [] }

test('I8: totals go on after a restart, with their reasons and targets', async () => {
  await using place = await directory()
  const first = new ConnectionTable()
  const file = await TotalsFile.load(place.file, first, log)
  expect(file.since).toBeNull()
  first.ingest({
    ...NOTHING,
    settled: [settled('a'), settled('b', { reason: 'killed' })],
    refused: [{ route: 'web', reason: 'route_limit', count: 3 }],
  })
  const before = Date.now()
  await file.stop()
  expect((await stat(place.file)).mode & 0o777).toBe(0o600)

  const second = new ConnectionTable()
  const again = await TotalsFile.load(place.file, second, log)
  expect(again.since).toBeGreaterThanOrEqual(before)
  expect(again.since).toBeLessThanOrEqual(Date.now())
  second.ingest({ ...NOTHING, settled: [settled('c')] })
  const totals = second.totals('web')
  expect(totals).toMatchObject({
    now: 0,
    total: 3,
    bytesIn: 30,
    bytesOut: 60,
    reasons: { finished: 2, killed: 1 },
    refused: { route_limit: 3 },
  })
  expect(totals.targets.get('10.0.0.5:80')).toMatchObject({ total: 3, bytesIn: 30 })
  expect(said).toEqual([])
})

test('I8: what did not change is not written again, and a crash leaves nothing behind that stays', async () => {
  await using place = await directory()
  const table = new ConnectionTable()
  const file = await TotalsFile.load(place.file, table, log)
  table.ingest({ ...NOTHING, settled: [settled('a')] })
  // All of these are one or two writes, and the last state is on disk.
  await Promise.all([file.save(), file.save(), file.save()])
  const text = await readFile(place.file, 'utf8')
  await rm(place.file)
  await file.save()
  expect(await readdir(join(place.path, 'state'))).toEqual([])
  await writeFile(`${place.file}.new`, 'cut off in the mid')
  table.ingest({ ...NOTHING, settled: [settled('b')] })
  await file.save()
  expect(await readdir(join(place.path, 'state'))).toEqual(['totals.json'])
  expect(await readFile(place.file, 'utf8')).not.toBe(text)
})

test('I8: a damaged file is put aside and said, and the gateway starts from nothing', async () => {
  for (const damage of [
    '',
    '{"version":1,"at":1700000000000,"routes":{"web":{"tot',
    '[]',
    'null',
    '{"version":2,"at":1700000000000,"routes":{}}',
    '{"version":1,"at":"yesterday","routes":{}}',
    '{"version":1,"at":1700000000000,"routes":{"web":null}}',
    '{"version":1,"at":1700000000000,"routes":{"web":{"targets":[1]}}}',
  ]) {
    await using place = await directory()
    const path = join(place.path, 'totals.json')
    await writeFile(path, damage)
    const table = new ConnectionTable()
    const file = await TotalsFile.load(path, table, log)
    expect([damage, file.since]).toEqual([damage, null])
    expect(said).toHaveLength(1)
    expect(said[0]).toStartWith(`error: Cannot use ${path}: `)
    expect(said[0]).toEndWith(`it is put aside as ${path}.bad`)
    expect(await readFile(`${path}.bad`, 'utf8')).toBe(damage)
    table.ingest({ ...NOTHING, settled: [settled('a')] })
    await file.stop()
    expect(JSON.parse(await readFile(path, 'utf8')).routes.web.total).toBe(1)
  }
})

test('H8: the flows that an orderly end has told are kept with its time, until what they left has been seen', async () => {
  await using place = await directory()
  const first = await TotalsFile.load(place.file, new ConnectionTable(), log)
  expect(first.told).toBeNull()
  await first.stop({ atMs: 1_700_000_000_000, told: [17, 4] })
  const told = new Map([17, 4].map((key) => [key, 1_700_000_000_000]))

  const table = new ConnectionTable()
  const second = await TotalsFile.load(place.file, table, log)
  expect([second.since, second.told]).toEqual([1_700_000_000_000, told])
  // It ends before it has seen any: the next one takes over the same.
  await second.stop({ atMs: 1_700_000_001_000, told: [] })
  const other = new ConnectionTable()
  const third = await TotalsFile.load(place.file, other, log)
  expect([third.since, third.told]).toEqual([1_700_000_000_000, told])
  other.adopted()
  await third.save()
  expect(third.told).toBeNull()
  // Killed after that: it did not come to say what it had told.
  expect((await TotalsFile.load(place.file, new ConnectionTable(), log)).told).toBeNull()
})

test('I8: counts that somebody edited into nonsense are no counts; a time in the future is now', async () => {
  await using place = await directory()
  const path = join(place.path, 'totals.json')
  const routes = { web: { total: -5, bytesIn: 'x', bytesOut: 7, reasons: { finished: null, killed: 2 } } }
  await writeFile(path, JSON.stringify({ version: 1, at: 9e15, routes }))
  const table = new ConnectionTable()
  const file = await TotalsFile.load(path, table, log, 1_700_000_000_000)
  expect(file.since).toBe(1_700_000_000_000)
  expect(table.totals('web')).toMatchObject({ total: 0, bytesIn: 0, bytesOut: 7, reasons: { killed: 2 } })
})

test('I8: a disk that takes nothing is said once, and tried again', async () => {
  await using place = await directory()
  const path = join(place.path, 'in-the-way', 'totals.json')
  await writeFile(join(place.path, 'in-the-way'), 'a file where the directory should be')
  const table = new ConnectionTable()
  table.ingest({ ...NOTHING, settled: [settled('a')] })
  // Loading fails before: there is something, and it cannot be read.
  const file = await TotalsFile.load(path, table, log)
  said.length = 0
  await file.save()
  await file.save()
  expect(said).toHaveLength(1)
  expect(said[0]).toStartWith('warn: Cannot keep the totals: ')
  await rm(join(place.path, 'in-the-way'))
  await file.save()
  expect(JSON.parse(await readFile(path, 'utf8')).routes.web.total).toBe(1)
})
