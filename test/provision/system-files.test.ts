// The unit and its neighbours are what other programs read: they are asked what they think of them.
import { expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SETTINGS as SET_BY_THE_GATEWAY } from '../../src/kernel/sysctl.ts'
import {
  CONTROL_CAPABILITIES,
  logrotateText,
  SETTINGS,
  sysctlText,
  unitText,
} from '../../src/provision/system-files.ts'
import { testIf } from '../support.ts'

const EXPOSURE_MAX = 3
const analyze = Bun.which('systemd-analyze')
const unit = unitText('/bin/true', '/etc/sluice/sluice.config.ts')

testIf(analyze !== null, 'needs systemd-analyze')(
  'systemd finds nothing wrong with the unit, and little exposed',
  async () => {
    await using directory = await directoryWith('sluice.service', unit)
    const verified = await output([analyze!, 'verify', '--man=no', directory.file])
    expect(verified).toBe('')
    const text = await output([analyze!, 'security', '--offline=true', '--no-pager', directory.file])
    const exposure = /Overall exposure level for sluice\.service: ([\d.]+)/.exec(text)?.[1]
    console.log(`systemd-analyze security: ${exposure}`)
    expect(Number(exposure)).toBeLessThan(EXPOSURE_MAX)
  },
  20_000,
)

test('the unit gives control what it was tested with, and no more', () => {
  const set = /^CapabilityBoundingSet=(.*)$/m.exec(unit)![1]!.split(' ')
  expect(set).toEqual(CONTROL_CAPABILITIES)
  expect(unit).not.toMatch(/^(?:AmbientCapabilities|MemoryDenyWriteExecute|ProtectKernelTunables|User)=/m)
  // Comments of a unit are lines of their own: one behind a value would be part of it.
  expect(unit.split('\n').filter((line) => /^[^#].*#/.test(line))).toEqual([])
})

test('the file for sysctl sets what the gateway would set itself, and says why', () => {
  const lines = sysctlText().split('\n')
  for (const { name, value } of SETTINGS) {
    expect(SET_BY_THE_GATEWAY).toContainEqual(expect.objectContaining({ name, value }))
    expect(lines[lines.indexOf(`${name} = ${value}`) - 1]).toStartWith('# ')
  }
  expect(lines.filter((line) => line !== '' && !line.startsWith('#'))).toHaveLength(SETTINGS.length)
})

const logrotate = Bun.which('logrotate')
testIf(logrotate !== null, 'needs logrotate')('logrotate reads its file', async () => {
  await using directory = await directoryWith('sluice', logrotateText())
  expect(await output([logrotate!, '--debug', '--state', `${directory.file}.state`, directory.file])).not.toMatch(
    /error/i,
  )
})

async function directoryWith(name: string, text: string) {
  const path = await mkdtemp(join(tmpdir(), 'sluice-files-'))
  const file = join(path, name)
  await Bun.write(file, text)
  return { file, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

async function output(command: string[]): Promise<string> {
  const child = Bun.spawn(command, { stdio: ['ignore', 'pipe', 'pipe'] })
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  await child.exited
  return out + err
}
