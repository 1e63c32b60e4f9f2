// Reading a configuration file: what an operator is told of one that cannot be read.
import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadConfig } from '../../src/config/load.ts'

const directory = mkdtempSync(join(tmpdir(), 'sluice-load-'))
afterAll(() => rmSync(directory, { recursive: true }))

async function saysOf(text: string): Promise<string> {
  const path = join(directory, `${Bun.hash(text)}.ts`)
  writeFileSync(path, text)
  const loaded = await loadConfig(path)
  return loaded.ok ? 'ok' : loaded.problems.map(({ message }) => message).join('; ')
}

test('issue 7.1: a configuration that cannot be read says where, and may print what it likes', async () => {
  const [syntax, several, ended, printing] = await Promise.all([
    saysOf('\n\nconst a = 5\nexport default { a: ) }'),
    saysOf('const a = ;\nconst b = )'),
    saysOf('process.exit(0)'),
    saysOf('console.log("{"); console.info(1); export default { routes: [] }'),
  ])
  expect(syntax).toStartWith('line 4, column 21: ')
  expect(several).toStartWith('line 1, column 11: ')
  expect(ended).toBe('ended by itself before there was a configuration')
  expect(printing).toBe('ok')
})
