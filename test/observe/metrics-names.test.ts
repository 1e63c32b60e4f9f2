// The names of the metrics, by the rules that promtool checks and Prometheus' own documentation gives.
import { expect, test } from 'bun:test'
import { fullExposition } from './full.ts'
import { parseMetrics } from './exposition.ts'

interface Family {
  name: string
  type: string
  help: string
}

const text = await fullExposition()
const samples = parseMetrics(text)
const types = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, type]) => [name!, type!]))
const families = [...text.matchAll(/^# HELP (\S+) (.+)$/gm)].map(([, name, help]): Family => ({
  name: name!,
  help: help!,
  type: types.get(name!) ?? 'none',
}))

const SHORT_UNITS =
  /(?:^|_)(?:ms|s|us|ns|sec|secs|milliseconds|microseconds|minutes|hours|days|kb|mb|gb|kib|mib|gib|kilobytes|megabytes|bits|percent)(?:_|$)/
const UNITS = /_(?:seconds|bytes|ratio|celsius|meters)(?=_|$)/
const UNIT_AT_END = /_(?:seconds|bytes|ratio)(?:_total)?$/

/** What is wrong with it, in words. */
function problems({ name, type, help }: Family): string[] {
  const found = (wrong: boolean, words: string) => (wrong ? [`${name}: ${words}`] : [])
  return [
    ...found(!/^(?:sluice|process)(?:_[a-z]+)+$/.test(name), 'is not in snake case with our prefix'),
    ...found(type === 'counter' && !name.endsWith('_total'), 'a counter ends in _total'),
    ...found(type !== 'counter' && name.endsWith('_total'), 'only a counter ends in _total'),
    ...found(/_(?:count|sum|bucket)$/.test(name), 'the ending belongs to histograms'),
    ...found(/_(?:counter|gauge|histogram|summary)(?:_|$)/.test(name), 'a name does not say its type'),
    ...found(SHORT_UNITS.test(name), 'units are base units, written out'),
    ...found(UNITS.test(name) && !UNIT_AT_END.test(name), 'the unit stands at the end'),
    ...found(help.length < 10, 'the help says nothing'),
    ...found(!/^[A-Z0-9n]/.test(help) || help.endsWith('.'), 'the help is a phrase: a capital, no full stop'),
    ...found(type === 'none', 'has no type'),
  ]
}

test('M2: the names are what the field expects', () => {
  expect(families.length).toBeGreaterThan(30)
  expect(families.flatMap(problems)).toEqual([])
})

test('M2: every family has a sample, its samples stand together, and labels are in snake case', () => {
  const base = (name: string) => (types.has(name) ? name : name.replace(/_(?:bucket|sum|count)$/, ''))
  const runs = samples.map(({ name }) => base(name)).filter((name, i, all) => name !== all[i - 1])
  expect(runs).toEqual(families.map(({ name }) => name))
  for (const { name, labels } of samples)
    for (const label of Object.keys(labels)) {
      expect([name, label]).toEqual([name, expect.stringMatching(/^[a-z][a-z_]*$/)])
      // Prometheus gives these to what it scrapes.
      expect(['job', 'instance', 'quantile']).not.toContain(label)
    }
})

test('the rules find what they are for', () => {
  const wrong = (name: string, type = 'gauge', help = 'Some words of help') => problems({ name, type, help }).length
  expect(wrong('sluice_connections')).toBe(0)
  for (const name of [
    'sluice_lag_ms',
    'sluiceLag',
    'other_metric',
    'sluice_a_total',
    'sluice_a_count',
    'sluice_a_gauge',
  ])
    expect([name, wrong(name)]).toEqual([name, 1])
  expect(wrong('sluice_seconds_waited')).toBe(1)
  expect(wrong('sluice_opened', 'counter')).toBe(1)
  expect(wrong('sluice_opened_total', 'counter', 'Connections opened.')).toBe(1)
})
