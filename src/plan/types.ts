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
  /** Endpoints that were found dead, by route name. */
  down: Record<string, Record<string, true>>
  /** Endpoints, or targets with all their addresses, that an operator drains, on every route. */
  drained: Record<string, true>
  /** Routes that take no new connections now: drained by an operator. */
  draining: Record<string, true>
  /** A name needs the challenge port now: what comes there is read for challenges first. */
  challenging: boolean
  /** least-connections: the shares of the endpoints now, by route name. Missing: the configured weights. */
  shares: Record<string, Record<string, number>>
  /** What is in the kernel, as far as known: slots stay where they are. */
  before: KernelState
  markBase: number
  /** Identity of the static program, so that the plan carries what the table should say of itself. */
  programVersion: string
}

export interface Plan {
  routes: PlannedRoute[]
  /** Every listening socket, kernel routes included: their user-space twins serve until the rules are in, and loopback clients. */
  listeners: PlannedListener[]
  /** Of all routes together; null: none. */
  limits: Limits | null
  /** UDP ports, held in user space by sockets that nobody reads. */
  reservations: { key: string; address: string; port: number }[]
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
  listens: Listen[]
  /** Where its connections go: one entry for each address of each target. Empty when it forwards nothing. */
  endpoints: Endpoint[]
  /** Why nothing carries it: UDP that the kernel cannot forward now. */
  unserved: string | null
  /** Targets see the client's own address. */
  preserveSourceIp: boolean
  /** What happens to live connections when the route goes away: milliseconds, 0 cut, null finish. */
  drainMs: number | null
  user: UserRoute
}

export interface Limits {
  maxConnections: number | null
  maxConnectionsPerIp: number | null
  rate: { count: number; perMs: number } | null
}

export interface Listen {
  /** null: every local address. */
  address: string | null
  from: number
  to: number
  protocol: 'tcp' | 'udp'
}

/** One address of a target. A name has several, which share its weight. */
export interface Endpoint {
  /** "10.0.0.5:8080", "[2001:db8::5]:443", "10.0.0.5:preserve" (the client's port is kept), "unix:/run/app.sock"; of a name that
   *  is not resolved "db.internal:5432". Identity within a route. */
  key: string
  /** The target as configured, in the same spelling. */
  target: string
  host: UserTarget['host']
  /** null: the port the client connected to. */
  port: number | null
  /** The configured name of an address that was resolved from one. */
  name: string | null
  /** Its share of new connections by configuration. */
  weight: number
  /** The share now: 0 when it is down or drained. */
  share: number
}

export interface PlannedListener {
  /** "[::]:443" for all addresses of both families, else "address:port". Identity across plans. */
  key: string
  /** Numeric address; "::" stands for both families. */
  address: string
  port: number
  /** true: the first bytes are read before a route is chosen (a name; TLS to terminate is not a reason by itself). */
  peek: boolean
  /** Challenges of a certificate authority are answered here, while `peek` says that first bytes are read. */
  challenge?: boolean
  /** Nobody needs it but a certificate authority: the gateway does without it where another program has the port. */
  optional?: boolean
  /** Networks whose connections begin with a PROXY protocol header, before everything else: those that a route here trusts. */
  trusted: string[]
  /** Names of the routes, best match first. */
  routes: string[]
}

export interface UserTarget {
  host: { kind: 'ip'; address: string } | { kind: 'name'; name: string } | { kind: 'unix'; path: string }
  /** null: the port the client connected to. */
  port: number | null
  /** The name that host was resolved from, for TLS to the target. */
  name: string | null
  /** 0: takes none, because it is down, drained or configured so. */
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
  /** New connections are refused: an operator drains it. */
  draining: boolean
  /** Lower-case patterns (base/names.ts); empty: every name, or none. */
  domains: string[]
  /** Higher goes before narrower. */
  priority: number
  /** Networks (base/addresses parseNetwork); empty: every client. */
  clientIps: string[]
  /** Networks whose PROXY protocol header this route believes; null: nobody's. */
  acceptProxyProtocol: string[] | null
  action:
    | {
        type: 'forward'
        targets: UserTarget[]
        balance: 'round-robin' | 'source-hash' | 'least-connections'
        allowHalfOpen: boolean
        /** The header of that version is the first thing a target gets. */
        sendProxyProtocol: 'v1' | 'v2' | null
        tls: UserTls | null
      }
    | {
        type: 'handler'
        module: string
        /** Route name inside module when the handler stands in the configuration itself. */ inline: string | null
        env: Record<string, unknown>
        /** What connect() may reach; ports null: all but 25. */
        reach: { private: boolean; ports: number[] | null }
        tls: UserTls | null
      }
    | { type: 'redirect'; to: string; status: number; tls: UserTls | null }
    | { type: 'block' }
    /** Holds the port on which challenges are answered, and carries nothing. */
    | { type: 'challenge' }
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

/** What the table in the kernel holds: the elements of the static program's sets and maps, all in nft's own words and
 *  already validated, and the names of the small chains that its verdicts mention (kernel/chains.ts writes them). */
export interface KernelState {
  /** By route: the key is its mark ("0x51000001"), or '' for what belongs to none. Groups are replaced, never changed: the
   *  same object is the same content. */
  groups: Record<string, KernelGroup>
}
/** Set or map → key → element; only those with elements. */
export type KernelGroup = Record<string, Record<string, KernelElement>>
export interface KernelElement {
  /** What stands after the colon; absent in sets. */
  value?: string
  comment?: string
  /** "ct count over" of the element. */
  over?: number
}
