// The alarm before the conntrack table is full: its forecast, when it warns, and when it keeps still.
import { expect, test } from 'bun:test'
import { alarmLevel, alarmText, CapacityWatch, forecast, type Fill, type Sample } from '../../src/kernel/capacity.ts'

const sample = (seconds: number, entries: number, limit = 1000): Sample => ({ atMs: seconds * 1000, entries, limit })

test('H19: the forecast is the room that is left by the rate of the window', () => {
  expect(forecast([])).toBeNull()
  expect(forecast([sample(0, 500)])).toBeNull()
  expect(forecast([sample(0, 500), sample(10, 500)])).toBeNull()
  expect(forecast([sample(0, 600), sample(10, 500)])).toBeNull()
  expect(forecast([sample(0, 500), sample(10, 600)])).toBe(40)
  // A burst within the window counts as what it is over the whole of it.
  expect(forecast([sample(0, 100), sample(5, 100), sample(10, 400)])).toBe(20)
  expect(forecast([sample(0, 900), sample(10, 1000)])).toBe(0)
})

test('H19: it warns by share and by forecast, and a nearly empty table does not', () => {
  const level = (entries: number, fullInSeconds: number | null, before = 0) =>
    alarmLevel({ entries, limit: 1000, fullInSeconds }, before)
  expect([level(0, null), level(799, null), level(800, null), level(900, null), level(980, null)]).toEqual([
    0, 0, 1, 2, 3,
  ])
  expect([level(400, 301), level(400, 300), level(400, 60), level(299, 1)]).toEqual([0, 1, 2, 0])
  // Down only when there is room again.
  expect([level(850, null, 2), level(701, null, 1), level(699, null, 1), level(699, 500, 1)]).toEqual([2, 1, 0, 1])
})

test('H19: the sentence says how full, how soon, and what to do', () => {
  expect(alarmText({ entries: 213_000, limit: 262_144, fullInSeconds: 40.2 })).toBe(
    'The conntrack table is at 81 % of 262144 entries, full in about 40 s at the present rate; raise net.netfilter.nf_conntrack_max',
  )
  expect(alarmText({ entries: 800, limit: 1000, fullInSeconds: null })).toBe(
    'The conntrack table is at 80 % of 1000 entries; raise net.netfilter.nf_conntrack_max',
  )
  expect(alarmText({ entries: 800, limit: 1000, fullInSeconds: 240 })).toContain('full in about 4 min ')
  expect(alarmText({ entries: 1000, limit: 1000, fullInSeconds: 0 })).toContain('new connections of the whole machine')
})

test('H19: the watch warns once, again when it gets worse, and says when it is over', async () => {
  const said: string[] = []
  let seconds = 0
  let fill: Fill | null = null
  const watch = new CapacityWatch(
    (level, message) => void said.push(`${level}: ${message}`),
    async () => fill,
    () => seconds * 1000,
  )
  const look = async (entries: number, limit = 1000) => {
    fill = { entries, limit }
    seconds += 5
    await watch.look()
  }
  await watch.look()
  expect(watch.last).toBeNull()
  // Slow enough to be nothing but its share.
  seconds = 1000
  for (const entries of [790, 790, 800, 800, 795, 800]) {
    await look(entries)
    seconds += 100
  }
  expect(said).toHaveLength(1)
  expect(said[0]).toStartWith('warn: The conntrack table is at 80 %')
  await look(860)
  await look(930)
  expect(said).toHaveLength(2)
  expect(said[1]).toMatch(/^warn: The conntrack table is at \d\d %.* full in about \d+ s /)
  expect(watch.last).toEqual({ entries: 930, limit: 1000, fullInSeconds: 5 })
  // The operator raises the limit: nothing is left of the old forecast.
  await look(930, 4000)
  expect(watch.last!.fullInSeconds).toBeNull()
  expect(said.slice(2)).toEqual(['info: The conntrack table has room again'])
})

test('H19: what the kernel does not say is not watched, and a look that takes long is not doubled', async () => {
  const answer = Promise.withResolvers<Fill | null>()
  let reads = 0
  const watch = new CapacityWatch(
    () => {
      throw new Error('nothing to say')
    },
    () => (reads++, answer.promise),
  )
  const first = watch.look()
  await watch.look()
  expect(reads).toBe(1)
  answer.resolve(null)
  await first
  expect(watch.last).toBeNull()
  watch.start()
  watch.stop()
  expect(reads).toBe(2)
})
