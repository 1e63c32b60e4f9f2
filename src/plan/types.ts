// The plan: what should be, for both planes, as plain data (JSON can carry it to a worker). plan.ts makes it; the rooms
// after it carry it out and decide nothing.

export type Carrier = 'kernel' | 'splice' | 'user'

/** What plan() has to know of the machine and of what went before. */
export interface Facts {
  /** Why nothing can be put into the kernel on this machine; null when it can. */
  kernelUnusable: string | null
  /** Numbers that route names have already: from the running plan, or read back from the table after a restart. */
  numbers: Record<string, number>
  /** Numbers that live flows still carry, of routes that are gone: not given to a new route. */
  numbersInUse: number[]
  /** Addresses of target names; a name that is missing is not resolved (yet). */
  resolved: Record<string, string[]>
  markBase: number
  /** Identity of the static program, so that the plan carries what the table should say of itself. */
  programVersion: string
}

export interface Plan {
  routes: PlannedRoute[]
  /** Every listening socket, kernel routes included: their user-space twins serve until the rules are in, and loopback clients. */
  listeners: PlannedListener[]
  kernel: KernelState
}

export interface PlannedRoute {
  name: string
  /** Travels in the conntrack mark: markBase | number. Stable for as long as the name is configured. */
  number: number
  carrier: Carrier
  /** Why this carrier, in words for an operator. */
  reason: string
  /** forwardingEngine 'nftables': without the kernel the start fails. */
  required: boolean
  listens: { address: string | null; from: number; to: number }[]
  /** What happens to live connections when the route goes away: milliseconds, 0 cut, null finish. */
  drainMs: number | null
  user: UserRoute
}

export interface PlannedListener {
  /** "[::]:443" for all addresses of both families, else "address:port". Identity across plans. */
  key: string
  /** Numeric address; "::" stands for both families. */
  address: string
  port: number
  /** true: the first bytes are read before a route is chosen (a name, a PROXY header, TLS to terminate is not a reason by itself). */
  peek: boolean
  /** Names of the routes, best match first. */
  routes: string[]
}

export interface UserTarget {
  host: { kind: 'ip'; address: string } | { kind: 'name'; name: string } | { kind: 'unix'; path: string }
  /** null: the port the client connected to. */
  port: number | null
  weight: number
}

export interface UserTls {
  mode: 'passthrough' | 'terminate' | 'terminate-and-reencrypt'
  alpn: string[]
  minVersion: 'TLSv1.2' | 'TLSv1.3'
  /** The CA that client certificates must come from: in a plan the file that holds it, on its way to a worker its PEM text. */
  clientCa: string | null
  upstream: { serverName: string | null; ca: string | null; insecure: boolean }
}

/** A route as the user plane carries it out; every value resolved, nothing optional by default. */
export interface UserRoute {
  name: string
  /** What its records say: 'splice' hands over to the relay after the peek. A kernel route's twin is 'user'. */
  carrier: 'splice' | 'user'
  /** Lower-case patterns: exact, "*.example.com"; empty: every name, or none. */
  domains: string[]
  /** Networks (base/addresses parseNetwork); empty: every client. */
  clientIps: string[]
  action:
    | {
        type: 'forward'
        targets: UserTarget[]
        balance: 'round-robin' | 'source-hash' | 'least-connections'
        allowHalfOpen: boolean
        tls: UserTls | null
      }
    | {
        type: 'handler'
        module: string
        /** Route name inside module when the handler stands in the configuration itself. */ inline: string | null
        env: Record<string, unknown>
        tls: UserTls | null
      }
    | { type: 'redirect'; to: string; status: number; tls: UserTls | null }
    | { type: 'block' }
  security: {
    allow: string[]
    block: string[]
    maxConnections: number | null
    maxConnectionsPerIp: number | null
    rate: { count: number; perMs: number } | null
    observe: boolean
  }
  timeoutsMs: {
    connect: number
    firstByte: number
    handshake: number
    idle: number
    halfClosed: number
    parity: number
    grace: number
  }
  keepAlive: { idleS: number; intervalS: number; count: number } | null
}

/** The elements of the static nft program: map or set name → key → element, all in nft's own words and already validated. */
export type KernelState = Record<string, Record<string, KernelElement>>
export interface KernelElement {
  /** What stands after the colon; absent in sets. */
  value?: string
  comment?: string
}
