// Deadlines of hours and weeks, on a clock of the test's own: what a healthy connection outlives, and what ends one that is not.
import { expect, test } from 'bun:test'
import type net from 'node:net'
import { parseDuration, TIMER_MS_MAX } from '../../src/base/units.ts'
import { Timed, Timers } from '../../src/user/timers.ts'
import { client, echo, forward, gone, open, reasons, route, server } from './plane.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

function clock() {
  let now = 1000
  const timers = new Timers(() => now)
  return {
    timers,
    pass(ms: number) {
      now += ms
      timers.advance()
    },
  }
}

class Alarm extends Timed {
  rang = 0
  override expired() {
    this.rang++
  }
}

test('G14: a deadline of 100 days does not come at once, as a timer above 2^31-1 ms would', () => {
  const { timers, pass } = clock()
  const alarm = new Alarm()
  timers.arm(alarm, 100 * DAY)
  for (let day = 0; day < 100; day++) pass(day === 0 ? DAY - 1 : DAY)
  expect(alarm.rang).toBe(0)
  pass(300)
  expect(alarm.rang).toBe(1)
  expect(timers.armed).toBe(0)
})

test("G14: what an operator writes is held to what every timer can hold: '100d' is 24.8 days", async () => {
  expect(parseDuration('100d')).toBe(TIMER_MS_MAX)
  expect(parseDuration('20d')).toBe(20 * DAY)
  const { timers, pass } = clock()
  const bench = await open(
    [route('f', { action: forward(await echo()), timeoutsMs: { idle: parseDuration('100d')! } })],
    { timers, relay: false },
  )
  const socket = client(bench.port)
  await said(socket, 'hello')
  for (let day = 0; day < 24; day++) pass(DAY)
  await said(socket, 'still here')
  for (let day = 0; day < 24; day++) pass(DAY)
  expect(bench.settled).toEqual([])
  const left = gone(socket)
  pass(DAY)
  expect(reasons(await bench.settle(1))).toEqual(['idle_timeout'])
  await left
})

test('G11: a connection that says something each hour stays for days', async () => {
  const { timers, pass } = clock()
  const bench = await open([route('f', { action: forward(await echo()), timeoutsMs: { idle: 4 * HOUR } })], {
    timers,
    relay: false,
  })
  const socket = client(bench.port)
  for (let hour = 0; hour < 72; hour++) {
    await said(socket, `hour ${hour}`)
    pass(HOUR)
  }
  expect(bench.settled).toEqual([])
  for (let hour = 0; hour < 4; hour++) pass(HOUR)
  expect(reasons(await bench.settle(1))).toEqual(['idle_timeout'])
})

test('G13: half open, a stream that moves survives parity; one that is silent does not', async () => {
  const { timers, pass } = clock()
  let atTarget!: net.Socket
  const port = await server((socket) => (atTarget = socket))
  const bench = await open(
    [
      route('f', {
        action: forward(port, { allowHalfOpen: true }),
        timeoutsMs: { idle: 4 * HOUR, parity: 30 * MINUTE, halfClosed: 1000 },
      }),
    ],
    { timers, relay: false },
  )
  const socket = client(bench.port)
  socket.end('request')
  await until(() => bench.opened.length === 1 && [...bench.plane.table.values()][0]?.state === 'half-closed')
  let heard = ''
  socket.on('data', (bytes) => (heard += bytes))
  for (let round = 0; round < 12; round++) {
    atTarget.write('.')
    await until(() => heard.length > round)
    pass(20 * MINUTE)
  }
  expect(bench.settled).toEqual([])
  pass(11 * MINUTE)
  expect(reasons(await bench.settle(1))).toEqual(['half_closed_timeout'])
})

test('G10: what is left at the end of the grace time is cut, and the timers are over', async () => {
  const { timers, pass } = clock()
  const bench = await open([route('f', { action: forward(await echo()) })], { timers, relay: false })
  const socket = client(bench.port)
  await said(socket, 'hello')
  const stopped = bench.plane.stop(5000)
  pass(4900)
  await said(socket, 'still here')
  pass(400)
  await Promise.all([stopped, gone(socket)])
  expect(reasons(bench.settled)).toEqual(['drained'])
  expect(timers.armed).toBe(0)
})

/** Says it and hears it back. */
async function said(socket: net.Socket, text: string) {
  let heard = ''
  const { promise, resolve } = Promise.withResolvers<void>()
  const hear = (bytes: Buffer) => {
    heard += bytes
    if (heard.length >= text.length) resolve()
  }
  socket.on('data', hear)
  socket.write(text)
  await promise
  socket.off('data', hear)
  expect(heard).toBe(text)
}

async function until(what: () => boolean) {
  for (const end = performance.now() + 5000; !what(); await Bun.sleep(1))
    if (performance.now() > end) throw new Error('not in time')
}
