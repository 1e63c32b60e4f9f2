// Rates and history of made-up totals, by a clock that the tests turn.
import { expect, test } from 'bun:test'
import { newRing, spread, sumOf } from '../../src/connections/ring.ts'
import { ConnectionTable } from '../../src/connections/table.ts'
import { Throughput, type Counted, type Moved } from '../../src/connections/throughput.ts'
import { THROUGHPUT_ROUTES_MAX } from '../../src/base/limits.ts'

const WALL_MS = Date.parse('2026-01-01T00:00:00Z')
const nothing = { bytesIn: 0, bytesOut: 0, opened: 0, closed: 0 }

/** Totals by hand, and a clock. */
class Bench {
  readonly totals = new Map<string, Counted>()
  readonly throughput = new Throughput(() => this.totals)
  nowMs = 500
  /** undefined: whatever is carried is known at once. */
  userMs: number | undefined
  kernelMs: number | undefined

  total(name: string): Counted {
    let total = this.totals.get(name)
    if (!total)
      this.totals.set(
        name,
        (total = { bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0, total: 0, now: 0, reasons: {} }),
      )
    return total
  }

  look() {
    const { nowMs, userMs = nowMs, kernelMs = nowMs } = this
    return this.throughput.look({ nowMs, userMs, kernelMs })
  }

  /** Looks once a second, for so many of them. */
  async pass(seconds: number, each: (second: number) => void = () => {}) {
    for (let second = 0; second < seconds; second++) {
      each(second)
      this.nowMs += 1000
      await this.look()
    }
  }

  history(name: string | null) {
    return this.throughput.history(name, this.nowMs, WALL_MS + this.nowMs)
  }
}

const at = (ms: number) => ({ nowMs: ms, userMs: ms, kernelMs: ms })
const sum = (list: Moved[], field: keyof Moved) => list.reduce((all, one) => all + one[field], 0)

test('M2: an amount is spread over its time in whole numbers that add up to it, also backwards', () => {
  for (const [amount, fromMs, toMs] of [
    [1000, 500, 1500],
    [7, 0, 10_000],
    [1, 100, 9900],
    [-13, 2500, 7300],
    [2 ** 53 - 1, 3, 11_111],
    [5, 4000, 4000],
    [6, 4500, 4500],
    [9, -Infinity, 5000],
    [8, 6000, 5000],
  ] as const) {
    const ring = newRing(1000, 20, 2)
    spread(ring, 1, amount, { fromMs, toMs })
    expect([amount, sumOf(ring, 1, 0, 20)]).toEqual([amount, amount])
    expect(sumOf(ring, 0, 0, 20)).toBe(0)
    for (let slot = 0; slot < 20; slot++) expect(Number.isSafeInteger(sumOf(ring, 1, slot, slot + 1))).toBe(true)
  }
  const ring = newRing(1000, 20, 1)
  spread(ring, 0, 1000, { fromMs: 1500, toMs: 4000 })
  expect([1, 2, 3, 4].map((slot) => sumOf(ring, 0, slot, slot + 1))).toEqual([200, 400, 400, 0])
})

test('M2: a ring keeps its newest slots, and gaps are empty', () => {
  const ring = newRing(1000, 3, 1)
  for (const [slot, amount] of [
    [0, 1],
    [1, 2],
    [2, 4],
    [3, 8],
  ] as const)
    spread(ring, 0, amount, { fromMs: slot * 1000, toMs: slot * 1000 + 999 })
  expect([sumOf(ring, 0, 0, 10), sumOf(ring, 0, 0, 2), sumOf(ring, 0, 3, 4)]).toEqual([14, 2, 8])
  spread(ring, 0, 16, { fromMs: 5000, toMs: 5001 })
  expect([sumOf(ring, 0, 0, 10), sumOf(ring, 0, 4, 5)]).toEqual([24, 0])
  spread(ring, 0, 32, { fromMs: 1_000_000, toMs: 1_000_001 })
  expect(sumOf(ring, 0, 0, 10_000)).toBe(32)
  // Later than it should have come: into the oldest slot that there is.
  spread(ring, 0, 64, { fromMs: 0, toMs: 999_000 })
  expect(sumOf(ring, 0, 998, 1001)).toBe(96)
})

test('M2: rates over 1, 10 and 60 seconds, of a route and of the gateway', async () => {
  const bench = new Bench()
  const [web, mail] = [bench.total('web'), bench.total('mail')]
  // What was there before is no throughput.
  Object.assign(web, { bytesIn: 1e9, total: 1000, reasons: { finished: 990 }, now: 10 })
  await bench.look()
  expect(bench.throughput.rates('web')).toEqual({ '1s': nothing, '10s': nothing, '60s': nothing })
  await bench.pass(70, (second) => {
    web.bytesIn += 600
    web.bytesOut += 1200
    if (second < 60) mail.bytesIn += 60
    if (second % 2 === 0) {
      web.total += 3
      web.reasons.finished! += 2
      web.now++
    }
  })
  const rates = bench.throughput.rates('web')!
  expect(rates['60s']).toEqual({ bytesIn: 600, bytesOut: 1200, opened: 1.5, closed: 1 })
  expect(rates['10s']).toMatchObject({ bytesIn: 600, bytesOut: 1200 })
  expect(rates['1s']).toMatchObject({ bytesIn: 600, bytesOut: 1200 })
  expect(bench.throughput.rates('mail')!['1s'].bytesIn).toBe(0)
  expect(bench.throughput.rates('mail')!['60s'].bytesIn).toBeCloseTo(50.5, 5)
  expect(bench.throughput.rates(null)!['60s'].bytesIn).toBeCloseTo(650.5, 5)
  expect(bench.throughput.rates('nobody')).toEqual({ '1s': nothing, '10s': nothing, '60s': nothing })
})

test('M2: looks that come late, or often, change no rate', async () => {
  const bench = new Bench()
  const web = bench.total('web')
  await bench.look()
  // A megabyte a second, looked at whenever.
  for (const stepMs of [1000, 1300, 700, 40, 3000, 960, 1999, 1, 3000, 500]) {
    web.bytesIn += stepMs * 1000
    bench.nowMs += stepMs
    await bench.look()
  }
  const { '1s': one, '10s': ten } = bench.throughput.rates('web')!
  expect(one.bytesIn).toBeCloseTo(1e6, -1)
  expect(ten.bytesIn).toBeCloseTo(1e6, -1)
  expect(sum(bench.history('web'), 'bytesIn')).toBe(web.bytesIn)
})

test('M2: looks that overlap take every byte once', async () => {
  const bench = new Bench()
  for (let i = 0; i < 5000; i++) bench.total(`r${i}`)
  await bench.look()
  const looks = Array.from({ length: 5 }, (_, i) => {
    bench.total('r4999').bytesIn += 100
    bench.nowMs += 10 * i
    return bench.look()
  })
  await Promise.all(looks)
  expect(sum(bench.history('r4999'), 'bytesIn')).toBe(500)
  expect(sum(bench.history(null), 'bytesIn')).toBe(500)
})

test('M2: what the kernel carried comes every five seconds, and is shown as the steady flow that it was', async () => {
  const bench = new Bench()
  const kernel = bench.total('kernel')
  bench.kernelMs = bench.nowMs
  await bench.look()
  const seen: number[] = []
  await bench.pass(90, (second) => {
    if (second % 5 === 4) {
      const kernelMs = bench.nowMs + 900
      kernel.bytesOut += (kernelMs - bench.kernelMs!) * 100
      kernel.packetsOut += 1000
      bench.kernelMs = kernelMs
    }
    if (second > 70)
      seen.push(bench.throughput.rates('kernel')!['1s'].bytesOut, bench.throughput.rates(null)!['1s'].bytesOut)
  })
  expect(new Set(seen)).toEqual(new Set([100_000]))
  expect(bench.throughput.rates('kernel')!['60s'].bytesOut).toBe(100_000)
  expect(sum(bench.history('kernel'), 'bytesOut')).toBe(kernel.bytesOut)
  // Nobody reads any more: what is not known is nothing, in the end.
  await bench.pass(20)
  expect(bench.throughput.rates('kernel')!['1s'].bytesOut).toBe(0)
  expect(bench.throughput.rates('kernel')!['60s'].bytesOut).toBeGreaterThan(0)
})

test('M2: somebody who asks all the time changes no rate', async () => {
  const bench = new Bench()
  const web = bench.total('web')
  bench.userMs = bench.nowMs
  await bench.look()
  const seen: number[] = []
  for (let tenth = 1; tenth <= 200; tenth++) {
    bench.nowMs += 100
    // Connections are counted once a second, and looked at ten times.
    if (tenth % 10 === 0) {
      web.bytesIn += 50_000
      bench.userMs = bench.nowMs
    }
    await bench.look()
    if (tenth > 20) seen.push(bench.throughput.rates('web')!['1s'].bytesIn)
  }
  expect(new Set(seen)).toEqual(new Set([50_000]))
  expect(sum(bench.history('web'), 'bytesIn')).toBe(web.bytesIn)
})

test('M2: the last hour, minute by minute, adds up to the totals', async () => {
  const bench = new Bench()
  bench.nowMs = 30_000
  const web = bench.total('web')
  await bench.look()
  expect(bench.history(null)).toEqual([{ at: '2026-01-01T00:00:00.000Z', ...nothing }])
  await bench.pass(10 * 60, (second) => {
    web.bytesIn += second
    web.total++
    web.reasons.finished = web.total
  })
  const history = bench.history('web')
  expect(history).toEqual(bench.history(null))
  expect(history.map(({ at }) => at.slice(11, 19))).toEqual(
    Array.from({ length: 11 }, (_, minute) => `00:${String(minute).padStart(2, '0')}:00`),
  )
  expect(history.map(({ opened }) => opened)).toEqual([30, ...Array(9).fill(60), 30])
  expect([sum(history, 'bytesIn'), sum(history, 'closed')]).toEqual([web.bytesIn, 600])
  await bench.pass(60 * 60)
  expect(bench.history('web').length).toBe(60)
  expect(sum(bench.history('web'), 'opened')).toBe(0)
})

test('M2: what turns out to belong to another route is taken back, and no rate is negative', async () => {
  const table = new ConnectionTable()
  const throughput = new Throughput(() => table.allTotals())
  const record = {
    id: 'a',
    route: '',
    carrier: 'user',
    client: 'c',
    listener: 'l',
    target: null,
    state: 'opening',
    openedAt: '',
    bytesIn: 300,
    bytesOut: 0,
  } as const
  await throughput.look(at(0))
  table.ingest({ opened: [{ ...record }], changed: [], settled: [], refused: [] })
  await throughput.look(at(1000))
  expect(throughput.rates('')!['1s']).toMatchObject({ bytesIn: 300, opened: 1 })
  table.ingest({ opened: [], changed: [{ id: 'a', route: 'web', bytesIn: 500 }], settled: [], refused: [] })
  await throughput.look(at(2000))
  expect(throughput.rates('')!['1s']).toEqual(nothing)
  expect(throughput.rates('')!['10s']).toEqual(nothing)
  expect(throughput.rates('web')!['1s']).toMatchObject({ bytesIn: 500, opened: 1 })
  // Of the gateway it is one connection, and 500 bytes.
  expect(throughput.rates(null)!['10s']).toMatchObject({ bytesIn: 50, opened: 0.1 })
})

test('M2: routes at rest for an hour have no rings, those that the totals forgot have nothing, and there is a limit', async () => {
  const bench = new Bench()
  for (let i = 0; i < THROUGHPUT_ROUTES_MAX; i++) bench.total(`r${i}`)
  await bench.look()
  for (const totals of bench.totals.values()) totals.bytesIn++
  await bench.pass(2)
  const late = bench.total('late')
  await bench.pass(2, () => void (late.bytesIn += 100))
  expect(bench.throughput.rates('late')).toBeNull()
  // The gateway's own knows of it all the same.
  expect(bench.throughput.rates(null)!['1s'].bytesIn).toBe(100)
  bench.totals.delete('r7')
  await bench.pass(3, () => void (late.bytesIn += 100))
  expect(bench.throughput.rates('late')!['1s'].bytesIn).toBe(100)
  expect(bench.throughput.rates('r7')).toEqual({ '1s': nothing, '10s': nothing, '60s': nothing })
  bench.nowMs += 61 * 60_000
  await bench.look()
  const others = Array.from({ length: 100 }, (_, i) => bench.total(`other${i}`))
  await bench.pass(2, () => others.forEach((one) => one.bytesIn++))
  for (let i = 0; i < 100; i++) expect(bench.throughput.rates(`other${i}`)!['1s'].bytesIn).toBe(1)
}, 60_000)

test('M2: ten thousand busy routes: what a look costs', async () => {
  const bench = new Bench()
  for (let i = 0; i < 10_000; i++) bench.total(`route-${i}`)
  await bench.look()
  const measure = async (what: string, busy: number) => {
    const took: number[] = []
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < busy; i++) bench.total(`route-${i}`).bytesIn += 1000
      bench.nowMs += 1000
      const began = performance.now()
      await bench.look()
      took.push(performance.now() - began)
    }
    console.log(`10,000 routes, ${what}: ${took.toSorted((a, b) => a - b)[10]!.toFixed(1)} ms a second`)
  }
  await measure('none busy', 0)
  await measure('1000 busy', 1000)
  await measure('all busy', 10_000)
  expect(sum(bench.history(null), 'bytesIn')).toBe(20 * 11_000 * 1000)
}, 30_000)
