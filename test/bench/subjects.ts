// What is compared (peers.ts, sluice.ts) and how it starts and stops. A subject starts in the gateway namespace of a lab,
// carries what comes to the ports of the loads (for `peeking` ones only connections that say TLS_NAME in a ClientHello),
// and stops.
import { readFileSync } from 'node:fs'
import type { Subprocess } from 'bun'
import type { Lab, Namespace } from '../netns/lab.ts'

export interface Subject {
  name: string
  /** Returns when it carries connections, so many at once. `directory` is empty, and gone after the run. */
  start(lab: Lab, directory: string, connections: number): Promise<Running>
  /** Where the client connects to. */
  entry(lab: Lab): string
}
export interface Running {
  /** The first process; null when the kernel alone carries. */
  pid: number | null
  stop(): Promise<void>
}

const READY_MS_MAX = 20_000
const POLL_MS = 20
const STOP_MS_MAX = 10_000

export const gatewayEntry = (lab: Lab) => lab.gateway.clientSide4
export const inKernel: Running = { pid: null, async stop() {} }
export const running = (child: Subprocess): Running => ({ pid: child.pid, stop: () => stop(child) })

/** Asks `ready` again and again, until it is, the child has ended, or it takes too long. */
export async function until(what: string, child: Subprocess, ready: () => Promise<boolean>, details = () => '') {
  const deadline = performance.now() + READY_MS_MAX
  while (!(await ready())) {
    const ended = child.exitCode ?? child.signalCode
    if (ended !== null) throw new Error(`${what}: the program ended (${ended}). ${details()}`)
    if (performance.now() > deadline) throw new Error(`${what}: not within ${READY_MS_MAX} ms. ${details()}`)
    await Bun.sleep(POLL_MS)
  }
}

async function stop(child: Subprocess) {
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_MS_MAX)
  await child.exited
  clearTimeout(late)
}

/** Whether something listens on that port; asks the kernel, not the program, which would count a connection. */
export function listens(namespace: Namespace, port: number): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  return namespace
    .enter(() => readFileSync('/proc/thread-self/net/tcp', 'utf8'))
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .some((fields) => fields[1]?.endsWith(`:${hex}`) && fields[3] === LISTEN)
}
const LISTEN = '0A'
