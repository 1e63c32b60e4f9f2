// A user plane with real listening sockets on loopback, and what its tests ask of it.
import { afterEach } from 'bun:test'
import { readdirSync } from 'node:fs'
import net from 'node:net'
import { cString, native, ptr } from '../../src/base/native.ts'
import type { DialReport, RouteCertificates, WorkerPlan } from '../../src/channel/messages.ts'
import type { ConnectionEvents, ConnectionRecord } from '../../src/connections/record.ts'
import type { Limits, UserRoute } from '../../src/plan/types.ts'
import { UserPlane, type Problem } from '../../src/user/index.ts'
import type { Timers } from '../../src/user/timers.ts'

export { ends, forward, route, target } from './routes.ts'

/** One certificate for every name, or all that a worker can be told. */
type Certified = { cert: string; key: string } | RouteCertificates

export const served = (certificates: Record<string, Certified>): Record<string, RouteCertificates> =>
  Object.fromEntries(
    Object.entries(certificates).map(([route, one]) => [
      route,
      'list' in one ? one : { perName: false, list: [{ names: [], cert: [one.cert], key: [one.key] }] },
    ]),
  )

export interface Bench {
  plane: UserPlane
  ports: number[]
  port: number
  problems: Problem[]
  opened: ConnectionRecord[]
  settled: ConnectionRecord[]
  refused: Map<string, number>
  dials: DialReport[]
  logged: string[]
  /** What the sweep ended: a mistake, in every test but its own. */
  swept: number
  /** The next plan for the same listeners.
   *  @param challenge of a listener: their first bytes are read, or read no more, for that. */
  apply(routes: UserRoute[], certificates?: Record<string, Certified>, challenge?: boolean): Promise<Problem[]>
  /** Resolves when n connections have settled in all; their reasons are what most tests ask for. */
  settle(n: number): Promise<ConnectionRecord[]>
}

let benches: Bench[] = []
let closers: (() => void)[] = []
/** Runs after the test, in any case. */
export const later = (close: () => void) => void closers.push(close)

afterEach(async () => {
  for (const close of closers) close()
  closers = []
  const stopping = benches.map((bench) => bench.plane.stop(0))
  benches = []
  await Promise.all(stopping)
})

export async function open(
  routes: UserRoute[],
  options: {
    peek?: boolean
    challenge?: boolean
    trusted?: string[]
    listeners?: { routes: string[]; peek: boolean; challenge?: boolean; trusted?: string[]; address?: string }[]
    certificates?: Record<string, Certified>
    configFile?: string
    limits?: Limits
    /** Where the gateway listens, for what handlers may reach. */
    listens?: WorkerPlan['listens']
    timers?: Timers
    relay?: boolean
  } = {},
): Promise<Bench> {
  const wanted = options.listeners ?? [
    {
      routes: routes.map((one) => one.name),
      peek: options.peek ?? false,
      challenge: options.challenge,
      trusted: options.trusted,
    },
  ]
  const fds = new Map<number, number>()
  const listeners = wanted.map((one, i) => {
    const address = one.address ?? '127.0.0.1'
    const fd = native().sluice_listen(ptr(cString(address)), 0, 1024)
    if (fd < 0) throw new Error(`errno ${-fd}`)
    fds.set(i + 1, fd)
    const port = native().sluice_port(fd)
    const { peek, challenge, routes, trusted = [] } = one
    return { key: `${address}:${port}`, address, port, peek, challenge, trusted, routes, descriptor: i + 1 }
  })
  let wake = () => {}
  const bench = {
    opened: [] as ConnectionRecord[],
    settled: [] as ConnectionRecord[],
    refused: new Map<string, number>(),
    dials: [] as DialReport[],
    logged: [] as string[],
    swept: 0,
    ports: listeners.map((one) => one.port),
    port: listeners[0]!.port,
  } as Bench
  const report = (events: ConnectionEvents) => {
    bench.opened.push(...events.opened)
    bench.settled.push(...events.settled)
    for (const { reason, count } of events.refused) bench.refused.set(reason, (bench.refused.get(reason) ?? 0) + count)
    wake()
  }
  const log = (level: string, message: string, fields?: object) =>
    bench.logged.push(`${level} ${message} ${JSON.stringify(fields ?? {})}`)
  const dialed = (dials: DialReport[]) => void bench.dials.push(...dials)
  const swept = (count: number) => void (bench.swept += count)
  const { configFile, timers, relay } = options
  bench.plane = new UserPlane({ report, dialed, log, swept }, { idPrefix: 'w1-', configFile, timers, relay })
  let generation = 0
  bench.apply = (routes, certificates = options.certificates ?? {}, challenge) => {
    const sent = generation++ === 0 ? fds : new Map<number, number>()
    return bench.plane.apply(
      {
        generation,
        listeners:
          challenge === undefined ? listeners : listeners.map((one) => ({ ...one, peek: challenge, challenge })),
        routes,
        listens: options.listens ?? [],
        limits: options.limits ?? null,
        durable: false,
        certificates: served(certificates),
      },
      sent,
    )
  }
  bench.settle = async (n) => {
    while (bench.settled.length < n) await new Promise<void>((resolve) => (wake = resolve))
    return bench.settled
  }
  benches.push(bench)
  bench.problems = await bench.apply(routes)
  return bench
}

export const reasons = (records: ConnectionRecord[]) => records.map((record) => record.reason)

// ---- peers ----

/** A TCP server that closes with the test. */
export async function server(serve: (socket: net.Socket) => void, allowHalfOpen = true): Promise<number> {
  const sockets = new Set<net.Socket>()
  const listening = net.createServer({ allowHalfOpen }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
    serve(socket)
  })
  await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve))
  later(() => {
    listening.close()
    for (const socket of sockets) socket.destroy()
  })
  return (listening.address() as net.AddressInfo).port
}

export const echo = (accepted = () => {}) =>
  server((socket) => {
    accepted()
    socket.pipe(socket)
  })

export function client(port: number): net.Socket {
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  socket.on('error', () => {})
  later(() => socket.destroy())
  return socket
}

export const connected = (socket: net.Socket) =>
  new Promise<void>((resolve, reject) => {
    socket.once('connect', () => resolve())
    socket.once('error', reject)
  })

/** Everything until FIN, or until the connection breaks. */
export function readAll(socket: net.Socket): Promise<{ bytes: Buffer; error?: string }> {
  const chunks: Buffer[] = []
  return new Promise((resolve) => {
    socket.on('data', (chunk: Buffer) => chunks.push(chunk))
    socket.once('end', () => resolve({ bytes: Buffer.concat(chunks) }))
    socket.once('error', (error: NodeJS.ErrnoException) => resolve({ bytes: Buffer.concat(chunks), error: error.code }))
    socket.once('close', () => resolve({ bytes: Buffer.concat(chunks), error: 'closed' }))
  })
}

export const gone = (socket: net.Socket) => new Promise<void>((resolve) => socket.once('close', () => resolve()))

/** A port that takes no connection: its backlog is full, so a SYN gets no answer. */
export async function blackHole(): Promise<number> {
  const fd = native().sluice_listen(ptr(cString('127.0.0.1')), 0, 0)
  const port = native().sluice_port(fd)
  const filling = [
    native().sluice_connect(ptr(cString('127.0.0.1')), port),
    native().sluice_connect(ptr(cString('127.0.0.1')), port),
  ]
  later(() => [fd, ...filling].forEach((one) => native().sluice_close(one)))
  return port
}

/** Sockets of this machine in SYN_SENT towards a port of loopback. */
export function synSent(port: number): number {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const table = require('node:fs').readFileSync('/proc/net/tcp', 'latin1') as string
  return table.split('\n').filter((line) => line.includes(` 0100007F:${hex} 02 `)).length
}

export const descriptors = () => readdirSync('/proc/self/fd').length
