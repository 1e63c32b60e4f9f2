// What control tells its worker beside plans, with a real worker process: it is told again to the next one.
import { afterEach, beforeAll, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import tls from 'node:tls'
import { cString, native, ptr } from '../../src/base/native.ts'
import type { RouteCertificates, WorkerPlan } from '../../src/channel/messages.ts'
import { Supervisor } from '../../src/control/supervisor.ts'
import { authority, type Pair } from '../user/authority.ts'
import { ends, forward, route } from '../user/routes.ts'

let closers: (() => unknown)[] = []
afterEach(async () => {
  for (const close of closers) await close()
  closers = []
})

const of: Record<string, Pair> = {}
beforeAll(async () => {
  const ours = await authority('ours')
  of.first = await ours.issue(['a.test'])
  of.next = await ours.issue(['a.test'])
})

const served = ({ cert, key }: Pair): Record<string, RouteCertificates> => ({
  r: { perName: true, list: [{ names: ['a.test'], cert: [cert], key: [key] }] },
})

/** A supervisor whose worker listens on one port, where a route ends TLS. */
async function started(certificates: WorkerPlan['certificates']) {
  const fd = native().sluice_listen(ptr(cString('127.0.0.1')), 0, 64)
  const port = native().sluice_port(fd)
  const supervisor = new Supervisor({ onMessage() {}, onDeath() {} })
  closers.push(async () => {
    await supervisor.stop(0)
    native().sluice_close(fd)
  })
  const listener = { key: `127.0.0.1:${port}`, address: '127.0.0.1', port, peek: true, trusted: [] }
  await supervisor.start()
  await supervisor.apply(
    {
      generation: 1,
      listeners: [{ ...listener, routes: ['r'], descriptor: 1 }],
      routes: [route('r', { domains: ['a.test'], action: forward(9, { tls: ends('terminate') }) })],
      listens: [],
      limits: null,
      durable: false,
      certificates,
    },
    new Map([[1, fd]]),
  )
  return { supervisor, port }
}

/** The serial number of the certificate that is shown. */
function shown(port: number): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>()
  const options = { port, host: '127.0.0.1', servername: 'a.test', rejectUnauthorized: false }
  const socket = tls.connect(options, () => {
    resolve(socket.getPeerCertificate().serialNumber.toLowerCase())
    socket.destroy()
  })
  socket.on('error', () => resolve(undefined))
  socket.on('close', () => resolve(undefined))
  return promise
}
const serialOf = (pair: Pair) => new X509Certificate(pair.cert).serialNumber.toLowerCase()

async function fetched(port: number): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  let text = ''
  await Bun.connect({
    hostname: '127.0.0.1',
    port,
    socket: {
      open: (socket) => void socket.write('GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: a.test\r\n\r\n'),
      data: (_, bytes) => void (text += String(bytes)),
      close: () => resolve(text),
      error: () => resolve(text),
    },
  })
  return (await promise).split('\r\n\r\n').at(-1)!
}

test('F2 F5: certificates and challenges reach the worker, and the one after it', async () => {
  const { supervisor, port } = await started(served(of.first!))
  expect(await shown(port)).toBe(serialOf(of.first!))
  await supervisor.updateCertificates(served(of.next!))
  expect(await supervisor.updateChallenges({ http: { token: 'token.key' }, tls: {} })).toBe(true)
  expect(await fetched(port)).toBe('token.key')
  while ((await shown(port)) !== serialOf(of.next!)) await Bun.sleep(5)

  const { pid } = supervisor
  process.kill(pid!, 'SIGKILL')
  while (supervisor.pid === pid || supervisor.pid === null) await Bun.sleep(5)
  expect(await fetched(port)).toBe('token.key')
  expect(await shown(port)).toBe(serialOf(of.next!))

  // Asked while there is none: the next one answers.
  process.kill(supervisor.pid!, 'SIGKILL')
  expect(await supervisor.updateChallenges({ http: { token: 'token.other' }, tls: {} })).toBe(true)
  expect(await fetched(port)).toBe('token.other')
  expect(await supervisor.updateChallenges({ http: {}, tls: {} })).toBe(true)
  expect(await fetched(port)).toBe('')
})

test('F5: who waits for a challenge to be placed is told when the gateway stops', async () => {
  const supervisor = new Supervisor({ onMessage() {}, onDeath() {} })
  const waiting = supervisor.updateChallenges({ http: { token: 'token.key' }, tls: {} })
  await supervisor.stop(0)
  expect(await waiting).toBe(false)
  expect(await supervisor.updateChallenges({ http: {}, tls: {} })).toBe(false)
})
