// Events for those who listen: each hears what it asked for, in order; one that does not keep up knows what it missed; and
// nobody listening costs nothing.
import { afterEach, beforeEach, expect, jest, test } from 'bun:test'
import {
  EVENT_BYTES_QUEUED_MAX,
  EVENT_HEARTBEAT_MS,
  EVENT_LOOK_MS,
  EVENT_STALLED_BEATS_MAX,
  EVENT_SUBSCRIBERS_MAX,
} from '../../src/base/limits.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { ConnectionTable } from '../../src/connections/table.ts'
import { Events, type RouteNow } from '../../src/observe/events.ts'
import { EventListener } from './listener.ts'

let routes: RouteNow[]
let looks: number
let events: Events
let table: ConnectionTable

beforeEach(() => {
  jest.useFakeTimers()
  looks = 0
  routes = [{ name: 'a', carrier: 'user', state: 'applying', reason: 'not yet' }]
  events = new Events({
    routes: () => {
      looks++
      return routes
    },
  })
  table = new ConnectionTable()
  table.observe(events)
})

afterEach(() => {
  events.stop()
  jest.useRealTimers()
})

const record = (id: string, more: Partial<ConnectionRecord> = {}): ConnectionRecord => ({
  id,
  route: 'a',
  carrier: 'user',
  client: '10.0.0.1:1000',
  listener: '10.0.0.2:80',
  target: null,
  state: 'opening',
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn: 0,
  bytesOut: 0,
  ...more,
})
const closed = (id: string, more: Partial<ConnectionRecord> = {}) =>
  record(id, { state: 'closed', closedAt: '2026-01-01T00:00:01.000Z', reason: 'finished', ...more })
const nothing = { opened: [], changed: [], settled: [], refused: [] }

const listen = (route: string | null = null) => new EventListener(events.subscribe(route))
/** What was published has been read. */
async function settle() {
  for (let i = 0; i < 20; i++) await Promise.resolve()
}

test('M3: a connection opens, changes and closes, each with its record', async () => {
  const listener = listen()
  table.ingest({ ...nothing, opened: [record('1')] })
  table.ingest({ ...nothing, changed: [{ id: '1', state: 'open', target: '10.1.0.1:80' }] })
  table.ingest({ ...nothing, settled: [closed('1', { target: '10.1.0.1:80', bytesIn: 7 })] })
  await settle()
  expect(listener.told).toEqual([
    { event: 'opened', ...record('1') },
    { event: 'changed', ...record('1', { state: 'open', target: '10.1.0.1:80' }) },
    { event: 'closed', ...closed('1', { target: '10.1.0.1:80', bytesIn: 7 }) },
  ])
  expect(listener.heartbeats).toBe(1)
})

test('M3: one that opened and closed within a batch is told by its end alone', async () => {
  const listener = listen()
  table.ingest({ ...nothing, settled: [closed('1', { reason: 'handshake_failed' })] })
  await settle()
  expect(listener.told).toEqual([{ event: 'closed', ...closed('1', { reason: 'handshake_failed' }) }])
})

test('M3: refusals are summed up, a line a second', async () => {
  const listener = listen()
  for (let i = 0; i < 1000; i++) table.ingest({ ...nothing, refused: [{ route: 'a', reason: 'route_rate', count: 2 }] })
  table.ingest({ ...nothing, refused: [{ route: 'a', reason: 'route_limit', count: 1, observed: true }] })
  await settle()
  expect(listener.told).toEqual([])
  jest.advanceTimersByTime(EVENT_LOOK_MS)
  await settle()
  expect(listener.told).toMatchObject([
    { event: 'refused', route: 'a', reason: 'route_rate', count: 2000 },
    { event: 'refused', route: 'a', reason: 'route_limit', count: 1, mode: 'observe' },
  ])
})

test('M3: routes: what changes of one, one that comes, one that goes; what is, is no change', async () => {
  const listener = listen()
  jest.advanceTimersByTime(EVENT_LOOK_MS)
  await settle()
  expect(listener.told).toEqual([])
  routes = [
    { name: 'a', carrier: 'kernel', state: 'active', reason: 'nothing has to be read' },
    { name: 'b', carrier: 'user', state: 'active', reason: 'tls' },
  ]
  jest.advanceTimersByTime(EVENT_LOOK_MS)
  routes = routes.slice(0, 1)
  jest.advanceTimersByTime(EVENT_LOOK_MS)
  await settle()
  expect(listener.told).toEqual([
    { event: 'route', route: 'a', carrier: 'kernel', state: 'active', reason: 'nothing has to be read' },
    { event: 'route', route: 'b', carrier: 'user', state: 'active', reason: 'tls' },
    { event: 'route', route: 'b', state: 'removed' },
  ])
})

test('M3: targets go down and come back', async () => {
  const listener = listen()
  events.target({ route: 'a', endpoint: '10.1.0.1:80', up: false, why: 'ECONNREFUSED' })
  await settle()
  expect(listener.told).toEqual([
    { event: 'target', route: 'a', target: '10.1.0.1:80', up: false, why: 'ECONNREFUSED' },
  ])
})

test('M3: one route only', async () => {
  const [all, one] = [listen(), listen('b')]
  table.ingest({ ...nothing, opened: [record('1'), record('2', { route: 'b' })] })
  table.ingest({ ...nothing, settled: [closed('1'), closed('2', { route: 'b' })] })
  await settle()
  expect(all.told.map(({ event, id }) => [event, id])).toEqual([
    ['opened', '1'],
    ['opened', '2'],
    ['closed', '1'],
    ['closed', '2'],
  ])
  expect(one.told.map(({ event, id }) => [event, id])).toEqual([
    ['opened', '2'],
    ['closed', '2'],
  ])
})

test('M3: one that does not read loses events, is told how many, and then hears the next', async () => {
  const response = events.subscribe(null)
  const other = listen()
  const count = 5000
  for (let i = 0; i < count; i++) {
    table.ingest({ ...nothing, opened: [record(`${i}`)] })
    await settle()
  }
  const slow = new EventListener(response)
  while (slow.of('lost').length === 0) await settle()
  table.ingest({ ...nothing, opened: [record('last')] })
  await settle()
  expect(other.of('opened').length).toBe(count + 1)
  expect(other.of('lost')).toEqual([])
  const kept = slow.of('opened').length - 1
  expect(JSON.stringify(slow.told).length).toBeLessThan(EVENT_BYTES_QUEUED_MAX * 1.1)
  expect(kept).toBeGreaterThan(100)
  expect(slow.told.slice(0, kept).map(({ id }) => id)).toEqual(Array.from({ length: kept }, (_, i) => `${i}`))
  expect(slow.told.slice(kept)).toMatchObject([
    { event: 'lost', count: count - kept },
    { event: 'opened', id: 'last' },
  ])
})

test('M3: a heartbeat while nothing happens; one that never reads is let go', async () => {
  const listener = listen()
  const dead = events.subscribe(null)
  while (table.size < 3000) table.ingest({ ...nothing, opened: [record(`${table.size}`)] })
  await settle()
  for (let beat = 0; beat < EVENT_STALLED_BEATS_MAX; beat++) {
    jest.advanceTimersByTime(EVENT_HEARTBEAT_MS)
    await settle()
  }
  expect(listener.heartbeats).toBe(1 + EVENT_STALLED_BEATS_MAX)
  expect(listener.over).toBe(false)
  const late = new EventListener(dead)
  await late.done
  expect(late.told.length).toBeGreaterThan(100)
})

test('nobody listens: nothing is looked at, and no timer runs', async () => {
  table.ingest({ ...nothing, opened: [record('1')], refused: [{ route: 'a', reason: 'route_rate', count: 2 }] })
  jest.advanceTimersByTime(60_000)
  expect(looks).toBe(0)
  expect(jest.getTimerCount()).toBe(0)
  const [one, two] = [listen(), listen()]
  await settle()
  expect(events.wanted).toBe(true)
  expect(jest.getTimerCount()).toBe(2)
  await one.leave()
  jest.advanceTimersByTime(EVENT_LOOK_MS)
  expect(looks).toBe(2)
  await two.leave()
  expect(events.wanted).toBe(false)
  expect(jest.getTimerCount()).toBe(0)
})

test('too many are turned away; stop ends them all', async () => {
  const listeners = Array.from({ length: EVENT_SUBSCRIBERS_MAX }, () => listen())
  expect(events.subscribe(null).status).toBe(503)
  table.ingest({ ...nothing, refused: [{ route: 'a', reason: 'route_rate', count: 2 }] })
  events.stop()
  await Promise.all(listeners.map((listener) => listener.done))
  for (const { told } of listeners) expect(told).toMatchObject([{ event: 'refused', count: 2 }])
  expect(events.wanted).toBe(false)
  expect(jest.getTimerCount()).toBe(0)
})
