// Who is connected now: live connections by client address, the busiest first. Nothing is kept of a client; it is counted when
// somebody asks. Pure.
import { CLIENT_ROUTES_MAX } from '../base/limits.ts'
import type { ConnectionRecord } from './record.ts'

export interface ClientView {
  /** An address, without a port. */
  client: string
  /** Live ones, whichever plane carries them, and what these have carried. */
  connections: number
  bytesIn: number
  bytesOut: number
  /** Names, some of them where there are very many. */
  routes: string[]
}

interface Client {
  connections: number
  bytesIn: number
  bytesOut: number
  routes: Set<string>
}

export class Clients {
  readonly #byAddress = new Map<string, Client>()

  get size() {
    return this.#byAddress.size
  }

  add({ client, route, bytesIn, bytesOut }: ConnectionRecord) {
    const address = addressOf(client)
    let one = this.#byAddress.get(address)
    if (!one) this.#byAddress.set(address, (one = { connections: 0, bytesIn: 0, bytesOut: 0, routes: new Set() }))
    one.connections++
    one.bytesIn += bytesIn
    one.bytesOut += bytesOut
    if (one.routes.size < CLIENT_ROUTES_MAX) one.routes.add(route)
  }

  /** By connections, then by bytes. */
  busiest(limit: number): ClientView[] {
    let best: [string, Client][] = []
    for (const entry of this.#byAddress) {
      // Sorting a hundred thousand would keep everybody else waiting.
      if (best.length >= 2 * limit) best = best.toSorted(busierFirst).slice(0, limit)
      best.push(entry)
    }
    return best
      .toSorted(busierFirst)
      .slice(0, limit)
      .map(([client, { routes, ...rest }]) => ({ client, ...rest, routes: [...routes].toSorted() }))
  }
}

const busierFirst = ([a, one]: [string, Client], [b, other]: [string, Client]) =>
  other.connections - one.connections ||
  other.bytesIn + other.bytesOut - one.bytesIn - one.bytesOut ||
  (a < b ? -1 : a > b ? 1 : 0)

/** Of "10.0.0.2:4711" and "[fd00::2]:4711". */
function addressOf(end: string): string {
  const address = end.slice(0, end.lastIndexOf(':'))
  return address.startsWith('[') ? address.slice(1, -1) : address
}
