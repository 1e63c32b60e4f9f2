// What handlers of the running gateway may reach: the places where it listens itself, in either plane, are not among them.
import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Gateway, forward } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend } from './traffic.ts'

/** Connects to where the client says, and answers how that went. */
const HANDLER = `import { connect } from 'cloudflare:sockets'

export default {
  async connect(client) {
    const { value } = await client.readable.getReader().read()
    let outcome = 'connected'
    try {
      const socket = connect(new TextDecoder().decode(value).trim())
      await socket.opened
      await socket.close()
    } catch (error) {
      outcome = error.code
    }
    const writer = client.writable.getWriter()
    await writer.write(new TextEncoder().encode(outcome))
    await client.close()
  },
}
`

test('A18 A19: own listeners, kernel-carried ones too, are a loop at each address of the machine; private ones need leave', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [])
  await lab.gateway.run(['ip', 'address', 'add', '198.51.100.9/32', 'dev', 'lo'])
  writeFileSync(join(gateway.directory, 'reaching.ts'), HANDLER)
  const handler = (name: string, ports: number, reach: object) => ({
    name,
    match: { ports },
    action: { type: 'socket-handler', handler: './reaching.ts', reach },
  })
  gateway.write([
    forward('kernel', 8400, [{ host: lab.backend.address4, port: backend.port }]),
    handler('everywhere', 8401, { private: true }),
    handler('careful', 8402, {}),
  ])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()
  const end = (host: string, port: number) => (host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
  const { clientSide4, backendSide4, clientSide6 } = lab.gateway
  const cases: [number, string, string][] = [
    ...[clientSide4, backendSide4, clientSide6, '198.51.100.9', '127.0.0.1', '::1', '0.0.0.0'].flatMap((host) =>
      [8400, 8401, 8402].map((port) => [8401, end(host, port), 'loop_detected'] as [number, string, string]),
    ),
    [8401, end(lab.backend.address4, backend.port), 'connected'],
    [8401, end('127.0.0.1', 9), 'connect_refused'],
    [8402, end(lab.backend.address4, backend.port), 'address_blocked'],
    [8402, end('198.51.100.9', 9), 'address_blocked'],
    [8402, end(clientSide4, 8400), 'loop_detected'],
    [8402, end('198.51.100.1', 25), 'port_25_blocked'],
  ]
  const seen = await Promise.all(cases.map(([port, address]) => answer(lab, port, address)))
  expect(cases.map(([port, address], i) => [port, address, seen[i]!])).toEqual(cases)
}, 30_000)

function answer(lab: Lab, port: number, text: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const pieces: Uint8Array[] = []
  lab.client
    .connect(lab.gateway.clientSide4, port, {
      open: (socket) => void socket.write(text),
      data: (_socket, bytes) => void pieces.push(bytes),
      close: () => resolve(Buffer.concat(pieces).toString()),
    })
    .catch(reject)
  return promise
}
