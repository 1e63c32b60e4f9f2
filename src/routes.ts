// The short way to write the usual routes. What they make is a route like any other: it is checked with the configuration, and an
// option that is none is refused there by its name.
import type { Handler, Route, Target } from './config/schema.ts'
import type { Place, Routes } from './types/routes.d.ts'

const MATCH = ['ports', 'addresses', 'clientIps', 'protocol']
const FORWARD = [
  'balance',
  'forwardingEngine',
  'preserveSourceIp',
  'sendProxyProtocol',
  'allowHalfOpen',
  'health',
  'tls',
]
const REDIRECT = ['to', 'status']
const HANDLER = ['tls', 'env', 'reach']
const NAME_CHARS_MAX = 63

type Domains = string | string[]
type Ports = Route['match']['ports']

export const routes: Routes = {
  http: (to, options = {}) => make('http', { ports: 80 }, forward(to, {}), FORWARD, options),
  httpsTerminate: (domains, to, options = {}) =>
    make('https', { ports: 443, domains }, forward(to, { tls: tls('terminate', options) }), FORWARD, without(options)),
  httpsPassthrough: (domains, to, options = {}) =>
    make('passthrough', { ports: 443, domains }, forward(to, { tls: { mode: 'passthrough' } }), FORWARD, options),
  redirect: (domains, options = {}) =>
    make('redirect', { ports: 80, domains }, { type: 'redirect', to: 'https://{host}{path}' }, REDIRECT, options),
  loadBalancer: (ports, to, options = {}) => make('balance', { ports }, forward(to, { health: {} }), FORWARD, options),
  socketHandler: (ports, handler: string | Handler, options = {}) =>
    make('handler', { ports }, { type: 'socket-handler', handler }, HANDLER, options),
  nftables: (ports, to, options = {}) =>
    make('kernel', { ports }, forward(to, { forwardingEngine: 'nftables' }), FORWARD, options),
}

/** Options go where the configuration has them; what nobody knows stays with the route, where check() finds it. */
function make(
  kind: string,
  match: { ports: Ports; domains?: Domains },
  action: object,
  own: string[],
  options: object,
): Route {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  const pick = (keys: string[]) => Object.fromEntries(given.filter(([key]) => keys.includes(key)))
  const rest = Object.fromEntries(given.filter(([key]) => !MATCH.includes(key) && !own.includes(key)))
  const whole = { ...match, ...pick(MATCH) } as Route['match']
  return { name: nameOf(kind, whole), match: whole, action: { ...action, ...pick(own) }, ...rest } as Route
}

const forward = (to: Place | Place[], more: object) => ({
  type: 'forward',
  targets: (Array.isArray(to) ? to : [to]).map(target),
  ...more,
})

const tls = (mode: string, { tls }: { tls?: object }) => ({ mode, certificate: 'auto', ...tls })
const without = ({ tls: _, ...options }: { tls?: unknown }) => options

/** Of "10.0.0.5:8080", "[2001:db8::5]:8080" and so on; a host that is none is refused by check(). */
function target(place: Place): Target {
  if (typeof place !== 'string') return place
  const found = /^(?:\[(.+)\]|([^:/]+)):(\d+)$/.exec(place)
  if (found) return { host: (found[1] ?? found[2])!, port: Number(found[3]) }
  return { host: place.replace(/^\[(.+)\]$/, '$1') }
}

/** "https-app.example.com", "balance-5432": the same with each start, so that totals go on. */
function nameOf(kind: string, { ports, domains }: Route['match']): string {
  const first = [domains ?? []].flat()[0] ?? portOf(ports)
  const text = `${kind}-${first}`.replaceAll('*', 'any').replace(/[^A-Za-z0-9_.:-]/g, '-')
  return text.slice(0, NAME_CHARS_MAX)
}

function portOf(ports: Ports): string {
  const first = [ports].flat()[0]!
  return typeof first === 'number' ? String(first) : `${first.from}-${first.to}`
}
