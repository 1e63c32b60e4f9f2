// What the viewer of sluice top has chosen: tab, order, filter, place. Each key makes a new state of the old one. Pure.
import { COLUMNS, rowsOf, TABS, type Look, type Row, type Tab } from './look.ts'

export interface Filter {
  route?: string
  client?: string
  target?: string
}

export interface TopState {
  tab: Tab
  /** The key of a column, for each tab. */
  order: Record<Tab, { key: string; reversed: boolean }>
  filter: Filter
  /** Typed after "/": in any cell. */
  search: string
  typing: boolean
  help: boolean
  /** Rows above the first that is shown. */
  offset: number
  paused: boolean
  look: Look | null
  before: Look | null
  /** Why the last look failed. */
  error: string | null
}

/** What is typed after "/". */
const SEARCH_MAX = 64

export const initialState = (filter: Filter, tab: Tab = 'routes'): TopState => ({
  tab,
  order: {
    routes: { key: 'c', reversed: false },
    connections: { key: 'i', reversed: false },
    clients: { key: 'c', reversed: false },
    targets: { key: 'c', reversed: false },
  },
  filter,
  search: '',
  typing: false,
  help: false,
  offset: 0,
  paused: false,
  look: null,
  before: null,
  error: null,
})

export const looked = (state: TopState, look: Look): TopState => ({ ...state, look, before: state.look, error: null })
export const failed = (state: TopState, error: string): TopState => ({ ...state, error })

/** In order, and only what the filters leave. */
export function shownRows(state: TopState): Row[] {
  const { tab, look, before, filter, search } = state
  if (!look) return []
  const { key, reversed } = state.order[tab]
  const wanted = search.toLowerCase()
  return rowsOf(tab, look, before)
    .filter((row) => passes(row, tab, filter))
    .filter((row) => wanted === '' || row.cells().some((cell) => cell.toLowerCase().includes(wanted)))
    .sort((a, b) => compare(a.sort[key]!, b.sort[key]!) * (reversed ? -1 : 1) || compare(a.name, b.name))
}

/** Numbers fall, words rise: the busiest and the first of the alphabet are on top. */
const compare = (a: string | number, b: string | number) =>
  typeof a === 'number' && typeof b === 'number' ? b - a : a < b ? -1 : a > b ? 1 : 0

/** What the admin API said of everything that the filters leave. */
export const keptItems = (tab: Tab, look: Look, filter: Filter): object[] =>
  rowsOf(tab, look, null).flatMap((row) => (passes(row, tab, filter) ? row.item : []))

/** A tab that does not know clients, say, is not filtered by them. */
const passes = (row: Row, tab: Tab, { route, client, target }: Filter) =>
  (route === undefined || row.route.includes(route)) &&
  (client === undefined || tab === 'routes' || tab === 'targets' || isOf(row.client, client)) &&
  (target === undefined || tab === 'routes' || tab === 'clients' || row.target.includes(target))

/** An address is meant whole, with or without a port; "10.0." and "[2001:" are beginnings. */
function isOf(client: string, wanted: string): boolean {
  const bare = client.startsWith('[') ? client.slice(1) : client
  const asked = wanted.startsWith('[') ? wanted.slice(1) : wanted
  if (!bare.startsWith(asked)) return false
  const next = bare[asked.length]
  return next === undefined || next === ']' || (next === ':' && !asked.includes(':')) || /[.:]$/.test(asked)
}

/** @param page rows that fit. */
export function press(state: TopState, key: string, page: number): TopState | 'quit' {
  if (key === '\x03') return 'quit'
  if (state.typing) return typed(state, key)
  if (state.help) return key === 'q' ? 'quit' : { ...state, help: false }
  const digit = TABS[Number(key) - 1]
  if (digit) return onTab(state, digit)
  switch (key) {
    case 'q':
      return 'quit'
    case '?':
    case 'h':
      return { ...state, help: true }
    case '/':
      return { ...state, typing: true }
    case '\x1b':
      return { ...state, search: '', offset: 0 }
    case 'p':
    case ' ':
      return { ...state, paused: !state.paused }
    case 'r':
      return reorder(state, ({ key, reversed }) => ({ key, reversed: !reversed }))
    case '\t':
    case 'right':
      return onTab(state, neighbour(state.tab, 1))
    case 'shift-tab':
    case 'left':
      return onTab(state, neighbour(state.tab, -1))
    default:
      return MOVES[key] ? scrolled(state, MOVES[key](state.offset, page), page) : sorted(state, key)
  }
}

const MOVES: Record<string, (offset: number, page: number) => number> = {
  up: (offset) => offset - 1,
  down: (offset) => offset + 1,
  'page-up': (offset, page) => offset - page,
  'page-down': (offset, page) => offset + page,
  home: () => 0,
  end: () => Infinity,
}

const scrolled = (state: TopState, offset: number, page: number): TopState => ({
  ...state,
  offset: Math.max(0, Math.min(offset, shownRows(state).length - page)),
})

const onTab = (state: TopState, tab: Tab): TopState => ({ ...state, tab, offset: 0 })
const neighbour = (tab: Tab, step: number) => TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length]!

type Order = TopState['order'][Tab]
const reorder = (state: TopState, change: (order: Order) => Order): TopState => ({
  ...state,
  offset: 0,
  order: { ...state.order, [state.tab]: change(state.order[state.tab]) },
})

function sorted(state: TopState, key: string): TopState {
  if (!COLUMNS[state.tab].some((column) => column.key === key)) return state
  return reorder(state, () => ({ key, reversed: false }))
}

function typed(state: TopState, key: string): TopState {
  if (key === '\r' || key === '\n') return { ...state, typing: false }
  if (key === '\x1b') return { ...state, typing: false, search: '', offset: 0 }
  if (key === '\x7f' || key === '\b') return { ...state, search: state.search.slice(0, -1), offset: 0 }
  const isText = key.length === 1 && key >= ' ' && state.search.length < SEARCH_MAX
  return isText ? { ...state, search: state.search + key, offset: 0 } : state
}

const SEQUENCES: Record<string, string> = {
  '\x1b[A': 'up',
  '\x1bOA': 'up',
  '\x1b[B': 'down',
  '\x1bOB': 'down',
  '\x1b[C': 'right',
  '\x1bOC': 'right',
  '\x1b[D': 'left',
  '\x1bOD': 'left',
  '\x1b[5~': 'page-up',
  '\x1b[6~': 'page-down',
  '\x1b[H': 'home',
  '\x1b[1~': 'home',
  '\x1b[F': 'end',
  '\x1b[4~': 'end',
  '\x1b[Z': 'shift-tab',
}

/** What a terminal sent, key by key; sequences that nobody here knows are no keys. */
export const keysOf = (text: string): string[] =>
  [...text.matchAll(/\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[^]/gu)].flatMap(([key]) =>
    key.length > 1 && key.startsWith('\x1b') ? (SEQUENCES[key] ?? []) : key,
  )
