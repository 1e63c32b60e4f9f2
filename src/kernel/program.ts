// The static program and its elements as text: rendering, differences, and reading back what nft lists. Pure.
import anchorText from '../../nft/anchor.nft' with { type: 'text' }
import programText from '../../nft/sluice.nft' with { type: 'text' }
import { emptyState, MAPS, type MapName } from '../plan/kernel-state.ts'
import type { KernelElement, KernelState } from '../plan/types.ts'

const fill = (text: string, table: string, base: number) =>
  text.replaceAll('$table', table).replaceAll('$base', `0x${base.toString(16)}`)

/** Names this version of nft/sluice.nft in the table: another one there is replaced as a whole. */
export const programVersion = Bun.hash(programText).toString(16).slice(0, 12)

/** Commands in the order in which they may be applied one after another when one transaction cannot hold them all. */
export type Commands = string[]

/** The whole table anew. Live flows go on: the anchor is there, and NAT is decided on a flow's first packet. */
export function renderAll(table: string, base: number, state: KernelState): Commands {
  const program = [`add table inet ${table}`, `delete table inet ${table}`, fill(programText, table, base)].join('\n')
  return [program, ...renderDifference(table, emptyState(), state)]
}

/** Removes the table; no error when there is none. */
export const renderRemoval = (table: string) => `add table inet ${table}\ndelete table inet ${table}\n`

/** The anchor's commands, one a line, for an interactive nft. */
export const anchorLines = (table: string, base: number): string[] =>
  fill(anchorText, table, base)
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))

/** Few enough for a command to fit the send buffer of a netlink socket that may not be enlarged (user namespaces). */
const ELEMENTS_PER_COMMAND = 512

/** The commands that turn one state into the other; none when they are equal. Listeners go first and come last: a route
 *  half applied has no listener in the kernel, and its connections are served in user space. */
export function renderDifference(table: string, have: KernelState, want: KernelState): Commands {
  const listeners = MAPS.filter(isListener)
  const others = MAPS.filter((name) => !isListener(name))
  const gone = (name: MapName) =>
    Object.keys(have[name] ?? {}).filter((key) => !same(have[name]![key], want[name]?.[key]))
  const come = (name: MapName) =>
    Object.keys(want[name] ?? {}).filter((key) => !same(have[name]?.[key], want[name]![key]))
  const remove = (name: MapName) =>
    chunks(gone(name)).map((keys) => `delete element inet ${table} ${name} { ${keys.join(', ')} }`)
  const add = (name: MapName) =>
    chunks(come(name)).map(
      (keys) => `add element inet ${table} ${name} { ${keys.map((key) => render(key, want[name]![key]!)).join(', ')} }`,
    )
  return [...listeners.flatMap(remove), ...others.flatMap(remove), ...others.flatMap(add), ...listeners.flatMap(add)]
}

const same = (a: KernelElement | undefined, b: KernelElement | undefined) =>
  a !== undefined && b !== undefined && a.value === b.value && a.comment === b.comment

// A comment stands before the colon (nft 1.0.6), and is one of our own route names: letters, digits and "_.:-".
const render = (key: string, element: KernelElement) =>
  `${key}${element.comment === undefined ? '' : ` comment "${element.comment}"`}${element.value === undefined ? '' : ` : ${element.value}`}`

function chunks<T>(items: T[]): T[][] {
  const out: T[][] = []
  for (let i = 0; i < items.length; i += ELEMENTS_PER_COMMAND) out.push(items.slice(i, i + ELEMENTS_PER_COMMAND))
  return out
}

export const countElements = (state: KernelState) =>
  MAPS.reduce((sum, name) => sum + Object.keys(state[name] ?? {}).length, 0)

// ---- reading back ----

type Json =
  string | number | { concat?: Json[]; range?: Json[]; elem?: { val: Json; comment?: string }; prefix?: unknown }

/** nft's JSON listing → elements in our own spelling; null when the table is not the program of this version. */
export function parseListing(listing: unknown[]): { state: KernelState; version: string | null } {
  const state = emptyState()
  for (const item of listing as { map?: ListedSet; set?: ListedSet }[]) {
    const set = item.map ?? item.set
    const into = set && state[set.name]
    if (!into) continue
    for (const element of set.elem ?? []) {
      const [key, value] = item.map ? (element as [Json, Json]) : [element as Json, undefined]
      const parsed = parseKey(key, set.name)
      into[parsed.text] = {
        ...(value === undefined ? {} : { value: spellValue(value, set.name) }),
        ...(parsed.comment === undefined ? {} : { comment: parsed.comment }),
      }
    }
  }
  return { state, version: state.program!['0x00000001']?.comment ?? null }
}

interface ListedSet {
  name: string
  elem?: unknown[]
}

/** Listeners are keyed by address and port and say a mark; all others are keyed by a mark. */
const isListener = (map: string) => map.startsWith('listen')

const hex = (mark: Json) => `0x${(Number(mark) >>> 0).toString(16).padStart(8, '0')}`

function parseKey(key: Json, map: string): { text: string; comment?: string } {
  if (typeof key === 'object' && key.elem) return { ...parseKey(key.elem.val, map), comment: key.elem.comment }
  const parts = typeof key === 'object' && key.concat ? key.concat : [key]
  const text = parts.map((part, i) => (i === 0 && !isListener(map) ? hex(part) : spell(part))).join(' . ')
  return { text }
}

const spellValue = (value: Json, map: string) => (isListener(map) || map === 'program' ? hex(value) : spell(value))

function spell(part: Json): string {
  if (typeof part !== 'object') return String(part)
  if (part.concat) return part.concat.map(spell).join(' . ')
  if (part.range) return part.range.map(spell).join('-')
  return JSON.stringify(part)
}
