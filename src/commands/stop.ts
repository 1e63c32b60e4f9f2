// sluice stop: asks for it, says how many connections may finish, and waits until the gateway is gone. The gateway does the work:
// whoever stops watching does not stop the stop.
import { connect } from 'node:net'
import { fail } from './client.ts'
import { ask, errorOf, socketOf, type ClientOptions } from './gateway.ts'

const LOOK_EVERY_MS = 100
const LOOK_MS_MAX = 2000
/** Its socket goes a moment before its process does. */
const LAST_MS_MAX = 2000

interface Look {
  pid: number
  connections: { kernel: number; proxied: number }
}

export async function stop(options: ClientOptions): Promise<number> {
  const begun = await look(options)
  const answer = await ask('POST', '/v1/stop', options)
  if (typeof answer === 'string') return fail(answer)
  if (!answer.ok) return fail(await errorOf(answer))
  if (options.json) process.stdout.write(`${JSON.stringify(await answer.json(), null, 2)}\n`)
  const say = (text: string) => options.json || process.stdout.write(`${text}\n`)
  const interrupted = Promise.withResolvers<true>()
  const onSignal = () => interrupted.resolve(true)
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  try {
    if (begun) say(`Stopping; ${inWords(begun)}.`)
    while (await answers(await socketOf(options))) {
      const now = await look(options)
      if (now && begun && now.pid !== begun.pid) {
        say(`Stopped; it has been started again as process ${now.pid}.`)
        return 0
      }
      if (await Promise.race([interrupted.promise, Bun.sleep(LOOK_EVERY_MS)])) {
        process.stderr.write('sluice: the stop goes on without being watched\n')
        return 1
      }
    }
    if (begun) await ended(begun.pid)
    say('Stopped.')
    return 0
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
  }
}

function inWords({ connections: { kernel, proxied } }: Look): string {
  const count = kernel + proxied
  if (count === 0) return 'no connection is open'
  return count === 1 ? '1 connection may finish' : `${count} connections may finish`
}

/** undefined: it does not say. */
async function look(options: ClientOptions): Promise<Look | undefined> {
  const answer = await ask('GET', '/v1/status', options, undefined, AbortSignal.timeout(LOOK_MS_MAX))
  if (typeof answer === 'string' || !answer.ok) return undefined
  return (await answer.json().catch(() => undefined)) as Look | undefined
}

function answers(socket: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const end = connect(socket)
  end.once('connect', () => resolve(true))
  end.once('error', () => resolve(false))
  return promise.finally(() => end.destroy())
}

/** As far as it can be seen from here. */
async function ended(pid: number) {
  const until = Date.now() + LAST_MS_MAX
  try {
    for (; Date.now() < until; await Bun.sleep(LOOK_EVERY_MS)) process.kill(pid, 0)
  } catch {
    // There is no such process any more.
  }
}
