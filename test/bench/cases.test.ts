// What a benchmark that runs for half an hour should not end by finding out: names that meet, targets nobody looks at.
import { expect, test } from 'bun:test'
import { cases } from './cases.ts'
import { compare } from './statistics.ts'

const all = cases(['sluice'])

test('no two cases have the same name, and every target names a metric of its case', () => {
  expect(new Set(all.map(({ name }) => name)).size).toBe(all.length)
  const unknown = all.flatMap(({ name, targets = {}, load }) =>
    Object.keys(targets)
      .filter((target) => !load.metrics.some((metric) => metric.name === target))
      .map((target) => `${name}: ${target}`),
  )
  expect(unknown).toEqual([])
  expect(all.filter(({ targets }) => targets).length).toBeGreaterThan(10)
})

test('a slow moment hits both halves of a pair: ratios are taken run by run', () => {
  // The third run was twice as slow for both.
  expect(compare([10, 12, 5], [10, 10, 5])).toEqual({
    subject: 10,
    peer: 10,
    ratio: 1,
    lowest: 1,
    highest: 1.2,
    typical: 0,
  })
})
