// sluice upgrade: the running gateway starts the program anew and hands over to it; waits until that one answers.
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'

/** It has its rules and sockets by then, and a thousand routes. */
const ANSWERS_MS_MAX = 20_000
const LOOK_EVERY_MS = 50

export async function upgrade(options: ClientOptions): Promise<number> {
  const answer = await ask('POST', '/v1/upgrade', options)
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as { pid?: number; version?: string; error?: string }
  if (!answer.ok) return fail(`${body.error ?? `status ${answer.status}`}; the running program goes on`)
  if (!(await takesOver(body.pid!, options)))
    return fail(
      `process ${body.pid} took over and does not answer there within ${ANSWERS_MS_MAX / 1000} s: its log says why, or admin.socket is another one now`,
    )
  process.stdout.write(
    options.json
      ? `${JSON.stringify(body, null, 2)}\n`
      : `Handed over to version ${body.version}, process ${body.pid}. Connections in user space finish in the old one.\n`,
  )
  return 0
}

async function takesOver(pid: number, options: ClientOptions): Promise<boolean> {
  const late = AbortSignal.timeout(ANSWERS_MS_MAX)
  for (; !late.aborted; await Bun.sleep(LOOK_EVERY_MS)) {
    const answer = await ask('GET', '/v1/status', options, undefined, late)
    if (typeof answer === 'string' || !answer.ok) continue
    const now = (await answer.json().catch(() => ({}))) as { pid?: number }
    if (now.pid === pid) return true
  }
  return false
}
