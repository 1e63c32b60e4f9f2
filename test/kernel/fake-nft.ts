// A stateful nft for tests: it understands exactly the commands that kernel/program.ts writes, holds their elements, and is
// atomic; anything else is a failure, so the writer and the fake cannot drift apart unnoticed.
import { MAPS } from '../../src/plan/kernel-state.ts'
import { NftError, type Nft } from '../../src/kernel/nft.ts'

export class FakeNft implements Nft {
  tables = new Map<string, Map<string, Map<string, string>>>()
  /** Generated chains, of the one table that tests use. */
  chains = new Set<string>()
  /** Chains of the static program that somebody else has edited. */
  edited = new Set<string>()
  transactions: string[][] = []
  failure: string | null = null
  /** When set, apply waits for it first. */
  gate: Promise<void> | null = null
  concurrent = 0
  mostConcurrent = 0
  pid = 100

  async apply(commands: string[], onPid?: (pid: number) => void) {
    onPid?.(++this.pid)
    this.concurrent++
    this.mostConcurrent = Math.max(this.mostConcurrent, this.concurrent)
    try {
      await this.gate
      if (this.failure) throw new NftError(this.failure)
      const copy = structuredClone(this.tables)
      const chains = new Set(this.chains)
      for (const command of commands.flatMap(split)) {
        if (command.startsWith('add table')) {
          chains.clear()
          this.edited.clear()
        }
        if (!runChain(chains, command)) run(copy, command)
      }
      this.tables = copy
      this.chains = chains
      this.transactions.push(commands)
    } finally {
      this.concurrent--
    }
  }

  async list(table: string, what?: 'rules') {
    if (this.failure) throw new NftError(this.failure)
    const maps = this.tables.get(table)
    if (!maps) return null
    const chains = ['refuse', ...this.chains].map((name) => ({
      chain: { name, policy: this.edited.has(name) ? 'edited' : 'as it was' },
    }))
    const sets = MAPS.map((name) => ({
      [name === 'routes' || name === 'preserve' ? 'set' : 'map']: {
        name,
        elem: [...(maps.get(name) ?? [])].map(([key, text]) => {
          const [, comment, value] = /^(?: comment "([^"]*)")?(?: : (.*))?$/.exec(text)!
          const mark = (part: string) => (part.startsWith('0x') ? Number(part) : part)
          const verdict = /^(jump|goto) (\w+)$/.exec(value ?? '')
          if (verdict) return [mark(key), { [verdict[1]!]: { target: verdict[2] } }]
          const val = key.includes(' . ') ? { concat: key.split(' . ').map(mark) } : mark(key)
          const left = comment === undefined ? val : { elem: { val, comment } }
          return value === undefined
            ? left
            : [left, value.includes(' . ') ? { concat: value.split(' . ') } : mark(value)]
        }),
      },
    }))
    return what === 'rules' ? [...chains, ...sets.map(withoutElements)] : [...chains, ...sets]
  }

  async listSet() {
    return []
  }

  async version() {
    return '1.0.6'
  }

  elements(table: string, map: string) {
    return Object.fromEntries(this.tables.get(table)?.get(map) ?? [])
  }
}

const withoutElements = (item: Record<string, { name: string; elem: unknown }>) =>
  Object.fromEntries(Object.entries(item).map(([kind, { name }]) => [kind, { name }]))

/** A command may be several lines, but for the program itself. */
const split = (command: string) => (command.startsWith('add table') ? [command] : command.split('\n'))

function runChain(chains: Set<string>, command: string): boolean {
  const [verb, what, , , name] = command.split(' ')
  if (what === 'ct' || what === 'rule') return true
  if (what !== 'chain') return false
  if (verb === 'add') chains.add(name!)
  else if (!chains.delete(name!)) throw new NftError(`no chain ${name}`)
  return true
}

function run(tables: FakeNft['tables'], command: string) {
  const program = /^add table inet (\w+)\ndelete table inet \1\n[^]*table inet \1 \{/.exec(command)
  if (program) return void tables.set(program[1]!, new Map())
  const removal = /^add table inet (\w+)\ndelete table inet \1\n$/.exec(command)
  if (removal) return void tables.delete(removal[1]!)
  const change = /^(add|delete) element inet (\w+) (\w+) \{ (.*) \}$/.exec(command)
  if (!change) throw new NftError(`the fake does not know: ${command.slice(0, 200)}`)
  const [, verb, table, map, list] = change as unknown as [string, string, string, string, string]
  const maps = tables.get(table)
  if (!maps) throw new NftError('No such file or directory')
  const elements = maps.get(map) ?? new Map<string, string>()
  maps.set(map, elements)
  for (const element of list.split(', ')) {
    const key = /^(?:(?! comment | : ).)+/.exec(element)![0]
    if (verb === 'delete' && !elements.delete(key)) throw new NftError(`no element ${key} in ${map}`)
    if (verb === 'add' && elements.has(key)) throw new NftError(`element ${key} exists in ${map}`)
    if (verb === 'add') elements.set(key, element.slice(key.length))
  }
}
