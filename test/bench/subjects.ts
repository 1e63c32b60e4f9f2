// The gateways that are compared. A subject starts in the gateway namespace of a lab, carries what comes to the ports of
// the loads (and, for `peeking` ones, only connections that say TLS_NAME in a ClientHello), and stops.
import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Subprocess } from 'bun'
import type { Lab, Namespace } from '../netns/lab.ts'
import { PORTS, TLS_NAME } from './loads.ts'

export interface Subject {
  name: string
  /** Returns when it carries connections. `directory` is empty, and gone after the run. */
  start(lab: Lab, directory: string): Promise<Running>
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
const LAST_WORDS_MAX = 2000

const gatewayEntry = (lab: Lab) => lab.gateway.clientSide4
const inKernel: Running = { pid: null, async stop() {} }
const running = (child: Subprocess): Running => ({ pid: child.pid, stop: () => stop(child) })

/** No gateway at all: what the two veth pairs and the traffic programs can do. */
export const direct: Subject = {
  name: 'direct routing',
  entry: (lab) => lab.backend.address4,
  async start(lab) {
    lab.gateway.forward()
    return inKernel
  },
}

/** What a network engineer would write by hand for one port. */
export const nft: Subject = {
  name: 'nft by hand',
  entry: gatewayEntry,
  async start(lab) {
    lab.gateway.forward()
    await lab.gateway.nft(`table ip bench {
      chain pre {
        type nat hook prerouting priority dstnat
        ip daddr ${lab.gateway.clientSide4} tcp dport { ${PORTS.join(', ')} } dnat to ${lab.backend.address4}
      }
      chain post {
        type nat hook postrouting priority srcnat
        ip daddr ${lab.backend.address4} masquerade
      }
    }`)
    return inKernel
  },
}

/** HAProxy, one thread, mode tcp, without logging: sluice always writes one line per connection. */
function haproxy(name: string, frontend: string): Subject {
  return {
    name,
    entry: gatewayEntry,
    async start(lab, directory) {
      const config = join(directory, 'haproxy.cfg')
      const proxies = PORTS.map(
        (port) => `
frontend in-${port}
  bind ${lab.gateway.clientSide4}:${port}
  ${frontend.replaceAll('BACKEND', `out-${port}`)}
backend out-${port}
  server target ${lab.backend.address4}:${port}`,
      )
      await Bun.write(
        config,
        `global
  nbthread 1
  maxconn 8000
defaults
  mode tcp
  maxconn 8000
  backlog 8192
  timeout connect 10s
  timeout client 60s
  timeout server 60s
${proxies.join('\n')}\n`,
      )
      const child = lab.gateway.spawn(['haproxy', '-q', '-db', '-f', config], { stdout: 'ignore' })
      await until(`${name} listens`, child, async () => PORTS.every((port) => listens(lab.gateway, port)))
      return running(child)
    },
  }
}

export const haproxyTcp = haproxy('HAProxy tcp', 'default_backend BACKEND')

export const haproxySni = haproxy(
  'HAProxy sni',
  `tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend BACKEND if { req.ssl_sni -i ${TLS_NAME} }`,
)

type Carrier = 'kernel' | 'splice' | 'user'

/** The real program, `program run --config FILE`, when every route is carried as the case is about.
 *  @param others routes beside those under load, each with a port of its own. */
export function sluice(program: string[], carrier: Carrier, others = 0): Subject {
  return {
    name: others === 0 ? `sluice ${carrier}` : `with ${others} routes`,
    entry: gatewayEntry,
    async start(lab, directory) {
      const socket = join(directory, 'admin.sock')
      const config = join(directory, 'sluice.json')
      await Bun.write(config, JSON.stringify(sluiceConfig(lab, directory, socket, carrier, others), null, 2))
      const log = join(directory, 'sluice.log')
      const out = openSync(log, 'a')
      const child = lab.gateway.spawn([...program, 'run', '--config', config], { stdout: out, stderr: out })
      closeSync(out)
      let routes: RouteAnswer[] = []
      await until(
        `sluice carries every route by ${carrier}`,
        child,
        async () => {
          routes = await routesOf(socket)
          return (
            routes.length === PORTS.length + others &&
            routes.every((r) => r.carrier === carrier && r.state === 'active')
          )
        },
        () =>
          `Its routes: ${JSON.stringify(routes)}\nIts last words: ${readFileSync(log, 'utf8').slice(-LAST_WORDS_MAX)}`,
      )
      return running(child)
    },
  }
}

/** Others listen from here on. */
const OTHERS_FROM = 20_000

function sluiceConfig(lab: Lab, directory: string, socket: string, carrier: Carrier, others: number) {
  const ports = [...PORTS, ...Array.from({ length: others }, (_, i) => OTHERS_FROM + i)]
  return {
    routes: ports.map((port) => ({
      name: `port-${port}`,
      match: { ports: port, ...(carrier === 'splice' && { domains: TLS_NAME }) },
      action: {
        type: 'forward',
        targets: [{ host: lab.backend.address4, port }],
        ...(carrier === 'kernel' && { forwardingEngine: 'nftables' }),
        ...(carrier === 'user' && { forwardingEngine: 'user' }),
        ...(carrier === 'splice' && { tls: { mode: 'passthrough' } }),
      },
    })),
    stateDir: join(directory, 'state'),
    admin: { socket },
    log: { access: join(directory, 'access.log') },
    timeouts: { grace: '1s' },
  }
}

interface RouteAnswer {
  name: string
  carrier: string
  state: string
}

async function routesOf(socket: string): Promise<RouteAnswer[]> {
  try {
    const answer = await fetch('http://localhost/v1/routes', { unix: socket, signal: AbortSignal.timeout(1000) })
    return ((await answer.json()) as { routes: RouteAnswer[] }).routes
  } catch {
    return [] // not up yet: the deadline of `until` decides when that is a failure
  }
}

/** Asks `ready` again and again, until it is, the child has ended, or it takes too long. */
async function until(what: string, child: Subprocess, ready: () => Promise<boolean>, details = () => '') {
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
function listens(namespace: Namespace, port: number): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  return namespace
    .enter(() => readFileSync('/proc/thread-self/net/tcp', 'utf8'))
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .some((fields) => fields[1]?.endsWith(`:${hex}`) && fields[3] === LISTEN)
}
const LISTEN = '0A'
