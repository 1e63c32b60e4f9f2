// Which file an upgrade starts.
import { expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { installedProgram } from '../../src/control/installed.ts'

test('issue 7.2: an upgrade starts what the name of the program leads to now', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-installed-'))
  const at = (...parts: string[]) => join(directory, ...parts)
  try {
    for (const version of ['v1', 'v2']) {
      mkdirSync(at(version))
      writeFileSync(at(version, 'sluice'), '')
      chmodSync(at(version, 'sluice'), 0o755)
    }
    symlinkSync('v2', at('current'))
    const started = { path: `/nowhere::${at('current')}`, execPath: at('v1/sluice') }
    expect(await installedProgram({ ...started, argv0: at('current/sluice') })).toBe(at('current/sluice'))
    expect(await installedProgram({ ...started, argv0: 'sluice' })).toBe(at('current/sluice'))
    // A name that says nothing: the file itself.
    for (const argv0 of ['', 'another', at('gone/sluice'), './sluice-that-is-not-here'])
      expect(await installedProgram({ ...started, argv0 })).toBe(at('v1/sluice'))
  } finally {
    rmSync(directory, { recursive: true })
  }
})
