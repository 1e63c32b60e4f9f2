// A handler that has read and answered the first bytes hands the connection over: what the operator sees of it (its carrier, its
// record, its limits) and that it can still be cut and drained.
//
//   client ──── gateway (handler: a password, then proxy()) ──── backend
import { expect, test } from 'bun:test'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { bulk, digestOf, echoBackend, MIB, move, moverBackend, Talker, visit } from './traffic.ts'

/** With env.password the client has to say it, and is answered; else what it says first is passed on by the handler. */
const HANDLER = `import { connect, proxy } from 'sluice/sockets'

const password = async (client, wanted) => {
  const reader = client.readable.getReader()
  const { value } = await reader.read()
  reader.releaseLock()
  const writer = client.writable.getWriter()
  const isRight = new TextDecoder().decode(value) === wanted
  await writer.write(isRight ? value : new TextEncoder().encode('wrong'))
  writer.releaseLock()
  return isRight
}

export default {
  async connect(client, env) {
    if (env.password && !(await password(client, env.password))) return client.close()
    const target = connect(env.target)
    if (!env.password) {
      const [reader, writer] = [client.readable.getReader(), target.writable.getWriter()]
      const { value } = await reader.read()
      void writer.write(value)
      reader.releaseLock()
      writer.releaseLock()
    }
    proxy(client, target)
  },
}
`

async function start(lab: Lab, env: object, route: object = {}): Promise<Gateway> {
  const gateway = await Gateway.start(lab, [])
  writeFileSync(join(gateway.directory, 'promoting.ts'), HANDLER)
  gateway.write([
    {
      name: 'guarded',
      match: { ports: 8400 },
      action: { type: 'socket-handler', handler: './promoting.ts', env, reach: { private: true } },
      ...route,
    },
  ])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  return gateway
}

/** Ticks of the CPU that the threads of a process have had, by their names. */
function ticks(pid: number): Record<string, number> {
  const spent: Record<string, number> = {}
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const [, name, rest] = /\((.*)\) (.*)/.exec(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1'))!
    const [user, system] = rest!.split(' ').slice(11, 13).map(Number)
    spent[name!] = (spent[name!] ?? 0) + user! + system!
  }
  return spent
}

test('design 5, B7: after the password the relay carries it, in the same record, with its limits; it can be cut', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const target = `${lab.backend.address4}:${backend.port}`
  await using gateway = await start(lab, { password: 'sesame', target }, { security: { maxConnectionsPerIp: 2 } })
  const to = lab.gateway.clientSide4
  const [one, other] = [await Talker.connect(lab.client, to, 8400), await Talker.connect(lab.client, to, 8400)]
  const before = await until(
    async () => {
      const all = await gateway.connections()
      return all.length === 2 && all
    },
    5000,
    'two connections',
  )
  for (const connection of before as { carrier: string }[])
    expect(connection).toMatchObject({ carrier: 'user', target: null })
  for (const talker of [one, other]) {
    // Answered by the handler, and by the backend.
    await talker.say('sesame')
    await talker.say('hello')
  }
  const spliced = async () => {
    const all = await gateway.connections()
    return all.length === 2 && all.every(({ carrier }) => carrier === 'splice') && all
  }
  const all = (await until(spliced, 5000, 'both are spliced')) as { id: string; target: string; route: string }[]
  for (const connection of all) expect(connection).toMatchObject({ route: 'guarded', target, state: 'open' })
  // They still count.
  await expect(visit(lab.client, to, 8400)).rejects.toThrow()
  expect(await gateway.close(all[0]!.id)).toMatchObject({ status: 200 })
  await until(() => backend.open.size === 1, 5000, 'the target of the first has heard of it')
  const left = one.ended ? other : one
  await left.say('still here')
  await left.close()
  const records = await gateway.recordsOf(2)
  expect(records.map(({ reason }) => reason).sort()).toEqual(['finished', 'killed'])
  for (const record of records) expect(record).toMatchObject({ carrier: 'splice', target, route: 'guarded' })
  const finished = records.find(({ reason }) => reason === 'finished')!
  expect(finished).toMatchObject({ bytesIn: 6 + 5 + 10, bytesOut: 6 + 5 + 10 })
  expect((await gateway.route('guarded')).connections).toBe(0)
  expect(await gateway.status()).toMatchObject({ anomalies: 0, worker: { swept: 0 } })
}, 30_000)

test('B7 B9: what was handed over flows whole, and is counted, without the handler', async () => {
  await using lab = await Lab.create()
  const bytes = bulk(64)
  const backend = moverBackend(lab.backend, bytes)
  await using gateway = await start(lab, { target: `${lab.backend.address4}:${backend.port}` })
  const { pid } = (await gateway.status()).worker
  const before = ticks(pid)
  const movers = await Promise.all([1, 2].map(() => move(lab.client, lab.gateway.clientSide4, 8400, bytes)))
  await Promise.all(movers.map(({ done }) => done))
  await Promise.all(backend.movers.map(({ done }) => done))
  const after = ticks(pid)
  for (const mover of movers) expect(mover.digest).toBe(digestOf('down', bytes))
  for (const mover of backend.movers) expect(mover.digest).toBe(digestOf('up', bytes))
  const records = await gateway.recordsOf(2)
  for (const record of records)
    expect(record).toMatchObject({ carrier: 'splice', reason: 'finished', bytesIn: bytes, bytesOut: bytes })
  const spent = Object.keys(after).map((name) => `${name} ${after[name]! - (before[name] ?? 0)}`)
  console.log(`2 × ${bytes / MIB} MiB each way; ticks of the worker's threads: ${spent.join(', ')}`)
}, 60_000)

test('G17: a drained route ends what was handed over, too', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const target = `${lab.backend.address4}:${backend.port}`
  await using gateway = await start(lab, { password: 'x', target }, { drain: 'cut' })
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say('x')
  await talker.say('hello')
  gateway.write([])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await talker.gone.promise
  expect(await gateway.recordsOf(1)).toMatchObject([{ reason: 'drained', carrier: 'splice' }])
}, 30_000)
