// The deadlines of a route hold for its kernel flows as they do in user space: the same reasons, and both ends hear of it.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

/** Limits of 2 s are looked at every 5 s at the earliest; an emulated machine takes its time. */
const LATE_MS = 15_000

const secondsOf = (record: { openedAt: string; closedAt?: string }) =>
  ((Date.parse(record.closedAt!) - Date.parse(record.openedAt)) / 1000).toFixed(1)

test('G13, G14: connect, idle and half closed too long in the kernel', async () => {
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  // Hears the FIN of the client and goes on; does not send one of its own.
  const stubborn: { ended: boolean }[] = []
  const half = lab.backend.listen<{ ended: boolean }>(
    {
      open(socket) {
        stubborn.push((socket.data = { ended: false }))
      },
      data() {},
      end() {},
      close: (socket) => void (socket.data.ended = true),
      error() {},
    },
    { allowHalfOpen: true },
  )
  await lab.backend.nft('table inet hole { chain in { type filter hook input priority 0; tcp dport 9 drop; }; }')
  const to = (port: number) => [{ host: lab.backend.address4, port }]
  const limit = (timeouts: object, action = {}, rest = {}) => [action, { timeouts, ...rest }] as const
  await using gateway = await Gateway.start(lab, [
    forward('hole', 8401, to(9), ...limit({ connect: '2s' })),
    forward('idle', 8402, to(echo.port), ...limit({ idle: '2s' })),
    forward('half', 8403, to(half.port), ...limit({ halfClosed: '2s' })),
    forward('open', 8404, to(half.port), ...limit({ halfClosed: '1s', parity: '4s' }, { allowHalfOpen: true })),
    forward('lasting', 8405, to(echo.port), ...limit({ connect: '2s', idle: '1h' })),
  ])
  const host = lab.gateway.clientSide4
  const lasting = await Talker.connect(lab.client, host, 8405)
  const idle = await Talker.connect(lab.client, host, 8402)
  const busy = await Talker.connect(lab.client, host, 8402)
  await idle.say()
  const [oneSided, parity] = [
    await Talker.connect(lab.client, host, 8403),
    await Talker.connect(lab.client, host, 8404),
  ]
  for (const talker of [oneSided, parity]) void talker.close()
  let hearsNothing: Error | undefined
  const silent = Talker.connect(lab.client, host, 8401, { timeoutMs: 30_000 }).catch((error: Error) => {
    hearsNothing = error
  })

  // One that talks stays, also when its counters are looked at seldom.
  let talking = true
  const talk = (async () => {
    while (talking) {
      await busy.say()
      await Bun.sleep(500)
    }
  })()
  const records = await gateway.recordsOf(4, LATE_MS)
  expect(Object.fromEntries(records.map((record) => [record.route, record.reason]))).toEqual({
    hole: 'connect_timeout',
    idle: 'idle_timeout',
    half: 'half_closed_timeout',
    open: 'half_closed_timeout',
  })
  for (const record of records) console.log(`${record.route}: ${record.reason} after ${secondsOf(record)} s`)
  // Both ends have been told.
  await until(() => idle.ended, 5000, 'the idle client hears of it')
  await silent
  expect(hearsNothing?.message).toMatch(/refused|reset/i)
  await until(() => stubborn.every((socket) => socket.ended), 5000, 'the target that did not close hears of it')
  expect(echo.open.size).toBe(2)
  talking = false
  await talk
  for (const talker of [busy, lasting]) await talker.say('still here')
  expect((await gateway.connections()).map((one) => one.route).toSorted()).toEqual(['idle', 'lasting'])
  expect((await gateway.status()).anomalies).toBe(0)
  for (const talker of [busy, lasting]) await talker.close()
  const all = await gateway.recordsOf(6)
  expect(all.slice(4).map((record) => record.reason)).toEqual(['finished', 'finished'])
}, 60_000)

test('G14: UDP in the kernel: silence ends the flow', async () => {
  await using lab = await Lab.create()
  await lab.backend.nft('table inet hole { chain in { type filter hook input priority 0; udp dport 9 drop; }; }')
  await using gateway = await Gateway.start(lab, [
    forward(
      'dns',
      8406,
      [{ host: lab.backend.address4, port: 9 }],
      {},
      { match: { protocol: 'udp' }, timeouts: { idle: '2s' } },
    ),
  ])
  await lab.client.must(['bash', '-c', `echo hello > /dev/udp/${lab.gateway.clientSide4}/8406`])
  const [record] = await gateway.recordsOf(1, 60_000)
  expect(record).toMatchObject({ route: 'dns', reason: 'idle_timeout', bytesIn: 'hello\n'.length, bytesOut: 0 })
  console.log(`idle_timeout after ${secondsOf(record!)} s`)
  expect((await gateway.route('dns')).connections).toBe(0)
}, 90_000)
