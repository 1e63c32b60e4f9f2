// What could stand where the cursor is on a command line, read from the commands themselves. Pure: what only a running gateway
// knows is named here, and asked for elsewhere.
import type { Command, Option } from 'commander'

export interface Candidate {
  value: string
  description: string
}

/** What a running gateway knows the names of. */
export type Kind = 'routes' | 'targets' | 'connections' | 'clients' | 'certificates'

export interface Completion {
  candidates: Candidate[]
  ask: Kind[]
  files: boolean
  /** Of the word that is typed: it stands before each value, as in "--tab=". */
  prefix: string
  /** Where the gateway is, by the options that were typed. */
  options: { admin?: string; config?: string }
}

/** By the words in which the commands write their arguments and the values of their options. */
const KINDS: Record<string, Kind[]> = {
  'route|target': ['routes', 'targets'],
  '--route': ['routes'],
  '--target': ['targets'],
  '--client': ['clients'],
  'close id': ['connections'],
  'renew name': ['certificates'],
}
const FILE_NAMES = ['file', 'socket']

/** @param words what was typed after the program's name, to the cursor; the last one may be empty or not finished. */
export function complete(program: Command, words: readonly string[]): Completion {
  const current = words.at(-1) ?? ''
  const found: Completion = { candidates: [], ask: [], files: false, prefix: '', options: {} }
  let command = program
  let [position, onlyArguments] = [0, false]
  let waiting: Option | undefined
  for (const word of words.slice(0, -1)) {
    if (waiting) {
      note(found, waiting, word)
      waiting = undefined
    } else if (word === '--') onlyArguments = true
    else if (word.startsWith('-') && !onlyArguments) {
      const [name, value] = split(word)
      const option = optionOf(command, name)
      if (option && value !== undefined) note(found, option, value)
      else if (option?.required) waiting = option
    } else {
      const next = position === 0 ? command.commands.find((one) => one.name() === word) : undefined
      if (next) command = next
      else position++
    }
  }
  if (waiting) return withValues(found, waiting)
  const [name, value] = split(current)
  const option = current.startsWith('--') && value !== undefined ? optionOf(command, name) : undefined
  if (option) return withValues({ ...found, prefix: `${name}=` }, option)
  if (current.startsWith('-') && !onlyArguments) return { ...found, candidates: optionsOf(command) }
  return withArguments(found, command, position)
}

const split = (word: string): [string, string | undefined] => {
  const at = word.indexOf('=')
  return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)]
}

const optionOf = (command: Command, name: string) =>
  command.options.find(({ long, short }) => long === name || short === name)

function note({ options }: Completion, { long }: Option, value: string) {
  if (long === '--admin') options.admin = value
  if (long === '--config') options.config = value
}

function withValues(found: Completion, option: Option): Completion {
  const value = /[<[]([^>\]]*)/.exec(option.flags)?.[1] ?? ''
  return {
    ...found,
    candidates: plain(option.argChoices),
    ask: KINDS[option.long ?? ''] ?? [],
    files: FILE_NAMES.includes(value),
  }
}

function withArguments(found: Completion, command: Command, position: number): Completion {
  const all = command.registeredArguments
  const argument = all[position] ?? (all.at(-1)?.variadic ? all.at(-1) : undefined)
  const name = argument?.name() ?? ''
  return {
    ...found,
    candidates: [...(position === 0 ? commandsOf(command) : []), ...plain(argument?.argChoices)],
    ask: KINDS[name] ?? KINDS[`${command.name()} ${name}`] ?? [],
    files: FILE_NAMES.includes(name),
  }
}

const plain = (choices: readonly string[] | undefined) => (choices ?? []).map((value) => ({ value, description: '' }))

const commandsOf = (command: Command): Candidate[] =>
  command
    .createHelp()
    .visibleCommands(command)
    .map((one) => ({ value: one.name(), description: one.description() }))

const optionsOf = (command: Command): Candidate[] =>
  command
    .createHelp()
    .visibleOptions(command)
    .flatMap(({ long, description }) => (long ? [{ value: long, description }] : []))
