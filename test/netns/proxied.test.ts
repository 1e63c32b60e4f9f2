// Clients behind a trusted proxy: the kernel sees one sender and must not hold it for one client; user space counts who is real.
import { expect, test } from 'bun:test'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend } from './traffic.ts'

const PORT = 8400
const CLIENTS = 200

/** A connection of this client's through a proxy at the laboratory's client. `served`: its line came back. */
async function through(lab: Lab, header: string) {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const socket = await lab.client.connect(lab.gateway.clientSide4, PORT, {
    open: (socket) => void socket.write(`${header}a line`),
    data: () => resolve(true),
    close: () => resolve(false),
    error: () => {},
  })
  return { socket, served: await promise }
}

const asIf = (ip: string, port: number) => `PROXY TCP4 ${ip} 198.51.100.7 ${port} 443\r\n`

test(`J4, I2, I4: ${CLIENTS} clients through one proxy, which no list or limit holds for a client, in no plane`, async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const limits = { maxConnectionsPerIp: 2, connectionRatePerIp: '5/hour' }
  const to = [{ host: lab.backend.address4, port: backend.port }]
  const trust = { acceptProxyProtocol: { from: [lab.client.address4] } }
  // The proxy is in none of the first and in all of the second.
  const lists = { ipAllowList: ['192.0.2.0/24'], ipBlockList: ['192.0.2.201', lab.client.address4] }
  await using gateway = await Gateway.start(
    lab,
    [
      forward('proxied', PORT, to, {}, { ...trust, security: { ...lists, ...limits } }),
      // With it there is a table in the kernel, which holds what all routes share.
      forward('kernel', 8401, to),
    ],
    { config: { limits: { maxConnectionsPerIp: 3, connectionRatePerIp: '6/hour' } } },
  )
  const ips = Array.from({ length: CLIENTS }, (_, i) => `192.0.2.${i + 1}`)
  const all = await Promise.all(ips.map((ip) => through(lab, asIf(ip, 1000))))
  expect(all.filter(({ served }) => !served)).toEqual([])
  expect(new Set((await gateway.connections()).map(({ client }) => client))).toEqual(
    new Set(ips.map((ip) => `${ip}:1000`)),
  )

  expect((await through(lab, asIf(ips[0]!, 1001))).served).toBe(true)
  expect((await through(lab, asIf(ips[0]!, 1002))).served).toBe(false) // its third at once
  expect((await through(lab, asIf('192.0.2.201', 1003))).served).toBe(false)
  expect((await through(lab, asIf('203.0.113.1', 1004))).served).toBe(false)
  // It speaks for itself, and is in no list that lets it.
  expect((await through(lab, 'PROXY UNKNOWN\r\n')).served).toBe(false)

  const refused = await until(
    async () => {
      const { refused } = (await gateway.route('proxied')) as unknown as { refused: Record<string, number> }
      return Object.values(refused).reduce((sum, count) => sum + count, 0) >= 4 && refused
    },
    5000,
    'four are counted as refused',
  )
  expect(refused).toEqual({ route_ip_limit: 1, route_ip_blocked: 3 })
  for (const { socket } of all) socket.end()
}, 60_000)
