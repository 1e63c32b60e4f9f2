// Routes as a worker is given them, for tests of the user plane.
import type { UserRoute, UserTarget, UserTls } from '../../src/plan/types.ts'

export const target = (port: number, weight = 1): UserTarget => ({
  host: { kind: 'ip', address: '127.0.0.1' },
  port,
  name: null,
  weight,
})

export const ends = (mode: UserTls['mode'], more: Partial<UserTls> = {}): UserTls => ({
  mode,
  alpn: [],
  minVersion: 'TLSv1.2',
  clientCa: null,
  upstream: { serverName: null, ca: null, insecure: false },
  ...more,
})

type Overrides = Partial<Omit<UserRoute, 'security' | 'timeoutsMs'>> & {
  security?: Partial<UserRoute['security']>
  timeoutsMs?: Partial<UserRoute['timeoutsMs']>
}

export function route(name: string, overrides: Overrides): UserRoute {
  return {
    name,
    carrier: 'user',
    domains: [],
    priority: 0,
    clientIps: [],
    acceptProxyProtocol: null,
    draining: false,
    action: { type: 'block' },
    keepAlive: { idleS: 60, intervalS: 15, count: 5 },
    ...overrides,
    security: {
      allow: [],
      block: [],
      maxConnections: null,
      maxConnectionsPerIp: null,
      rate: null,
      observe: false,
      ...overrides.security,
    },
    timeoutsMs: {
      connect: 3000,
      firstByte: 3000,
      handshake: 3000,
      idle: 60_000,
      halfClosed: 1000,
      parity: 60_000,
      grace: 1000,
      ...overrides.timeoutsMs,
    },
  }
}

export const forward = (
  targets: UserTarget[] | number,
  more: Partial<UserRoute['action'] & { type: 'forward' }> = {},
): UserRoute['action'] => ({
  type: 'forward',
  targets: typeof targets === 'number' ? [target(targets)] : targets,
  balance: 'round-robin',
  allowHalfOpen: false,
  sendProxyProtocol: null,
  tls: null,
  ...more,
})
