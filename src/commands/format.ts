// How the command line writes things: sizes, times, and tables that fit the width they are given. Pure: the caller says how wide
// the terminal is and whether it has colours.

/** The least that a shortened column keeps: an ending that is cut to less says nothing. */
const COLUMN_MIN = 8
const GAP = '  '

export interface View {
  /** Columns of the terminal; Infinity where nobody counts them. */
  width: number
  colours: boolean
}

/** Cells that a state is written in; others have no colour. */
const STATE_COLOURS: Record<string, number> = {
  active: 32,
  up: 32,
  open: 32,
  valid: 32,
  applying: 33,
  fallback: 33,
  draining: 33,
  drained: 33,
  opening: 33,
  'half-closed': 33,
  closing: 33,
  renewing: 33,
  expiring: 33,
  failed: 31,
  down: 31,
  expired: 31,
  pending: 33,
}
const BOLD = 1

export const paint = (code: number, text: string) => `\x1b[${code}m${text}\x1b[0m`

/** As wide as its widest cell, and where that is too wide: the last column is shortened first, then the widest ones. What the first
 *  one holds is typed into other commands: it is shortened only when nothing else is left. */
export function table(head: string[], rows: string[][], { width, colours }: View): string {
  const cells = rows.map((row) => row.map(printable))
  const isNumber = head.map(
    (_, i) => cells.every((row) => NUMBER.test(row[i]!)) && cells.some((row) => /\d/.test(row[i]!)),
  )
  const natural = head.map((title, i) => cells.reduce((most, row) => Math.max(most, wide(row[i]!)), title.length))
  const widths = fitted(natural, head, width)
  const line = (row: string[], dress: (text: string, column: number) => string) => {
    const parts = row.map((cell, i) => {
      const text = shorten(cell, widths[i]!)
      const space = ' '.repeat(widths[i]! - wide(text))
      if (isNumber[i]) return space + dress(text, i)
      return dress(text, i) + (i === row.length - 1 ? '' : space)
    })
    return parts.join(GAP)
  }
  const states = head.findIndex((title) => /^STATE\b/.test(title))
  const dress = (text: string, column: number) => {
    const colour = column === states ? STATE_COLOURS[text] : undefined
    return colours && colour !== undefined ? paint(colour, text) : text
  }
  const title = line(head, (text) => text)
  return [colours ? paint(BOLD, title) : title, ...cells.map((row) => line(row, dress))].join('\n') + '\n'
}

const NUMBER = /^(?:[\d.]+(?: (?:[KMGTP]i)?B)?|[-?])$/

function fitted(natural: number[], head: string[], width: number): number[] {
  const widths = [...natural]
  const least = head.map((title) => Math.max(title.length, COLUMN_MIN))
  const excess = () => widths.reduce((sum, one) => sum + one + GAP.length, -GAP.length) - width
  const give = (column: number, floor: number) => {
    const amount = Math.min(excess(), widths[column]! - floor)
    if (amount > 0) widths[column]! -= amount
  }
  const last = widths.length - 1
  give(last, least[last]!)
  // One column of text after the other gives one place at a time, the widest first.
  while (excess() > 0) {
    const columns = widths.map((_, i) => i).filter((i) => i > 0 && widths[i]! > least[i]!)
    if (columns.length === 0) break
    const widest = columns.reduce((best, i) => (widths[i]! > widths[best]! ? i : best))
    give(widest, widths[widest]! - 1)
  }
  for (let column = last; column >= 0; column--) give(column, 1)
  return widths
}

/** Names and errors come from the network: none of them moves the cursor or turns the writing round. */
export const printable = (text: string) =>
  text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, '?')

/** In columns of a terminal. */
const wide = (text: string) => Bun.stringWidth(text)

/** The beginning, with an ellipsis, where it is too long. */
export function shorten(text: string, width: number): string {
  if (wide(text) <= width) return text
  if (width <= 0) return ''
  let [kept, used] = ['', 0]
  for (const character of text) {
    used += wide(character)
    if (used > width - 1) break
    kept += character
  }
  return `${kept}…`
}

export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  const unit = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1)
  return unit === 0 ? `${Math.round(bytes)} B` : `${(bytes / 2 ** (unit * 10)).toFixed(1)} ${units[unit]}`
}

/** "12s", "3m05s", "2h10m", "5d3h". */
export function age(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000))
  const [minutes, hours, days] = [60, 3600, 86_400].map((unit) => Math.floor(seconds / unit)) as [
    number,
    number,
    number,
  ]
  const two = (number: number) => String(number).padStart(2, '0')
  if (days > 0) return `${days}d${two(hours % 24)}h`
  if (hours > 0) return `${hours}h${two(minutes % 60)}m`
  return minutes > 0 ? `${minutes}m${two(seconds % 60)}s` : `${seconds}s`
}

/** ":8080", "10.0.0.1:8000-8999", as a listing shows where a route listens. */
export const listens = (all: readonly { address: string | null; from: number; to: number }[]) =>
  all
    .map(({ address, from, to }) => {
      const host = address === null ? '*' : address.includes(':') ? `[${address}]` : address
      return `${host}:${from === to ? from : `${from}-${to}`}`
    })
    .join(',')
