// More clients than the worker has descriptors for: accepting pauses, the kernel's backlog holds who comes, nobody is refused,
// and no core is spent on waiting.
import { expect, test } from 'bun:test'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { slowness } from '../support.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, Talker } from './traffic.ts'

const LIMIT = 256

const openIn = (pid: number) => readdirSync(`/proc/${pid}/fd`).length
/** Of its threads, in user and kernel, in clock ticks of 10 ms (proc_pid_stat(5)). */
const ticksOf = (pid: number) => {
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]!.split(' ')
  return Number(fields[11]) + Number(fields[12])
}

/** Share of a core that a process takes over a second. */
async function load(pid: number): Promise<number> {
  const [from, began] = [ticksOf(pid), performance.now()]
  await Bun.sleep(1000)
  return ((ticksOf(pid) - from) * 10) / (performance.now() - began)
}

/** Root would raise it again. */
const limited = {
  through: ['setpriv', '--bounding-set', '-sys_resource', 'prlimit', `--nofile=${LIMIT}:${LIMIT}`],
}

test('more clients than descriptors: all wait unharmed, and all are served as others leave', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(
    lab,
    [forward('one', 8401, to, { forwardingEngine: 'user' }), forward('other', 8402, to, { forwardingEngine: 'user' })],
    limited,
  )
  const { pid, descriptorsMax } = (await gateway.status()).worker
  expect(descriptorsMax).toBe(LIMIT)

  const clients = await Promise.all(
    Array.from({ length: 200 }, (_, i) => Talker.connect(lab.client, lab.gateway.clientSide4, 8401 + (i % 2))),
  )
  const answered = new Set<Talker>()
  const answers = clients.map((client) => client.say('hello', 60_000).then(() => void answered.add(client)))
  await until(async () => (await gateway.status()).worker.accepting === false, 5000, 'accepting has paused')
  const paused = await load(pid)
  const [served, descriptors] = [answered.size, openIn(pid)]
  console.log(
    `${served} of 200 served, ${descriptors} of ${LIMIT} descriptors, ${(paused * 100).toFixed(0)} % of a core`,
  )
  expect(served).toBeGreaterThan(50)
  expect(served).toBeLessThan(150)
  expect(descriptors).toBeLessThan(LIMIT)
  // Spinning in accept takes three quarters of one.
  expect(paused).toBeLessThan(0.4 * slowness)
  expect(clients.filter((client) => client.ended)).toEqual([])

  // As they are answered they leave, and make room.
  await Promise.all(clients.map((client, i) => answers[i]!.then(() => client.close())))
  expect(answered.size).toBe(200)
  const records = await gateway.recordsOf(200)
  expect(new Set(records.map((record) => record.reason))).toEqual(new Set(['finished']))
  const status = await until(
    async () => {
      const status = await gateway.status()
      return status.worker.accepting && status
    },
    5000,
    'accepting goes on',
  )
  expect(status.worker.restarts).toBe(0)
  expect(status.worker.acceptPauses).toBeGreaterThan(0)
  const lines = gateway.logText().split('\n')
  expect(lines.filter((line) => line.includes('Accepting pauses')).length).toBe(status.worker.acceptPauses)
  expect(lines.filter((line) => line.includes('Accepting goes on')).length).toBe(status.worker.acceptPauses)
}, 120_000)

test('a handler that opens files without end: accepting pauses, does not spin, and goes on when they are closed', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('echo', 8401, [{ host: lab.backend.address4, port: echo.port }], { forwardingEngine: 'user' })],
    limited,
  )
  writeFileSync(
    join(gateway.directory, 'hoarder.ts'),
    `import { open } from 'node:fs/promises'
     const files = []
     export default { async connect(socket) {
       const writer = socket.writable.getWriter()
       for await (const bytes of socket.readable) {
         if (new TextDecoder().decode(bytes) !== 'hoard') while (files.length > 0) await files.pop().close()
         else for (;;) try { files.push(await open('/dev/null')) } catch { break }
         await writer.write(bytes)
       }
     } }`,
  )
  const { pid } = (await gateway.status()).worker
  await gateway.putRoutes([
    forward('echo', 8401, [{ host: lab.backend.address4, port: echo.port }], { forwardingEngine: 'user' }),
    {
      name: 'hoarder',
      match: { ports: 8403 },
      action: { type: 'socket-handler', handler: join(gateway.directory, 'hoarder.ts') },
    },
  ])
  await gateway.settled()
  const host = lab.gateway.clientSide4
  const standing = await Talker.connect(lab.client, host, 8401)
  await standing.say()
  const hoarder = await Talker.connect(lab.client, host, 8403)
  await hoarder.say('hoard')
  expect(openIn(pid)).toBe(LIMIT)
  // Whoever comes now would be accepted again and again, without success.
  const waiting = await Talker.connect(lab.client, host, 8401)
  const answer = waiting.say('am I heard?', 60_000)
  await until(async () => (await gateway.status()).worker.accepting === false, 5000, 'accepting has paused')
  const paused = await load(pid)
  console.log(`all ${LIMIT} descriptors taken by a handler: ${(paused * 100).toFixed(0)} % of a core`)
  expect(paused).toBeLessThan(0.4 * slowness)
  await standing.say('others are served')
  await hoarder.say('let go')
  await answer
  expect(await until(async () => (await gateway.status()).worker.accepting, 5000, 'accepting goes on')).toBe(true)
  for (const talker of [standing, waiting, hoarder]) await talker.close()
}, 60_000)
