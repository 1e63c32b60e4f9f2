// Tables that fit the terminal, and nothing in them that could steer it.
import { expect, test } from 'bun:test'
import { age, listens, printable, shorten, size, table } from '../../src/commands/format.ts'

const HEAD = ['ROUTE', 'LISTENS', 'STATE', 'NOW', 'IN', 'WHY']
const ROWS = [
  ['web', '*:80,*:443', 'active', '5', '1.2 KiB', 'nothing has to be read'],
  ['a-route-with-a-long-name', '[2001:db8::1]:8000-8999,10.0.0.1:8000-8999', 'failed', '12345', '3 B', 'x'.repeat(90)],
]
const lines = (text: string) => text.replace(/\n$/, '').split('\n')
const plain = (width: number) => table(HEAD, ROWS, { width, colours: false })

test('a table has its full width where nobody counts it', () => {
  expect(lines(plain(Infinity))).toEqual([
    'ROUTE                     LISTENS                                     STATE     NOW       IN  WHY',
    'web                       *:80,*:443                                  active      5  1.2 KiB  nothing has to be read',
    `a-route-with-a-long-name  [2001:db8::1]:8000-8999,10.0.0.1:8000-8999  failed  12345      3 B  ${'x'.repeat(90)}`,
  ])
})

test('on a terminal the last column is shortened first, then the widest; what is typed elsewhere stays whole', () => {
  expect(lines(plain(120))).toEqual([
    'ROUTE                     LISTENS                                     STATE     NOW       IN  WHY',
    'web                       *:80,*:443                                  active      5  1.2 KiB  nothing has to be read',
    `a-route-with-a-long-name  [2001:db8::1]:8000-8999,10.0.0.1:8000-8999  failed  12345      3 B  ${'x'.repeat(25)}…`,
  ])
  expect(lines(plain(80))).toEqual([
    'ROUTE                     LISTENS               STATE     NOW       IN  WHY',
    'web                       *:80,*:443            active      5  1.2 KiB  nothing…',
    'a-route-with-a-long-name  [2001:db8::1]:8000-…  failed  12345      3 B  xxxxxxx…',
  ])
})

test('no line is wider than the terminal, however narrow it is', () => {
  for (const width of [200, 100, 70, 50, 30, 16])
    for (const line of lines(plain(width))) expect([width, Bun.stringWidth(line) <= width]).toEqual([width, true])
})

test('colours are for the heading and for words of state, and take no room', () => {
  const coloured = table(HEAD, ROWS, { width: 80, colours: true })
  expect(Bun.stripANSI(coloured)).toBe(plain(80))
  expect(coloured).toContain('\x1b[32mactive\x1b[0m')
  expect(coloured).toContain('\x1b[31mfailed\x1b[0m')
  expect(coloured.match(/\x1b\[\d+m/g)).toHaveLength(6)
  expect(plain(80)).not.toContain('\x1b')
})

test('what comes from the network cannot steer the terminal', () => {
  const hostile = 'a\x1b]0;title\x07b\rc\nd\u009b31me\u202ef\u200bg'
  expect(printable(hostile)).toBe('a?]0;title?b?c?d?31me?f?g')
  const text = table(['ROUTE', 'WHY'], [['r', hostile]], { width: 80, colours: true })
  expect(lines(text)).toHaveLength(2)
  expect(Bun.stripANSI(text)).toBe('ROUTE  WHY\nr      a?]0;title?b?c?d?31me?f?g\n')
})

test('wide characters are counted as the terminal counts them', () => {
  expect(shorten('日本語の名前', 7)).toBe('日本語…')
  expect(shorten('日本語', 6)).toBe('日本語')
  expect(shorten('abc', 0)).toBe('')
  const text = table(
    ['A', 'B'],
    [
      ['日本', 'x'],
      ['ab', 'y'],
    ],
    { width: 80, colours: false },
  )
  expect(lines(text)).toEqual(['A     B', '日本  x', 'ab    y'])
})

test('sizes, ages and listens', () => {
  expect([0, 1023, 1024, 1.5 * 2 ** 20, 2 ** 30, 2 ** 62].map(size)).toEqual([
    '0 B',
    '1023 B',
    '1.0 KiB',
    '1.5 MiB',
    '1.0 GiB',
    '4096.0 PiB',
  ])
  expect([-5, 12_000, 185_000, 7_800_000, 442_800_000].map(age)).toEqual(['0s', '12s', '3m05s', '2h10m', '5d03h'])
  expect(
    listens([
      { address: null, from: 80, to: 80 },
      { address: '::1', from: 1, to: 9 },
    ]),
  ).toBe('*:80,[::1]:1-9')
})
