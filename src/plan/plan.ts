// plan(config, facts) → Plan: decides for every route which carrier, and why, in words for an operator. Pure: the same
// input gives the same plan on every machine; what depends on the machine is in `facts`.
import { familyOf, isLoopback } from '../base/addresses.ts'
import { TWIN_PORTS_MAX } from '../base/limits.ts'
import { own } from '../base/own.ts'
import { parseDuration } from '../base/units.ts'
import { isDurable, neverKernel } from '../config/needs.ts'
import type { Config, Route } from '../config/schema.ts'
import { CHALLENGE_ROUTE, challengeRoute } from './challenge.ts'
import { configuredRoutes, defaultRoute, leftOver } from './default.ts'
import { emptyState, kernelState, limitsOfAll, withEndpoints } from './kernel-state.ts'
import { endpointsOf } from './endpoints.ts'
import { ANY, listeners, listensOf, needsPeek, protocolOf, reservations, whatIsRead } from './listeners.ts'
import { ownership, type Ownership } from './ports.ts'
import type { Endpoint, Facts, Listen, Plan, PlannedListener, PlannedRoute } from './types.ts'
import { inMs, userAction, userRoute } from './user-route.ts'

/** 20 bits of the mark: the byte above them is ours, the four bits between say how a flow ends (nft/sluice.nft). */
export const NUMBER_MAX = 0xfffff

export const DEFAULT_MARK_BASE = 0x51000000

/** The facts of a machine of which nothing is known yet. */
export const noFacts = (markBase: number, programVersion: string): Facts => ({
  kernelUnusable: null,
  numbers: {},
  numbersInUse: [],
  resolved: {},
  down: {},
  drained: {},
  draining: {},
  challenging: false,
  shares: {},
  before: emptyState(),
  markBase,
  programVersion,
})

export function plan(config: Config, facts: Facts): Plan {
  const enabled = config.routes.filter((route) => route.enabled !== false)
  const fallback = defaultRoute(config)
  const challenge = challengeRoute(config)
  const { challenging } = facts
  const listening = listeners(enabled, { fallback, challenge, challenging })
  const left = leftOver(listening, ANY)
  const all = [...enabled, ...(fallback && left.length > 0 ? [fallback] : []), ...(challenge ? [challenge] : [])]
  const numbers = assignNumbers(all, facts)
  const owned = ownership(enabled, challenging ? challenge : null)
  const commonMs = inMs(config.timeouts)

  const routes = all.map((route): PlannedRoute => {
    const endpoints = endpointsOf(route, onlyPort(route), facts)
    const isDefault = route === fallback
    const { carrier, reason } = isDefault
      ? BY_DEFAULT
      : route === challenge
        ? ANSWERS
        : chooseCarrier(route, endpoints, facts, owned, isDurable(config))
    const user = userRoute(route, endpoints, config, facts, commonMs, carrier === 'splice' ? 'splice' : 'user')
    // Whoever is believed on a port is believed for what is left over there.
    if (isDefault) user.acceptProxyProtocol = believed(listening)
    if (route === challenge) user.action = { type: 'challenge' }
    const required = route.action.type === 'forward' && route.action.forwardingEngine === 'nftables'
    const drain = route.drain ?? 'finish'
    return {
      name: route.name,
      number: numbers[route.name]!,
      carrier,
      reason,
      required,
      listens: isDefault ? left : listensOf(route),
      endpoints,
      unserved: protocolOf(route) === 'udp' ? (notNow(endpoints, facts) ?? null) : null,
      preserveSourceIp: route.action.type === 'forward' && route.action.preserveSourceIp === true,
      drainMs: drain === 'finish' ? null : drain === 'cut' ? 0 : (parseDuration(drain) ?? null),
      user,
    }
  })
  return {
    routes,
    listeners: listening,
    limits: limitsOfAll(config),
    reservations: reservations(enabled),
    kernel: kernelState(routes, config, facts, owned),
  }
}

/** The plan with the endpoints of some routes as the facts have them now: who carries what stays as it is. */
export function retarget(plan: Plan, config: Config, facts: Facts, names: ReadonlySet<string>): Plan {
  const configured = new Map(
    configuredRoutes(config)
      .filter(({ name }) => names.has(name))
      .map((route) => [route.name, route]),
  )
  const changed: PlannedRoute[] = []
  const routes = plan.routes.map((route) => {
    const source = configured.get(route.name)
    if (!source) return route
    const endpoints = endpointsOf(source, onlyPort(source), facts)
    const user = { ...route.user, draining: facts.draining[route.name] === true, action: userAction(source, endpoints) }
    const next = { ...route, endpoints, user }
    changed.push(next)
    return next
  })
  return { ...plan, routes, kernel: withEndpoints(plan.kernel, changed, facts) }
}

const BY_DEFAULT = { carrier: 'splice', reason: 'takes what matches no other route, and reads no more of it' } as const

const ANSWERS = { carrier: 'user', reason: 'answers the CA' } as const

function believed(listening: PlannedListener[]): string[] | null {
  const senders = new Set(listening.flatMap((listener) => listener.trusted))
  return senders.size > 0 ? [...senders] : null
}

/** The port of a route that listens on a single one. */
function onlyPort(route: Route): number | null {
  const { ports } = route.match
  if (typeof ports === 'number') return ports
  const [first] = ports
  if (ports.length !== 1 || first === undefined) return null
  return typeof first === 'number' ? first : first.from === first.to ? first.from : null
}

function chooseCarrier(
  route: Route,
  endpoints: Endpoint[],
  facts: Facts,
  owned: Ownership,
  /** Connections wait for their line in the log: the kernel's would not. */
  durable: boolean,
): { carrier: PlannedRoute['carrier']; reason: string } {
  const { action } = route
  if (action.type === 'socket-handler') return { carrier: 'user', reason: 'a handler reads the bytes' }
  if (action.type === 'redirect') return { carrier: 'user', reason: 'the gateway answers itself' }
  if (action.type === 'block') return { carrier: 'user', reason: 'connections are refused at accept' }
  if (action.tls && action.tls.mode !== 'passthrough')
    return {
      carrier: 'user',
      reason: action.tls.mode === 'terminate' ? 'TLS ends here' : 'TLS ends here and begins again to the target',
    }
  if (action.forwardingEngine === 'user')
    return { carrier: needsPeek(route) ? 'splice' : 'user', reason: "forwardingEngine is 'user'" }
  if (needsPeek(route)) return { carrier: 'splice', reason: `the ${whatIsRead(route)} has to be read, the rest not` }
  if (action.sendProxyProtocol) return { carrier: 'splice', reason: neverKernel(route)! }

  const wide = listensOf(route).find(isWide)
  const shares = owned.contested.get(route)
  // A range has no sockets: it stays in the kernel but for the ports that others share.
  const contest = wide ? undefined : shares
  if (contest?.by.name === CHALLENGE_ROUTE) return { carrier: 'splice', reason: 'acme challenge' }
  if (contest && needsPeek(contest.by))
    return {
      carrier: 'splice',
      reason: `shares port ${contest.port} with "${contest.by.name}", whose ${whatIsRead(contest.by)} has to be read`,
    }
  if (contest)
    return {
      carrier: 'user',
      reason: `shares port ${contest.port} with "${contest.by.name}", which takes only some clients`,
    }
  const never = neverKernel(route)
  if (never) return { carrier: 'user', reason: never }
  if (durable) return { carrier: 'user', reason: 'durable log' }
  const not = notNow(endpoints, facts)
  // UDP has no user space to fall back to: the route says why it is not served.
  if (protocolOf(route) === 'udp')
    return { carrier: 'kernel', reason: not ?? 'datagrams are forwarded by the kernel only' }
  if (not) return { carrier: 'user', reason: not }
  return {
    carrier: 'kernel',
    reason: wide
      ? `nothing has to be read (ports ${wide.from}-${wide.to} are too many for sockets: user space ${shares ? `serves only those that other routes share, such as ${shares.port}` : 'does not serve them'})`
      : 'nothing has to be read',
  }
}

const isWide = ({ from, to, protocol }: Listen) => protocol === 'tcp' && to - from >= TWIN_PORTS_MAX

/** Why the kernel cannot forward to these endpoints on this machine as it is; undefined when it can. */
export function notNow(endpoints: Endpoint[], facts: Facts): string | undefined {
  for (const { host, name, target } of endpoints) {
    if (host.kind === 'unix') return `target ${target} is a unix socket`
    if (host.kind === 'name') return `target ${host.name} is not resolved yet`
    if (isLoopback(host.address))
      return `target ${name ?? host.address} is a loopback address, which the kernel does not forward to`
  }
  for (const family of [4, 6])
    if (new Set(endpoints.filter((one) => isFamily(one, family)).map((one) => one.port === null)).size > 1)
      return 'some of its targets keep the port of the client and others have one of their own'
  return facts.kernelUnusable ?? undefined
}

const isFamily = ({ host }: Endpoint, family: number) => host.kind === 'ip' && familyOf(host.address) === family

// ---- route numbers ----

/** A name keeps its number; a new name gets the lowest above all that are or were in use, so a number never changes its meaning while a flow carries it. */
function assignNumbers(routes: Route[], facts: Facts): Record<string, number> {
  const numbers: Record<string, number> = {}
  const taken = new Set([...Object.values(facts.numbers), ...facts.numbersInUse])
  let next = 1
  for (const number of taken) next = Math.max(next, number + 1)
  for (const { name } of routes) {
    const known = own(facts.numbers, name)
    if (known !== undefined) {
      numbers[name] = known
      continue
    }
    if (next > NUMBER_MAX) next = 1
    while (taken.has(next)) next++
    taken.add(next)
    numbers[name] = next++
  }
  return numbers
}
