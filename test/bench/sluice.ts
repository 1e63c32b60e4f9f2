// sluice itself as a subject: the real program, `program run --config FILE`, when every route is carried as the case is about.
import { chmodSync, closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Lab } from '../netns/lab.ts'
import { certificate } from './certificate.ts'
import { ECHO_PORT, PORTS, TLS_NAME } from './loads.ts'
import { hasOtherUsers } from './machine.ts'
import { gatewayEntry, running, type Subject, until } from './subjects.ts'

/** What a route of the case needs; its name, its port and where it leads to are added. */
interface Kind {
  name: string
  carrier: 'kernel' | 'splice' | 'user'
  route(lab: Lab, directory: string): Promise<{ match?: object; action: object }>
  ports?: number[]
}

export const kernel: Kind = {
  name: 'kernel',
  carrier: 'kernel',
  route: async () => ({ action: { forwardingEngine: 'nftables' } }),
}
export const splice: Kind = {
  name: 'splice',
  carrier: 'splice',
  route: async () => ({ match: { domains: TLS_NAME }, action: { tls: { mode: 'passthrough' } } }),
}
export const user: Kind = {
  name: 'user',
  carrier: 'user',
  route: async () => ({ action: { forwardingEngine: 'user' } }),
}
export const terminate: Kind = {
  name: 'tls',
  carrier: 'user',
  async route(lab, directory) {
    const { chain, key } = await certificate(lab, directory)
    const tls = { mode: 'terminate', certificate: { cert: chain, key }, minVersion: 'TLSv1.3' }
    return { match: { domains: TLS_NAME }, action: { tls } }
  },
}
export const handler: Kind = {
  name: 'handler',
  carrier: 'user',
  ports: [ECHO_PORT],
  async route(_, directory) {
    const file = join(directory, 'echo.ts')
    await Bun.write(file, 'export default (socket) => socket.readable.pipeTo(socket.writable)\n')
    return { action: { type: 'socket-handler', handler: file } }
  },
}

const LAST_WORDS_MAX = 2000

/** @param others routes beside those under load, each with a port of its own. */
export function sluice(program: string[], kind: Kind, others = 0): Subject {
  return {
    name: others === 0 ? `sluice ${kind.name}` : `with ${others} routes`,
    entry: gatewayEntry,
    async start(lab, directory) {
      // The worker is another user, and reads what a handler is made of.
      chmodSync(directory, 0o755)
      const socket = join(directory, 'admin.sock')
      const config = join(directory, 'sluice.json')
      const routes = await routesFor(lab, directory, kind, others)
      await Bun.write(config, JSON.stringify(configuration(directory, socket, routes), null, 2))
      const log = join(directory, 'sluice.log')
      const out = openSync(log, 'a')
      const child = lab.gateway.spawn([...program, 'run', '--config', config], { stdout: out, stderr: out })
      closeSync(out)
      let answer: RouteAnswer[] = []
      await until(
        `sluice carries every route by ${kind.carrier}`,
        child,
        async () => {
          answer = (await ask<{ routes: RouteAnswer[] }>(socket, 'routes'))?.routes ?? []
          return (
            answer.length === routes.length && answer.every((r) => r.carrier === kind.carrier && r.state === 'active')
          )
        },
        () =>
          `Its routes: ${JSON.stringify(answer.slice(0, 5))}\nIts last words: ${readFileSync(log, 'utf8').slice(-LAST_WORDS_MAX)}`,
      )
      await refusePrivileged(socket)
      return running(child)
    },
  }
}

/** Others listen from here on. */
const OTHERS_FROM = 20_000

async function routesFor(lab: Lab, directory: string, kind: Kind, others: number) {
  const ports = [...(kind.ports ?? PORTS), ...Array.from({ length: others }, (_, i) => OTHERS_FROM + i)]
  const { match, action } = await kind.route(lab, directory)
  const forward = (port: number) => ({ type: 'forward', targets: [{ host: lab.backend.address4, port }], ...action })
  return ports.map((port) => ({
    name: `port-${port}`,
    match: { ports: port, ...match },
    action: 'type' in action ? action : forward(port),
  }))
}

const configuration = (directory: string, socket: string, routes: object[]) => ({
  routes,
  stateDir: join(directory, 'state'),
  admin: { socket },
  log: { access: join(directory, 'access.log') },
  timeouts: { grace: '1s' },
})

interface RouteAnswer {
  name: string
  carrier: string
  state: string
}

async function ask<T>(socket: string, what: string): Promise<T | undefined> {
  try {
    const answer = await fetch(`http://localhost/v1/${what}`, { unix: socket, signal: AbortSignal.timeout(1000) })
    return (await answer.json()) as T
  } catch {
    return undefined // not up yet: the deadline of `until` decides when that is a failure
  }
}

/** A worker with root's pipes would be measured where none ever runs. */
async function refusePrivileged(socket: string) {
  const status = await ask<{ worker: { pid: number; uid: number } }>(socket, 'status')
  if (!status) throw new Error('it does not say who its worker is')
  if (!hasOtherUsers()) return
  const { pid, uid } = status.worker
  const abilities = /^CapEff:\s*(\w+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  if (uid === 0 || !/^0+$/.test(abilities ?? ''))
    throw new Error(`the worker is not unprivileged: user ${uid}, capabilities ${abilities}`)
}
