// A configuration file → its checked contents. JSON is read; TypeScript is evaluated in a short-lived child process
// (evaluate.ts), so that each reload sees fresh modules and a configuration that hangs or crashes takes nothing with it.
import { access, readFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { check, type Checked, type Problem } from './check.ts'
import type { Certificate, Config, Tls } from './schema.ts'

/** A configuration that has not returned by then never will. */
const EVALUATE_MS_MAX = 10_000
/** What a child printed last is read by then. */
const OUTPUT_LINGER_MS = 1000
/** 65,536 routes of a kilobyte. */
const FILE_BYTES_MAX = 64 * 1024 * 1024

export const DEFAULT_FILES = ['sluice.config.ts', '/etc/sluice/sluice.config.ts']

/** The file to use: the one named, or the first default that exists. */
export async function findConfig(named: string | undefined): Promise<string | undefined> {
  if (named !== undefined) return resolve(named)
  for (const file of DEFAULT_FILES) {
    const path = resolve(file)
    if (
      await access(path).then(
        () => true,
        () => false,
      )
    )
      return path
  }
  return undefined
}

export async function loadConfig(path: string): Promise<Checked> {
  let input: unknown
  try {
    input = path.endsWith('.json') ? parseJson(await readFile(path, 'utf8')) : await evaluate(path)
  } catch (error) {
    return { ok: false, problems: [unreadable(path, error as NodeJS.ErrnoException)] }
  }
  const checked = check(input)
  return checked.ok ? { ok: true, config: resolvePaths(checked.config, dirname(path)) } : checked
}

function unreadable(path: string, error: NodeJS.ErrnoException): Problem {
  if (error.code === 'ENOENT' && error.path === path)
    return {
      path,
      message: 'the file does not exist',
      remedy: 'name another with --config, or write one with "sluice init"',
    }
  if (error.code === 'EACCES') return { path, message: 'the file may not be read', remedy: 'check its owner and mode' }
  return {
    path,
    message: error.message.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, '?').slice(0, 2000),
    remedy: 'mend the file; "sluice init" writes one that works',
  }
}

function parseJson(text: string): unknown {
  if (text.length > FILE_BYTES_MAX) throw new Error(`is larger than ${FILE_BYTES_MAX} bytes`)
  return JSON.parse(text)
}

async function evaluate(path: string): Promise<unknown> {
  await access(path)
  const limits = { msMax: EVALUATE_MS_MAX, bytesMax: FILE_BYTES_MAX }
  const printed = await runChild(['evaluate', path], { cwd: dirname(path), ...limits })
  if (printed === '') throw new Error('ended by itself before there was a configuration')
  return JSON.parse(printed)
}

/** What this program prints when it is run with these arguments, in a process of its own that ends in any case. */
export async function runChild(
  args: string[],
  { cwd, msMax, bytesMax, signal }: { cwd: string; msMax: number; bytesMax: number; signal?: AbortSignal },
): Promise<string> {
  const child = Bun.spawn([process.execPath, ...selfArguments(), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd,
    ...(signal ? { signal, killSignal: 'SIGKILL' } : {}),
  })
  const deadline = setTimeout(() => child.kill('SIGKILL'), msMax)
  const pipes = new AbortController()
  const outputs = Promise.all([child.stdout, child.stderr].map((pipe) => limited(pipe, bytesMax, pipes.signal)))
  outputs.catch(() => {})
  let lingering: ReturnType<typeof setTimeout> | undefined
  try {
    // Too much of it is no reason to wait for the end.
    const code = await Promise.race([child.exited, outputs.then(() => child.exited)])
    // Programs that it has started may hold its pipes for as long as they live.
    lingering = setTimeout(() => pipes.abort(), OUTPUT_LINGER_MS)
    const [out, err] = (await outputs) as [string, string]
    if (signal?.aborted) throw new Error('was not waited for')
    if (child.signalCode === 'SIGKILL') throw new Error(`did not return within ${msMax / 1000} s`)
    if (code !== 0) throw new Error(err.trim() || `ended with exit code ${code}`)
    return out
  } finally {
    clearTimeout(deadline)
    clearTimeout(lingering)
    child.kill('SIGKILL')
  }
}

/** @param enough ends it with what has come until then. */
async function limited(stream: ReadableStream<Uint8Array>, bytesMax: number, enough: AbortSignal): Promise<string> {
  const parts: Uint8Array[] = []
  let bytes = 0
  const reader = stream.getReader()
  const end = () => void reader.cancel().catch(() => {})
  enough.addEventListener('abort', end)
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return Buffer.concat(parts).toString()
      bytes += value.length
      if (bytes > bytesMax) throw new Error(`printed more than ${bytesMax} bytes`)
      parts.push(value)
    }
  } finally {
    enough.removeEventListener('abort', end)
    end()
  }
}

/** Arguments that make process.execPath this program: none when it is compiled, else the main file. Not Bun.main: as a
 *  library we are part of another program, which does not know our commands. Packages that a handler imports resolve as in the
 *  Workers runtime; the compiled program has the condition built in (Makefile). */
export function selfArguments(): string[] {
  const compiled = Bun.main.startsWith('/$bunfs/') || Bun.main.startsWith('B:/')
  return compiled ? [] : ['--conditions=workerd', resolve(import.meta.dir, '../main.ts')]
}

/** File names in a configuration are relative to it. */
function resolvePaths(config: Config, base: string): Config {
  const at = (path: string) => resolve(base, path)
  const certificate = (value: Certificate): Certificate =>
    typeof value === 'string'
      ? value
      : 'cert' in value
        ? { cert: at(value.cert), key: at(value.key) }
        : { module: at(value.module) }
  const tls = (value: Tls): Tls => ({
    ...value,
    ...(value.certificate === undefined ? {} : { certificate: certificate(value.certificate) }),
    ...(value.clientCa === undefined ? {} : { clientCa: at(value.clientCa) }),
    ...(value.upstream?.ca === undefined ? {} : { upstream: { ...value.upstream, ca: at(value.upstream.ca) } }),
  })
  return {
    ...config,
    ...(config.acme?.ca === undefined ? {} : { acme: { ...config.acme, ca: at(config.acme.ca) } }),
    routes: config.routes.map((route) => {
      const { action } = route
      if (action.type === 'forward' && action.tls) return { ...route, action: { ...action, tls: tls(action.tls) } }
      if (action.type !== 'socket-handler') return route
      const handler = typeof action.handler === 'string' ? at(action.handler) : action.handler
      return { ...route, action: { ...action, handler, ...(action.tls ? { tls: tls(action.tls) } : {}) } }
    }),
  }
}
