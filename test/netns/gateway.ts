// The program itself in the laboratory's gateway: started from a configuration as an operator would, watched through its
// admin socket and its access log, stopped, killed and started again. Nothing of src/ is imported: what is tested is what runs.
import type { Subprocess } from 'bun'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { slowness } from '../support.ts'
import type { Lab, Namespace, Result } from './lab.ts'

const MAIN = resolve(import.meta.dir, '../../src/main.ts')
const START_MS_MAX = 20_000
const STOP_MS_MAX = 20_000 * slowness
const POLL_MS = 10

export interface RouteState {
  name: string
  carrier: string
  planned: string
  state: string
  reason: string
  number: number
  connections: number
  total: number
  reasons: Record<string, number>
}

export interface Connection {
  id: string
  route: string
  carrier: string
  client: string
  listener: string
  target: string | null
  serverName?: string
  state: string
  openedAt: string
  closedAt?: string
  bytesIn: number
  bytesOut: number
  reason?: string
}

export interface Status {
  pid: number
  connections: { kernel: number; proxied: number }
  worker: {
    pid: number
    uid: number
    restarts: number
    accepting: boolean
    acceptPauses: number
    descriptorsMax: number | null
    swept: number
  }
  kernel: {
    active: boolean
    phase: string
    reason: string | null
    elements: number
    transactions: number
    drifts: number
  }
  anomalies: number
}

export interface Reloaded {
  status: number
  changes?: Record<string, string[]>
  problems?: { path: string; message: string; remedy: string }[]
}

/** Polls until `condition` gives something; fails with `what` and its last error when it takes too long. */
export async function until<T>(
  condition: () => T | Promise<T>,
  ms: number,
  what: string,
): Promise<Exclude<NonNullable<T>, false>> {
  const deadline = performance.now() + ms * slowness
  for (let last: unknown; ; await Bun.sleep(POLL_MS)) {
    try {
      const result = await condition()
      if (result) return result as Exclude<NonNullable<T>, false>
      last = result
    } catch (error) {
      last = error
    }
    if (performance.now() > deadline)
      throw new Error(`not within ${ms * slowness} ms: ${what} (last: ${Bun.inspect(last)})`)
  }
}

/** SIGSTOP. The kernel stops each thread when it comes to it: resolves when none runs any more. */
export async function halt(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP')
  const isStopped = (thread: string) => /\) T /.test(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8'))
  await until(() => readdirSync(`/proc/${pid}/task`).every(isStopped), 5000, `process ${pid} has stopped`)
}

/** A forwarding route in one line. */
export const forward = (name: string, ports: unknown, targets: unknown[], action: object = {}, rest: object = {}) => ({
  name,
  match: { ports, ...(rest as { match?: object }).match },
  action: { type: 'forward', targets, ...action },
  ...Object.fromEntries(Object.entries(rest).filter(([key]) => key !== 'match')),
})

export interface GatewayOptions {
  /** Fields beside the routes; admin, log and stateDir are in the gateway's own directory without being named. */
  config?: object
  /** More of admin than its socket. */
  admin?: object
  env?: Record<string, string>
  /** log.access.durable. */
  durable?: boolean
  /** The program, where it is not the source under this Bun. */
  program?: string[]
  /** A command that starts the program in its own way: setpriv(1), prlimit(1). */
  through?: string[]
  /** More of them for `run`. */
  arguments?: string[]
  /** Its standard input and output are pipes. */
  talks?: boolean
  /** false: returns as soon as the process runs. Default: every route has been active. */
  ready?: boolean | ((routes: RouteState[]) => boolean)
}

export const allActive = (routes: RouteState[]) =>
  routes.every((route) => route.state === 'active' && route.carrier === route.planned)

export class Gateway implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'sluice-lab-'))
  readonly file = join(this.directory, 'sluice.json')
  readonly socket = join(this.directory, 'admin.sock')
  readonly accessLog = join(this.directory, 'access.jsonl')
  #lives = 0
  readonly namespace: Namespace
  process!: Subprocess<any, any, any>

  private constructor(
    lab: Lab,
    private readonly options: GatewayOptions,
  ) {
    this.namespace = lab.gateway
    // The worker is another user where there is one.
    chmodSync(this.directory, 0o755)
  }

  static async start(lab: Lab, routes: unknown[], options: GatewayOptions = {}): Promise<Gateway> {
    const gateway = new Gateway(lab, options)
    gateway.write(routes)
    try {
      await gateway.restart()
      return gateway
    } catch (error) {
      await gateway[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Writes the configuration; reload() or restart() makes it count. */
  write(routes: unknown[], config: object = {}) {
    writeFileSync(
      this.file,
      JSON.stringify({
        admin: { socket: this.socket, ...this.options.admin },
        log: {
          access: this.options.durable ? { file: this.accessLog, durable: true } : this.accessLog,
          level: 'debug',
        },
        stateDir: join(this.directory, 'state'),
        ...this.options.config,
        ...config,
        routes,
      }),
    )
  }

  command(...words: string[]): string[] {
    return [...(this.options.program ?? [process.execPath, MAIN]), ...words]
  }

  /** One of the program's commands, to its end. */
  cli(...words: string[]): Promise<Result> {
    return this.namespace.run(this.command(...words))
  }

  /** Starts the program, again if it ran before. */
  async restart(options: GatewayOptions = this.options): Promise<void> {
    this.#lives++
    // By way of env(1): a PATH of the gateway's own must not keep nsenter from being found.
    const { through = [] } = options
    const own = Object.entries({ ...options.env }).map(([name, value]) => `${name}=${value}`)
    this.process = this.namespace.spawn(
      [
        Bun.which('env')!,
        ...own,
        ...through,
        ...this.command('run', '--config', this.file, ...(options.arguments ?? [])),
      ],
      {
        stdin: options.talks ? 'pipe' : 'ignore',
        stdout: options.talks ? 'pipe' : 'ignore',
        stderr: Bun.file(this.log),
      },
    )
    const { ready = true } = options
    if (ready === false) return
    await until(
      async () => {
        if (this.process.exitCode !== null) return true
        return (ready === true ? allActive : ready)(await this.routes())
      },
      START_MS_MAX,
      'the gateway serves',
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await this.#situation()}`)
    })
    if (this.process.exitCode !== null) throw new Error(`the gateway ended: ${this.logText()}`)
  }

  /** Standard error of this life. */
  get log() {
    return join(this.directory, `log-${this.#lives}`)
  }

  logText(): string {
    return existsSync(this.log) ? readFileSync(this.log, 'utf8') : ''
  }

  async ask<T>(path: string, method = 'GET', body?: unknown): Promise<T> {
    const init = { unix: this.socket, method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) }
    const answer = await fetch(`http://sluice${path}`, init as RequestInit)
    return { status: answer.status, ...((await answer.json()) as object) } as T
  }

  async routes(): Promise<RouteState[]> {
    return (await this.ask<{ routes: RouteState[] }>('/v1/routes')).routes
  }

  async route(name: string): Promise<RouteState> {
    const found = (await this.routes()).find((route) => route.name === name)
    if (!found) throw new Error(`no route ${name}`)
    return found
  }

  async connections(): Promise<Connection[]> {
    return (await this.ask<{ connections: Connection[] }>('/v1/connections')).connections
  }

  status(): Promise<Status> {
    return this.ask<Status>('/v1/status')
  }

  putRoutes(routes: unknown[]): Promise<Reloaded> {
    return this.ask<Reloaded>('/v1/routes', 'PUT', { routes })
  }

  reload(): Promise<Reloaded> {
    return this.ask<Reloaded>('/v1/reload', 'POST')
  }

  close(id: string): Promise<{ status: number }> {
    return this.ask(`/v1/connections/${id}`, 'DELETE')
  }

  /** The access log so far. */
  records(): (Connection & { event: string })[] {
    if (!existsSync(this.accessLog)) return []
    const text = readFileSync(this.accessLog, 'utf8')
    // A line that is being written has no end yet.
    return text
      .slice(0, text.lastIndexOf('\n') + 1)
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Connection & { event: string })
  }

  /** Waits until the access log has this many lines; fails when it gets more. */
  async recordsOf(count: number, ms = 10_000): Promise<(Connection & { event: string })[]> {
    const records = await until(
      () => {
        const found = this.records()
        return found.length >= count && found
      },
      ms,
      `${count} lines in the access log (${this.records().length} there)`,
    )
    if (records.length !== count) throw new Error(`${records.length} lines in the access log instead of ${count}`)
    return records
  }

  /** Waits until every route is active in the carrier that was planned for it. */
  settled(ms = 10_000): Promise<unknown> {
    return until(async () => allActive(await this.routes()), ms, 'every route is where the plan wants it').catch(
      async (error: Error) => {
        throw new Error(`${error.message}\n${await this.#situation()}`)
      },
    )
  }

  /** For a failure's message: what the gateway says of itself, and its log. */
  async #situation(): Promise<string> {
    const ask = async () => {
      const left = (await this.routes()).filter((route) => !allActive([route]))
      return Bun.inspect([left.slice(0, 5), await this.status()])
    }
    return `${await ask().catch(String)}\n${this.logText()}`
  }

  /** SIGTERM; resolves to the exit code. */
  async stop(): Promise<number> {
    this.process.kill('SIGTERM')
    return this.exited()
  }

  async exited(): Promise<number> {
    const late = setTimeout(() => this.process.kill('SIGKILL'), STOP_MS_MAX)
    await this.process.exited
    clearTimeout(late)
    if (this.process.signalCode) throw new Error(`the gateway ended by ${this.process.signalCode}: ${this.logText()}`)
    return this.process.exitCode!
  }

  /** kill -9 of control; its worker and the anchor's holder end on their own. */
  async kill9(): Promise<void> {
    const worker = await this.status().then(
      (status) => status.worker.pid,
      () => null,
    )
    this.process.kill('SIGKILL')
    await this.process.exited
    if (worker !== null) await until(() => !existsSync(`/proc/${worker}`), 5000, 'the worker follows control')
  }

  async [Symbol.asyncDispose]() {
    if (this.process?.exitCode === null && this.process.signalCode === null) {
      this.process.kill('SIGKILL')
      await this.process.exited
    }
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** A program of our own in front of the real nft: it fails, waits, or writes down what it was asked. */
export class NftStub {
  readonly directory = mkdtempSync(join(tmpdir(), 'sluice-nft-'))

  /** @param mode shell code that runs before the real nft; "exit 1" keeps it from running. */
  constructor(mode = '') {
    mkdirSync(join(this.directory, 'bin'))
    const real = Bun.which('nft')
    writeFileSync(
      join(this.directory, 'bin/nft'),
      `#!/bin/sh\necho "$@" >> ${this.directory}/calls\n. ${this.directory}/mode\nexec ${real} "$@"\n`,
    )
    chmodSync(this.directory, 0o755)
    chmodSync(join(this.directory, 'bin/nft'), 0o755)
    this.mode(mode)
  }

  mode(code: string) {
    writeFileSync(join(this.directory, 'mode'), `${code}\n`)
  }

  get env() {
    return { PATH: `${join(this.directory, 'bin')}:${process.env.PATH}` }
  }

  calls(): string[] {
    const path = join(this.directory, 'calls')
    return existsSync(path) ? readFileSync(path, 'utf8').split('\n').filter(Boolean) : []
  }

  [Symbol.dispose]() {
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** Our table as nft lists it: set or map name → elements as text; null when it is not there. */
export async function elements(where: Namespace, table = 'sluice'): Promise<Record<string, string[]> | null> {
  const { stdout, exitCode } = await where.run(['nft', '-j', 'list', 'table', 'inet', table])
  if (exitCode !== 0) return null
  const listing = (JSON.parse(stdout) as { nftables: Record<string, { name: string; elem?: unknown[] }>[] }).nftables
  return Object.fromEntries(
    listing.flatMap((item) => {
      const set = item.map ?? item.set
      return set ? [[set.name, (set.elem ?? []).map((element) => JSON.stringify(element)).toSorted()]] : []
    }),
  )
}

/** Everything of the ruleset but our own tables, as nft prints it. */
export async function foreignRules(where: Namespace): Promise<string> {
  const all = await where.must(['nft', '-s', 'list', 'ruleset'])
  return all
    .split(/^(?=table )/m)
    .filter((table) => !table.startsWith('table inet sluice '))
    .filter((table) => !table.startsWith('table inet sluice_anchor '))
    .join('')
}

/** Names of the tables that are there, sorted: nft lists them in the order they were made, which is nobody's promise. */
export async function tables(where: Namespace): Promise<string[]> {
  const text = await where.must(['nft', 'list', 'tables'])
  return text.split('\n').filter(Boolean).toSorted()
}

/** What listens there, as "address:port". */
export async function listening(where: Namespace): Promise<string[]> {
  const text = await where.must(['ss', '-Hltn'])
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => line.trim().split(/\s+/)[3]!)
}
