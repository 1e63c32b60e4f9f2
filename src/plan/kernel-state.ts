// The planned routes as elements of the static nft program: which map, which key, which value. Pure, and the only place
// that writes element text, always from numbers and parsed addresses, never from a string of the configuration.
import { compareBytes, familyOf, formatIp, mergeNetworks, type Interval } from '../base/addresses.ts'
import { parseRate } from '../base/units.ts'
import type { Config } from '../config/schema.ts'
import type { Ownership } from './ports.ts'
import { assignSlots, type Choice } from './slots.ts'
import type { Endpoint, Facts, KernelElement, KernelGroup, KernelState, Limits, PlannedRoute } from './types.ts'

/** Sets and maps whose elements are ours to say; the kernel fills the others (clients, rates, refused) itself. */
export const MAPS = [
  'routes', 'program',
  'listen4', 'listen6', 'listen4_range', 'listen6_range', 'listen', 'listen_range',
  'gate', 'divert',
  'block4', 'block6', 'allowed', 'allow4', 'allow6',
  'max', 'client_max', 'client_rate', 'max_all', 'client_max_all', 'client_rate_all', 'observe',
  'timeouts',
  'target4', 'target6', 'keep4', 'keep6', 'balance', 'slot4', 'slot6', 'slot_udp4', 'slot_udp6', 'slot_keep4', 'slot_keep6',
  'preserve',
] as const // prettier-ignore
export type MapName = (typeof MAPS)[number]

/** The group of what belongs to no route. */
export const COMMON = ''
/** Keys of the map "program". */
const VERSION_KEY = 1

/** Nothing but the program itself: no route has anything for the kernel to do. */
export const isEmpty = ({ groups }: KernelState) =>
  Object.entries(groups).every(([key, group]) => key === COMMON && Object.keys(group).every((map) => map === 'program'))

export const emptyState = (): KernelState => ({ groups: {} })

export const hex = (mark: number) => `0x${(mark >>> 0).toString(16).padStart(8, '0')}`
export const mark = (base: number, number: number) => hex(base | number)

export function kernelState(routes: PlannedRoute[], config: Config, facts: Facts, owned: Ownership): KernelState {
  const common = new Group()
  common.put('program', hex(VERSION_KEY), { value: mark(facts.markBase, 0), comment: facts.programVersion })
  if (facts.kernelUnusable !== null) return { groups: { [COMMON]: common.maps } }

  const everyone = limitsOfAll(config)
  const groups = new Map<string, Group>()
  // What the limits of all routes refuse is counted by route, where the port tells which.
  const owners = new Set(everyone ? owned.runs.map(({ route }) => route.name) : [])
  for (const route of routes)
    if (isSeen(route) || owners.has(route.name)) groups.set(route.name, routeGroup(route, everyone !== null, facts))
  const userSpace = mark(facts.markBase, 0)
  if (everyone) {
    addLimitsOfAll(common, userSpace, everyone)
    common.put('gate', userSpace, { value: 'jump limits' })
  }
  listens(routes, owned, groups, common, facts, everyone !== null)
  if (common.has('listen4', 'listen6', 'listen4_range', 'listen6_range', 'listen', 'listen_range'))
    common.put('divert', userSpace, { value: 'goto user_space' })

  const state: KernelState = { groups: { [COMMON]: common.maps } }
  for (const route of routes) {
    const group = groups.get(route.name)
    if (group) state.groups[mark(facts.markBase, route.number)] = group.maps
  }
  return reuse(state, facts.before)
}

/** Groups that are equal become the same object: what did not change costs nothing to compare later. */
function reuse(state: KernelState, before: KernelState): KernelState {
  for (const [key, group] of Object.entries(state.groups)) {
    const old = before.groups[key]
    if (old && sameGroup(old, group)) state.groups[key] = old
  }
  return state
}

export function sameGroup(a: KernelGroup, b: KernelGroup): boolean {
  if (a === b) return true
  for (const map in b) if (a[map] === undefined) return false
  for (const map in a) if (!sameElements(a[map]!, b[map])) return false
  return true
}

function sameElements(a: Record<string, KernelElement>, b: Record<string, KernelElement> | undefined): boolean {
  if (b === undefined) return false
  for (const key in b) if (a[key] === undefined) return false
  for (const key in a) if (!sameElement(a[key], b[key])) return false
  return true
}

export const sameElement = (a: KernelElement | undefined, b: KernelElement | undefined) =>
  a !== undefined && b !== undefined && a.value === b.value && a.comment === b.comment && a.over === b.over

class Group {
  readonly maps: KernelGroup = {}
  put(map: MapName, key: string, element: KernelElement = {}) {
    ;(this.maps[map] ??= {})[key] = element
  }
  has(...maps: MapName[]) {
    return maps.some((map) => this.maps[map] !== undefined)
  }
}

// ---- routes ----

/** The kernel has something to do for its connections: forward, refuse, or look at who they are. */
const isSeen = (route: PlannedRoute) =>
  route.carrier === 'kernel' || route.user.action.type === 'block' || isLimited(route)

function isLimited({ user: { security } }: PlannedRoute): boolean {
  const { allow, block, maxConnections, maxConnectionsPerIp, rate } = security
  return allow.length + block.length > 0 || maxConnections !== null || maxConnectionsPerIp !== null || rate !== null
}

function routeGroup(route: PlannedRoute, everyone: boolean, facts: Facts): Group {
  const group = new Group()
  const key = mark(facts.markBase, route.number)
  group.put('routes', key, { comment: route.name })
  if (isLimited(route)) addLimits(group, key, route)
  if (isLimited(route) || everyone) group.put('gate', key, { value: 'jump limits' })
  const diverted = divertOf(route)
  if (diverted) {
    group.put('divert', key, { value: `goto ${diverted}` })
    return group
  }
  addForwarding(group, key, route, facts)
  return group
}

function addForwarding(group: Group, key: string, route: PlannedRoute, facts: Facts) {
  group.put('timeouts', key, { value: `jump ${timeoutChain(route)}` })
  if (route.preserveSourceIp) group.put('preserve', key)
  const before = facts.before.groups[key]
  for (const family of [4, 6] as const) addTargets(group, key, family, route, before)
}

/** Where its connections go: everything of a group that follows from the route's endpoints. */
const FORWARDING: readonly string[] = [
  'divert', 'timeouts', 'preserve', 'target4', 'target6', 'keep4', 'keep6', 'balance',
  'slot4', 'slot6', 'slot_udp4', 'slot_udp6', 'slot_keep4', 'slot_keep6',
] // prettier-ignore

/** The state with other endpoints for some of its routes: targets came, went, or changed their share. */
export function withEndpoints(state: KernelState, routes: PlannedRoute[], facts: Facts): KernelState {
  const groups = { ...state.groups }
  for (const route of routes) {
    const key = mark(facts.markBase, route.number)
    const old = groups[key]
    if (!old) continue
    const group = new Group()
    for (const map in old) if (!FORWARDING.includes(map)) group.maps[map] = old[map]!
    const diverted = divertOf(route)
    if (diverted) group.put('divert', key, { value: `goto ${diverted}` })
    else addForwarding(group, key, route, facts)
    if (!sameGroup(old, group.maps)) groups[key] = group.maps
  }
  return { groups }
}

/** Where connections of the route go instead of to a target. */
function divertOf(route: PlannedRoute): string | undefined {
  if (route.user.action.type === 'block') return 'refuse_blocked'
  if (route.carrier !== 'kernel') return 'user_space'
  if (route.user.draining) return 'refuse_draining'
  return route.endpoints.every((endpoint) => endpoint.share === 0) ? 'refuse_no_target' : undefined
}

function addLimits(group: Group, key: string, { user: { security } }: PlannedRoute) {
  if (security.observe) group.put('observe', key)
  addNetworks(group, 'block', key, security.block)
  addNetworks(group, 'allow', key, security.allow)
  if (security.allow.length > 0) group.put('allowed', key)
  if (security.maxConnections !== null) group.put('max', key, { over: security.maxConnections })
  if (security.maxConnectionsPerIp !== null)
    group.put('client_max', key, { value: `jump client_max_${security.maxConnectionsPerIp}` })
  if (security.rate) group.put('client_rate', key, { value: `jump client_rate_${rateName(security.rate)}` })
}

type Rate = { count: number; perMs: number }
const rateName = ({ count, perMs }: Rate) =>
  `${count}_${perMs === 1000 ? 'second' : perMs === 60_000 ? 'minute' : 'hour'}`

/** null: there are none. */
export function limitsOfAll(config: Config): Limits | null {
  const { maxConnections = null, maxConnectionsPerIp = null, connectionRatePerIp } = config.limits ?? {}
  const rate = connectionRatePerIp ? parseRate(connectionRatePerIp)! : null
  if (maxConnections === null && maxConnectionsPerIp === null && rate === null) return null
  return { maxConnections, maxConnectionsPerIp, rate }
}

function addLimitsOfAll(group: Group, key: string, limits: Limits) {
  if (limits.maxConnections !== null) group.put('max_all', key, { over: limits.maxConnections })
  if (limits.maxConnectionsPerIp !== null)
    group.put('client_max_all', key, { value: `jump client_max_all_${limits.maxConnectionsPerIp}` })
  if (limits.rate) group.put('client_rate_all', key, { value: `jump client_rate_all_${rateName(limits.rate)}` })
}

function addNetworks(group: Group, list: 'allow' | 'block', key: string, networks: string[]) {
  const intervals = mergeNetworks(networks)
  for (const family of [4, 6] as const)
    for (const interval of intervals[family]) group.put(`${list}${family}`, `${key} . ${intervalText(interval)}`)
}

export const intervalText = ({ from, to }: Omit<Interval, 'family'>) =>
  compareBytes(from, to) === 0 ? formatIp(from) : `${formatIp(from)}-${formatIp(to)}`

// ---- timeouts ----

/** What conntrack adds to a limit of ours, so that control, while it runs, is the one that ends the flow. */
const backstopS = (ms: number) => Math.ceil(ms / 1000) + Math.max(60, Math.ceil(ms / 10_000))

/** The chain that gives the route's flows their conntrack timeouts, in seconds: of a quiet flow, of a half-closed one, of one
 *  that the target does not answer. UDP has no end but its timeout, so that is the limit itself. */
function timeoutChain({ listens, user }: PlannedRoute): string {
  const { idle, halfClosed, connect } = user.timeoutsMs
  if (listens[0]!.protocol === 'udp') return `timeout_udp_${Math.max(1, Math.ceil(idle / 1000))}`
  const half = user.action.type === 'forward' && user.action.allowHalfOpen ? idle : halfClosed
  return `timeout_tcp_${backstopS(idle)}_${backstopS(half)}_${backstopS(connect)}`
}

// ---- targets ----

function addTargets(group: Group, key: string, family: 4 | 6, route: PlannedRoute, before: KernelGroup | undefined) {
  const usable = route.endpoints.filter(
    (endpoint) => endpoint.share > 0 && endpoint.host.kind === 'ip' && familyOf(endpoint.host.address) === family,
  )
  if (usable.length === 0) return
  const keeps = usable[0]!.port === null
  if (usable.length === 1) {
    group.put(`${keeps ? 'keep' : 'target'}${family}`, key, { value: targetText(usable[0]!) })
    return
  }
  const map = `${slotMap(route, keeps)}${family}` as MapName
  const shares = usable.map((endpoint) => ({ value: targetText(endpoint), weight: endpoint.share }))
  const slots = assignSlots(shares, slotsIn(before?.[map], key), choiceOf(route))
  slots.forEach((value, slot) => group.put(map, `${key} . ${slot}`, { value }))
  group.put('balance', key, { value: `goto ${balanceChain(route, group, keeps)}` })
}

function targetText({ host, port }: Endpoint): string {
  const { address } = host as Extract<Endpoint['host'], { kind: 'ip' }>
  return port === null ? address : `${address} . ${port}`
}

/** The slots as they were; none when the table is not whole. */
function slotsIn(elements: Record<string, KernelElement> | undefined, key: string): string[] {
  if (!elements) return []
  const slots = Object.keys(elements).map((_, slot) => elements[`${key} . ${slot}`]?.value)
  const size = slots.length
  return (size & (size - 1)) === 0 && slots.every((value) => value !== undefined) ? slots : []
}

const slotMap = ({ listens }: PlannedRoute, keeps: boolean) =>
  keeps ? 'slot_keep' : listens[0]!.protocol === 'udp' ? 'slot_udp' : 'slot'

const choiceOf = ({ user: { action } }: PlannedRoute): Choice =>
  action.type === 'forward' && action.balance === 'source-hash' ? 'hash' : 'turn'

/** turn: a counter of the route's own, exact whatever other routes do. hash: the client's address. */
function balanceChain(route: PlannedRoute, group: Group, keeps: boolean): string {
  const map = slotMap(route, keeps)
  const sizes = [4, 6].map((family) => Object.keys(group.maps[`${map}${family}`] ?? {}).length)
  const kind = choiceOf(route) === 'hash' ? 'hash' : `turn_${route.number}`
  return `${kind}_${sizes.join('_')}${map.slice('slot'.length)}`
}

// ---- listeners ----

function listens(
  routes: PlannedRoute[],
  owned: Ownership,
  groups: Map<string, Group>,
  common: Group,
  facts: Facts,
  everyone: boolean,
) {
  const numbers = new Map(routes.map((route) => [route.name, route.number]))
  const wide = owned.runs.filter((run) => run.address === null && groups.has(run.route.name))
  const userSpace = mark(facts.markBase, 0)
  for (const { address, from, to, protocol, route } of owned.runs) {
    const group = groups.get(route.name)
    const value = group ? mark(facts.markBase, numbers.get(route.name)!) : userSpace
    // An address of its own must not fall through to a kernel route on all addresses.
    const shadowed =
      address !== null && wide.some((run) => run.protocol === protocol && run.from <= to && run.to >= from)
    if (group || shadowed || everyone) addListen(group ?? common, address, protocol, from, to, value)
  }
  // Ports that no route owns as a whole: who gets their connections is decided in user space. Where a PROXY header says who the
  // client is, only user space can count clients, and the proxy must not be counted as one.
  if (everyone)
    for (const { address, from, to, proxied } of owned.shared)
      if (!proxied) addListen(common, address, 'tcp', from, to, userSpace)
}

function addListen(group: Group, address: string | null, protocol: string, from: number, to: number, value: string) {
  const family = address === null ? '' : familyOf(address)
  const ports = from === to ? `${from}` : `${from}-${to}`
  const map = `listen${family}${from === to ? '' : '_range'}` as MapName
  group.put(map, `${address === null ? '' : `${address} . `}${protocol} . ${ports}`, { value })
}

// ---- refusals ----

/** The reasons by their number in the set "refused" (nft/sluice.nft); a hundred more: observed, not refused. */
export const REFUSED = [
  'route_ip_blocked',
  'route_limit',
  'route_ip_limit',
  'route_rate',
  'global_limit',
  'global_ip_limit',
  'global_rate',
  'blocked',
  'draining',
  'no_target',
] as const
export const OBSERVED_FROM = 100
