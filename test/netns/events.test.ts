// The stream of events as an operator's dashboard hears it, from both planes: what happens to connections, routes and targets.
import { expect, test } from 'bun:test'
import { EventListener } from '../observe/listener.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

async function listen(gateway: Gateway, query = ''): Promise<EventListener> {
  const answer = await fetch(`http://sluice/v1/events${query}`, { unix: gateway.socket } as RequestInit)
  expect(answer.headers.get('content-type')).toBe('text/event-stream')
  const listener = new EventListener(answer)
  await until(() => listener.heartbeats === 1, 5000, 'the stream begins')
  return listener
}

test('M3: what happens in both planes, as it happens, until the gateway stops', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const other = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  const kernel = forward('kernel', 8400, to)
  const user = forward('user', 8401, to, { forwardingEngine: 'user' })
  const picky = forward('picky', 8402, to, { forwardingEngine: 'user' }, { security: { ipBlockList: ['10.99.1.2'] } })
  const secure = forward('secure', 8443, to, { tls: { mode: 'terminate', certificate: 'self-signed' } })
  const watched = forward('watched', 8403, [...to, { host: lab.backend.address4, port: other.port }], {
    forwardingEngine: 'user',
    health: { interval: '1s', fall: 1 },
  })
  await using gateway = await Gateway.start(lab, [kernel, user, picky, secure, watched])
  const [all, one] = [await listen(gateway), await listen(gateway, '?route=user')]
  const host = lab.gateway.clientSide4
  const connections = (listener: EventListener, route: string) =>
    listener.told.filter((told) => told.route === route && told.id !== undefined)

  for (const [route, port] of [
    ['kernel', 8400],
    ['user', 8401],
  ] as const) {
    const talker = await Talker.connect(lab.client, host, port)
    await talker.say()
    await until(() => connections(all, route).some(({ event }) => event === 'opened'), 5000, `${route} has opened`)
    await talker.close()
    await until(() => connections(all, route).some(({ event }) => event === 'closed'), 5000, `${route} has closed`)
    const told = connections(all, route)
    expect(new Set(told.map(({ id }) => id)).size).toBe(1)
    expect(told[0]!.event).toBe('opened')
    const { event, ...closed } = told.at(-1)!
    expect(event).toBe('closed')
    // The very record of the access log.
    const { event: _, ...record } = (await gateway.recordsOf(route === 'kernel' ? 1 : 2)).at(-1)!
    expect(closed).toEqual({ ...record })
    expect(closed).toMatchObject({ carrier: route, reason: 'finished', bytesIn: 7 })
  }
  expect(one.told).toEqual(connections(all, 'user'))

  // A handshake that fails.
  const plain = await Talker.connect(lab.client, host, 8443)
  void plain.say('this is no TLS at all').catch(() => {})
  await until(() => connections(all, 'secure').some(({ reason }) => reason === 'handshake_failed'), 5000, 'it is told')

  // Refused.
  for (let i = 0; i < 5; i++) await visit(lab.client, host, 8402).catch(() => {})
  const refusals = () => all.of('refused').reduce((sum, told) => sum + Number(told.count), 0)
  await until(() => refusals() >= 5, 5000, 'refusals are told')
  expect(all.of('refused')[0]).toMatchObject({ route: 'picky', reason: 'route_ip_blocked' })

  // A target that dies.
  other.stop()
  await until(() => all.of('target').length > 0, 10_000, 'the target is down')
  expect(all.of('target')[0]).toMatchObject({
    route: 'watched',
    target: `${lab.backend.address4}:${other.port}`,
    up: false,
  })

  // Routes that come and go.
  await gateway.putRoutes([kernel, user, forward('new', 8404, to)])
  const states = (route: string) => all.of('route').flatMap((told) => (told.route === route ? [told.state] : []))
  await until(() => states('new').includes('active'), 5000, 'the new route is active')
  await until(() => states('picky').includes('removed'), 5000, 'the old one is gone')
  expect(states('kernel')).toEqual([])

  // A listener that leaves is no listener any more; a stop ends the others.
  await one.leave()
  expect(await gateway.stop()).toBe(0)
  await all.done
  expect(all.of('lost')).toEqual([])
}, 60_000)
