// The manual: whole, and without a complaint of the programs that read it.
import { expect, test } from 'bun:test'
import { manual } from '../../src/commands/man.ts'
import { makeProgram } from '../../src/program.ts'
import { testIf } from '../support.ts'

const page = manual(makeProgram())

test('the manual has every command that people use, with its options', () => {
  for (const words of [
    '\\fBtop\\fR',
    '\\fB\\-\\-interval\\fR',
    '\\fIduration\\fR',
    'EXIT STATUS',
    'SIGHUP',
    'NO_COLOR',
  ])
    expect(page).toContain(words)
  for (const command of makeProgram().commands) {
    const hidden = (command as unknown as { _hidden: boolean })._hidden
    expect(page.includes(`\\fB${command.name().replaceAll('-', '\\-')}\\fR`), command.name()).toBe(!hidden)
  }
  // Said once, not with every command.
  expect(page.split('\\fB\\-\\-admin\\fR')).toHaveLength(2)
})

test('no line of text is taken for a command', () => {
  const known = /^\.(?:TH|SH|PP|TP|B|RS|RE)\b/
  expect(page.split('\n').filter((line) => /^[.']/.test(line) && !known.test(line))).toEqual([])
  // A minus that is no \- would be shown as a hyphen, which nobody can paste.
  expect(
    page
      .replaceAll('\\-', '')
      .split('\n')
      .filter((line) => line.includes('-')),
  ).toEqual([])
})

for (const [name, command] of [
  ['mandoc', ['mandoc', '-T', 'lint', '-W', 'warning']],
  ['groff', ['groff', '-man', '-Tutf8', '-ww', '-z']],
] as const)
  testIf(Bun.which(name) !== null, `${name} is not installed`)(`${name} has nothing to say of it`, async () => {
    const reader = Bun.spawn([...command], { stdin: new Blob([page]), stdout: 'pipe', stderr: 'pipe' })
    const said = (await new Response(reader.stdout).text()) + (await new Response(reader.stderr).text())
    // It has no date: it is right for the program that printed it.
    expect(said.split('\n').filter((line) => line && !line.includes('missing date'))).toEqual([])
  })
