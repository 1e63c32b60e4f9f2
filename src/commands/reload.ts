// sluice reload and sluice confirm: the gateway reads its configuration again; with --confirm the change is taken back unless it
// is confirmed in time.
import type { Problem } from '../config/check.ts'
import type { Changes } from '../observe/admin.ts'
import { changesInWords } from './changes.ts'
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'
import { printProblems } from './shared.ts'

interface Answer {
  error?: string
  problems?: Problem[]
  changes?: Changes
  unconfirmedUntil?: string
  warnings?: Problem[]
}

export async function reload(options: ClientOptions & { confirm?: string }): Promise<number> {
  const answer = await ask(
    'POST',
    '/v1/reload',
    options,
    options.confirm === undefined ? undefined : { confirm: options.confirm },
  )
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as Answer
  if (options.json) process.stdout.write(`${JSON.stringify(body, null, 2)}\n`)
  if (body.problems) {
    process.stderr.write('sluice: refused; the running configuration is unchanged\n')
    printProblems(body.problems)
    return 2
  }
  if (!answer.ok || !body.changes) return fail(body.error ?? `status ${answer.status}`)
  if (options.json) return 0
  process.stdout.write(changesInWords(body.changes))
  if (body.warnings) {
    process.stderr.write('\nsluice: done, but these files are no good; what was read of them before is used on:\n')
    printProblems(body.warnings)
  }
  if (body.unconfirmedUntil)
    process.stdout.write(`\nTaken back at ${body.unconfirmedUntil} unless you confirm it: sluice confirm\n`)
  return 0
}

export async function confirm(options: ClientOptions): Promise<number> {
  const answer = await ask('POST', '/v1/confirm', options)
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as Answer
  if (options.json) process.stdout.write(`${JSON.stringify(body, null, 2)}\n`)
  if (!answer.ok) return fail(body.error ?? `status ${answer.status}`)
  if (!options.json) process.stdout.write('Confirmed: the change stays.\n')
  return 0
}
