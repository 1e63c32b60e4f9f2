// sluice plan: what a configuration would do, and nothing done.
import type { Config } from '../config/schema.ts'
import { renderDifference } from '../kernel/index.ts'
import { emptyState, isEmpty } from '../plan/kernel-state.ts'
import type { Changes } from '../observe/admin.ts'
import { changesInWords } from './changes.ts'
import { ask, type ClientOptions } from './gateway.ts'
import { listens } from './format.ts'
import { planned } from './planned.ts'
import { readConfig, table } from './shared.ts'

export async function showPlan(options: ClientOptions): Promise<number> {
  const read = await readConfig(options.config)
  if (!read.ok) return read.exitCode
  const { plan: made, table: name } = await planned(read.config)
  const commands = isEmpty(made.kernel) ? [] : renderDifference(name, emptyState(), made.kernel)
  const changes = await changesOfRunning(read.config, { ...options, config: read.path })
  if (options.json) {
    const routes = made.routes.map(({ name, carrier, reason, number, required, listens }) => ({
      name,
      carrier,
      reason,
      number,
      required,
      listens,
    }))
    process.stdout.write(
      `${JSON.stringify({ routes, listeners: made.listeners, elements: made.kernel.groups, nft: commands, changes }, null, 2)}\n`,
    )
    return 0
  }
  process.stdout.write(
    table(
      ['ROUTE', 'LISTENS', 'CARRIER', 'WHY'],
      made.routes.map((route) => [route.name, listens(route.listens), route.carrier, route.reason]),
    ),
  )
  if (commands.length > 0)
    process.stdout.write(
      `\nElements of the nft program (table inet ${name}):\n${commands.map((command) => `  ${command}`).join('\n')}\n`,
    )
  if (changes) process.stdout.write(`\nWhat a reload would change in the running gateway:\n${changesInWords(changes)}`)
  const refused = made.routes.find((route) => route.required && route.carrier !== 'kernel')
  if (refused) {
    process.stderr.write(`sluice: route "${refused.name}" demands forwardingEngine 'nftables': ${refused.reason}\n`)
    return 1
  }
  return 0
}

/** null: no gateway runs with this configuration's socket, or it could not change to it. */
async function changesOfRunning(config: Config, options: ClientOptions): Promise<Changes | null> {
  const answer = await ask('POST', '/v1/plan', options, config)
  if (typeof answer === 'string') return null
  const body = (await answer.json()) as { changes?: Changes; problems?: { path: string; message: string }[] }
  for (const { path, message } of body.problems ?? [])
    process.stderr.write(`sluice: the running gateway would refuse this: ${path}: ${message}\n`)
  return body.changes ?? null
}
