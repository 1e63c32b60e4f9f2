// The durable access log: who waits for a line is told when it is on disk, many by one sync, and the truth when it is not.
import { afterEach, expect, spyOn, test } from 'bun:test'
import { mkdtemp, open, readFile, rm, type FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { AccessLog } from '../../src/observe/access-log.ts'

const record = (id: string): ConnectionRecord => ({
  id,
  route: 'web',
  carrier: 'user',
  client: '10.0.0.2:1',
  listener: '10.0.0.1:80',
  target: null,
  state: 'opening',
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 0,
  bytesOut: 0,
})

const restore: (() => unknown)[] = []
afterEach(async () => {
  for (const undo of restore.splice(0).toReversed()) await undo()
})

/** The methods that every file has, to be watched and replaced. */
async function fileMethods(): Promise<FileHandle> {
  const file = await open('/dev/null')
  await file.close()
  return Object.getPrototypeOf(file) as FileHandle
}

async function durableLog() {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-log-'))
  const path = join(directory, 'access.jsonl')
  const problems: string[] = []
  const log = await AccessLog.open(path, (message) => void problems.push(message), true)
  restore.push(
    () => rm(directory, { recursive: true }),
    () => log.close(),
  )
  return { path, log, problems, text: () => readFile(path, 'utf8') }
}

test('C1: nobody is told before the sync is over, and one sync is for all that came meanwhile', async () => {
  const { log, text } = await durableLog()
  const methods = await fileMethods()
  const gates: PromiseWithResolvers<void>[] = []
  const began: (() => void)[] = []
  const sync = spyOn(methods, 'datasync').mockImplementation(() => {
    const gate = Promise.withResolvers<void>()
    gates.push(gate)
    began.shift()?.()
    return gate.promise
  })
  restore.push(() => sync.mockRestore())
  const syncing = () => new Promise<void>((resolve) => began.push(resolve))

  const told: string[] = []
  const tell = (ids: string[]) =>
    log.writeOpened(ids.map(record)).then((ok) => void told.push(...ids.map((id) => `${id} ${ok}`)))
  const [first] = [syncing(), tell(['a', 'b'])]
  const later = Array.from({ length: 100 }, (_, i) => tell([`c${i}`]))
  await first
  expect((await text()).match(/"event":"opened"/g)).toHaveLength(2)
  expect(told).toEqual([])

  const second = syncing()
  gates[0]!.resolve()
  await second
  expect(told).toEqual(['a true', 'b true'])
  expect((await text()).match(/"event":"opened"/g)).toHaveLength(102)
  gates[1]!.resolve()
  await Promise.all(later)
  expect(told).toHaveLength(102)
  expect(sync).toHaveBeenCalledTimes(2)
})

test('C3: a line that cannot be written is no opening; the next one stands on a line of its own', async () => {
  const { log, problems, text } = await durableLog()
  const methods = await fileMethods()
  const append = methods.appendFile
  const full = Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' })
  const appending = spyOn(methods, 'appendFile').mockImplementationOnce(async function (this: FileHandle, data) {
    await append.call(this, (data as Buffer).subarray(0, 30))
    throw full
  })
  restore.push(() => appending.mockRestore())
  expect(await log.writeOpened([record('lost')])).toBe(false)
  expect(await log.writeOpened([record('kept')])).toBe(true)
  const lines = (await text()).split('\n').filter(Boolean)
  expect(lines).toHaveLength(2)
  expect(JSON.parse(lines[1]!)).toMatchObject({ event: 'opened', id: 'kept' })
  expect(problems).toEqual(['Cannot write the access log: ENOSPC: no space left on device'])
})

test('C3: a sync that fails is told as well', async () => {
  const { log, problems } = await durableLog()
  const methods = await fileMethods()
  const sync = spyOn(methods, 'datasync').mockRejectedValueOnce(new Error('EIO: i/o error'))
  restore.push(() => sync.mockRestore())
  expect(await log.writeOpened([record('a')])).toBe(false)
  expect(await log.writeOpened([record('b')])).toBe(true)
  expect(problems).toEqual(['Cannot write the access log: EIO: i/o error'])
})

test('what cannot be synced is refused at the start', async () => {
  const opened = AccessLog.open('/dev/null', () => {}, true)
  await expect(opened).rejects.toThrow('Cannot keep a durable access log in /dev/null')
})
