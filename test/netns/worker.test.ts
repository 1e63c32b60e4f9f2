// The worker process dies under load: the next one serves, the backlog waits, the kernel does not notice, and every record ends.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, halt, until } from './gateway.ts'
import { crowd, echoBackend, Talker } from './traffic.ts'

test('the worker is killed under load: the next one serves, nobody is refused, records end with worker_died once', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
  ])
  const host = lab.gateway.clientSide4
  const inKernel = await crowd(lab.client, host, 8400, 20)
  const standing = await Promise.all(Array.from({ length: 20 }, () => Talker.connect(lab.client, host, 8401)))
  for (const talker of standing) await talker.say()
  const first = await until(
    async () => {
      const status = await gateway.status()
      return status.connections.proxied === 20 && status
    },
    2000,
    'they are listed',
  )

  // Stopped, it accepts nothing more: what connects now waits in the backlog, where the kill finds it.
  await halt(first.worker.pid)
  const queued = await Promise.all(Array.from({ length: 30 }, () => Talker.connect(lab.client, host, 8401)))
  const answers = queued.map((talker) => talker.say('waited in the backlog'))
  process.kill(first.worker.pid, 'SIGKILL')
  const killed = performance.now()
  await Promise.all(answers)
  console.log(`served again ${(performance.now() - killed).toFixed(0)} ms after the kill`)

  await Promise.all(standing.map((talker) => talker.gone.promise))
  const status = await gateway.status()
  expect(status.worker.pid).not.toBe(first.worker.pid)
  expect(status.worker.restarts).toBe(1)
  const dead = await gateway.recordsOf(20)
  expect(dead.map((record) => record.reason)).toEqual(dead.map(() => 'worker_died'))
  expect(new Set(dead.map((record) => record.client)).size).toBe(20)
  expect((await gateway.connections()).filter((one) => one.carrier === 'user').length).toBe(30)
  for (const talker of queued) await talker.close()
  expect(await inKernel.stop()).toEqual([])
  const records = await gateway.recordsOf(70)
  expect(new Set(records.map((record) => record.id)).size).toBe(70)
  expect(records.filter((record) => record.reason === 'worker_died').length).toBe(20)
  expect((await gateway.status()).anomalies).toBe(0)
  expect((await gateway.route('user')).connections).toBe(0)
}, 30_000)

test('killed again and again, under new connections: every one is served in the end', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('user', 8401, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: 'user' }),
  ])
  for (let life = 0; life < 4; life++) {
    const pid = await until(async () => (await gateway.status()).worker.pid, 5000, 'a worker')
    await halt(pid)
    const queued = await Promise.all(
      Array.from({ length: 5 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8401)),
    )
    const answers = queued.map((talker) => talker.say())
    process.kill(pid, 'SIGKILL')
    await Promise.all(answers)
    for (const talker of queued) await talker.close()
    await gateway.recordsOf(5 * (life + 1))
  }
  expect((await gateway.status()).worker.restarts).toBe(4)
}, 30_000)

test('the worker is not root where there is another user', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('user', 8401, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: 'user' }),
  ])
  const { worker } = await gateway.status()
  const alone = (await Bun.file('/proc/self/uid_map').text()).trim().split(/\s+/)[2] === '1'
  if (alone) expect(gateway.logText()).toContain('The worker runs as root')
  else expect(worker.uid).not.toBe(0)
})
