// The door to the running gateway: where its admin socket is, and what to say when nobody answers there.
import { DEFAULT_SOCKET } from '../base/about.ts'
import { loadConfig } from '../config/load.ts'
import { WrongUsage } from './wrong.ts'

/** A gateway that is well answers in much less, also for 100,000 connections. */
const LOOK_MS_MAX = 15_000

export interface ClientOptions {
  admin?: string
  config?: string
  json?: boolean
}

/** A configuration is evaluated once, however often the gateway is asked. */
const socketsOf = new Map<string, Promise<string>>()

export async function socketOf({ admin, config }: ClientOptions): Promise<string> {
  if (admin !== undefined) return admin
  if (config === undefined) return DEFAULT_SOCKET
  const known = socketsOf.get(config) ?? readSocket(config)
  socketsOf.set(config, known)
  return known
}

/** The default in place of what cannot be read might be another gateway. */
async function readSocket(config: string): Promise<string> {
  const loaded = await loadConfig(config)
  if (loaded.ok) return loaded.config.admin?.socket ?? DEFAULT_SOCKET
  const { path, message } = loaded.problems[0]!
  throw new WrongUsage(
    `Cannot tell from ${config} where its gateway is: ${path}: ${message}; name its socket with --admin`,
  )
}

/** A sentence when no gateway answers. */
export async function ask(
  method: string,
  path: string,
  options: ClientOptions,
  body?: object,
  signal?: AbortSignal,
): Promise<Response | string> {
  const socket = await socketOf(options)
  // What changes something takes as long as it takes.
  const until = signal ?? (method === 'GET' ? AbortSignal.timeout(LOOK_MS_MAX) : undefined)
  try {
    const init = { method, unix: socket, signal: until, ...(body ? { body: JSON.stringify(body) } : {}) }
    const answer = await fetch(`http://sluice${path}`, init as RequestInit)
    return answer.headers.get('content-type')?.startsWith('application/json')
      ? answer
      : `Cannot reach the gateway at ${socket}: something else answers there`
  } catch (error) {
    return `Cannot reach the gateway at ${socket}: ${why(error as Error & { code?: string })}`
  }
}

function why({ name, code, message }: Error & { code?: string }): string {
  if (code === 'EACCES' || code === 'EPERM') return 'not permitted (run it as root, or as a member of the group sluice)'
  if (name === 'TimeoutError') return `it does not answer within ${LOOK_MS_MAX / 1000} s`
  return `no gateway answers there (${code ?? message})`
}

/** What the gateway says of a request that it did not carry out. */
export async function errorOf(answer: Response): Promise<string> {
  const { error } = (await answer.json().catch(() => ({}))) as { error?: string }
  return error ?? `status ${answer.status}`
}
