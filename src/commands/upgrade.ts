// sluice upgrade: the running gateway starts the program anew and hands over to it.
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'

export async function upgrade(options: ClientOptions): Promise<number> {
  const answer = await ask('POST', '/v1/upgrade', options)
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as { pid?: number; version?: string; error?: string }
  if (!answer.ok) return fail(`${body.error ?? `status ${answer.status}`}; the running program goes on`)
  process.stdout.write(
    options.json
      ? `${JSON.stringify(body, null, 2)}\n`
      : `Handed over to version ${body.version}, process ${body.pid}. Connections in user space finish in the old one.\n`,
  )
  return 0
}
