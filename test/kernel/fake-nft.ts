// A stateful nft for tests: it understands exactly the commands that kernel/program.ts writes, holds their elements, and is
// atomic; anything else is a failure, so the writer and the fake cannot drift apart unnoticed.
import { NftError, type Nft } from '../../src/kernel/nft.ts'

export class FakeNft implements Nft {
  tables = new Map<string, Map<string, Map<string, string>>>()
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
      for (const command of commands) run(copy, command)
      this.tables = copy
      this.transactions.push(commands)
    } finally {
      this.concurrent--
    }
  }

  async list(table: string) {
    if (this.failure) throw new NftError(this.failure)
    const maps = this.tables.get(table)
    if (!maps) return null
    return [...maps].map(([name, elements]) => ({
      [name === 'routes' || name === 'preserve' ? 'set' : 'map']: {
        name,
        elem: [...elements].map(([key, text]) => {
          const [, comment, value] = /^(?: comment "([^"]*)")?(?: : (.*))?$/.exec(text)!
          const mark = (part: string) => (part.startsWith('0x') ? Number(part) : part)
          const val = key.includes(' . ') ? { concat: key.split(' . ').map(mark) } : mark(key)
          const left = comment === undefined ? val : { elem: { val, comment } }
          return value === undefined
            ? left
            : [left, value.includes(' . ') ? { concat: value.split(' . ') } : mark(value)]
        }),
      },
    }))
  }

  async version() {
    return '1.0.6'
  }

  elements(table: string, map: string) {
    return Object.fromEntries(this.tables.get(table)?.get(map) ?? [])
  }
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
