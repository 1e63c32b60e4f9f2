// Who gets the connections to a port when nothing of them has been read: the one route that matches them all, unless a
// route that goes first takes only some of them. Pure.
import type { Route } from '../config/schema.ts'
import { bySpecificity, listensOf, needsPeek, protocolOf } from './listeners.ts'
import type { Listen } from './types.ts'

export interface Ownership {
  /** Runs of ports that `route` owns as a whole on `address` (null: every address without runs of its own). */
  runs: (Listen & { route: Route })[]
  /** Runs of TCP ports whose connections several routes share, or one that has to read first. */
  shared: (Listen & {
    /** Clients may be behind a proxy: the sender of a packet is not who is counted. */ proxied: boolean
  })[]
  /** For a route that would own a port but for a route that takes some of its connections: that other one. */
  contested: Map<Route, { port: number; by: Route }>
}

const PORTS = 65536

/** Matches every connection to its ports: its owner can be known from the port alone. */
const matchesAll = (route: Route) => !needsPeek(route) && route.match.clientIps === undefined

/** @param reading while it is answered: a route that takes some connections of its port, whoever else does. */
export function ownership(routes: Route[], reading: Route | null = null): Ownership {
  const owned: Ownership = { runs: [], shared: [], contested: new Map() }
  for (const protocol of ['tcp', 'udp'] as const)
    own(
      routes.filter((route) => protocolOf(route) === protocol),
      protocol,
      owned,
      protocol === 'tcp' ? reading : null,
    )
  return owned
}

function own(routes: Route[], protocol: 'tcp' | 'udp', { runs, shared, contested }: Ownership, reading: Route | null) {
  // Every address first as all of them: what an address of its own has beyond that is all that needs saying.
  const addresses = new Set([null, ...routes.flatMap((route) => listensOf(route).map((listen) => listen.address))])
  const ascending = bySpecificity(routes).toReversed()

  if (reading) ascending.push(reading)

  let wide = new Uint32Array(PORTS)
  for (const address of addresses) {
    // 0: nobody; otherwise index + 1 in `ascending`.
    const owner = new Uint32Array(PORTS)
    const partial = new Uint32Array(PORTS)
    const proxied = new Uint8Array(PORTS)
    ascending.forEach((route, i) => {
      for (const listen of listensOf(route)) {
        if (listen.address !== null && listen.address !== address) continue
        if (route.acceptProxyProtocol) proxied.fill(1, listen.from, listen.to + 1)
        if (route === reading) {
          // Where another one reads already, that is the reason that others share with.
          if (partial[listen.from] === 0) partial[listen.from] = i + 1
          continue
        }
        if (!matchesAll(route)) {
          partial.fill(i + 1, listen.from, listen.to + 1)
          continue
        }
        // It goes before whoever took some of these ports' connections: they never get any.
        owner.fill(i + 1, listen.from, listen.to + 1)
        partial.fill(0, listen.from, listen.to + 1)
      }
    })
    for (let port = 1; port < PORTS;) {
      const [own, part, fallsThrough] = [owner[port]!, partial[port]!, address !== null && owner[port] === wide[port]]
      let end = port + 1
      while (
        end < PORTS &&
        owner[end] === own &&
        partial[end] === part &&
        proxied[end] === proxied[port] &&
        (address !== null && own === wide[end]) === fallsThrough
      )
        end++
      const route = own > 0 ? ascending[own - 1]! : undefined
      if (route && part > 0) contest(route, port, ascending[part - 1]!)
      else if (route && !fallsThrough) runs.push({ address, from: port, to: end - 1, protocol, route })
      if (part > 0) shared.push({ address, from: port, to: end - 1, protocol, proxied: proxied[port] === 1 })
      port = end
    }
    if (address === null) wide = owner
  }

  /** The first port says why, a challenge only where nothing else does: it comes and goes. */
  function contest(route: Route, port: number, by: Route) {
    const known = contested.get(route)
    if (!known || known.by === reading) contested.set(route, { port, by })
  }
}
