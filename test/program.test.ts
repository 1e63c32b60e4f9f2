// The commands as a whole: those that talk to a gateway find it in the same way, and can be read by programs.
import { expect, test } from 'bun:test'
import type { Command } from 'commander'
import { makeProgram } from '../src/program.ts'

const program = makeProgram()
const people = (command: Command): Command[] =>
  command
    .createHelp()
    .visibleCommands(command)
    .filter((one) => one.name() !== 'help')
    .flatMap((one) => [one, ...people(one)])
const flags = (command: Command) => command.options.map(({ long }) => long)

/** They print no list and change no gateway: a file, a script, a page, or the gateway itself. */
const NOTHING_TO_LIST = ['run', 'demo', 'init', 'schema', 'completion', 'man']

test('every command that lists or acts prints JSON when asked to, and finds its gateway by --admin and --config', () => {
  const others = people(program).filter((one) => !NOTHING_TO_LIST.includes(one.name()))
  expect(others.length).toBeGreaterThan(12)
  for (const command of others) {
    const wanted = command.name() === 'plan' ? ['--config', '--json'] : ['--admin', '--config', '--json']
    expect([command.name(), flags(command)]).toEqual([command.name(), expect.arrayContaining(wanted)])
  }
})

test('every command, option and argument says what it is', () => {
  for (const command of people(program)) {
    expect([command.name(), command.description().length > 15]).toEqual([command.name(), true])
    for (const { flags, description } of command.options)
      expect([command.name(), flags, description !== '']).toEqual([command.name(), flags, true])
  }
})
