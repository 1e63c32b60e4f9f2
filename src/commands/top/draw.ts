// What sluice top shows: a state and the size of a terminal make lines, none wider or more than fit. Pure.
import { age, paint, printable, shorten, size, table } from '../format.ts'
import { COLUMNS, perCarrier, TABS, type Column, type Row, type Tab } from './look.ts'
import { shownRows, type TopState } from './state.ts'

export interface Size {
  columns: number
  rows: number
}

const HEADER_LINES = 6
const FOOTER_LINES = 1
const [BOLD, DIM, RED, INVERSE] = [1, 2, 31, 7]

/** Rows of the table that fit beside its heading. */
export const pageOf = ({ rows }: Size) => Math.max(1, rows - HEADER_LINES - FOOTER_LINES - 1)

export function draw(state: TopState, size: Size, colours: boolean): string[] {
  const dress = (code: number, text: string) => (colours ? paint(code, text) : text)
  const cut = (text: string) => shorten(text, size.columns)
  const rows = shownRows(state)
  const content = state.help ? help(state.tab).map(cut) : body(state, rows, size, colours)
  const lines = [...header(state, cut, dress), ...content]
  const footer = dress(state.error ? RED : DIM, cut(footerOf(state, rows.length)))
  return [...lines.slice(0, Math.max(0, size.rows - FOOTER_LINES)), footer]
}

type Dress = (code: number, text: string) => string

function header({ look, tab }: TopState, cut: (text: string) => string, dress: Dress): string[] {
  if (!look) return ['sluice', '', '', '', '', tabs(tab, cut, dress)]
  const { status, routes } = look
  const moved = status.rates?.['1s']
  const inAll = moved
    ? `in ${size(moved.bytesIn)}/s  out ${size(moved.bytesOut)}/s  ${Math.round(moved.opened * 10) / 10} new/s`
    : 'rates not known yet'
  const table = status.conntrack
    ? `  conntrack ${Math.round((status.conntrack.entries / status.conntrack.limit) * 100)} %`
    : ''
  const carriers = perCarrier(routes).map((one) => {
    const [into, out] = [`${size(one.bytesIn)}/s`, `${size(one.bytesOut)}/s`]
    return cut(
      `${one.carrier.padEnd(7)}${String(one.connections).padStart(8)}  in ${into.padStart(12)}  out ${out.padStart(12)}`,
    )
  })
  const { active, total } = status.routes
  return [
    dress(
      BOLD,
      cut(
        `sluice ${status.version}  up ${age(look.nowMs - Date.parse(status.startedAt))}  ${active} of ${total} routes active${table}`,
      ),
    ),
    cut(`${status.connections.kernel + status.connections.proxied} connections  ${inAll}`),
    ...carriers,
    tabs(tab, cut, dress),
  ]
}

function tabs(current: Tab, cut: (text: string) => string, dress: Dress): string {
  const text = TABS.map((tab, i) => (tab === current ? `[${i + 1} ${tab}]` : ` ${i + 1} ${tab} `)).join(' ')
  // Cut before it is coloured: a colour has no width.
  return cut(text).replace(/\[\d [a-z]+\]/, (found) => dress(INVERSE, found))
}

function body(state: TopState, rows: Row[], size: Size, colours: boolean): string[] {
  const page = pageOf(size)
  // Rows may have gone since somebody scrolled.
  const from = Math.max(0, Math.min(state.offset, rows.length - page))
  const { key, reversed } = state.order[state.tab]
  const head = COLUMNS[state.tab].map((column) => heading(column, key, reversed))
  const text = table(
    head,
    rows.slice(from, from + page).map((row) => row.cells()),
    { width: size.columns, colours },
  )
  return text.trimEnd().split('\n')
}

const heading = ({ title, key }: Column, sortedBy: string, reversed: boolean) =>
  key === sortedBy ? `${title}${reversed ? '▲' : '▼'}` : title

function help(tab: Tab): string[] {
  const keys = COLUMNS[tab].filter(({ key }) => key !== undefined)
  return [
    '',
    `Order of ${tab}: ${keys.map(({ key, title }) => `${key} ${title.toLowerCase()}`).join(', ')}; r the other way round`,
    '1 to 4, Tab, arrows  another table',
    'Up, Down, PageUp, PageDown, Home, End  scroll',
    '/  show what contains a text; Enter keeps it, Esc shows all',
    'p, Space  hold still and go on      q  leave      any key  back',
  ]
}

function footerOf(state: TopState, shown: number): string {
  const { filter, search, typing, error, paused, look, tab } = state
  if (typing) return `/${search}_`
  if (error) return printable(error)
  const filters = [
    ...Object.entries(filter).flatMap(([name, value]) => (value === undefined ? [] : [`${name} ${value}`])),
    ...(search ? [`"${search}"`] : []),
  ]
  const count = look?.[tab] ? `${shown} of ${look[tab].length}` : 'looking…'
  const only = filters.length ? `  only ${filters.join(', ')}` : ''
  return printable(`${count}${only}${paused ? '  held still' : ''}  ? help  q quit`)
}
