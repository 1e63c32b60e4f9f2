// Random lists of clients and addresses that meet them often, for tests that ask two places for the same verdict.
import { BlockList, isIPv4 } from 'node:net'
import { canonicalIp, formatIp, ipBytes } from '../../src/base/addresses.ts'
import { Counters, NetworkList, refusalFor } from '../../src/user/security.ts'

/** Numbers that a seed repeats (mulberry32). */
export function randomOf(seed: number) {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (n: number) => Math.floor(next() * n)
  const one = <T>(items: readonly T[]): T => items[below(items.length)]!
  return { below, one, some: (max: number, make: () => string) => Array.from({ length: below(max + 1) }, make) }
}
export type Random = ReturnType<typeof randomOf>

// Few enough networks and hosts for lists and addresses to meet, at the borders of prefixes above all.
const hosts = [0, 1, 2, 3, 7, 8, 15, 16, 100, 127, 128, 254, 255]

export const address4 = (random: Random) =>
  `172.${16 + random.below(4)}.${random.one([0, 1, 9, 10, 19, 20, 128, 255])}.${random.one(hosts)}`

export const address6 = (random: Random) =>
  formatIp(
    Uint8Array.from([
      ...[0x20, 0x01, 0x0d, 0xb8, 0, random.below(3), 0, random.one([0, 1, 0x80])],
      ...[0, 0, 0, 0, 0, random.one([0, 1, 255]), random.one([0, 1]), random.one(hosts)],
    ]),
  )

/** The same address in another of its spellings. */
export function respelled(random: Random, address: string): string {
  if (!address.includes(':'))
    return random.one([address, address, `::ffff:${address}`, `::FFFF:${groups(ipBytes(address)).join(':')}`])
  const full = groups(ipBytes(address))
  return random.one([
    address,
    address.toUpperCase(),
    full.join(':'),
    full.map((group) => group.padStart(4, '0')).join(':'),
  ])
}

const groups = (bytes: Uint8Array) =>
  Array.from({ length: bytes.length / 2 }, (_, i) => ((bytes[i * 2]! << 8) | bytes[i * 2 + 1]!).toString(16))

function range(a: string, b: string): string {
  const ordered = [a, b].toSorted((x, y) => Buffer.compare(ipBytes(x), ipBytes(y)))
  return `${ordered[0]}-${ordered[1]}`
}

const GLOBS = [
  '172.16.*',
  '172.17.*.*',
  '172.1?.9.*',
  '172.18.1?.*',
  '172.19.0.1??',
  '172.*.255.*',
  '172.16.2*.1?',
  '17?.18.128.*',
]

/** One entry as an operator may write it. */
function entry4(random: Random): string {
  const address = address4(random)
  switch (random.below(5)) {
    case 0:
      return respelled(random, address)
    case 1:
      return `${address}/${8 + random.below(25)}`
    case 2:
      return `::ffff:${address}/${104 + random.below(25)}`
    case 3:
      return range(address, address4(random))
    default:
      return random.one(GLOBS)
  }
}

function entry6(random: Random): string {
  const address = address6(random)
  switch (random.below(3)) {
    case 0:
      return respelled(random, address)
    case 1:
      return `${respelled(random, address)}/${random.one([16, 32, 47, 48, 49, 63, 64, 65, 96, 104, 112, 119, 120, 121, 127, 128])}`
    default:
      return range(address, address6(random))
  }
}

export interface Lists {
  ipAllowList?: string[]
  ipBlockList?: string[]
}

/** Either list or both; never neither. */
export function randomLists(random: Random): Lists {
  const entry = () => (random.below(3) === 0 ? entry6(random) : entry4(random))
  const list = () => [entry(), ...random.some(7, entry)]
  const kind = random.below(3)
  return {
    ...(kind === 1 ? {} : { ipAllowList: list() }),
    ...(kind === 0 ? {} : { ipBlockList: list() }),
  }
}

/** What the user plane says of this client. */
export function userVerdict({ ipAllowList = [], ipBlockList = [] }: Lists): (client: string) => 'refused' | 'admitted' {
  const guard = {
    allow: new NetworkList(ipAllowList),
    block: new NetworkList(ipBlockList),
    counters: new Counters(),
    rate: null,
    rules: {
      allow: ipAllowList,
      block: ipBlockList,
      maxConnections: null,
      maxConnectionsPerIp: null,
      rate: null,
      observe: false,
    },
  }
  return (client) =>
    refusalFor(guard, client, { clientBytes: ipBytes(client) }, 0) === undefined ? 'admitted' : 'refused'
}

/** What the words of the lists mean, by other means than those of src/base/addresses.ts. */
export function meantVerdict({ ipAllowList, ipBlockList = [] }: Lists): (client: string) => 'refused' | 'admitted' {
  const among = (list: string[]) => {
    const tests = list.map(meaning)
    return (ip: string) => tests.some((test) => test(ip))
  }
  const [allowed, blocked] = [among(ipAllowList ?? []), among(ipBlockList)]
  return (client) => {
    const ip = canonicalIp(client)
    return blocked(ip) || (ipAllowList && !allowed(ip)) ? 'refused' : 'admitted'
  }
}

function meaning(entry: string): (ip: string) => boolean {
  if (/[*?]/.test(entry)) {
    const parts = entry.split('.')
    while (parts.length < 4) parts.push('*')
    const shape = new RegExp(`^${parts.join('\\.').replaceAll('*', '\\d+').replaceAll('?', '\\d')}$`)
    return (ip) => shape.test(ip)
  }
  const list = new BlockList()
  const [address, length] = entry.split('/') as [string, string?]
  const [from, to] = address.split('-').map(canonicalIp) as [string, string?]
  const family = isIPv4(from) ? 'ipv4' : 'ipv6'
  if (to !== undefined) list.addRange(from, to, family)
  else if (length === undefined) list.addAddress(from, family)
  else list.addSubnet(from, Number(length) - (family === 'ipv4' && address.includes(':') ? 96 : 0), family)
  // It would take an IPv4 client for its IPv4-mapped address.
  return (ip) => isIPv4(ip) === isIPv4(from) && list.check(ip, family)
}
