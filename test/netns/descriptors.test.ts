// More clients than the worker has descriptors for: accepting pauses, the kernel's backlog holds who comes, nobody is refused,
// and no core is spent on waiting.
import { expect, test } from 'bun:test'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { slowness } from '../support.ts'
import { carriers, echo } from './carriers.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, Talker } from './traffic.ts'

const LIMIT = 256
const CLIENTS = 200

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

const carried = (await carriers()).filter(({ name }) => name === 'user' || name === 'splice')

for (const carrier of carried)
  test(`more clients than descriptors, ${carrier.name}: all wait unharmed, and all are served as others leave`, async () => {
    await using lab = await Lab.create()
    const target = carrier.listen(lab.backend, echo)
    const to = { host: lab.backend.address4, port: target.port }
    const routes = [8401, 8402].map((port) => carrier.route(`on-${port}`, port, to))
    await using gateway = await Gateway.start(lab, routes, limited)
    const { pid, descriptorsMax } = (await gateway.status()).worker
    expect(descriptorsMax).toBe(LIMIT)

    const clients = await Promise.all(
      Array.from({ length: CLIENTS }, (_, i) => carrier.connect(lab.client, lab.gateway.clientSide4, 8401 + (i % 2))),
    )
    for (const client of clients) client.write('hello')
    await until(async () => (await gateway.status()).worker.accepting === false, 5000, 'accepting has paused')
    const paused = await load(pid)
    const served = clients.filter((client) => client.heard.endsWith('hello')).length
    const descriptors = openIn(pid)
    console.log(
      `${carrier.name}: ${served} of ${CLIENTS} served, ${descriptors} of ${LIMIT} descriptors, ${(paused * 100).toFixed(0)} % of a core`,
    )
    expect(served).toBeGreaterThan(50)
    expect(served).toBeLessThan(150)
    expect(descriptors).toBeLessThan(LIMIT)
    // Spinning in accept takes three quarters of one.
    expect(paused).toBeLessThan(0.4 * slowness)
    expect(clients.filter((client) => client.over)).toEqual([])

    // As they are answered they leave, and make room.
    await Promise.all(
      clients.map(async (client) => {
        await until(() => client.heard.endsWith('hello'), 60_000, 'it is served')
        client.finish()
        expect(await client.gone).toBe('closed')
      }),
    )
    const records = await gateway.recordsOf(CLIENTS)
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
    const said = (words: string) => gateway.logText().split(words).length - 1
    expect(said('Accepting pauses')).toBe(status.worker.acceptPauses)
    expect(said('Accepting goes on')).toBe(status.worker.acceptPauses)
  }, 120_000)

test('a handler that opens files without end: accepting pauses, does not spin, and goes on when they are closed', async () => {
  await using lab = await Lab.create()
  const target = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('echo', 8401, [{ host: lab.backend.address4, port: target.port }], { forwardingEngine: 'user' })],
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
    forward('echo', 8401, [{ host: lab.backend.address4, port: target.port }], { forwardingEngine: 'user' }),
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
