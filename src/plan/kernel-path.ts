// What the program in the kernel does with the first packet of a connection, read from its elements as nft/sluice.nft reads
// them: whose the port is, and whether it is forwarded, refused or left to user space. Pure.
import { familyOf } from '../base/addresses.ts'
import { COMMON, hex, REFUSED } from './kernel-state.ts'
import type { KernelGroup, KernelState } from './types.ts'

export interface Packet {
  /** Where the client connects to; null: an address that no route names. */
  address: string | null
  port: number
  protocol: 'tcp' | 'udp'
  /** Of the client. */
  family: 4 | 6
}

export type KernelPath =
  /** No element has its port: it goes to whoever listens. */
  | { to: 'nobody' }
  /** It goes to our listening socket. number 0: whose it is was not known from the port. */
  | { to: 'user space'; number: number }
  | { to: 'refused'; number: number; reason: (typeof REFUSED)[number] }
  | { to: 'targets'; number: number; targets: { target: string; share: number }[] }

const NUMBER_BITS = 0xfffff

export function kernelPath(state: KernelState, packet: Packet): KernelPath {
  const found = markOf(state, packet)
  if (found === undefined) return { to: 'nobody' }
  const number = Number(found) & NUMBER_BITS
  const group = state.groups[number === 0 ? COMMON : hex(Number(found))] ?? {}
  const diverted = group.divert?.[found]?.value
  if (diverted === 'goto user_space') return { to: 'user space', number }
  const reason = REFUSED.find((name) => diverted === `goto refuse_${name}`)
  if (reason) return { to: 'refused', number, reason }
  const targets = targetsOf(group, found, packet)
  // A miss is no refusal: who listens on the port gets it.
  return targets.length > 0 ? { to: 'targets', number, targets } : { to: 'user space', number }
}

/** The narrowest listener's: an address of its own before all of them, a port before a range. */
function markOf({ groups }: KernelState, { address, port, protocol }: Packet): string | undefined {
  const all = Object.values(groups)
  const own = address === null ? null : { family: familyOf(address), prefix: `${address} . ${protocol} . ` }
  const any = { family: '', prefix: `${protocol} . ` }
  for (const where of own ? [own, any] : [any])
    for (const kind of ['', '_range'])
      for (const group of all)
        for (const [key, { value }] of candidates(group[`listen${where.family}${kind}`], where.prefix, kind, port))
          if (value !== undefined && covers(key.slice(where.prefix.length), port)) return value
  return undefined
}

function candidates(map: KernelGroup[string] | undefined, prefix: string, kind: string, port: number) {
  if (!map) return []
  if (kind !== '') return Object.entries(map).filter(([key]) => key.startsWith(prefix))
  const element = map[`${prefix}${port}`]
  return element ? [[`${prefix}${port}`, element] as const] : []
}

function covers(ports: string, port: number): boolean {
  const [from, to = from] = ports.split('-').map(Number)
  return from! <= port && port <= to!
}

function targetsOf(group: KernelGroup, mark: string, { family, protocol, port }: Packet) {
  const text = (value: string) => {
    const [address, own] = value.split(' . ') as [string, string | undefined]
    return `${address.includes(':') ? `[${address}]` : address}:${own ?? port}`
  }
  const only = group[`target${family}`]?.[mark]?.value ?? group[`keep${family}`]?.[mark]?.value
  if (only !== undefined) return [{ target: text(only), share: 1 }]
  const slots = [`slot${protocol === 'udp' ? '_udp' : ''}${family}`, `slot_keep${family}`].flatMap((map) =>
    Object.values(group[map] ?? {}),
  )
  const counts = new Map<string, number>()
  for (const { value } of slots) counts.set(value!, (counts.get(value!) ?? 0) + 1)
  return [...counts].map(([value, count]) => ({ target: text(value), share: count / slots.length }))
}
