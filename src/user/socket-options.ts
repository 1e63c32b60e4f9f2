// What connect() and startTls() are called with: anything at all, made into values, or refused at once with a TypeError. All of
// it is read in the call, so that changing an object afterwards changes nothing.
import { canonicalIp, isHostName, isIp } from '../base/addresses.ts'
import { HANDLER_BUFFER_BYTES } from '../base/limits.ts'
import type { SecureTransport } from './stream.ts'

export interface SocketAddress {
  /** An address in its one spelling, or a name in lower case. */
  hostname: string
  port: number
}

export interface TlsOptions {
  sni: string | null
  alpn: readonly string[]
  /** PEM texts; null: the authorities that the runtime knows. */
  ca: readonly string[] | null
  cert: string | null
  key: string | null
  expectedServerHostname: string | null
}

export interface ConnectOptions {
  secureTransport: SecureTransport
  allowHalfOpen: boolean
  highWaterMark: number
  signal: AbortSignal | null
  /** null: the route's. */
  connectTimeout: number | null
  tls: TlsOptions
}

const ADDRESS_CHARACTERS_MAX = 255
const ADDRESS = /^[A-Za-z0-9._\-[\]:]*$/
const HOST_AND_PORT = /^(\[[^[\]]*\]|[^:[\]]*)(?::(\d*))?$/

/** "host:port", "[v6]:port", or { hostname, port }. */
export function parseAddress(address: unknown): SocketAddress {
  if (typeof address === 'string') {
    checkCharacters(address)
    const found = HOST_AND_PORT.exec(address)
    if (!found) throw unparseable(address)
    if (found[1] === '') throw new TypeError('Specified address is missing hostname.')
    return { hostname: parseHost(found[1]!, false), port: parsePort(found[2] ?? '', address) }
  }
  if (typeof address !== 'object' || address === null) throw unparseable(address)
  const { hostname, port } = address as { hostname?: unknown; port?: unknown }
  if (hostname === undefined || hostname === null || hostname === '')
    throw new TypeError('Specified address is missing hostname.')
  if (typeof hostname !== 'string') throw unparseable(hostname)
  checkCharacters(hostname)
  return { hostname: parseHost(hostname, true), port: parsePort(port, hostname) }
}

function checkCharacters(text: string) {
  if (text === '') throw new TypeError('Specified address is empty.')
  if (text.length > ADDRESS_CHARACTERS_MAX)
    throw new TypeError(`Specified address is longer than ${ADDRESS_CHARACTERS_MAX} characters.`)
  if (!ADDRESS.test(text)) throw new TypeError('Specified address has characters that no address has.')
}

/** @param bare IPv6 needs no brackets: the port stands elsewhere. */
function parseHost(host: string, bare: boolean): string {
  const bracketed = host.startsWith('[') && host.endsWith(']')
  const inner = bracketed ? host.slice(1, -1) : host
  if (isIp(inner) && (inner.includes(':') ? bracketed || bare : !bracketed)) return canonicalIp(inner)
  const name = host.endsWith('.') ? host.slice(0, -1) : host
  if (isHostName(name)) return name.toLowerCase()
  throw unparseable(host)
}

function parsePort(port: unknown, address: string): number {
  if (port === undefined || port === null || port === '') throw new TypeError('Specified address is missing port.')
  const number = typeof port === 'string' && /^\d{1,5}$/.test(port) ? Number(port) : port
  if (typeof number !== 'number' || !Number.isInteger(number) || number < 1 || number > 65_535)
    throw unparseable(`${address}, port ${String(port)}`)
  return number
}

const unparseable = (what: unknown) => new TypeError(`Specified address could not be parsed: ${String(what)}`)

const TRANSPORTS: ReadonlySet<unknown> = new Set<SecureTransport>(['on', 'off', 'starttls'])

export function parseConnectOptions(options: unknown): ConnectOptions {
  const given = objectOf(options)
  const secureTransport = given.secureTransport ?? 'off'
  if (!TRANSPORTS.has(secureTransport))
    throw new TypeError(`Unsupported value in secureTransport socket option: ${String(secureTransport)}`)
  const tls = parseTlsOptions(given, NO_TLS)
  if (secureTransport === 'off')
    for (const name of ['sni', 'alpn', 'ca', 'cert', 'key', 'expectedServerHostname'] as const)
      if (tls[name] !== null && tls[name].length > 0)
        throw new TypeError(`Socket option ${name} needs secureTransport 'on' or 'starttls'`)
  return {
    secureTransport: secureTransport as SecureTransport,
    allowHalfOpen: Boolean(given.allowHalfOpen),
    highWaterMark: numberOf(given, 'highWaterMark', 0) ?? HANDLER_BUFFER_BYTES,
    connectTimeout: numberOf(given, 'connectTimeout', 1),
    signal: signalOf(given.signal),
    tls,
  }
}

const NO_TLS: TlsOptions = { sni: null, alpn: [], ca: null, cert: null, key: null, expectedServerHostname: null }

/** What is not given is as it was before. */
export function parseTlsOptions(options: unknown, before: TlsOptions): TlsOptions {
  const given = objectOf(options)
  const tls = {
    sni: given.sni == null ? before.sni : nameOf(given.sni, 'sni'),
    alpn: given.alpn == null ? before.alpn : alpnOf(given.alpn),
    ca: given.ca == null ? before.ca : [given.ca].flat().map((text) => pemOf(text, 'ca')),
    cert: given.cert == null ? before.cert : pemOf(given.cert, 'cert'),
    key: given.key == null ? before.key : pemOf(given.key, 'key'),
    expectedServerHostname:
      given.expectedServerHostname == null
        ? before.expectedServerHostname
        : nameOf(given.expectedServerHostname, 'expectedServerHostname'),
  }
  if ((tls.cert === null) !== (tls.key === null))
    throw new TypeError('Socket options cert and key go together: a client certificate has both')
  return tls
}

function objectOf(options: unknown): Record<string, unknown> {
  if (options === undefined || options === null) return {}
  if (typeof options !== 'object') throw new TypeError('Socket options are an object')
  return options as Record<string, unknown>
}

function numberOf(given: Record<string, unknown>, name: string, min: number): number | null {
  const value = given[name]
  if (value === undefined || value === null) return null
  const number = typeof value === 'bigint' ? Number(value) : value
  if (typeof number === 'number' && Number.isFinite(number) && number >= min) return number
  throw new TypeError(`Socket option ${name} is a number, ${min} at least: ${String(value)} is not`)
}

function signalOf(signal: unknown): AbortSignal | null {
  if (signal === undefined || signal === null) return null
  if (signal instanceof AbortSignal) return signal
  throw new TypeError('Socket option signal is an AbortSignal')
}

function nameOf(value: unknown, option: string): string {
  if (typeof value === 'string' && isIp(value)) return canonicalIp(value)
  if (typeof value === 'string' && isHostName(value)) return value.toLowerCase()
  throw new TypeError(`Socket option ${option} is a host name: ${String(value)} is none`)
}

function alpnOf(value: unknown): string[] {
  const names = Array.isArray(value) ? (value as unknown[]) : [value]
  for (const name of names)
    if (typeof name !== 'string' || name === '' || Buffer.byteLength(name) > 255)
      throw new TypeError('Socket option alpn is a list of protocol names of 1 to 255 bytes')
  return names as string[]
}

function pemOf(value: unknown, option: string): string {
  if (typeof value === 'string' && value.includes('-----BEGIN')) return value
  throw new TypeError(`Socket option ${option} is PEM text`)
}
