// Replacing the program while it runs: the new one takes over every port without a refused connection, kernel flows go on, what
// user space carries finishes in the old one, and a new program that cannot start changes nothing.
import { expect, test } from 'bun:test'
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { forward, Gateway, listening, tables, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { crowd, echoBackend, Talker, visitors } from './traffic.ts'

const ROOT = resolve(import.meta.dir, '../..')

/** The program in a directory of its own, where its version can be made another one. */
function copyOfProgram(directory: string) {
  for (const part of ['src', 'nft', 'package.json', 'tsconfig.json', 'build/libsluice.so'])
    cpSync(join(ROOT, part), join(directory, part), { recursive: true })
  symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'))
  const about = join(directory, 'src/base/about.ts')
  const text = readFileSync(about, 'utf8')
  return {
    program: [process.execPath, join(directory, 'src/main.ts')],
    setVersion(version: string) {
      const changed = text.replace(/VERSION = '[^']*'/, `VERSION = '${version}'`)
      if (changed === text) throw new Error('no version in about.ts')
      writeFileSync(about, changed)
    },
    breakIt: () => writeFileSync(about, 'this is no program'),
  }
}

interface Upgraded {
  status: number
  pid?: number
  version?: string
  error?: string
}
const upgrade = (gateway: Gateway) => gateway.ask<Upgraded>('/v1/upgrade', 'POST')
const statusOf = async (gateway: Gateway) => (await gateway.status()) as unknown as { pid: number; version: string }

/** The successor is no child of the test. */
async function end(gateway: Gateway) {
  const { pid } = await gateway.status()
  const { worker } = await gateway.status()
  process.kill(pid, 'SIGTERM')
  const gone = (one: number) => {
    try {
      process.kill(one, 0)
      return readFileSync(`/proc/${one}/stat`, 'utf8').includes(') Z ')
    } catch {
      return true
    }
  }
  await until(() => gone(pid) && gone(worker.pid), 20_000, 'the successor has stopped')
}

test('issue 7.2: the program is replaced by another version under load: nobody is refused, kernel flows go on, the rest finishes', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const host = lab.gateway.clientSide4
  const to = [{ host: lab.backend.address4, port: echo.port }]
  const routes = [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
    forward('udp', 8402, to, {}, { match: { protocol: 'udp' } }),
  ]
  await using gateway = await Gateway.start(lab, [])
  const copy = copyOfProgram(join(gateway.directory, 'program'))
  copy.setVersion('0.1.1')
  await gateway.stop()
  await using old = await Gateway.start(lab, routes, {
    program: copy.program,
    config: { timeouts: { grace: '200ms' } },
  })
  expect((await statusOf(old)).version).toBe('0.1.1')

  const kernel = await crowd(lab.client, host, 8400, 5)
  const user = await crowd(lab.client, host, 8401, 5)
  await until(async () => (await old.connections()).length >= 10, 5000, 'all are known')
  const coming = [8400, 8401].map((port) => visitors(lab.client, host, port))
  await until(() => coming.every(({ served }) => served > 5), 5000, 'visitors come and go')

  const before = await statusOf(old)
  const handedOver: number[] = []
  for (const version of ['0.1.2', '0.1.3', '0.1.4']) {
    copy.setVersion(version)
    const began = performance.now()
    const answer = await upgrade(old)
    expect(answer).toMatchObject({ status: 202, version })
    await until(async () => (await statusOf(old)).pid === answer.pid, 10_000, 'the new program answers')
    handedOver.push(Math.round(performance.now() - began))
    expect(await statusOf(old)).toMatchObject({ pid: answer.pid, version })
    await old.settled()
    const served = coming.map((one) => one.served)
    await until(() => coming.every((one, i) => one.served > served[i]! + 5), 5000, 'visitors are served by the new one')
  }
  console.log(`three upgrades under load: ${handedOver.join(', ')} ms each`)
  for (const one of coming) expect(await one.stop()).toEqual([])
  for (const each of [kernel, user]) {
    const rounds = each.talkers.map((talker) => talker.rounds)
    await until(() => each.talkers.every((talker, i) => talker.rounds > rounds[i]! + 2), 5000, 'they talk')
  }
  // All of them are the new program's, wherever they are carried; its commands reach them through two that have handed over.
  const live = await old.connections()
  expect(live.filter(({ route }) => route === 'kernel')).toHaveLength(5)
  const behind = live.filter(({ route }) => route === 'user')
  expect(behind).toHaveLength(5)
  const heard = () => Math.min(...user.talkers.map((talker) => talker.rounds))
  const bytes = async () =>
    (await old.connections()).filter(({ route }) => route === 'user').map(({ bytesIn }) => bytesIn)
  const counted = Math.min(...(await bytes()))
  const round = heard()
  await until(() => heard() > round + 5, 5000, 'they talk on')
  await until(async () => Math.min(...(await bytes())) > counted, 10_000, 'what they carry is told')
  expect(await old.close(behind[0]!.id)).toMatchObject({ status: 200 })
  await until(() => user.talkers.some((talker) => talker.ended), 5000, 'one is closed')
  expect(old.process.exitCode).toBeNull()
  expect(await kernel.stop()).toEqual([])
  await until(() => user.failures.length === 1, 5000, 'it has noticed')
  expect(await user.stop()).toHaveLength(1)
  expect(await old.exited()).toBe(0)

  const { pid } = before
  expect((await statusOf(old)).pid).not.toBe(pid)
  // Each of them has one record, whoever wrote it, and is counted once, over four programs.
  const served = { kernel: coming[0]!.served + 5, user: coming[1]!.served + 5 }
  const records = await old.recordsOf(served.kernel + served.user)
  expect(new Set(records.map(({ id }) => id)).size).toBe(records.length)
  expect(records.map(({ reason }) => reason).filter((reason) => reason !== 'finished')).toEqual(['killed'])
  const counts = (await old.routes()).map(({ name, connections, total }) => ({ name, connections, total }))
  expect(counts).toEqual([
    { name: 'kernel', connections: 0, total: served.kernel },
    { name: 'user', connections: 0, total: served.user },
    { name: 'udp', connections: 0, total: 0 },
  ])
  for (const [name, count] of Object.entries(served))
    expect(records.filter(({ route }) => route === name)).toHaveLength(count)
  await end(old)
  expect(await tables(lab.gateway)).toEqual([])
  await until(async () => (await listening(lab.gateway)).length === 0, 5000, 'nobody listens any more')
}, 60_000)

test('issue 7.2: a new program that cannot start, or has a bad configuration, changes nothing; a stop does not wait for old connections', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const host = lab.gateway.clientSide4
  const route = forward('user', 8401, [{ host: lab.backend.address4, port: echo.port }], { forwardingEngine: 'user' })
  await using first = await Gateway.start(lab, [])
  const copy = copyOfProgram(join(first.directory, 'program'))
  copy.setVersion('0.1.1')
  await first.stop()
  await using gateway = await Gateway.start(lab, [route], {
    program: copy.program,
    config: { timeouts: { grace: '200ms' } },
  })
  const talker = await Talker.connect(lab.client, host, 8401)
  await talker.say()

  copy.breakIt()
  const { pid } = gateway.process
  expect(await upgrade(gateway)).toMatchObject({ status: 409, error: expect.stringContaining('ended with exit code') })
  copy.setVersion('0.1.2')
  gateway.write([{ ...route, match: { ports: 'none' } }])
  expect(await upgrade(gateway)).toMatchObject({ status: 409, error: expect.stringContaining('exit code 2') })
  // Rules under another name would leave these behind, and they would go on forwarding.
  gateway.write([route], { kernel: { table: 'another' } })
  expect(await upgrade(gateway)).toMatchObject({ status: 409, error: expect.stringContaining('kernel.table') })
  expect(await statusOf(gateway)).toMatchObject({ pid, version: '0.1.1' })
  await talker.say()
  const other = await Talker.connect(lab.client, host, 8401)
  await other.say()

  // The old one waits for these two; a second signal ends the wait.
  gateway.write([route])
  expect(await upgrade(gateway)).toMatchObject({ status: 202, version: '0.1.2' })
  await until(async () => (await statusOf(gateway)).pid !== pid, 10_000, 'the new program answers')
  await talker.say('still here')
  const listed = async () => (await gateway.connections()).length
  await until(async () => (await listed()) === 2, 5000, 'both are listed')
  gateway.process.kill('SIGTERM')
  expect(await gateway.exited()).toBe(0)
  await until(() => talker.ended !== null && other.ended !== null, 10_000, 'they are cut')
  const drained = () => gateway.records().filter(({ event, reason }) => event === 'closed' && reason === 'drained')
  await until(() => drained().length === 2, 5000, 'the new program has written their records')
  expect(await listed()).toBe(0)
  await end(gateway)
}, 60_000)
