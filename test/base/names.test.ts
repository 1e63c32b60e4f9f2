// E2: which host names a pattern stands for, and which of two patterns is the narrower one.
import { expect, test } from 'bun:test'
import { isNamePattern, matchesName, narrowness } from '../../src/base/names.ts'

test('E2: names: exact, everything below, every suffix, part of a label, any', () => {
  const yes = [
    ['a.test', 'a.test'],
    ['*.a.test', 'x.a.test'],
    ['*.a.test', 'y.x.a.test'],
    ['example.*', 'example.com'],
    ['example.*', 'example.co.uk'],
    ['*.example.*', 'www.example.org'],
    ['*.example.*', 'a.b.example.co.uk'],
    ['api-*.example.com', 'api-1.example.com'],
    ['api-*-eu.example.com', 'api-a-b-eu.example.com'],
    ['*-prod.example.com', 'x.y-prod.example.com'],
    ['www.*.example.com', 'www.a.example.com'],
    ['*.*.example.com', 'a.b.example.com'],
    ['*.*.example.com', 'a.b.c.example.com'],
    ['*lossless*', 'x.lossless.org'],
    ['*-a*.x.test', 'q-a.b-ac.x.test'],
    ['*', 'a'],
    ['*', undefined],
  ] as const
  const no = [
    ['a.test', 'b.a.test'],
    ['*.a.test', 'a.test'],
    ['*.a.test', '.a.test'],
    ['*.a.test', 'xa.test'],
    ['*.a.test', 'x.a.test.evil'],
    ['a.test', undefined],
    ['example.*', 'example'],
    ['example.*', 'example.'],
    ['example.*', 'www.example.com'],
    ['example.*', 'notexample.com'],
    ['*.example.*', 'example.com'],
    ['api-*.example.com', 'api-.example.com'],
    ['api-*.example.com', 'api-1.x.example.com'],
    ['api-*.example.com', 'api.example.com'],
    ['www.*.example.com', 'www.a.b.example.com'],
    ['*.*.example.com', 'a.example.com'],
    ['*lossless*', 'lossless.org'],
    ['a*', undefined],
  ] as const
  expect(yes.filter(([pattern, name]) => !matchesName(pattern, name))).toEqual([])
  expect(no.filter(([pattern, name]) => matchesName(pattern, name))).toEqual([])
})

test('E2, E14: what may stand in a configuration', () => {
  const good = ['a.test', 'A.Test', '*', '*.a.test', 'example.*', 'api-*.example.com', '*.*.x', 'a_b.test', 'localhost']
  const bad = ['', 'a..test', '.a.test', 'a.test.', '**', '*.**', 'a b', 'a.test:80', '10.0.0.1', '[::1]', 'a/b', 'ä.test', 'x'.repeat(64), '-a.test'] // prettier-ignore
  expect(good.filter((text) => !isNamePattern(text))).toEqual([])
  expect(bad.filter((text) => isNamePattern(text))).toEqual([])
})

test('E5: exact before the wildcard that says more before any', () => {
  const order = ['a.test', '*.long.example.com', 'api-*.example.com', '*.example.com', 'example.*', '*.test', '*']
  expect(order.toSorted((a, b) => narrowness(b) - narrowness(a))).toEqual(order)
  expect(narrowness('a.b')).toBe(narrowness('a-much-longer-name.example.com'))
})

/** The same meaning, told by a regular expression. */
const spelled = (pattern: string) =>
  new RegExp(
    `^${pattern
      .split('')
      .map((char, i) => (char === '*' ? (i === 0 || i === pattern.length - 1 ? '.+' : '[^.]+') : char === '.' ? '\\.' : char))
      .join('')}$`,
  ) // prettier-ignore

test('E2: 100,000 random patterns and names mean the same as their regular expressions', () => {
  const random = (n: number) => Math.floor(Math.random() * n)
  const text = (letters: string) =>
    Array.from({ length: 1 + random(9) }, () => letters[random(letters.length)]).join('')
  let matched = 0
  for (let i = 0; i < 100_000; i++) {
    const pattern = text('aab.*').replaceAll('**', '*')
    const name = text('aab.')
    if (pattern === '*') continue
    const wanted = spelled(pattern).test(name)
    if (wanted) matched++
    if (matchesName(pattern, name) !== wanted) expect([pattern, name, !wanted]).toEqual([pattern, name, wanted])
  }
  expect(matched).toBeGreaterThan(1000)
})

test('E2: no name makes a pattern slow', () => {
  const pattern = `*${'a*'.repeat(120)}b`
  const name = 'a'.repeat(253)
  // Backtracking would not return in the life of the universe.
  expect(matchesName(pattern, name)).toBe(false)
})
