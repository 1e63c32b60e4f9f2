// The traffic: what the client asks of the backend through a gateway, and what was measured of it.
import type { Lab } from '../netns/lab.ts'
import { clientHello } from './client-hello.ts'
import { type Program, program } from './machine.ts'
import { type MachineTime, type Resident, spent, type ThreadTime, timesOf, total } from './processes.ts'

/** The name in the ClientHello that peeking gateways look for. */
export const TLS_NAME = 'bench.example'

const BULK_PORT = 5201
const SHORT_PORT = 5202
const UPLOAD_PORT = 5203
export const IDLE_PORT = 5204
/** What a forwarding gateway carries. */
export const PORTS = [BULK_PORT, SHORT_PORT, UPLOAD_PORT, IDLE_PORT]
/** Where a gateway that answers itself says what it was told. */
export const ECHO_PORT = 5205

const SHORT_ANSWER_BYTES = 200
/** More than any run can carry: a bulk answer does not end, nor does an upload. */
const ENDLESS_BYTES = 1e15
const SHORT_CONNECTIONS = 64
const MANY_CONNECTIONS = 2000
/** A reader with a small window makes its gateway wait with bytes in hand, as clients on the internet do. */
const MANY_RECEIVE_BYTES = 32 << 10
const TLS_BULK_CONNECTIONS = 4
const ECHO_CONNECTIONS = 64
const ECHO_BULK_CONNECTIONS = 4
const MESSAGE_BYTES = 100
/** Also for the JavaScript of a subject to become warm. */
const WARMUP_SECONDS = 1.5
/** Above this share of failed connections the figures are about something else. */
const FAILED_SHARE_MAX = 0.001
/** Of handshakes that should all be resumed, or none. */
const RESUMED_SHARE_MIN = 0.99
const ANY_BUFFER = 0

/** One run of a load: where it happens, and through whom. */
export interface Context {
  lab: Lab
  /** Where the client connects to. */
  host: string
  /** What a client sends first. */
  request: Uint8Array
  seconds: number
  /** The gateway's first process; null when the kernel alone is the gateway. */
  gateway: number | null
  /** Looks at the gateway while it is measured. */
  look?(gateway: number): Promise<string[]>
}

export interface Load<S extends Sample = Sample> {
  name: string
  /** At once. */
  connections: number
  metrics: Metric<S>[]
  /** What the profile of threads is divided by. */
  unit: Unit<S>
  run(context: Context): Promise<S>
}

/** What is compared of a load: one number per run. CPU is that of the whole machine, traffic programs included, unless it
 *  is called the gateway's: that is what its processes' threads were charged with. */
export interface Metric<S extends Sample = Sample> {
  name: string
  better: 'higher' | 'lower'
  of(sample: S): number
}
interface Unit<S extends Sample = Sample> {
  name: string
  count(sample: S): number
}

export interface Sample {
  /** Of the gateway, during the measured seconds. */
  threads: ThreadTime[]
  machine: MachineTime
  /** By how much each process of the gateway has grown, where that is asked. */
  memory?: Resident[]
  /** What was seen by looking deeper. */
  seen?: string[]
}

/** What the traffic programs print, and the processor time beside it. */
export interface Traffic extends Sample {
  seconds: number
  connections: number
  failed: number
  bytes: number
  busySeconds: number
  p50us: number
  p99us: number
  lastError: string
  /** Of an echo: how many came back. */
  messages?: number
  /** Of TLS: how many of the connections were. */
  resumed?: number
}

const GB: Unit<Traffic> = { name: 'GB', count: (s) => s.bytes / 1e9 }
const CONNECTION: Unit<Traffic> = { name: 'connection', count: (s) => s.connections }
const MESSAGE: Unit<Traffic> = { name: 'message', count: (s) => s.messages! }

const throughput: Metric<Traffic>[] = [
  { name: 'Gbit/s', better: 'higher', of: (s) => (s.bytes * 8) / s.seconds / 1e9 },
  { name: 'CPU ms/GB', better: 'lower', of: (s) => (s.busySeconds * 1000) / GB.count(s) },
  { name: 'gateway CPU ms/GB', better: 'lower', of: (s) => (total(s.threads) * 1000) / GB.count(s) },
]
const perConnection: Metric<Traffic>[] = [
  { name: 'connections/s', better: 'higher', of: (s) => s.connections / s.seconds },
  { name: 'CPU us/connection', better: 'lower', of: (s) => (s.busySeconds * 1e6) / s.connections },
  { name: 'gateway CPU us/connection', better: 'lower', of: (s) => (total(s.threads) * 1e6) / s.connections },
  { name: 'first byte p50 us', better: 'lower', of: (s) => s.p50us },
  { name: 'first byte p99 us', better: 'lower', of: (s) => s.p99us },
]

const perHandshake: Metric<Traffic>[] = [
  { name: 'handshakes/s', better: 'higher', of: (s) => s.connections / s.seconds },
  { name: 'CPU us/handshake', better: 'lower', of: (s) => (s.busySeconds * 1e6) / s.connections },
  { name: 'gateway CPU us/handshake', better: 'lower', of: (s) => (total(s.threads) * 1e6) / s.connections },
  { name: 'first byte p50 us', better: 'lower', of: (s) => s.p50us },
  { name: 'first byte p99 us', better: 'lower', of: (s) => s.p99us },
]
const perMessage: Metric<Traffic>[] = [
  { name: 'messages/s', better: 'higher', of: (s) => MESSAGE.count(s) / s.seconds },
  { name: 'CPU us/message', better: 'lower', of: (s) => (s.busySeconds * 1e6) / MESSAGE.count(s) },
  { name: 'gateway CPU us/message', better: 'lower', of: (s) => (total(s.threads) * 1e6) / MESSAGE.count(s) },
  { name: 'round trip p50 us', better: 'lower', of: (s) => s.p50us },
  { name: 'round trip p99 us', better: 'lower', of: (s) => s.p99us },
]

export const bulk: Load<Traffic> = {
  name: 'bulk',
  connections: 1,
  metrics: throughput,
  unit: GB,
  run: (context) => traffic(context, 'load', [context.host, BULK_PORT, 1, ANY_BUFFER]),
}
export const short: Load<Traffic> = {
  name: 'short',
  connections: SHORT_CONNECTIONS,
  metrics: perConnection,
  unit: CONNECTION,
  run: (context) => traffic(context, 'load', [context.host, SHORT_PORT, SHORT_CONNECTIONS, ANY_BUFFER]),
}
/** Bulk over many flows at once. */
export const many: Load<Traffic> = {
  name: 'many',
  connections: MANY_CONNECTIONS,
  metrics: throughput,
  unit: GB,
  run: (context) => traffic(context, 'load', [context.host, BULK_PORT, MANY_CONNECTIONS, MANY_RECEIVE_BYTES]),
}

/** A whole connection each: TCP, the handshake, the request, the short answer, the end. */
function handshakes(mode: 'full' | 'resumed'): Load<Traffic> {
  return {
    name: mode,
    connections: SHORT_CONNECTIONS,
    metrics: perHandshake,
    unit: { ...CONNECTION, name: 'handshake' },
    async run(context) {
      const options = [SHORT_CONNECTIONS, mode, TLS_NAME]
      const sample = await traffic(context, 'handshake-load', [context.host, SHORT_PORT, ...options])
      const share = sample.resumed! / sample.connections
      if (mode === 'full' ? share > 0 : share < RESUMED_SHARE_MIN)
        throw new Error(`${Math.round(share * 100)} % of the ${mode} handshakes were resumed`)
      return sample
    },
  }
}
export const full = handshakes('full')
export const resumed = handshakes('resumed')

function tlsBulk(mode: 'download' | 'upload', port: number): Load<Traffic> {
  return {
    name: mode,
    connections: TLS_BULK_CONNECTIONS,
    metrics: throughput,
    unit: GB,
    run: (context) => traffic(context, 'tls-load', [context.host, port, TLS_BULK_CONNECTIONS, mode, TLS_NAME]),
  }
}
export const download = tlsBulk('download', BULK_PORT)
export const upload = tlsBulk('upload', UPLOAD_PORT)

export const echoBulk: Load<Traffic> = {
  name: 'bulk',
  connections: ECHO_BULK_CONNECTIONS,
  metrics: throughput,
  unit: GB,
  run: (context) => traffic(context, 'echo-load', [context.host, ECHO_PORT, ECHO_BULK_CONNECTIONS, 0]),
}
/** Small messages there and back, one at a time on each connection. */
export const echoShort: Load<Traffic> = {
  name: 'short',
  connections: ECHO_CONNECTIONS,
  metrics: perMessage,
  unit: MESSAGE,
  run: (context) => traffic(context, 'echo-load', [context.host, ECHO_PORT, ECHO_CONNECTIONS, MESSAGE_BYTES]),
}

/** The bytes a client sends first. They are a ClientHello for gateways that peek; the backend only counts them, which
 *  makes passing TLS through measurable without TLS's own cost at both ends. */
export async function requestFor(peeking: boolean): Promise<Uint8Array> {
  return peeking
    ? await clientHello(TLS_NAME)
    : Buffer.from(`GET / HTTP/1.1\r\nHost: ${TLS_NAME}\r\n`.padEnd(78) + '\r\n')
}

export function startBackend(lab: Lab, requestBytes: number) {
  const services = [
    `${BULK_PORT}:${ENDLESS_BYTES}:${requestBytes}`,
    `${SHORT_PORT}:${SHORT_ANSWER_BYTES}:${requestBytes}`,
    `${UPLOAD_PORT}:1:${ENDLESS_BYTES}`,
    `${IDLE_PORT}:${SHORT_ANSWER_BYTES}:${requestBytes}:hold`,
  ]
  lab.backend.spawn([program('load-server'), ...services], { stdout: 'ignore' })
}

/** Runs a traffic program in the client. It says when its warm-up is over, and prints its figures when it ends: between
 *  the two the gateway's processor time is counted. */
async function traffic(context: Context, name: Program, args: (string | number)[]): Promise<Traffic> {
  const command = [program(name), ...args, WARMUP_SECONDS, context.seconds].map(String)
  const child = context.lab.client.spawn(command, { stdin: context.request, stdout: 'pipe', stderr: 'pipe' })
  const problems = new Response(child.stderr).text()
  let output = ''
  let before = timesOf(null)
  let after = before
  let seen: Promise<string[]> | undefined
  const decoder = new TextDecoder()
  for await (const bytes of child.stdout) {
    output += decoder.decode(bytes, { stream: true })
    if (output === MEASURING) {
      before = timesOf(context.gateway)
      if (context.gateway !== null) seen = context.look?.(context.gateway)
    } else after = timesOf(context.gateway)
  }
  if ((await child.exited) !== 0) throw new Error(`${name}: ${(await problems).trim()}`)
  if (!output.startsWith(MEASURING)) throw new Error(`${name}: did not say when it measures`)
  const sample = {
    ...(JSON.parse(output.slice(MEASURING.length)) as Traffic),
    ...spent(before, after),
    seen: await seen,
  }
  if (sample.bytes === 0) throw new Error(`${name}: not one byte came through`)
  if (sample.failed > FAILED_SHARE_MAX * sample.connections + 1)
    throw new Error(`${name}: ${sample.failed} of ${sample.connections} failed, last: ${sample.lastError}`)
  return sample
}
const MEASURING = 'measuring\n'
