// What the user plane gets of a route: every value resolved, nothing left to be a default. Pure.
import { parseDuration, parseRate } from '../base/units.ts'
import { readsName } from '../config/needs.ts'
import type { Config, Route, Timeouts, Tls } from '../config/schema.ts'
import { protocolOf } from './listeners.ts'
import type { Endpoint, Facts, UserRoute, UserTls } from './types.ts'

const DEFAULT_TIMEOUTS = {
  connect: '10s',
  firstByte: '30s',
  handshake: '10s',
  idle: '4h',
  halfClosed: '5s',
  parity: '30m',
  grace: '5s',
} satisfies Required<Timeouts>

export function inMs(...given: (Timeouts | undefined)[]): UserRoute['timeoutsMs'] {
  const texts = Object.entries(Object.assign({}, DEFAULT_TIMEOUTS, ...given) as Required<Timeouts>)
  return Object.fromEntries(texts.map(([name, text]) => [name, parseDuration(text)!])) as UserRoute['timeoutsMs']
}

export function userRoute(
  route: Route,
  endpoints: Endpoint[],
  config: Config,
  facts: Facts,
  /** Of routes without their own. */
  commonMs: UserRoute['timeoutsMs'],
  carrier: 'splice' | 'user',
): UserRoute {
  const security = route.security ?? config.defaults?.security ?? {}
  const keepAlive = route.keepAlive === false ? null : { idle: '60s', interval: '15s', count: 5, ...route.keepAlive }
  const seconds = (text: string) => Math.max(1, Math.round(parseDuration(text)! / 1000))
  return {
    name: route.name,
    carrier,
    domains: readsName(route) ? [route.match.domains!].flat().map((name) => name.toLowerCase()) : [],
    priority: route.priority ?? 0,
    clientIps: route.match.clientIps ?? [],
    acceptProxyProtocol: route.acceptProxyProtocol?.from ?? null,
    draining: facts.draining[route.name] === true,
    action: userAction(route, endpoints),
    security: {
      allow: security.ipAllowList ?? [],
      block: security.ipBlockList ?? [],
      maxConnections: security.maxConnections ?? null,
      maxConnectionsPerIp: security.maxConnectionsPerIp ?? null,
      rate: security.connectionRatePerIp ? parseRate(security.connectionRatePerIp)! : null,
      observe: security.mode === 'observe',
    },
    timeoutsMs: timeoutsOf(route, config, commonMs),
    keepAlive: keepAlive && {
      idleS: seconds(keepAlive.idle),
      intervalS: seconds(keepAlive.interval),
      count: keepAlive.count,
    },
  }
}

/** UDP has a default of its own for idle: nothing but silence ends it. */
function timeoutsOf(route: Route, config: Config, commonMs: UserRoute['timeoutsMs']): UserRoute['timeoutsMs'] {
  if (protocolOf(route) === 'udp') return inMs({ idle: '3m' }, config.timeouts, route.timeouts)
  return route.timeouts ? inMs(config.timeouts, route.timeouts) : commonMs
}

export function userAction(route: Route, endpoints: Endpoint[]): UserRoute['action'] {
  const { action } = route
  switch (action.type) {
    case 'forward':
      return {
        type: 'forward',
        // User space counts connections itself: its weights are the configured ones.
        targets: endpoints.map(({ host, port, name, weight, share }) => ({
          host,
          port,
          name,
          weight: share > 0 ? weight : 0,
        })),
        balance: action.balance ?? 'round-robin',
        allowHalfOpen: action.allowHalfOpen ?? false,
        sendProxyProtocol: action.sendProxyProtocol ?? null,
        tls: action.tls ? userTls(action.tls) : null,
      }
    case 'socket-handler': {
      const handler = action.handler
      const inline = typeof handler === 'object' && 'inline' in handler ? handler.inline : null
      return {
        type: 'handler',
        module: typeof handler === 'string' ? handler : '',
        inline,
        env: (action.env ?? {}) as Record<string, unknown>,
        reach: { private: action.reach?.private ?? false, ports: action.reach?.ports ?? null },
        tls: action.tls ? userTls(action.tls) : null,
      }
    }
    case 'redirect':
      return { type: 'redirect', to: action.to, status: action.status ?? 308, tls: null }
    case 'block':
      return { type: 'block' }
  }
}

const userTls = (tls: Tls): UserTls => ({
  mode: tls.mode,
  alpn: tls.alpn ?? [],
  minVersion: tls.minVersion ?? 'TLSv1.2',
  clientCa: tls.clientCa ?? null,
  upstream: {
    serverName: tls.upstream?.serverName ?? null,
    ca: tls.upstream?.ca ?? null,
    insecure: tls.upstream?.insecure ?? false,
  },
})
