// Where a route's connections go, address by address, and what share of new ones each gets now. Pure.
import { formatEnd, parseTarget } from '../base/addresses.ts'
import { own } from '../base/own.ts'
import type { Route } from '../config/schema.ts'
import type { Endpoint, Facts } from './types.ts'

type Target = Extract<Route['action'], { type: 'forward' }>['targets'][number]

/** @param onlyPort the port of a route that listens on a single one: keeping the client's port is naming it. */
export function endpointsOf(route: Route, onlyPort: number | null, facts: Facts): Endpoint[] {
  if (route.action.type !== 'forward') return []
  const down = own(facts.down, route.name) ?? {}
  const shares = (route.action.balance === 'least-connections' && own(facts.shares, route.name)) || {}
  return route.action.targets
    .flatMap((target) => addressesOf(target, onlyPort, facts))
    .map((endpoint) => ({
      ...endpoint,
      share:
        down[endpoint.key] || facts.drained[endpoint.key] || facts.drained[endpoint.target] || endpoint.weight === 0
          ? 0
          : (shares[endpoint.key] ?? endpoint.weight),
    }))
}

function addressesOf(target: Target, onlyPort: number | null, facts: Facts): Omit<Endpoint, 'share'>[] {
  const host = parseTarget(target.host)!
  const port = typeof target.port === 'number' ? target.port : onlyPort
  const weight = target.weight ?? 1
  if (host.kind === 'unix') {
    const key = `unix:${host.path}`
    return [{ key, target: key, host, port: null, name: null, weight }]
  }
  const configured = keyOf(host.kind === 'ip' ? host.address : host.name, port)
  if (host.kind === 'ip') return [{ key: configured, target: configured, host, port, name: null, weight }]
  const addresses = own(facts.resolved, host.name) ?? []
  if (addresses.length === 0) return [{ key: configured, target: configured, host, port, name: null, weight }]
  return addresses.map((address) => ({
    key: keyOf(address, port),
    target: configured,
    host: { kind: 'ip', address },
    port,
    name: host.name,
    weight: weight / addresses.length,
  }))
}

/** A connection to `target` ("ip:port", "unix:…") is one to this endpoint. */
export function leadsTo({ key, host, port }: Endpoint, target: string | null): boolean {
  if (target === null || port !== null || host.kind === 'unix') return key === target
  return host.kind === 'ip' && target.startsWith(formatEnd(host.address, 0).slice(0, -1))
}

const keyOf = (host: string, port: number | null) =>
  port !== null ? formatEnd(host, port) : host.includes(':') ? `[${host}]:preserve` : `${host}:preserve`
