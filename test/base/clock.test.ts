// isoTime says what Date.toISOString() says.
import { expect, test } from 'bun:test'
import { isoTime } from '../../src/base/clock.ts'

test('the same text as Date makes', () => {
  const times = [0, 1, 999, 1000, 1_700_000_000_009, 1_700_000_000_099, 1_700_000_000_100, 1_700_000_000_999.9, 4e12]
  for (let i = 0; i < 2000; i++) times.push(Math.random() * 4e12)
  for (const ms of times) expect(isoTime(ms)).toBe(new Date(ms).toISOString())
})
