// Live connections by client.
import { expect, test } from 'bun:test'
import { CLIENT_ROUTES_MAX } from '../../src/base/limits.ts'
import { Clients } from '../../src/connections/clients.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'

const record = (client: string, route: string, bytesIn = 1, bytesOut = 2) =>
  ({ client, route, bytesIn, bytesOut }) as ConnectionRecord

test('M2: connections, bytes and routes by client, the busiest first', () => {
  const clients = new Clients()
  clients.add(record('10.0.0.2:1000', 'web', 10, 20))
  clients.add(record('[fd00::2]:1', 'web'))
  clients.add(record('10.0.0.2:1001', 'mail', 1, 2))
  clients.add(record('10.0.0.3:1', 'web', 100, 0))
  clients.add(record('10.0.0.4:1', 'web', 0, 3))
  clients.add(record('10.0.0.2:1002', 'web'))
  expect(clients.size).toBe(4)
  expect(clients.busiest(20)).toEqual([
    { client: '10.0.0.2', connections: 3, bytesIn: 12, bytesOut: 24, routes: ['mail', 'web'] },
    { client: '10.0.0.3', connections: 1, bytesIn: 100, bytesOut: 0, routes: ['web'] },
    { client: '10.0.0.4', connections: 1, bytesIn: 0, bytesOut: 3, routes: ['web'] },
    { client: 'fd00::2', connections: 1, bytesIn: 1, bytesOut: 2, routes: ['web'] },
  ])
  expect(clients.busiest(1).map(({ client }) => client)).toEqual(['10.0.0.2'])
  expect(new Clients().busiest(5)).toEqual([])
})

test('M2: the busiest few are the first of all of them sorted, whatever the order in which they came', () => {
  for (let round = 0; round < 50; round++) {
    const clients = new Clients()
    for (let i = 0; i < 2000; i++)
      clients.add(record(`10.0.${Math.floor(Math.random() * 3)}.${Math.floor(Math.random() * 256)}:${i}`, 'web'))
    expect(clients.busiest(7)).toEqual(clients.busiest(100_000).slice(0, 7))
  }
})

test('M2: a client of very many routes has some of them named, and a listing of many connections is quick', () => {
  const clients = new Clients()
  for (let i = 0; i < 1000; i++) clients.add(record(`10.0.0.2:${i}`, `route-${i}`))
  expect(clients.busiest(1)[0]!.routes.length).toBe(CLIENT_ROUTES_MAX)
  for (let i = 0; i < 100_000; i++) clients.add(record(`10.1.${(i >> 8) & 255}.${i & 255}:${i}`, 'web'))
  const began = performance.now()
  expect(clients.busiest(20).length).toBe(20)
  console.log(`the busiest 20 of ${clients.size} clients: ${(performance.now() - began).toFixed(1)} ms`)
})
