// least-connections in the kernel: the arithmetic, and when new shares are told (E7).
import { expect, jest, test } from 'bun:test'
import { LeastConnections, parts, pour, type Load } from '../../src/control/least-connections.ts'
import type { Endpoint, PlannedRoute } from '../../src/plan/types.ts'

const loads = (...pairs: [number, number][]): Load[] => pairs.map(([weight, active]) => ({ weight, active }))

test('E7: new connections go where they level the loads', () => {
  expect(pour(loads([1, 0], [1, 0]), 10)).toEqual([5, 5])
  expect(pour(loads([1, 10], [1, 0]), 10)).toEqual([0, 10])
  expect(pour(loads([1, 10], [1, 0]), 20)).toEqual([5, 15])
  expect(pour(loads([3, 0], [1, 0]), 8)).toEqual([6, 2])
  expect(pour(loads([1, 100], [1, 100], [1, 0]), 9)).toEqual([0, 0, 9])
})

test('E7: whatever the loads, what is poured is what comes, nobody gets less than nothing, and no lower level is left out', () => {
  for (let round = 0; round < 2000; round++) {
    const random = (n: number) => Math.floor(Math.random() * n)
    const some = Array.from({ length: 2 + random(8) }, () => ({ weight: 1 + random(5), active: random(100) }))
    const coming = 1 + random(200)
    const amounts = pour(some, coming)
    expect(amounts.reduce((sum, amount) => sum + amount, 0)).toBeCloseTo(coming, 6)
    const level = (i: number) => (some[i]!.active + amounts[i]!) / some[i]!.weight
    const filled = Math.max(...amounts.flatMap((amount, i) => (amount > 0 ? [level(i)] : [])))
    for (const [i, amount] of amounts.entries()) {
      expect(amount).toBeGreaterThanOrEqual(0)
      expect(level(i)).toBeGreaterThanOrEqual(filled - 1e-6)
    }
    const whole = parts(amounts)
    expect(whole.reduce((sum, part) => sum + part, 0)).toBe(64)
    expect(Math.min(...whole)).toBeGreaterThanOrEqual(1)
  }
})

test('E7: shares are told when they change, for routes that choose by connections only', () => {
  jest.useFakeTimers()
  const endpoint = (key: string, share = 1) => ({ key, weight: 1, share }) as Endpoint
  const route = (name: string, balance: string) =>
    ({
      name,
      carrier: 'kernel',
      endpoints: [endpoint('10.0.0.1:1', 32), endpoint('10.0.0.2:1', 32), endpoint('10.0.0.3:1', 0)],
      user: { action: { type: 'forward', balance } },
    }) as unknown as PlannedRoute
  let active = new Map<string, number>()
  const told: object[] = []
  const least = new LeastConnections(
    () => ({ active, total: 0 }),
    (shares) => told.push(shares),
  )
  least.follow([route('turns', 'round-robin'), route('least', 'least-connections')])
  jest.advanceTimersByTime(1000)
  expect(told).toEqual([])
  active = new Map([['10.0.0.1:1', 50]])
  jest.advanceTimersByTime(1000)
  expect(told).toEqual([{ least: { '10.0.0.1:1': 1, '10.0.0.2:1': 63 } }])
  least.stop()
  jest.advanceTimersByTime(5000)
  expect(told.length).toBe(1)
  jest.useRealTimers()
})
