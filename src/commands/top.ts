// sluice top: looks at a running gateway again and again and shows it, as one picture that keys change; a single picture where there
// is no terminal. The terminal is left as it was found, whatever ends the program.
import { parseDuration } from '../base/units.ts'
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'
import { viewOf } from './shared.ts'
import { draw, pageOf, type Size } from './top/draw.ts'
import { TABS, type Look, type Tab } from './top/look.ts'
import { failed, initialState, keptItems, keysOf, looked, press, type Filter, type TopState } from './top/state.ts'

export interface TopOptions extends ClientOptions, Filter {
  interval?: string
  once?: boolean
  tab?: string
}

/** A gateway with very many connections takes part of a second to list them. */
const LOOK_MS_MAX = 10_000
const INTERVAL_MS_MIN = 100
/** Of the busiest clients. */
const CLIENTS_SHOWN_MAX = 1000
/** Where nobody says how large the terminal is. */
const SIZE_DEFAULT: Size = { columns: 80, rows: 24 }

export async function top(options: TopOptions): Promise<number> {
  const intervalMs = parseDuration(options.interval ?? '1s')
  if (intervalMs === undefined || intervalMs < INTERVAL_MS_MIN)
    return wrong(`--interval ${options.interval}: expected a duration such as "2s", from ${INTERVAL_MS_MIN}ms on`)
  const tab = (options.tab ?? 'routes') as Tab
  if (!TABS.includes(tab)) return wrong(`--tab ${options.tab}: expected one of ${TABS.join(', ')}`)
  const { route, client, target } = options
  const state = initialState({ route, client, target }, tab)
  if (options.json) return printJson(state, options)
  return options.once || !process.stdout.isTTY || !process.stdin.isTTY
    ? printOnce(state, options)
    : new Screen(state, intervalMs, options).run()
}

function wrong(message: string): number {
  fail(message)
  return 2
}

/** A sentence when it cannot be had. */
async function look(tabs: readonly Tab[], options: ClientOptions, ending?: AbortSignal): Promise<Look | string> {
  const deadline = AbortSignal.timeout(LOOK_MS_MAX)
  const signal = ending ? AbortSignal.any([ending, deadline]) : deadline
  const get = async (path: string) => {
    const answer = await ask('GET', path, options, undefined, signal)
    if (typeof answer === 'string') throw new Error(answer)
    const body = (await answer.json()) as Record<string, unknown>
    if (!answer.ok) throw new Error(String(body.error ?? `status ${answer.status}`))
    return body
  }
  try {
    const listings = tabs.filter((tab) => tab !== 'routes')
    const [status, routes, ...rest] = await Promise.all([
      get('/v1/status'),
      get('/v1/routes'),
      ...listings.map((tab) => get(tab === 'clients' ? `/v1/clients?limit=${CLIENTS_SHOWN_MAX}` : `/v1/${tab}`)),
    ])
    const found = Object.fromEntries(listings.map((tab, i) => [tab, rest[i]![tab]]))
    return { atMs: performance.now(), nowMs: Date.now(), status, routes: routes!.routes, ...found } as unknown as Look
  } catch (error) {
    return (error as Error).message
  }
}

async function printOnce(state: TopState, options: ClientOptions): Promise<number> {
  const seen = await look([state.tab], options)
  if (typeof seen === 'string') return fail(seen)
  const shown = looked(state, seen)
  const { width, colours } = viewOf(process.stdout)
  const size = { columns: width, rows: Infinity }
  // The last line is about keys.
  process.stdout.write(`${draw(shown, size, colours).slice(0, -1).join('\n')}\n`)
  return 0
}

/** Every tab, filtered. */
async function printJson({ filter }: TopState, options: ClientOptions): Promise<number> {
  const seen = await look(TABS, options)
  if (typeof seen === 'string') return fail(seen)
  const kept = Object.fromEntries(TABS.map((tab) => [tab, keptItems(tab, seen, filter)]))
  process.stdout.write(`${JSON.stringify({ status: seen.status, ...kept }, null, 2)}\n`)
  return 0
}

const ENTER = '\x1b[?1049h\x1b[?25l'
const LEAVE = '\x1b[?25h\x1b[?1049l'
/** The terminal shows it at once where it knows how. */
const frame = (lines: string[]) =>
  `\x1b[?2026h\x1b[H${lines.map((line) => `${line}\x1b[K`).join('\r\n')}\x1b[J\x1b[?2026l`

const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const

class Screen {
  readonly #end = Promise.withResolvers<number>()
  readonly #ending = new AbortController()
  #timer: ReturnType<typeof setTimeout> | undefined
  #looking = false
  #again = false

  constructor(
    private state: TopState,
    private readonly intervalMs: number,
    private readonly options: ClientOptions,
  ) {}

  async run(): Promise<number> {
    const { stdin, stdout } = process
    const onData = (chunk: Buffer) => this.#onKeys(keysOf(chunk.toString()))
    const onResize = () => this.#draw()
    const crashed = (error: unknown) => this.#end.reject(error)
    const handlers = Object.entries(SIGNALS).map(([name, code]) => [name, () => this.#end.resolve(code)] as const)
    for (const [name, handler] of handlers) process.on(name, handler)
    process.on('uncaughtException', crashed)
    process.on('unhandledRejection', crashed)
    stdin.setRawMode(true)
    stdin.on('data', onData)
    stdin.on('end', () => this.#end.resolve(0))
    stdout.on('resize', onResize)
    stdout.write(ENTER)
    try {
      this.#draw()
      this.#look()
      return await this.#end.promise
    } finally {
      clearTimeout(this.#timer)
      this.#ending.abort()
      stdout.off('resize', onResize)
      stdin.off('data', onData)
      stdin.setRawMode(false)
      stdin.pause()
      await new Promise<void>((written) => stdout.write(LEAVE, () => written()))
      for (const [name, handler] of handlers) process.off(name, handler)
      process.off('uncaughtException', crashed)
      process.off('unhandledRejection', crashed)
    }
  }

  get #size(): Size {
    const { columns, rows } = process.stdout
    return { columns: columns || SIZE_DEFAULT.columns, rows: rows || SIZE_DEFAULT.rows }
  }

  #draw() {
    process.stdout.write(frame(draw(this.state, this.#size, viewOf(process.stdout).colours)))
  }

  #onKeys(keys: string[]) {
    const { tab, paused } = this.state
    for (const key of keys) {
      const next = press(this.state, key, pageOf(this.#size))
      if (next === 'quit') return this.#end.resolve(0)
      this.state = next
    }
    this.#draw()
    if (this.state.tab !== tab || (paused && !this.state.paused)) this.#look()
  }

  /** One at a time: a gateway that is slow is not asked faster than it answers. */
  #look() {
    if (this.#looking) {
      this.#again = true
      return
    }
    clearTimeout(this.#timer)
    this.#looking = true
    look([this.state.tab], this.options, this.#ending.signal)
      .then((seen) => this.#seen(seen))
      .catch((error) => this.#end.reject(error))
  }

  #seen(seen: Look | string) {
    this.#looking = false
    if (this.#ending.signal.aborted) return
    if (typeof seen === 'string') this.state = failed(this.state, seen)
    // Another tab has nothing to hold still yet.
    else if (!this.state.paused || !this.state.look?.[this.state.tab]) this.state = looked(this.state, seen)
    this.#draw()
    const soon = this.#again
    this.#again = false
    this.#timer = setTimeout(() => this.#look(), soon ? 0 : this.intervalMs)
  }
}
