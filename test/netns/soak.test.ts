// A hundred thousand short connections, one after another: memory, descriptors and listeners stay what they are after the
// first ones, in the worker and in control.
import { expect, test } from 'bun:test'
import { clientHello } from '../bench/client-hello.ts'
import { prepare, program } from '../bench/machine.ts'
import { slowness } from '../support.ts'
import { descriptors, isWithin } from './carriers.ts'
import { forward, Gateway, listening, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { MIB } from './traffic.ts'

const TOTAL = Math.ceil(100_000 / slowness)
const WARM = TOTAL / 5
const AT_ONCE = 32
const ANSWER_BYTES = 200
/** A leak of 400 bytes a connection would be more. */
const GROWTH_MIB_MAX = 16
const NAME = 'soak.test'

const rss = async (pid: number) =>
  (Number(/VmRSS:\s+(\d+)/.exec(await Bun.file(`/proc/${pid}/status`).text())![1]) * 1024) / MIB

test(`G18, I8, K3: ${TOTAL} connections by splice, user and TLS: nothing grows`, async () => {
  await using lab = await Lab.create()
  for (const namespace of lab.namespaces) prepare(namespace)
  const hello = await clientHello(NAME)
  const request = Buffer.from('GET / HTTP/1.1\r\nHost: soak.test\r\n\r\n')
  lab.backend.spawn(
    [program('load-server'), ...[`7001:${ANSWER_BYTES}:${hello.length}`, `7002:${ANSWER_BYTES}:${request.length}`]],
    { stdout: 'ignore' },
  )
  await until(async () => (await listening(lab.backend)).length === 2, 5000, 'the targets listen')
  const to = (port: number) => [{ host: lab.backend.address4, port }]
  await using gateway = await Gateway.start(
    lab,
    [
      forward('splice', 8400, to(7001), { tls: { mode: 'passthrough' } }, { match: { domains: NAME } }),
      forward('user', 8401, to(7002), { forwardingEngine: 'user' }),
      forward('terminate', 8402, to(7002), { tls: { mode: 'terminate', certificate: 'self-signed' } }),
    ],
    { config: { log: { access: 'off', level: 'info' } } },
  )
  const host = lab.gateway.clientSide4
  const opened = async () => (await gateway.routes()).reduce((sum, route) => sum + route.total, 0)

  /** Keeps all routes busy for some seconds; resolves when it is over and no connection is left. */
  const busy = async (seconds: number) => {
    const loads = [
      [8400, hello],
      [8401, request],
    ].map(async ([port, bytes]) => {
      const child = lab.client.spawn(
        [program('load'), host, String(port), String(AT_ONCE), '0', '0', String(seconds)],
        {
          stdin: bytes as Uint8Array,
          stdout: 'pipe',
          stderr: 'pipe',
        },
      )
      const [text, problems] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
      if ((await child.exited) !== 0) throw new Error(problems)
      const { failed, lastError } = JSON.parse(text.trim().split('\n').at(-1)!) as { failed: number; lastError: string }
      expect([failed, lastError]).toEqual([0, ''])
    })
    const deadline = performance.now() + seconds * 1000
    const one = async () => {
      while (performance.now() < deadline) await overTls(lab, host, 8402, request)
    }
    await Promise.all([...loads, ...Array.from({ length: 8 }, one)])
    await until(async () => (await gateway.connections()).length === 0, 5000, 'no connection is left')
  }
  const look = async () => {
    const { pid, worker } = await gateway.status()
    return {
      opened: await opened(),
      workerMib: await rss(worker.pid),
      controlMib: await rss(pid),
      left: { worker: (await descriptors(worker.pid)).socket, listeners: (await listening(lab.gateway)).length },
      control: await descriptors(pid),
    }
  }
  const started = performance.now()
  const looks: Awaited<ReturnType<typeof look>>[] = []
  while (looks.length === 0 || looks.at(-1)!.opened < TOTAL) {
    await busy(2)
    looks.push(await look())
  }
  for (const { opened, workerMib, controlMib } of looks)
    console.log(`${opened} connections: worker ${workerMib.toFixed(1)}, control ${controlMib.toFixed(1)} MiB`)
  for (const route of await gateway.routes())
    console.log(`${route.name}: ${route.total}, ${Bun.inspect(route.reasons)}`)
  console.log(`${((performance.now() - started) / 1000).toFixed(0)} s`)
  const warm = looks.find((one) => one.opened >= WARM)!
  const later = looks.filter((one) => one.opened >= TOTAL / 2)
  // A heap breathes: what grows without end has a lowest point that rises.
  const growth = (of: (one: (typeof looks)[number]) => number) => Math.min(...later.map(of)) - of(warm)
  expect(growth((one) => one.workerMib)).toBeLessThan(GROWTH_MIB_MAX)
  expect(growth((one) => one.controlMib)).toBeLessThan(GROWTH_MIB_MAX)
  const last = looks.at(-1)!
  expect(last.left).toEqual(warm.left)
  expect(isWithin(last.control, warm.control) || [warm.control, last.control]).toBe(true)
  const { worker } = await gateway.status()
  const { anomalies } = await gateway.status()
  expect([anomalies, worker.restarts]).toEqual([0, 0])
}, 200_000)

/** One request inside TLS; rejects when the answer is not whole. */
async function overTls(lab: Lab, host: string, port: number, request: Uint8Array): Promise<void> {
  const plain = await lab.client.connect(host, port, { data() {}, close() {}, error() {} })
  let received = 0
  await new Promise<void>((resolve, reject) => {
    plain.upgradeTLS({
      data: undefined,
      tls: { serverName: NAME, rejectUnauthorized: false },
      socket: {
        handshake: (socket: Bun.Socket) => void socket.write(request),
        data: (_: Bun.Socket, bytes: Buffer) => void (received += bytes.length),
        close: (_: Bun.Socket, error?: Error) =>
          received === ANSWER_BYTES ? resolve() : reject(error ?? new Error(`closed after ${received} bytes`)),
        error: (_: Bun.Socket, error: Error) => reject(error),
      },
    } as never)
  })
}
