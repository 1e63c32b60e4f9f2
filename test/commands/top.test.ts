// What sluice top shows, as a function of what it saw, what was pressed and how large the terminal is.
import { expect, test } from 'bun:test'
import { draw, pageOf, type Size } from '../../src/commands/top/draw.ts'
import { rowsOf, TABS, type Look } from '../../src/commands/top/look.ts'
import {
  failed,
  initialState,
  keptItems,
  keysOf,
  looked,
  press,
  shownRows,
  type TopState,
} from '../../src/commands/top/state.ts'

const moved = (bytesIn: number, bytesOut: number, opened = 0) => ({ bytesIn, bytesOut, opened, closed: 0 })
const rates = (bytesIn: number, bytesOut: number, opened = 0) => {
  const one = moved(bytesIn, bytesOut, opened)
  return { '1s': one, '10s': one, '60s': one }
}
const route = (name: string, carrier: string, connections: number, rate: ReturnType<typeof rates> | null) => ({
  name,
  carrier,
  state: 'active',
  draining: false,
  reason: 'nothing has to be read',
  connections,
  total: connections * 10,
  rates: rate,
  listens: [{ address: null, from: 80, to: 80 }],
})
const connection = (id: string, client: string, bytesIn: number, more: object = {}) => ({
  id,
  route: 'web',
  carrier: 'kernel' as const,
  client,
  listener: '192.0.2.1:80',
  target: '10.0.0.5:8080',
  state: 'open' as const,
  openedAt: '2026-01-01T00:00:00.000Z',
  bytesIn,
  bytesOut: 2 * bytesIn,
  ...more,
})
const target = (name: string, bytesIn: number) => ({
  route: 'web',
  target: name,
  state: 'up' as const,
  up: true,
  weight: 1,
  share: 1,
  connections: 1,
  total: 5,
  bytesIn,
  bytesOut: 0,
})

const LOOK: Look = {
  atMs: 10_000,
  nowMs: Date.parse('2026-01-01T00:01:05Z'),
  status: {
    version: '1.2.3',
    startedAt: '2025-12-31T22:00:00.000Z',
    routes: { total: 3, active: 2 },
    connections: { kernel: 7, proxied: 3 },
    conntrack: { entries: 25, limit: 100 },
    rates: rates(2048, 4096, 2.5),
  },
  routes: [
    route('mail', 'splice', 3, rates(1024, 0)),
    route('web', 'kernel', 7, rates(1024, 4096, 2.5)),
    route('api', 'user', 0, null),
  ],
  connections: [
    connection('c1', '10.0.0.2:4711', 4096),
    connection('c2', '10.0.0.22:4711', 8192, { route: 'mail', carrier: 'splice', serverName: 'a.test' }),
    connection('c3', '[2001:db8::7]:99', 0, { target: null, state: 'opening' }),
  ],
  clients: [
    { client: '10.0.0.2', connections: 1, bytesIn: 100, bytesOut: 5, routes: ['web'] },
    { client: '10.0.0.22', connections: 4, bytesIn: 1, bytesOut: 5, routes: ['mail', 'web'] },
  ],
  targets: [target('10.0.0.5:8080', 100), target('10.0.0.6:8080', 300)],
}
const SIZE: Size = { columns: 100, rows: 20 }
const start = (filter = {}) => looked(initialState(filter), LOOK)
const after = (state: TopState, ...keys: string[]) =>
  keys.reduce((now, key) => {
    const next = press(now, key, pageOf(SIZE))
    if (next === 'quit') throw new Error('it quit')
    return next
  }, state)
const names = (state: TopState) => shownRows(state).map((row) => row.cells()[0])

test('the picture: totals, each carrier, tabs, the table in its order', () => {
  expect(draw(start(), SIZE, false)).toEqual([
    'sluice 1.2.3  up 2h01m  2 of 3 routes active  conntrack 25 %',
    '10 connections  in 2.0 KiB/s  out 4.0 KiB/s  2.5 new/s',
    'kernel        7  in    1.0 KiB/s  out    4.0 KiB/s',
    'splice        3  in    1.0 KiB/s  out        0 B/s',
    'user          0  in        0 B/s  out        0 B/s',
    '[1 routes]  2 connections   3 clients   4 targets ',
    'ROUTE  CARRIER  STATE   NOW▼  TOTAL     IN/S    OUT/S  NEW/S  LISTENS  WHY',
    'web    kernel   active     7     70  1.0 KiB  4.0 KiB    2.5  *:80     nothing has to be read',
    'mail   splice   active     3     30  1.0 KiB      0 B      0  *:80     nothing has to be read',
    'api    user     active     0      0        -        -      -  *:80     nothing has to be read',
    '3 of 3  ? help  q quit',
  ])
})

test('nothing is wider or longer than the terminal, with help and without, in colours or not', () => {
  for (const size of [SIZE, { columns: 40, rows: 8 }, { columns: 20, rows: 3 }, { columns: 5, rows: 1 }])
    for (const colours of [true, false])
      for (const keys of [[], ['2'], ['3'], ['4'], ['?'], ['/', 'x']]) {
        const lines = draw(after(start(), ...keys), size, colours)
        expect(lines.length).toBeLessThanOrEqual(size.rows)
        for (const line of lines) expect(Bun.stringWidth(line), line).toBeLessThanOrEqual(size.columns)
      }
  const coloured = draw(start(), SIZE, true)
  expect(coloured.join('')).toContain('\x1b[')
  expect(coloured.map((line) => Bun.stripANSI(line))).toEqual(draw(start(), SIZE, false))
})

test('keys: order, the other way round, tabs, and leaving', () => {
  expect(names(start())).toEqual(['web', 'mail', 'api'])
  expect(names(after(start(), 'n'))).toEqual(['api', 'mail', 'web'])
  expect(names(after(start(), 'n', 'r'))).toEqual(['web', 'mail', 'api'])
  expect(names(after(start(), 'o'))).toEqual(['web', 'mail', 'api'])
  expect(names(after(start(), 'c', 'r'))).toEqual(['api', 'mail', 'web'])
  expect(['right', '\t', 'left', 'shift-tab', '4', '1', 'Z'].map((key) => after(start(), key).tab)).toEqual([
    'connections',
    'connections',
    'targets',
    'targets',
    'targets',
    'routes',
    'routes',
  ])
  // Each tab keeps its own order.
  expect(names(after(start(), '3', 'n', '1', '3'))).toEqual(['10.0.0.2', '10.0.0.22'])
  expect(names(after(start(), '3'))).toEqual(['10.0.0.22', '10.0.0.2'])
  for (const key of ['q', '\x03']) expect(press(start(), key, 1)).toBe('quit')
  expect(press(after(start(), '?'), 'q', 1)).toBe('quit')
  expect(after(start(), '?', 'x')).toEqual(start())
  // "q" is text while something is typed; Ctrl-C never is.
  expect(after(start(), '/', 'q').search).toBe('q')
  expect(press(after(start(), '/'), '\x03', 1)).toBe('quit')
})

test('search: what contains the text, in any cell', () => {
  const typing = after(start(), '2', '/', 'A', '.', 't')
  expect(names(typing)).toEqual(['c2'])
  expect(draw(typing, SIZE, false).at(-1)).toBe('/A.t_')
  expect(names(after(typing, '\r'))).toEqual(['c2'])
  expect(draw(after(typing, '\r'), SIZE, false).at(-1)).toStartWith('1 of 3  only "A.t"')
  expect(names(after(typing, '\x1b'))).toHaveLength(3)
  expect(names(after(typing, '\r', '\x1b'))).toHaveLength(3)
  expect(after(typing, '\x7f').search).toBe('A.')
  expect(after(start(), '/', ...'x'.repeat(100)).search).toHaveLength(64)
})

test('--route, --client and --target leave what they name', () => {
  const kept = (filter: object, tab: string) => names(after(start(filter), tab))
  expect(kept({ route: 'mail' }, '1')).toEqual(['mail'])
  expect(kept({ route: 'mail' }, '2')).toEqual(['c2'])
  expect(kept({ route: 'mail' }, '3')).toEqual(['10.0.0.22'])
  // An address is meant whole: 10.0.0.2 is not 10.0.0.22.
  expect(kept({ client: '10.0.0.2' }, '2')).toEqual(['c1'])
  expect(kept({ client: '10.0.0.2' }, '3')).toEqual(['10.0.0.2'])
  expect(kept({ client: '10.0.' }, '2').toSorted()).toEqual(['c1', 'c2'])
  expect(kept({ client: '10.0.0.2:4711' }, '2')).toEqual(['c1'])
  expect(kept({ client: '10.0.0.2:47' }, '2')).toEqual([])
  expect(kept({ client: '2001:db8::7' }, '2')).toEqual(['c3'])
  expect(kept({ target: '10.0.0.6' }, '4')).toEqual(['10.0.0.6:8080'])
  expect(kept({ target: '8080' }, '2').toSorted()).toEqual(['c1', 'c2'])
  // Routes have no client of their own.
  expect(kept({ client: '10.0.0.2' }, '1')).toHaveLength(3)
  expect(keptItems('connections', LOOK, { client: '10.0.0.2' })).toEqual([LOOK.connections![0]!])
})

test('rates of connections, clients and targets are what was carried since the look before', () => {
  const later: Look = {
    ...LOOK,
    atMs: LOOK.atMs + 2000,
    connections: [connection('c1', '10.0.0.2:4711', 8192), connection('c9', '10.0.0.9:1', 50)],
    // Sums over live connections: one has ended.
    clients: [{ ...LOOK.clients![0]!, bytesIn: 10, bytesOut: 2053 }],
    targets: [target('10.0.0.5:8080', 2148)],
  }
  const cells = (tab: 'connections' | 'clients' | 'targets', from: number) =>
    rowsOf(tab, later, LOOK).map((row) => row.cells().slice(from, from + 2))
  expect(cells('connections', 7)).toEqual([
    ['2.0 KiB', '4.0 KiB'],
    ['-', '-'],
  ])
  expect(cells('clients', 4)).toEqual([['0 B', '1.0 KiB']])
  expect(cells('targets', 5)).toEqual([['1.0 KiB', '0 B']])
  for (const tab of TABS)
    for (const row of rowsOf(tab, LOOK, null))
      expect(row.cells()).toHaveLength(rowsOf(tab, LOOK, null)[0]!.cells().length)
})

test('scrolling stays within the rows, also when they become fewer', () => {
  const many = Array.from({ length: 50 }, (_, i) => route(`r${String(i).padStart(2, '0')}`, 'user', 50 - i, null))
  const state = looked(initialState({}), { ...LOOK, routes: many })
  const page = pageOf(SIZE)
  const first = (one: TopState) => draw(one, SIZE, false)[7]!.split(' ')[0]
  expect(first(after(state, 'down', 'down'))).toBe('r02')
  expect(first(after(state, 'page-down', 'up'))).toBe(`r${page - 1}`)
  expect(first(after(state, 'up', 'page-up', 'home'))).toBe('r00')
  expect(after(state, 'end', 'down').offset).toBe(50 - page)
  const fewer = looked(after(state, 'end'), LOOK)
  expect(first(fewer)).toBe('web')
})

test('a gateway that does not answer is said, and what was seen last stays', () => {
  const lost = failed(start(), 'Cannot reach the gateway\x1b[2J')
  const lines = draw(lost, SIZE, false)
  expect(lines.at(-1)).toBe('Cannot reach the gateway?[2J')
  expect(lines.slice(0, -1)).toEqual(draw(start(), SIZE, false).slice(0, -1))
  expect(draw(initialState({}), SIZE, false).at(-1)).toStartWith('looking…')
  // This look did not ask for connections.
  const { connections: _, ...without } = LOOK
  expect(draw(after(looked(initialState({}), without), '2'), SIZE, false).at(-1)).toStartWith('looking…')
})

test('what clients say cannot steer the terminal', () => {
  const hostile = connection('c1', '10.0.0.2:1', 0, { serverName: 'x\x1b[2Jy\u202e' })
  const text = draw(
    after(looked(initialState({}), { ...LOOK, connections: [hostile] }), '2'),
    { columns: 200, rows: 20 },
    true,
  )
  expect(Bun.stripANSI(text.join(''))).not.toMatch(/[\x00-\x1f\u202e]/)
  expect(text.join('')).toContain('x?[2Jy?')
})

test('what a terminal sends, as keys', () => {
  expect(keysOf('a\x1b[A\x1bOB\x1b[5~\x1b[Zq\x1b[99;5u')).toEqual(['a', 'up', 'down', 'page-up', 'shift-tab', 'q'])
  expect(keysOf('\x1b')).toEqual(['\x1b'])
  expect(keysOf('\x03\t')).toEqual(['\x03', '\t'])
})
