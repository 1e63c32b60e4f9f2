// The traffic: what the client asks of the backend through a gateway, and what was measured of it.
import type { Lab } from '../netns/lab.ts'
import { clientHello } from './client-hello.ts'
import { program } from './machine.ts'

/** The name in the ClientHello that peeking gateways look for. */
export const TLS_NAME = 'bench.example'

const BULK_PORT = 5201
const SHORT_PORT = 5202
export const PORTS = [BULK_PORT, SHORT_PORT]

const SHORT_ANSWER_BYTES = 200
/** More than any run can carry: a bulk answer does not end. */
const BULK_ANSWER_BYTES = 1e15
const SHORT_CONNECTIONS = 64
/** Also for the JavaScript of a subject to become warm. */
const WARMUP_SECONDS = 1.5
/** Above this share of failed connections the figures are about something else. */
const FAILED_SHARE_MAX = 0.001

export interface Load {
  name: 'bulk' | 'short'
  port: number
  connections: number
}
export const bulk: Load = { name: 'bulk', port: BULK_PORT, connections: 1 }
export const short: Load = { name: 'short', port: SHORT_PORT, connections: SHORT_CONNECTIONS }

/** What is compared of a load: one number per run. CPU is that of the whole machine, traffic programs included. */
export interface Metric {
  name: string
  better: 'higher' | 'lower'
  of(sample: Sample): number
}
export const METRICS: Record<Load['name'], Metric[]> = {
  bulk: [
    { name: 'Gbit/s', better: 'higher', of: (s) => (s.bytes * 8) / s.seconds / 1e9 },
    { name: 'CPU ms/GB', better: 'lower', of: (s) => (s.busySeconds * 1000) / (s.bytes / 1e9) },
  ],
  short: [
    { name: 'connections/s', better: 'higher', of: (s) => s.connections / s.seconds },
    { name: 'CPU us/connection', better: 'lower', of: (s) => (s.busySeconds * 1e6) / s.connections },
    { name: 'first byte p50 us', better: 'lower', of: (s) => s.p50us },
    { name: 'first byte p99 us', better: 'lower', of: (s) => s.p99us },
  ],
}

/** What the load program prints. */
export interface Sample {
  seconds: number
  connections: number
  failed: number
  bytes: number
  busySeconds: number
  p50us: number
  p99us: number
  lastError: string
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
    `${BULK_PORT}:${BULK_ANSWER_BYTES}:${requestBytes}`,
    `${SHORT_PORT}:${SHORT_ANSWER_BYTES}:${requestBytes}`,
  ]
  lab.backend.spawn([program('load-server'), ...services], { stdout: 'ignore' })
}

export async function run(load: Load, lab: Lab, host: string, request: Uint8Array, seconds: number): Promise<Sample> {
  const args = [host, load.port, load.connections, WARMUP_SECONDS, seconds].map(String)
  const child = lab.client.spawn([program('load'), ...args], { stdin: request, stdout: 'pipe', stderr: 'pipe' })
  const [output, problems] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  if ((await child.exited) !== 0) throw new Error(`${load.name} load: ${problems.trim()}`)
  const sample = JSON.parse(output) as Sample
  if (sample.bytes === 0) throw new Error(`${load.name} load: not one byte came through`)
  if (sample.failed > FAILED_SHARE_MAX * sample.connections + 1)
    throw new Error(`${load.name} load: ${sample.failed} of ${sample.connections} failed, last: ${sample.lastError}`)
  return sample
}
