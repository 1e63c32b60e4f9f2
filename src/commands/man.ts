// sluice man: the manual page, made of the commands as the program defines them, and of what is true of all of them.
import type { Argument, Command, Option } from 'commander'
import { DEFAULT_SOCKET, VERSION } from '../base/about.ts'

export function manual(program: Command): string {
  const commands = program
    .createHelp()
    .visibleCommands(program)
    .filter((one) => one.name() !== 'help')
  const common = commonOptions(commands)
  return [
    `.TH SLUICE 8 "" "sluice ${VERSION}" "System Administration"`,
    ...section('NAME', [text(`sluice - ${withoutEnd(lowerFirst(program.description()))}`)]),
    ...section('SYNOPSIS', ['.B sluice', text('command [options]')]),
    ...section(
      'DESCRIPTION',
      DESCRIPTION.flatMap((one, i) => [...(i > 0 ? ['.PP'] : []), text(one)]),
    ),
    ...section(
      'COMMANDS',
      commands.flatMap((one) => commandPart(one, common)),
    ),
    ...section(
      'COMMON OPTIONS',
      [...common.values()].flatMap(({ option, of }) =>
        item(optionText(option), `${option.description}. Of ${of.join(', ')}.`),
      ),
    ),
    ...Object.entries(LISTS).flatMap(([title, items]) =>
      section(
        title,
        Object.entries(items).flatMap(([name, meaning]) => item(bold(name), meaning)),
      ),
    ),
    '',
  ].join('\n')
}

const DESCRIPTION = [
  'sluice accepts connections at the edge of a network and forwards them to targets behind it. What needs no reading is carried by nftables in the kernel, what is routed by server name is peeked at and then spliced, and what needs TLS or code of yours is carried in user space. Lists, limits, records and metrics are the same for all of it.',
  'Every command that lists something prints JSON with --json. Commands that talk to a running gateway are clients of its admin socket.',
]

/** What is true of the program as a whole. */
const LISTS: Record<string, Record<string, string>> = {
  'EXIT STATUS': {
    '0': 'done',
    '1': 'failed, or doctor found something in the way',
    '2': 'wrong usage, or a configuration that is refused',
  },
  FILES: {
    './sluice.config.ts': 'the configuration, where no other is named',
    '/etc/sluice/sluice.config.ts': 'the configuration, where that one is not there',
    [DEFAULT_SOCKET]: 'the admin socket: HTTP, for this program and for yours',
    '/var/lib/sluice': 'what the gateway keeps: totals, certificates, its plan in the kernel',
  },
  SIGNALS: {
    'SIGTERM, SIGINT': 'stop: connections finish within the grace period, the rest is cut',
    SIGHUP:
      'read the configuration again, and open the access log anew; a configuration that is refused leaves the running one as it is',
  },
  ENVIRONMENT: {
    NO_COLOR: 'when it is set, nothing is coloured',
    'NOTIFY_SOCKET, WATCHDOG_USEC': 'set by systemd: it is told when the gateway serves, reloads, stops, and lives',
    JOURNAL_STREAM: 'set by systemd: standard error is the journal, and lines carry their priority',
  },
  'SEE ALSO': {
    'nft(8), conntrack(8), ss(8)': 'what the gateway did, as the kernel sees it',
  },
}

/** Options that this many commands have are explained once. */
const COMMON_FROM = 4

function commonOptions(commands: readonly Command[]) {
  const found = new Map<string, { option: Option; of: string[] }>()
  for (const command of commands)
    for (const option of command.options) {
      const one = found.get(option.flags) ?? { option, of: [] }
      one.of.push(command.name())
      found.set(option.flags, one)
    }
  return new Map([...found].filter(([, { of }]) => of.length >= COMMON_FROM))
}

/** @param parents names before its own, as in "certificates renew". */
function commandPart(command: Command, common: ReadonlyMap<string, unknown>, parents = ''): string[] {
  const help = command.createHelp()
  const name = `${parents}${command.name()}`
  const words = [bold(name), ...command.registeredArguments.map(argumentText)]
  const options = help.visibleOptions(command).filter(({ long, flags }) => long !== '--help' && !common.has(flags))
  return [
    ...item(words.join(' '), command.description()),
    ...nested([
      ...command.registeredArguments
        .filter(({ description }) => description)
        .flatMap((one) => item(argumentText(one), one.description)),
      ...options.flatMap((one) => item(optionText(one), one.description)),
    ]),
    ...help
      .visibleCommands(command)
      .filter((one) => one.name() !== 'help')
      .flatMap((one) => commandPart(one, common, `${name} `)),
  ]
}

const argumentText = (argument: Argument) => {
  const name = italic(argument.name()) + (argument.variadic ? '...' : '')
  return argument.required ? name : `[${name}]`
}

const optionText = ({ flags }: Option) =>
  flags
    .replace(/[<[]([^>\]]+)[>\]]|[^<[]+/g, (part, value?: string) =>
      value ? italic(value) : bold(part.trimEnd()) + ' ',
    )
    .trim()

const section = (title: string, lines: string[]) => [`.SH ${title.includes(' ') ? `"${title}"` : title}`, ...lines]
const item = (head: string, body: string) => ['.TP', head, text(body)]
const nested = (lines: string[]) => (lines.length > 0 ? ['.RS', ...lines, '.RE'] : [])
const bold = (words: string) => `\\fB${escaped(words)}\\fR`
const italic = (words: string) => `\\fI${escaped(words)}\\fR`

const lowerFirst = (words: string) => words.slice(0, 1).toLowerCase() + words.slice(1)
const withoutEnd = (words: string) => words.replace(/\.$/, '')

/** A hyphen of ours is a minus: it can be copied. */
const escaped = (words: string) => words.replaceAll('\\', '\\e').replaceAll('-', '\\-')
/** A line that begins with a dot or a quote would be a command. */
const text = (words: string) => escaped(words).replace(/^(?=[.'])/, '\\&')
