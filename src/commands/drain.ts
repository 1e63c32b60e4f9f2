// sluice drain: asks for it, and shows how many connections are left until none is. The gateway does the work: whoever stops
// watching does not stop the drain.
import { parseDuration } from '../base/units.ts'
import type { DrainView } from '../observe/admin.ts'
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'

const LOOK_EVERY_MS = 250
/** A program that reads our lines is told this often that something changed; a person at a terminal with every look. */
const LINE_EVERY_MS = 1000

export interface DrainOptions extends ClientOptions {
  for?: string
  undo?: boolean
}

export async function drain(name: string, options: DrainOptions): Promise<number> {
  if (options.for !== undefined && parseDuration(options.for) === undefined)
    return wrong(`--for ${options.for}: expected a duration such as "10m"`)
  if (options.for !== undefined && options.undo) return wrong('--for and --undo do not go together')
  const asked = await askFor(name, options)
  if (typeof asked === 'string') return fail(asked)
  if (!asked.drain) {
    process.stdout.write(options.json ? `${JSON.stringify({ drain: null })}\n` : `${name} takes connections again\n`)
    return 0
  }
  return watch(asked.drain, name, options)
}

function wrong(message: string): number {
  fail(message)
  return 2
}

/** A route has that name, or else a target. */
async function askFor(name: string, { for: time, undo, ...options }: DrainOptions) {
  for (const kind of ['route', 'target'] as const) {
    const answer = await ask('POST', '/v1/drain', options, { [kind]: name, for: time, undo })
    if (typeof answer === 'string') return answer
    const body = (await answer.json()) as { drain: DrainView | null; error?: string }
    if (answer.ok) return body
    const isOther = answer.status === 404 && kind === 'route' && !body.error?.includes('not drained')
    if (!isOther) return answer.status === 404 && !undo ? `there is no route and no target ${name}` : body.error!
  }
  return ''
}

/** Until nothing is left. */
async function watch(begun: DrainView, name: string, options: DrainOptions): Promise<number> {
  const progress = options.json ? jsonLines() : process.stdout.isTTY ? rewritten(name) : plainLines(name)
  const interrupted = Promise.withResolvers<'interrupted'>()
  const onSignal = () => interrupted.resolve('interrupted')
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  try {
    for (let now = begun; ;) {
      progress.at(now)
      if (now.left === 0) {
        progress.end(now)
        return 0
      }
      if ((await Promise.race([interrupted.promise, Bun.sleep(LOOK_EVERY_MS)])) === 'interrupted') {
        progress.end()
        process.stderr.write(
          `sluice: the drain goes on without being watched: ${counted(now.left)} left; "sluice drain --undo ${name}" puts it back\n`,
        )
        return 1
      }
      const next = await look(begun, options)
      if (typeof next === 'string') {
        progress.end()
        return fail(next)
      }
      now = next
    }
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
  }
}

async function look(begun: DrainView, options: ClientOptions): Promise<DrainView | string> {
  const answer = await ask('GET', '/v1/drains', options)
  if (typeof answer === 'string') return answer
  if (!answer.ok) return `status ${answer.status}`
  const { drains } = (await answer.json()) as { drains: DrainView[] }
  return (
    drains.find((one) => one.route === begun.route && one.target === begun.target) ?? 'somebody has undone the drain'
  )
}

interface Progress {
  at(drain: DrainView): void
  /** With the last of it when nothing is left, without when it goes on unseen. */
  end(drain?: DrainView): void
}

const counted = (count: number) => `${count} ${count === 1 ? 'connection' : 'connections'}`

function sentence(name: string, { left, until }: DrainView): string {
  if (left === 0) return `${name} is drained`
  const seconds = until === null ? null : Math.max(0, Math.ceil((Date.parse(until) - Date.now()) / 1000))
  return `${name}: ${counted(left)} left${seconds === null ? '' : `, cut in ${seconds} s`}`
}

/** One line, written over itself. */
const rewritten = (name: string): Progress => ({
  at: (drain) => void process.stdout.write(`\r\x1b[K${sentence(name, drain)}`),
  end: () => void process.stdout.write('\n'),
})

/** A line when the count has changed, not more often than a reader cares for. */
function limited(write: (drain: DrainView) => void): Progress {
  let [last, lastAt] = [-1, -Infinity]
  const at = (drain: DrainView) => {
    const now = performance.now()
    if (drain.left === last || (now - lastAt < LINE_EVERY_MS && drain.left > 0)) return
    last = drain.left
    lastAt = now
    write(drain)
  }
  return { at, end() {} }
}

const plainLines = (name: string) => limited((drain) => void process.stdout.write(`${sentence(name, drain)}\n`))
const jsonLines = () => limited((drain) => void process.stdout.write(`${JSON.stringify(drain)}\n`))
