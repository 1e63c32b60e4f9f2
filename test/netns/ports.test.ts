// Ports that another program has: never taken silently, and the program is named. UDP ports, which nobody reads in user
// space, and ranges too large for a socket each included.
import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { Lab, type Namespace } from './lab.ts'
import { forward, Gateway, listening, tables } from './gateway.ts'
import { echoBackend, visit } from './traffic.ts'

const PROGRAMS = {
  tcp: (address: string, port: number) =>
    `Bun.listen({ hostname: '${address}', port: ${port}, socket: { data() {} } }); console.log('bound')`,
  udp: (address: string, port: number) =>
    `await Bun.udpSocket({ hostname: '${address}', port: ${port}, socket: {
       data: (socket, bytes, port, address) => socket.send(bytes, port, address) } }); console.log('bound')`,
}

/** A program that has the port until it is ended. It says back what comes by UDP. */
async function occupy(where: Namespace, protocol: 'tcp' | 'udp', address: string, port: number) {
  const child = where.spawn([process.execPath, '-e', PROGRAMS[protocol](address, port)], { stderr: 'ignore' })
  const { value } = await child.stdout.getReader().read()
  if (!value || Buffer.from(value).toString().trim() !== 'bound')
    throw new Error(`${protocol} ${address}:${port} is taken`)
  return {
    /** How a message has to call it. */
    name: `${readFileSync(`/proc/${child.pid}/comm`, 'utf8').trim()} (pid ${child.pid})`,
    async end() {
      child.kill('SIGKILL')
      await child.exited
    },
  }
}

/** Sends a datagram until it is said back; prints the answer. */
const ask = (from: Namespace, host: string, port: number) =>
  from.run([
    process.execPath,
    '-e',
    `const late = setTimeout(() => process.exit(1), 5000)
     const socket = await Bun.udpSocket({ connect: { hostname: '${host}', port: ${port} }, socket: {
       data(_, bytes) { process.stdout.write(bytes.toString()); process.exit(0) } } })
     socket.send('hello'); setInterval(() => socket.send('hello'), 100)`,
  ])

const udp = { match: { protocol: 'udp' } }

/** UDP sockets there, as "address:port". */
const bound = async (where: Namespace) =>
  (await where.must(['ss', '-Hlun']))
    .split('\n')
    .filter(Boolean)
    .map((line) => line.trim().split(/\s+/)[3]!)
    .toSorted()

test('H17: a port in which another program listens is an error that names it; nothing is left, and it goes on', async () => {
  await using lab = await Lab.create()
  const other = await occupy(lab.gateway, 'tcp', lab.gateway.clientSide4, 8401)
  const to = [{ host: lab.backend.address4, port: 9000 }]
  const routes = [forward('free', 8400, to), forward('taken', 8401, to)]
  await using gateway = await Gateway.start(lab, routes, { ready: false })
  expect(await gateway.exited()).toBe(1)
  expect(gateway.logText()).toContain(`Cannot listen on [::]:8401: ${other.name} listens there`)
  expect(await listening(lab.gateway)).toEqual([`${lab.gateway.clientSide4}:8401`])
  expect(await tables(lab.gateway)).toEqual([])

  // On another address of the port there is room for us.
  gateway.write([forward('beside', 8401, to, {}, { match: { addresses: [lab.gateway.backendSide4] } })])
  await gateway.restart({})
  const refused = await gateway.putRoutes(routes)
  expect(refused.status).toBe(422)
  expect(refused.problems!.map(({ message }) => message)).toEqual([
    `Cannot listen on [::]:8401: ${other.name} listens there`,
  ])
  expect((await gateway.routes()).map(({ name }) => name)).toEqual(['beside'])
  await other.end()
  expect((await gateway.putRoutes(routes)).status).toBe(200)
}, 30_000)

test('H12, H17: a large range is refused when another program listens in it; on loopback alone it is not in the way', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const single = forward('inside', 8050, to)
  const range = forward('range', [{ from: 8000, to: 9000 }], to)
  await using gateway = await Gateway.start(lab, [single])
  const local = await occupy(lab.gateway, 'tcp', '127.0.0.1', 8500)
  const other = await occupy(lab.gateway, 'tcp', lab.gateway.clientSide4, 8600)
  const refused = await gateway.putRoutes([single, range])
  expect(refused.status).toBe(422)
  expect(refused.problems!.map(({ message }) => message)).toEqual([
    `Cannot take the TCP ports 8000-9000: ${other.name} listens on ${lab.gateway.clientSide4}:8600`,
  ])
  expect((await gateway.routes()).map(({ name }) => name)).toEqual(['inside'])

  // On the addresses that it does not have, the range is free.
  const narrow = forward(
    'narrow',
    [{ from: 8000, to: 9000 }],
    to,
    {},
    { match: { addresses: [lab.gateway.backendSide4] } },
  )
  expect((await gateway.putRoutes([single, narrow])).status).toBe(200)
  await other.end()
  expect((await gateway.putRoutes([single, range])).status).toBe(200)
  await gateway.settled()
  for (const port of [8000, 8050, 8600, 9000]) await visit(lab.client, lab.gateway.clientSide4, port)
  await local.end()
}, 30_000)

test('H12, H17: the UDP port of a route is held while it is configured; who has it before is named, who comes later is refused', async () => {
  await using lab = await Lab.create()
  const to = [{ host: lab.backend.address4, port: 9000 }]
  const dns = forward('dns', 8500, to, {}, udp)
  await using gateway = await Gateway.start(lab, [])
  const other = await occupy(lab.gateway, 'udp', lab.gateway.clientSide4, 8500)
  const refused = await gateway.putRoutes([dns])
  expect(refused.status).toBe(422)
  expect(refused.problems!.map(({ message }) => message)).toEqual([
    `Cannot hold the UDP port [::]:8500: ${other.name} has it`,
  ])
  const range = forward('range', [{ from: 8000, to: 9000 }], to, {}, udp)
  expect((await gateway.putRoutes([range])).problems!.map(({ message }) => message)).toEqual([
    `Cannot take the UDP ports 8000-9000: ${other.name} has ${lab.gateway.clientSide4}:8500`,
  ])
  // A TCP route has no quarrel with it.
  expect((await gateway.putRoutes([forward('tcp', 8500, to)])).status).toBe(200)
  await other.end()

  expect((await gateway.putRoutes([dns])).status).toBe(200)
  expect(await bound(lab.gateway)).toEqual(['*:8500'])
  await expect(occupy(lab.gateway, 'udp', lab.gateway.clientSide4, 8500)).rejects.toThrow('is taken')
  // One address beside all of them, alone, and all of them again.
  const one = forward('one', 8500, to, {}, { match: { ...udp.match, addresses: [lab.gateway.clientSide4] } })
  for (const [routes, sockets] of [
    [
      [dns, one],
      ['*:8500', `${lab.gateway.clientSide4}:8500`],
    ],
    [[one], [`${lab.gateway.clientSide4}:8500`]],
    [
      [dns, one],
      ['*:8500', `${lab.gateway.clientSide4}:8500`],
    ],
    [[], []],
  ] as const) {
    expect((await gateway.putRoutes([...routes])).status).toBe(200)
    expect(await bound(lab.gateway)).toEqual([...sockets])
  }
  await (await occupy(lab.gateway, 'udp', '0.0.0.0', 8500)).end()
}, 30_000)

test('H12: a held UDP port swallows nothing that the kernel forwards', async () => {
  await using lab = await Lab.create()
  await occupy(lab.backend, 'udp', '::', 9000)
  const routes = [forward('dns', 8500, [{ host: lab.backend.address4, port: 9000 }], {}, udp)]
  await using gateway = await Gateway.start(lab, routes, { config: { timeouts: { grace: '100ms' } } })
  expect(await bound(lab.gateway)).toEqual(['*:8500'])
  expect(await ask(lab.client, lab.gateway.clientSide4, 8500)).toMatchObject({ stdout: 'hello', exitCode: 0 })
  expect(await gateway.stop()).toBe(0)
  expect(await bound(lab.gateway)).toEqual([])
}, 30_000)
