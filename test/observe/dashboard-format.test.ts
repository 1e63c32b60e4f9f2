// Numbers as the dashboard writes them.
import { expect, test } from 'bun:test'
import {
  byteRate,
  bytes,
  count,
  duration,
  listens,
  percent,
  perSecond,
} from '../../src/observe/dashboard/page/format.ts'

test('amounts have three digits, and the next unit comes before a fourth', () => {
  const amounts = [0, 999, 1000, 1234, 12_345, 123_456, 999_499, 999_500, 1.5e9, 2e15, 5e18]
  expect(amounts.map(bytes)).toEqual(
    ['0 B', '999 B', '1.00 kB', '1.23 kB', '12.3 kB', '123 kB', '999 kB', '1.00 MB', '1.50 GB', '2.00 PB', '5000 PB'], // prettier-ignore
  )
  expect(byteRate(9_996)).toBe('10.0 kB/s')
  expect([0, 0.04, 0.5, 9.96, 12.4, 1234].map(perSecond)).toEqual([
    '0/s',
    '<0.1/s',
    '0.5/s',
    '10.0/s',
    '12/s',
    '1,234/s',
  ])
  expect(count(1234567)).toBe('1,234,567')
  expect([0, 0.004, 0.5, 1].map(percent)).toEqual(['0 %', '<1 %', '50 %', '100 %'])
})

test('durations have their two largest parts', () => {
  expect([-5, 0, 59.9, 60, 200, 3600, 18_120, 86_400, 1_050_000].map(duration)).toEqual(
    ['0 s', '0 s', '59 s', '1 min', '3 min 20 s', '1 h', '5 h 2 min', '1 d', '12 d 3 h'], // prettier-ignore
  )
})

test('listeners are written as an operator writes them', () => {
  const tcp = { protocol: 'tcp' }
  expect(
    listens([
      { address: null, from: 443, to: 443, ...tcp },
      { address: '10.0.0.1', from: 8000, to: 8010, ...tcp },
      { address: 'fd00::1', from: 53, to: 53, protocol: 'udp' },
    ]),
  ).toBe('*:443, 10.0.0.1:8000-8010, [fd00::1]:53/udp')
})
