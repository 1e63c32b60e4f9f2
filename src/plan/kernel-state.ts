// The planned routes as elements of the static nft program: which map, which key, which value. Pure, and the only place
// that writes element text, always from numbers and parsed addresses, never from a string of the configuration.
import { familyOf, parseTarget } from '../base/addresses.ts'
import type { Config, Route } from '../config/schema.ts'
import type { Ownership } from './ports.ts'
import type { Facts, KernelState, PlannedRoute } from './types.ts'

/** Must be the modulus in nft/sluice.nft. */
export const SLOTS = 256

export const MAPS = [
  'routes',
  'program',
  'listen4',
  'listen6',
  'listen',
  'target4',
  'target6',
  'keep4',
  'keep6',
  'slot4',
  'slot6',
  'slot_keep4',
  'slot_keep6',
  'hash4',
  'hash6',
  'hash_keep4',
  'hash_keep6',
  'preserve',
] as const
export type MapName = (typeof MAPS)[number]

export const emptyState = (): KernelState => Object.fromEntries(MAPS.map((name) => [name, {}]))

export const mark = (base: number, number: number) => `0x${((base | number) >>> 0).toString(16).padStart(8, '0')}`

export function kernelState(routes: PlannedRoute[], config: Config, facts: Facts, owned: Ownership): KernelState {
  const state = emptyState()
  state.program!['0x00000001'] = { value: mark(facts.markBase, 0), comment: facts.programVersion }
  const inKernel = new Map(
    routes
      .filter((route) => route.carrier === 'kernel')
      .map((route) => [route.name, mark(facts.markBase, route.number)]),
  )
  for (const route of config.routes) {
    const key = inKernel.get(route.name)
    if (key) addRoute(state, key, route, facts)
  }
  const wide = owned.runs.filter((run) => run.address === null && inKernel.has(run.route.name))
  for (const { address, from, to, route } of owned.runs) {
    const ports = from === to ? `${from}` : `${from}-${to}`
    const key = inKernel.get(route.name)
    if (address === null) {
      if (key) state.listen![ports] = { value: key }
      continue
    }
    // Number 0 is user space: an address of its own must not fall through to a kernel route on all addresses.
    if (key || wide.some((run) => run.from <= to && run.to >= from))
      state[familyOf(address) === 4 ? 'listen4' : 'listen6']![`${address} . ${ports}`] = {
        value: key ?? mark(facts.markBase, 0),
      }
  }
  return state
}

function addRoute(state: KernelState, key: string, route: Route, facts: Facts) {
  const action = route.action
  if (action.type !== 'forward') return
  state.routes![key] = { comment: route.name }
  if (action.preserveSourceIp) state.preserve![key] = {}
  for (const family of [4, 6] as const) addTargets(state, key, family, action, facts)
}

interface SlotTarget {
  value: string
  keepsPort: boolean
  weight: number
}

function addTargets(
  state: KernelState,
  key: string,
  family: 4 | 6,
  action: Extract<Route['action'], { type: 'forward' }>,
  facts: Facts,
) {
  const targets = action.targets.flatMap((target): SlotTarget[] => {
    const host = parseTarget(target.host)!
    const addresses =
      host.kind === 'ip' ? [host.address] : host.kind === 'name' ? (facts.resolved[host.name] ?? []) : []
    const usable = addresses.filter((address) => familyOf(address) === family)
    const keepsPort = typeof target.port !== 'number'
    // A name with several addresses shares its weight among them.
    return usable.map((address) => ({
      value: keepsPort ? address : `${address} . ${target.port}`,
      keepsPort,
      weight: (target.weight ?? 1) / usable.length,
    }))
  })
  const wanted = targets.filter((target) => target.weight > 0)
  if (wanted.length === 0) return
  if (wanted.length === 1) {
    state[`${wanted[0]!.keepsPort ? 'keep' : 'target'}${family}`]![key] = { value: wanted[0]!.value }
    return
  }
  const kind = action.balance === 'source-hash' ? 'hash' : 'slot'
  assignSlots(wanted.map((target) => target.weight)).forEach((index, slot) => {
    const target = wanted[index]!
    state[`${kind}${target.keepsPort ? '_keep' : ''}${family}`]![`${key} . ${slot}`] = { value: target.value }
  })
}

/** Slot → target index, shares by largest remainder, interleaved so that neighbours differ. */
export function assignSlots(weights: number[]): number[] {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const exact = weights.map((weight) => (weight / total) * SLOTS)
  const shares = exact.map(Math.floor)
  const byRemainder = exact
    .map((share, i) => ({ i, rest: share - Math.floor(share) }))
    .toSorted((a, b) => b.rest - a.rest || a.i - b.i)
  for (let left = SLOTS - shares.reduce((sum, share) => sum + share, 0), i = 0; left > 0; left--, i++)
    shares[byRemainder[i % byRemainder.length]!.i]!++
  // Smooth weighted round-robin over the shares.
  const current = shares.map(() => 0)
  return Array.from({ length: SLOTS }, () => {
    let best = 0
    shares.forEach((share, i) => {
      current[i]! += share
      if (current[i]! > current[best]!) best = i
    })
    current[best]! -= SLOTS
    return best
  })
}
