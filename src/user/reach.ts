// What the handlers of a route may connect to. An address may come from a client's own bytes, so what is not meant for clients
// is denied unless the route says otherwise: private and own addresses, mail. What this gateway listens on is denied always:
// a connection to oneself would come back, and again, until the descriptors are used up.
import { networkInterfaces } from 'node:os'
import { formatEnd, formatIp, ipBytes } from '../base/addresses.ts'
import { OWN_ADDRESSES_MS } from '../base/limits.ts'
import { NetworkList } from './security.ts'
import { SocketError } from './socket-error.ts'

export interface Reach {
  private: boolean
  /** null: every port but 25. */
  ports: readonly number[] | null
}

/** What the gateway itself has: its addresses, and where it listens for TCP in either plane. */
export interface Own {
  readonly listens: readonly { address: string | null; from: number; to: number }[]
  /** Of the machine, in their one spelling. */
  readonly addresses: ReadonlySet<string>
}

const SMTP = 25

/** Before a name is looked up. */
export function portRefusal(port: number, { ports }: Reach): SocketError | undefined {
  if (ports ? ports.includes(port) : port !== SMTP) return undefined
  return port === SMTP ? new SocketError('port_25_blocked') : new SocketError('port_blocked', `${port}`)
}

/** @param address in its one spelling. */
export function addressRefusal(address: string, port: number, reach: Reach, own: Own): SocketError | undefined {
  const bytes = embedded(ipBytes(address))
  const mine = LOOPBACK.has(bytes) || own.addresses.has(formatIp(bytes))
  const goesTo = UNSPECIFIED[address] ?? formatIp(bytes)
  const isThere = (listens: string | null) => (listens === null || listens in UNSPECIFIED ? mine : listens === goesTo)
  if (own.listens.some((listen) => port >= listen.from && port <= listen.to && isThere(listen.address)))
    return new SocketError('loop_detected', `this gateway listens on ${formatEnd(address, port)}`)
  if (reach.private || !(mine || PRIVATE.has(bytes))) return undefined
  return new SocketError('address_blocked', `${address} is ${mine ? 'an own' : 'a private'} address`)
}

/** Connecting to them is a way to say loopback, and listening on them means every address. */
const UNSPECIFIED: Record<string, string> = { '0.0.0.0': '127.0.0.1', '::': '::1' }

/** What comes to this machine whatever its addresses are. */
const LOOPBACK = new NetworkList(['127.0.0.0/8', '0.0.0.0', '::', '::1'])

/** Not of the internet (IANA's special-purpose registries): private, shared, link-local, benchmarking, multicast, reserved. */
const PRIVATE = new NetworkList([
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '224.0.0.0/3',
  '::/127',
  '64:ff9b:1::/48',
  '100::/64',
  'fc00::/7',
  'fe80::/9',
  'ff00::/8',
])

/** An IPv4 address within an IPv6 one, where a translator or a tunnel would take it out again (NAT64, 6to4, IPv4-compatible). */
function embedded(bytes: Uint8Array): Uint8Array {
  if (bytes.length === 4) return bytes
  if (NAT64.has(bytes)) return bytes.slice(12)
  if (bytes[0] === 0x20 && bytes[1] === 0x02) return bytes.slice(2, 6)
  if (bytes.subarray(0, 12).every((byte) => byte === 0) && (bytes[12] || bytes[13])) return bytes.slice(12)
  return bytes
}

const NAT64 = new NetworkList(['64:ff9b::/96'])

/** The addresses of this machine; read again after a few seconds, since they come and go. */
export class OwnAddresses {
  #addresses: ReadonlySet<string> = new Set()
  #readAt = -Infinity

  /** @param clock milliseconds that are never set back. */
  constructor(
    private readonly clock: () => number = () => performance.now(),
    private readonly read: () => string[] = machineAddresses,
  ) {}

  get(): ReadonlySet<string> {
    const now = this.clock()
    if (now - this.#readAt >= OWN_ADDRESSES_MS) {
      this.#readAt = now
      this.#addresses = new Set(this.read().map((address) => formatIp(ipBytes(address))))
    }
    return this.#addresses
  }
}

function machineAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((list) => list?.map(({ address }) => address.split('%')[0]!) ?? [])
}
