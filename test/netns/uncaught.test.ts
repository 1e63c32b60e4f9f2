// Errors that nobody catches (G21): in a worker they are logged and everything else goes on; in control they are logged and it
// stops in order, while the kernel goes on forwarding.
import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { forward, Gateway, tables, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { crowd, echoBackend, Talker } from './traffic.ts'

const INJECTED = { BUN_OPTIONS: `--preload=${resolve(import.meta.dir, 'inject.ts')}` }
const SIGNALS = { thrown: 'SIGUSR1', rejected: 'SIGUSR2' } as const

const errors = (gateway: Gateway) =>
  gateway
    .logText()
    .split('\n')
    .filter((line) => line.includes('"level":"error"'))
    .map((line) => JSON.parse(line) as { msg: string; error?: string; connections?: number })

test('G21: in the worker: logged with its place, and every other connection goes on', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  const user = forward('user', 8401, to, { forwardingEngine: 'user' })
  await using gateway = await Gateway.start(lab, [user], { env: INJECTED })
  writeFileSync(
    join(gateway.directory, 'careless.ts'),
    `export default { async connect(socket) {
       setInterval(() => { throw new Error('thrown in a timer') }, 5)
       void Promise.reject(new Error('taken by nobody'))
       await socket.readable.pipeTo(socket.writable)
     } }`,
  )
  const handler = { type: 'socket-handler', handler: join(gateway.directory, 'careless.ts') }
  await gateway.putRoutes([user, { name: 'careless', match: { ports: 8402 }, action: handler }])
  await gateway.settled()
  const host = lab.gateway.clientSide4
  const others = await crowd(lab.client, host, 8401, 10)
  await until(async () => (await gateway.connections()).length === 10, 5000, 'the worker knows of all of them')
  const { pid } = (await gateway.status()).worker
  for (const signal of Object.values(SIGNALS)) process.kill(pid, signal)
  await until(() => errors(gateway).length === 2, 5000, 'both are logged')
  expect(
    errors(gateway)
      .map(({ msg }) => msg)
      .toSorted(),
  ).toEqual(['Uncaught error in the worker', 'Unhandled rejection in the worker'])
  for (const { error, connections } of errors(gateway)) {
    expect(error).toContain('inject.ts')
    expect(connections).toBe(10)
  }

  // A handler whose timer throws two hundred times a second: a few lines a second of it, and its own connection goes on as well.
  const careless = await Talker.connect(lab.client, host, 8402)
  await careless.say()
  const ofTimer = () => errors(gateway).filter(({ error }) => error?.includes('thrown in a timer'))
  const began = performance.now()
  await until(() => ofTimer().length >= 12, 10_000, 'it is logged again and again')
  expect(ofTimer().length).toBeLessThanOrEqual(5 * (Math.ceil((performance.now() - began) / 1000) + 1))
  expect(errors(gateway).some(({ error }) => error?.includes('taken by nobody'))).toBe(true)
  await careless.say('still here')
  await careless.close()
  expect(await others.stop()).toEqual([])
  const { worker } = await gateway.status()
  expect([worker.pid, worker.restarts]).toEqual([pid, 0])
}, 60_000)

for (const [how, signal] of Object.entries(SIGNALS))
  test(`G21: in control, ${how}: logged, an orderly stop, and what the kernel carries goes on`, async () => {
    await using lab = await Lab.create()
    const echo = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: echo.port }]
    await using gateway = await Gateway.start(
      lab,
      [forward('kernel', 8400, to), forward('user', 8401, to, { forwardingEngine: 'user' })],
      { env: INJECTED },
    )
    const host = lab.gateway.clientSide4
    const kernel = await Talker.connect(lab.client, host, 8400)
    const user = await Talker.connect(lab.client, host, 8401)
    for (const talker of [kernel, user]) await talker.say()
    gateway.process.kill(signal)
    expect(await gateway.exited()).toBe(1)
    const [line, ...more] = errors(gateway)
    expect(line).toMatchObject({ msg: 'Uncaught error in control; stopping' })
    expect(line!.error).toContain('inject.ts')
    expect(more).toEqual([])
    // Drained, and written.
    await user.gone.promise
    expect(gateway.records()).toMatchObject([{ route: 'user', reason: 'drained' }])
    expect(await tables(lab.gateway)).toContain('table inet sluice')
    await kernel.say('nobody is there')
    await gateway.restart()
    const [adopted] = await until(
      async () => {
        const all = await gateway.connections()
        return all.length === 1 && all
      },
      5000,
      'the next life knows it',
    )
    expect(adopted).toMatchObject({ route: 'kernel', carrier: 'kernel', client: `10.99.1.2:${kernel.localPort}` })
    await kernel.say('and still here')
    await kernel.close()
  }, 60_000)
