// The program's own log: JSON lines, and their priority where the journal reads them.
import { expect, test } from 'bun:test'
import { resolve } from 'node:path'

const LOG = resolve(import.meta.dir, '../../src/observe/log.ts')

/** What a program with that log says on standard error, which is a pipe. @param stream JavaScript that gives JOURNAL_STREAM. */
async function said(stream: string): Promise<string[]> {
  const program = `
    import { stat } from 'node:fs/promises'
    import { isJournal, makeLog } from '${LOG}'
    const own = await stat('/proc/self/fd/2')
    const log = makeLog('info', await isJournal(${stream}))
    log('debug', 'not told')
    log('info', 'told', { route: 'web' })
    log('warn', 'two\\nlines')
    log('error', 'worse')`
  const child = Bun.spawn([process.execPath, '-e', program], { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe' })
  const text = await new Response(child.stderr).text()
  expect([await child.exited, text.includes('\x1b')]).toEqual([0, false])
  return text.split('\n').filter(Boolean)
}

test('lines are JSON, each with its time, from the level on', async () => {
  const lines = (await said("'1:1'")).map((line) => JSON.parse(line) as { level: string; time: string; msg: string })
  expect(lines.map(({ level, msg }) => `${level} ${msg}`)).toEqual(['info told', 'warn two\nlines', 'error worse'])
  expect(lines[0]).toMatchObject({ route: 'web', time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/) })
})

test('the journal gets the priority before each line; a stream that it does not mean does not', async () => {
  const lines = await said('`${own.dev}:${own.ino}`')
  expect(lines.map((line) => line.slice(0, 3))).toEqual(['<6>', '<4>', '<3>'])
  for (const line of lines) expect(JSON.parse(line.slice(3))).toHaveProperty('msg')
  expect((await said('undefined'))[0]).toStartWith('{')
})
