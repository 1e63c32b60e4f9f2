// sluice explain: what would become of a connection and why; asked of the gateway that runs, or read from a configuration.
import { foreignDrops, ownAddresses } from '../control/explain.ts'
import { parseAsked } from '../plan/asked.ts'
import { explain } from '../plan/explain.ts'
import { nothingKnown, type Explanation } from '../plan/explanation.ts'
import { fail } from './client.ts'
import { ask, errorOf, type ClientOptions } from './gateway.ts'
import { printable } from './format.ts'
import { planned } from './planned.ts'
import { colour, readConfig } from './shared.ts'

/** 0: it would be carried or answered; 1: it would not. */
export async function showExplanation(
  client: string,
  listener: string,
  serverName: string | undefined,
  options: ClientOptions,
): Promise<number> {
  const question = parseAsked(client, listener, serverName)
  if ('error' in question) {
    fail(question.error)
    return 2
  }
  const query = new URLSearchParams({ client, listener, ...(serverName === undefined ? {} : { sni: serverName }) })
  const answer = await ask('GET', `/v1/explain?${query}`, options)
  if (typeof answer !== 'string') {
    if (!answer.ok) return fail(await errorOf(answer))
    return print((await answer.json()) as Explanation, options)
  }
  if (options.config === undefined) return fail(`${answer}; with --config it is explained from a configuration`)
  const read = await readConfig(options.config)
  if (!read.ok) return read.exitCode
  process.stderr.write('sluice: no gateway runs there: explained from the configuration alone\n')
  const { plan, facts, table } = await planned(read.config)
  const reason = facts.kernelUnusable
  const now = {
    ...nothingKnown(plan),
    kernel: reason === null ? plan.kernel : null,
    kernelReason: reason,
    addresses: ownAddresses(),
    foreign: reason === null ? await foreignDrops({ table, facts }) : [],
  }
  return print(explain(plan, facts, question, now), options)
}

const COLOURS = { ok: 32, note: 33, stop: 31 }

function print(explanation: Explanation, { json }: ClientOptions): number {
  const { steps, outcome } = explanation
  const width = Math.max(...steps.map(({ step }) => step.length))
  const line = ({ step, verdict, detail }: Explanation['steps'][number]) =>
    `${colour(COLOURS[verdict], step.padEnd(width))}  ${printable(detail)}\n`
  process.stdout.write(json ? `${JSON.stringify(explanation, null, 2)}\n` : steps.map(line).join(''))
  return outcome === 'carried' || outcome === 'answered' ? 0 : 1
}
