// Addresses, networks and ports as values: parsing, formatting, comparing. Nothing here touches a socket or a resolver.
import { isIP } from 'node:net'

/** Names do not end with a digit as a rule, and have no colon: the usual one is told without node's long expressions. */
export const isIp = (text: string) => (DIGIT_OR_COLON.test(text) ? isIP(text) !== 0 && !text.includes('%') : false)

const DIGIT_OR_COLON = /:|\d$/

const DOT = 46
const HYPHEN = 45
const isDigit = (code: number) => code >= 48 && code <= 57
const isNameCharacter = (code: number) =>
  isDigit(code) || (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || code === 95 || code === HYPHEN

/** A DNS host name (RFC 1123, with "_" as met in practice), and no address. Character by character: every ClientHello has one. */
export function isHostName(text: string): boolean {
  if (text.length === 0 || text.length > 253) return false
  let start = 0
  let digits = true
  for (let i = 0; i <= text.length; i++) {
    const code = i < text.length ? text.charCodeAt(i) : DOT
    if (code !== DOT) {
      if (!isNameCharacter(code)) return false
      digits &&= isDigit(code)
      continue
    }
    if (i === start || i - start > 63) return false
    if (text.charCodeAt(start) === HYPHEN || text.charCodeAt(i - 1) === HYPHEN) return false
    if (i === text.length) break
    start = i + 1
    digits = true
  }
  // A last label of digits only would be read as an address by resolvers ("1.2.3"), or is one.
  return !digits
}

export type TargetHost =
  { kind: 'ip'; address: string } | { kind: 'name'; name: string } | { kind: 'unix'; path: string }

/** What a target's `host` names; undefined when it is nothing we could connect to. */
export function parseTarget(host: string): TargetHost | undefined {
  if (host.startsWith('unix:')) {
    const path = host.slice(5)
    // sun_path holds 108 bytes with its NUL (unix(7)).
    return path.startsWith('/') && Buffer.byteLength(path) < 108 && !/[\u0000-\u001f]/.test(path)
      ? { kind: 'unix', path }
      : undefined
  }
  if (isIp(host)) return { kind: 'ip', address: canonicalIp(host) }
  return isHostName(host) ? { kind: 'name', name: host.toLowerCase() } : undefined
}

/** The identity of a target within a route: "10.0.0.5:8080", "10.0.0.5:preserve" where the client's port is kept,
 *  "unix:/run/app.sock". */
export function endpointKey(host: TargetHost, port: number | null): string {
  if (host.kind === 'unix') return `unix:${host.path}`
  const name = host.kind === 'ip' ? host.address : host.name
  if (port !== null) return formatEnd(name, port)
  return name.includes(':') ? `[${name}]:preserve` : `${name}:preserve`
}

/** The 4 or 16 bytes of an address. IPv4-mapped IPv6 (::ffff:a.b.c.d) gives the 4 bytes: both spell one client. */
export function ipBytes(text: string): Uint8Array {
  const family = isIP(text)
  if (family === 4) return Uint8Array.from(text.split('.'), Number)
  if (family !== 6) throw new TypeError(`Cannot parse address ${JSON.stringify(text)}`)
  const bytes = rawIp6Bytes(text)
  return isMapped(bytes) ? bytes.slice(12) : bytes
}

/** The 16 bytes of an IPv6 address as it stands. */
export function rawIp6Bytes(text: string): Uint8Array {
  const bytes = new Uint8Array(16)
  let head = text.toLowerCase()
  const dotted = head.lastIndexOf('.') > -1 ? head.slice(head.lastIndexOf(':') + 1) : undefined
  if (dotted) {
    const [a, b, c, d] = dotted.split('.').map(Number) as [number, number, number, number]
    head = head.slice(0, head.length - dotted.length) + ((a << 8) | b).toString(16) + ':' + ((c << 8) | d).toString(16)
  }
  const [left = '', right] = head.split('::') as [string, string?]
  const groups = left === '' ? [] : left.split(':')
  const tail = right === undefined || right === '' ? [] : right.split(':')
  if (right !== undefined) while (groups.length + tail.length < 8) groups.push('0')
  ;[...groups, ...tail].forEach((group, i) => {
    const value = parseInt(group, 16)
    bytes[i * 2] = value >> 8
    bytes[i * 2 + 1] = value & 0xff
  })
  return bytes
}

const isMapped = (bytes: Uint8Array) =>
  bytes.subarray(0, 10).every((b) => b === 0) && bytes[10] === 0xff && bytes[11] === 0xff

/** The one spelling of an address (RFC 5952); IPv4-mapped IPv6 becomes IPv4. */
export const canonicalIp = (text: string) => (isIP(text) === 4 ? text : formatIp(ipBytes(text)))

export function formatIp(bytes: Uint8Array): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`
  const groups = Array.from({ length: 8 }, (_, i) => (bytes[i * 2]! << 8) | bytes[i * 2 + 1]!)
  let best = { at: -1, length: 1 }
  for (let i = 0; i < 8;) {
    let end = i
    while (end < 8 && groups[end] === 0) end++
    if (end - i > best.length) best = { at: i, length: end - i }
    i = Math.max(end, i + 1)
  }
  const hex = groups.map((group) => group.toString(16))
  if (best.at < 0) return hex.join(':')
  return `${hex.slice(0, best.at).join(':')}::${hex.slice(best.at + best.length).join(':')}`
}

/** "10.0.0.1:80", "[2001:db8::1]:80": how every record names an end. */
export const formatEnd = (ip: string, port: number) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`)

/** What formatEnd wrote. */
export function parseEnd(end: string): { ip: string; port: number } {
  const colon = end.lastIndexOf(':')
  const ip = end.slice(0, colon)
  return { ip: ip.startsWith('[') ? ip.slice(1, -1) : ip, port: Number(end.slice(colon + 1)) }
}

/** Address family of a canonical address. */
export const familyOf = (ip: string): 4 | 6 => (ip.includes(':') ? 6 : 4)

const LOOPBACK6 = '::1'
export const isLoopback = (ip: string) => (familyOf(ip) === 4 ? ip.startsWith('127.') : ip === LOOPBACK6)

/** First and last address of a set, inclusive, same length: how lists reach nft (as intervals) and the user-space check. */
export interface Interval {
  family: 4 | 6
  from: Uint8Array
  to: Uint8Array
}

/** An address, "a/len", "a-b", or an IPv4 glob ("192.168.*", "10.?.?.1" only where the wild part is one interval). */
export function parseNetwork(text: string): Interval[] | undefined {
  if (isIp(text)) return [interval(ipBytes(text), ipBytes(text))]
  const slash = /^([^/]+)\/(\d{1,3})$/.exec(text)
  if (slash) return isIp(slash[1]!) ? prefix(slash[1]!, Number(slash[2])) : undefined
  const dash = /^([^-]+)-([^-]+)$/.exec(text)
  if (dash) {
    if (!isIp(dash[1]!) || !isIp(dash[2]!)) return undefined
    const [from, to] = [ipBytes(dash[1]!), ipBytes(dash[2]!)]
    return from.length === to.length && compareBytes(from, to) <= 0 ? [interval(from, to)] : undefined
  }
  return glob(text)
}

export const isCidrOrRange = (text: string) => text.length <= 100 && parseNetwork(text) !== undefined

function prefix(address: string, length: number): Interval[] | undefined {
  const raw = ipBytes(address)
  // "::ffff:10.0.0.0/104" is 10.0.0.0/8 spelled for IPv6 sockets.
  const bits = raw.length === 4 && address.includes(':') ? length - 96 : length
  if (bits < 0 || bits > raw.length * 8) return undefined
  const from = raw.map((byte, i) => byte & mask(bits - i * 8))
  const to = raw.map((byte, i) => byte | (~mask(bits - i * 8) & 0xff))
  return [interval(from, to)]
}

const mask = (bits: number) => (bits >= 8 ? 0xff : bits <= 0 ? 0 : (0xff << (8 - bits)) & 0xff)

const interval = (from: Uint8Array, to: Uint8Array): Interval => ({ family: from.length === 4 ? 4 : 6, from, to })

// A glob such as "10.*.3.*" is many intervals; more than this many is refused rather than quietly slow.
const GLOB_INTERVALS_MAX = 1024

function glob(text: string): Interval[] | undefined {
  if (!/^[0-9*?.]{1,15}$/.test(text) || !/[*?]/.test(text)) return undefined
  const parts = text.split('.')
  // "192.168.*" stands for "192.168.*.*", as users of SmartProxy write it.
  if (parts.length < 4 && parts.at(-1) === '*') while (parts.length < 4) parts.push('*')
  if (parts.length !== 4) return undefined
  const octets = parts.map((part) => {
    const shape = new RegExp(`^${part.replaceAll('*', '\\d*').replaceAll('?', '\\d')}$`)
    return Array.from({ length: 256 }, (_, value) => value).filter((value) => shape.test(String(value)))
  })
  if (octets.some((values) => values.length === 0)) return undefined
  const runs = octets.map(toRuns)
  // Trailing full octets join into one interval; every run of the last partial octet makes one for each combination before it.
  let out: { from: number[]; to: number[] }[] = [{ from: [], to: [] }]
  for (let i = 0; i < 4; i++) {
    const restIsFull = runs.slice(i + 1).every((r) => r.length === 1 && r[0]![0] === 0 && r[0]![1] === 255)
    const choices = restIsFull ? runs[i]! : octets[i]!.map((value) => [value, value] as [number, number])
    out = out.flatMap((so) => choices.map(([from, to]) => ({ from: [...so.from, from], to: [...so.to, to] })))
    if (out.length > GLOB_INTERVALS_MAX) return undefined
    if (restIsFull) {
      return out.map((so) => interval(pad(so.from, 0), pad(so.to, 255)))
    }
  }
  return undefined
}

const pad = (bytes: number[], fill: number) => Uint8Array.from({ length: 4 }, (_, i) => bytes[i] ?? fill)

function toRuns(values: number[]): [number, number][] {
  const runs: [number, number][] = []
  for (const value of values) {
    const last = runs.at(-1)
    if (last && last[1] === value - 1) last[1] = value
    else runs.push([value, value])
  }
  return runs
}

export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i]! - b[i]!
  return 0
}

export const inInterval = (bytes: Uint8Array, set: Interval) =>
  bytes.length === set.from.length && compareBytes(bytes, set.from) >= 0 && compareBytes(bytes, set.to) <= 0

/** Networks as sorted intervals without overlaps, by family: what a binary search and an interval set of nft need. */
export function mergeNetworks(networks: readonly string[]): Record<4 | 6, Interval[]> {
  const byFamily: Record<4 | 6, Interval[]> = { 4: [], 6: [] }
  for (const network of networks)
    for (const interval of parseNetwork(network) ?? []) byFamily[interval.family].push(interval)
  return { 4: merge(byFamily[4]), 6: merge(byFamily[6]) }
}

function merge(list: Interval[]): Interval[] {
  const out: Interval[] = []
  for (const next of list.sort((a, b) => compareBytes(a.from, b.from))) {
    const last = out.at(-1)
    if (last && compareBytes(next.from, last.to) <= 0) {
      if (compareBytes(next.to, last.to) > 0) last.to = next.to
    } else out.push({ ...next })
  }
  return out
}
