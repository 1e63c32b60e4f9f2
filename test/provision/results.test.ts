// The closing line of `make test` is believed by people and programs: what it counts comes from a real run of bun's tests.
import { afterAll, expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { closingLine, parseJunit, skipsByReason } from '../../src/provision/results.ts'

const folder = await mkdtemp(join(tmpdir(), 'sluice-results-'))
afterAll(() => rm(folder, { recursive: true }))

async function junitOf(text: string) {
  const report = join(folder, 'report.xml')
  await Bun.write(join(folder, 'a.test.ts'), text)
  const run = Bun.spawn([process.execPath, 'test', './a.test.ts', '--reporter=junit', `--reporter-outfile=${report}`], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'ignore'],
  })
  await run.exited
  return parseJunit(await Bun.file(report).text())
}

test('passed, failed and skipped tests are counted, with names and reasons as they were written', async () => {
  const results = await junitOf(`
    import { test, describe, expect } from 'bun:test'
    test('a > b & "c" <d>', () => {})
    test.skip("e > f (skipped: needs 'g' <h> (and i))", () => {})
    describe('room', () => {
      describe('shelf', () => test('book', () => { expect('</testcase><skipped/>').toBe('') }))
      test('late', async () => { setTimeout(() => { throw new Error('late') }, 1); await Bun.sleep(50) })
      test.skip('silent', () => {})
      test.todo('some day')
    })`)
  expect(results).toEqual({
    passed: 1,
    failed: ['room > shelf > book', 'room > late'],
    skipped: [
      { name: 'e > f', reason: "needs 'g' <h> (and i)" },
      { name: 'room > silent', reason: 'no reason given' },
      { name: 'room > some day', reason: 'still to be written' },
    ],
  })
  expect(closingLine(results)).toBe('1 passed, 2 failed, 3 skipped')
})

test('the closing line names skips only when there are some', () => {
  expect(closingLine({ passed: 12, failed: [], skipped: [] })).toBe('12 passed, 0 failed')
})

test('skips are listed by reason', () => {
  const skipped = [
    { name: 'a', reason: 'no nft' },
    { name: 'b', reason: 'no wrk' },
    { name: 'c', reason: 'no nft' },
  ]
  expect(skipsByReason(skipped)).toEqual(['  2 × no nft: a; c', '  1 × no wrk: b'])
})
