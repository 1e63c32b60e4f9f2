// A program that opens a user plane, has it carry something in each way it can, stops it, and has nothing more to do: it ends
// by itself, or something of the plane is left.
import { readdirSync } from 'node:fs'
import net from 'node:net'
import { resolve } from 'node:path'
import { cString, native, ptr } from '../../src/base/native.ts'
import type { UserRoute } from '../../src/plan/types.ts'
import { UserPlane } from '../../src/user/index.ts'
import { forward, route } from './routes.ts'

const descriptors = () => readdirSync('/proc/self/fd').length
const before = descriptors()

const echo = net.createServer((socket) => void socket.on('error', () => {}).pipe(socket))
await new Promise<void>((done) => echo.listen(0, '127.0.0.1', done))
const { port: target } = echo.address() as net.AddressInfo

const module = resolve(import.meta.dir, 'fixtures/handlers.ts')
const handler = {
  type: 'handler',
  module,
  inline: null,
  env: { kind: 'echo' },
  reach: { private: false, ports: null },
  tls: null,
} as const
/** With whether the listener reads first. The first three answer. */
const routes: [UserRoute, boolean][] = [
  [route('user', { action: forward(target) }), false],
  [route('splice', { carrier: 'splice', action: forward(target) }), true],
  [route('handler', { action: handler }), false],
  [route('dead', { action: forward(1) }), false],
  [route('blocked', { action: forward(target), security: { block: ['127.0.0.1'] } }), false],
  [route('silent', { action: forward(target) }), true],
]
const ANSWERING = 3
const EACH = 5

let settled = 0
const plane = new UserPlane(
  { report: (events) => void (settled += events.settled.length), log: () => {} },
  { idPrefix: 'w1-' },
)
const fds = new Map<number, number>()
const listeners = routes.map(([{ name }, peek], i) => {
  const fd = native().sluice_listen(ptr(cString('127.0.0.1')), 0, 128)
  fds.set(i + 1, fd)
  const port = native().sluice_port(fd)
  return { key: `127.0.0.1:${port}`, address: '127.0.0.1', port, peek, trusted: [], routes: [name], descriptor: i + 1 }
})
const plan = {
  generation: 1,
  listeners,
  routes: routes.map(([one]) => one),
  listens: [],
  limits: null,
  durable: false,
  certificates: {},
}
await plane.apply(plan, fds)
plane.check([
  {
    route: 'user',
    endpoint: 'e',
    host: '127.0.0.1',
    port: target,
    type: 'tcp',
    name: null,
    sendProxyProtocol: null,
    intervalMs: 50,
    timeoutMs: 1000,
  },
])

const sockets = listeners.flatMap(({ port }) =>
  Array.from({ length: EACH }, () => net.connect(port, '127.0.0.1').on('error', () => {})),
)
await Promise.all(
  sockets.slice(0, ANSWERING * EACH).map(
    (socket) =>
      new Promise((heard) => {
        socket.once('data', heard)
        socket.write('no TLS')
      }),
  ),
)
// What is carried, and the silent ones; the dead target's have ended.
while (plane.size !== (ANSWERING + 1) * EACH || settled < EACH) await new Promise((turn) => setImmediate(turn))
const during = descriptors()
await plane.stop(0)
for (const socket of sockets) socket.destroy()
await new Promise((done) => echo.close(done))
while (descriptors() > before + 3) await new Promise((turn) => setImmediate(turn))
console.log(
  JSON.stringify({ size: plane.size, armed: plane.timers.armed, settled, before, during, after: descriptors() }),
)
