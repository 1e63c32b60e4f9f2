// The static program and its elements as text: rendering, differences, and reading back what nft lists. Pure.
import anchorText from '../../nft/anchor.nft' with { type: 'text' }
import programText from '../../nft/sluice.nft' with { type: 'text' }
import { formatIp, parseNetwork, rawIp6Bytes } from '../base/addresses.ts'
import { COMMON, emptyState, hex, intervalText, MAPS, sameElement, type MapName } from '../plan/kernel-state.ts'
import type { KernelElement, KernelGroup, KernelState } from '../plan/types.ts'
import { generatedIn, isGenerated, makeChain, removeChain } from './chains.ts'

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
 *  half applied has no listener in the kernel, and its connections are served in user space. Chains are made before what jumps
 *  to them and removed after. `chains`: the generated ones that are there. */
export function renderDifference(
  table: string,
  have: KernelState,
  want: KernelState,
  chains: Iterable<string> = chainsOf(have),
): Commands {
  const gone = new Elements()
  const come = new Elements()
  for (const key of new Set([...Object.keys(have.groups), ...Object.keys(want.groups)])) {
    const [before, after] = [have.groups[key], want.groups[key]]
    if (before === after) continue
    collect(before, after, gone)
    collect(after, before, come)
  }
  const wanted = chainsOf(want)
  const present = new Set(chains)
  const remove = (map: MapName) =>
    gone
      .of(map)
      .map(
        (elements) =>
          `delete element inet ${table} ${map} { ${elements.map(([key]) => keyToDelete(map, key)).join(', ')} }`,
      )
  const add = (map: MapName) =>
    come
      .of(map)
      .map((elements) => `add element inet ${table} ${map} { ${elements.map((pair) => render(...pair)).join(', ')} }`)
  return [
    ...LISTENERS.flatMap(remove),
    ...OTHERS.flatMap(remove),
    ...[...wanted].filter((name) => !present.has(name)).map((name) => makeChain(table, name)!.join('\n')),
    ...OTHERS.flatMap(add),
    ...LISTENERS.flatMap(add),
    ...[...present].filter((name) => !wanted.has(name)).map((name) => removeChain(table, name).join('\n')),
  ]
}

/** Listeners are keyed by address and port and say a mark; all others are keyed by a mark. */
const isListener = (map: string) => map.startsWith('listen')
const LISTENERS = MAPS.filter(isListener)
const OTHERS = MAPS.filter((map) => !isListener(map))

const LISTS: readonly string[] = ['block4', 'block6', 'allow4', 'allow6']

/** Single addresses in a set of networks are deleted as ranges of one: as they stand nft 1.0.6 sends them without an end, and
 *  the kernel does not find them. */
function keyToDelete(map: MapName, key: string): string {
  const address = LISTS.includes(map) && key.split(' . ')[1]!
  return address && !address.includes('-') ? `${key}-${address}` : key
}

class Elements {
  readonly #byMap = new Map<string, [string, KernelElement][]>()
  push(map: string, key: string, element: KernelElement) {
    const list = this.#byMap.get(map)
    if (list) list.push([key, element])
    else this.#byMap.set(map, [[key, element]])
  }
  /** Those of a map, as many at a time as a command may have. */
  of(map: string) {
    return chunks(this.#byMap.get(map) ?? [])
  }
}

/** What `from` has and `other` has not, or not so. */
function collect(from: KernelGroup | undefined, other: KernelGroup | undefined, into: Elements) {
  for (const map in from)
    for (const key in from[map]) {
      const element = from[map]![key]!
      if (!sameElement(element, other?.[map]?.[key])) into.push(map, key, element)
    }
}

const namesIn = new WeakMap<KernelGroup, string[]>()

/** The generated chains that a state's verdicts jump to. */
export function chainsOf(state: KernelState): Set<string> {
  const names = new Set<string>()
  for (const key in state.groups) {
    const group = state.groups[key]!
    let own = namesIn.get(group)
    if (!own) namesIn.set(group, (own = verdictsIn(group)))
    for (const name of own) names.add(name)
  }
  return names
}

const VERDICTS = ['client_max', 'client_rate', 'client_max_all', 'client_rate_all', 'timeouts', 'balance'] as const

const verdictsIn = (group: KernelGroup): string[] =>
  VERDICTS.flatMap((map) => Object.values(group[map] ?? {})).flatMap((element) => generatedIn(element.value!) ?? [])

// A comment stands before the colon (nft 1.0.6), and is one of our own route names: letters, digits and "_.:-".
const render = (key: string, { comment, over, value }: KernelElement) =>
  `${key}${over === undefined ? '' : ` ct count over ${over}`}${comment === undefined ? '' : ` comment "${comment}"`}${value === undefined ? '' : ` : ${value}`}`

function chunks<T>(items: T[]): T[][] {
  const out: T[][] = []
  for (let i = 0; i < items.length; i += ELEMENTS_PER_COMMAND) out.push(items.slice(i, i + ELEMENTS_PER_COMMAND))
  return out
}

const sizes = new WeakMap<KernelGroup, number>()

export function countElements(state: KernelState): number {
  let sum = 0
  for (const key in state.groups) {
    const group = state.groups[key]!
    let size = sizes.get(group)
    if (size === undefined)
      sizes.set(group, (size = Object.values(group).reduce((total, map) => total + Object.keys(map).length, 0)))
    sum += size
  }
  return sum
}

// ---- reading back ----

type Json =
  | string
  | number
  | {
      concat?: Json[]
      range?: [Json, Json]
      prefix?: { addr: string; len: number }
      elem?: { val: Json; comment?: string; 'ct count'?: { val: number } }
      jump?: { target: string }
      goto?: { target: string }
    }

export interface Listed {
  state: KernelState
  /** Version of the program that made the table; null when it is none of ours. */
  version: string | null
  chains: string[]
  shape: Shape
}

/** Digests of what the static program and the generated chains consist of, by name: anyone's edit of a rule changes one. */
export type Shape = Record<string, string>

/** One digest of everything that the static program makes: the same for a version of it and of nft. */
export const sealOf = (shape: Shape): string =>
  digest(
    Object.entries(shape)
      .filter(([name]) => !isGenerated(name.replace(/^\w+ /, '')))
      .toSorted(([a], [b]) => (a < b ? -1 : 1)),
  )

const digest = (value: unknown) => Bun.hash(JSON.stringify(value)).toString(16)

/** nft's JSON listing → elements in our own spelling, and the shape of the rest. */
export function parseListing(listing: unknown[], base: number): Listed {
  const state = emptyState()
  const common = hex(base)
  const found: Listed = { state, version: null, chains: [], shape: {} }
  const rules = new Map<string, unknown[]>()
  for (const item of listing as ListedItem[]) {
    const set = item.map ?? item.set
    if (item.rule) rules.set(item.rule.chain, [...(rules.get(item.rule.chain) ?? []), item.rule.expr])
    if (item.chain) {
      const { name, type, hook, prio, policy } = item.chain
      rules.set(name, [[type, hook, prio, policy], ...(rules.get(name) ?? [])])
      if (isGenerated(name)) found.chains.push(name)
    }
    if (!set) continue
    const { elem, ...rest } = set
    found.shape[`set ${set.name}`] = digest({ ...rest, handle: 0 })
    if (!OURS.has(set.name)) continue
    for (const element of elem ?? []) {
      const [key, value] = item.map ? (element as [Json, Json]) : [element as Json, undefined]
      readElement(set.name, key, value, common, found)
    }
  }
  for (const [chain, content] of rules) found.shape[`chain ${chain}`] = digest(content)
  found.version = state.groups[COMMON]?.program?.[hex(1)]?.comment ?? null
  return found
}

interface ListedItem {
  map?: ListedSet
  set?: ListedSet
  chain?: { name: string; type?: string; hook?: string; prio?: number; policy?: string }
  rule?: { chain: string; expr: unknown }
}
interface ListedSet {
  name: string
  elem?: unknown[]
}

const OURS = new Set<string>(MAPS)

function readElement(map: string, key: Json, value: Json | undefined, common: string, found: Listed) {
  const { text, first, comment, over } = parseKey(key, map)
  const element: KernelElement = {}
  if (value !== undefined) element.value = isListener(map) || map === 'program' ? hex(Number(value)) : spell(value)
  if (comment !== undefined) element.comment = comment
  if (over !== undefined) element.over = over
  const owner = isListener(map) ? element.value! : first
  const group = map === 'program' || owner === common ? COMMON : owner
  ;((found.state.groups[group] ??= {})[map] ??= {})[text] = element
}

function parseKey(key: Json, map: string): { text: string; first: string; comment?: string; over?: number } {
  if (typeof key === 'object' && key.elem)
    return { ...parseKey(key.elem.val, map), comment: key.elem.comment, over: key.elem['ct count']?.val }
  const parts = typeof key === 'object' && key.concat ? key.concat : [key]
  const texts = parts.map((part, i) => (i === 0 && !isListener(map) ? hex(Number(part)) : spell(part)))
  return { text: texts.join(' . '), first: texts[0]! }
}

function spell(part: Json): string {
  if (typeof part !== 'object') return spellAddress(String(part))
  if (part.concat) return part.concat.map(spell).join(' . ')
  if (part.range) return part.range.map(spell).join('-')
  if (part.prefix) return intervalText(parseNetwork(`${part.prefix.addr}/${part.prefix.len}`)![0]!)
  if (part.jump) return `jump ${part.jump.target}`
  if (part.goto) return `goto ${part.goto.target}`
  return JSON.stringify(part)
}

/** nft ends some IPv6 addresses with a dotted IPv4 one; ours are all hexadecimal. */
const spellAddress = (text: string) => (text.includes(':') && text.includes('.') ? formatIp(rawIp6Bytes(text)) : text)
