// The shape of a configuration, once: the types, the checks that need one field only, the defaults and the JSON Schema
// all come from here. What needs two fields or two routes is in check.ts.
import { z } from 'zod'
import { isCidrOrRange, isIp, parseTarget } from '../base/addresses.ts'
import { isNamePattern } from '../base/names.ts'
import { parseDuration, parseRate } from '../base/units.ts'

// Names travel into nft comments, metrics labels and URLs: one alphabet that is harmless in all three.
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}$/

const duration = (what: string) =>
  z
    .string()
    .refine((text) => parseDuration(text) !== undefined, {
      error: 'not a duration',
      params: { remedy: 'a number with a unit, such as "500ms", "5s", "30m" or "4h"' },
    })
    .describe(what)

const text = (max: number) =>
  z
    .string()
    .min(1)
    .max(max)
    .refine((value) => !/[\u0000-\u001f\u007f]/.test(value), {
      error: 'contains a control character',
      params: { remedy: 'remove line breaks, tabs and other control characters' },
    })

const host = z
  .string()
  .max(255)
  .refine((value) => parseTarget(value) !== undefined, {
    error: 'not an address, a host name or a unix socket path',
    params: {
      remedy: 'an address such as "10.0.0.5" or "2001:db8::5", a name such as "db.internal", or "unix:/run/app.sock"',
    },
  })

const port = z.int().min(1).max(65535)
const portRange = z
  .strictObject({ from: port.describe('First port. Required.'), to: port.describe('Last port, included. Required.') })
  .refine((range) => range.from <= range.to, {
    error: 'the range runs backwards',
    params: { remedy: '"from" must not be above "to"' },
  })
const ports = z.union([
  port,
  z
    .array(z.union([port, portRange]))
    .min(1)
    .max(1024),
])

const address = z
  .string()
  .refine(isIp, { error: 'not an IP address', params: { remedy: 'an address such as "192.0.2.1" or "2001:db8::1"' } })
const network = z.string().refine(isCidrOrRange, {
  error: 'not an address, network, range or glob',
  params: { remedy: 'such as "192.0.2.1", "10.0.0.0/8", "10.0.0.1-10.0.0.9", "192.168.*" or "2001:db8::/32"' },
})
const domain = z
  .string()
  .max(253)
  .refine(isNamePattern, {
    error: 'not a host name or a pattern of one',
    params: {
      remedy:
        'such as "example.com", "*.example.com", "api-*.example.com", "example.*" or "*"; other letters as "xn--…" has them',
    },
  })
const rate = z.string().refine((value) => parseRate(value) !== undefined, {
  error: 'not a rate',
  params: { remedy: 'a number per second, minute or hour, such as "300/minute"' },
})
const count = z.int().min(1).max(1_000_000)

const isStore = (value: string) =>
  value === 'file' || (/^rediss?:\/\/./.test(value) && URL.canParse(value) && new URL(value).hostname !== '')

const timeouts = z
  .strictObject({
    connect: duration('How long a connection to a target may take to open. Default 10s.').optional(),
    firstByte: duration('How long a client may stay silent where its first bytes decide. Default 30s.').optional(),
    handshake: duration('How long a TLS handshake may take. Default 10s.').optional(),
    idle: duration('How long a connection may carry no byte in either direction. Default 4h, udp 3m.').optional(),
    halfClosed: duration(
      'How long the other direction may go on after one side has sent its FIN. Default 5s; with allowHalfOpen only idle and parity apply.',
    ).optional(),
    parity: duration(
      'With allowHalfOpen: how long a half-closed connection may last without data. Default 30m.',
    ).optional(),
    grace: duration('How long closing waits for bytes in flight. Default 5s.').optional(),
  })
  .describe('Time limits.')

const security = z
  .strictObject({
    ipAllowList: z.array(network).max(65536).optional().describe('Only these clients. Default: all.'),
    ipBlockList: z
      .array(network)
      .max(65536)
      .optional()
      .describe('Never these clients; wins over ipAllowList. Default: none.'),
    maxConnections: count.optional().describe('Connections at the same time. Default: no limit.'),
    maxConnectionsPerIp: count
      .optional()
      .describe('Connections at the same time from one client address. Default: no limit.'),
    connectionRatePerIp: rate
      .optional()
      .describe('New connections from one client address, such as "300/minute". Default: no limit.'),
    mode: z
      .enum(['enforce', 'observe'])
      .optional()
      .describe('observe counts what would have been refused and refuses nothing. Default enforce.'),
  })
  .describe('Who may connect, and how often.')

const target = z
  .strictObject({
    host: host.describe('Address, name, or unix:/path. Required.'),
    port: z
      .union([port, z.literal('preserve')])
      .optional()
      .describe('Port, or "preserve" for the one the client used. Default preserve; not for unix sockets.'),
    weight: z
      .int()
      .min(0)
      .max(256)
      .optional()
      .describe('Share of new connections relative to the other targets; 0 takes none. Default 1.'),
  })
  .describe('Where connections go.')

const certificate = z.union([
  z.enum(['auto', 'self-signed']),
  z.strictObject({
    cert: text(4096).describe('PEM file with the chain. Required.'),
    key: text(4096).describe('PEM file with the key. Required.'),
  }),
  z.strictObject({
    module: text(4096).describe('Module whose default export gives a certificate for a name. Required.'),
  }),
])

const tls = z
  .strictObject({
    mode: z.enum(['passthrough', 'terminate', 'terminate-and-reencrypt']).describe('What happens to TLS. Required.'),
    certificate: certificate.optional().describe('Where the certificate comes from. Default auto.'),
    alpn: z.array(text(255)).max(16).optional().describe('Protocols offered, best first. Default: none.'),
    minVersion: z.enum(['TLSv1.2', 'TLSv1.3']).optional().describe('Oldest version accepted. Default TLSv1.2.'),
    clientCa: text(4096)
      .optional()
      .describe('PEM file: clients must show a certificate signed by it. Default: none asked.'),
    upstream: z
      .strictObject({
        serverName: text(253).optional().describe('Name sent to and expected of the target. Default: its host.'),
        ca: text(4096).optional().describe('PEM file that signs the target. Default: the system.'),
        insecure: z.boolean().optional().describe('Accept any certificate of the target. Default false.'),
      })
      .optional()
      .describe('TLS to the target, with terminate-and-reencrypt.'),
  })
  .describe('TLS of the route.')

// It is written into the request as it stands: nothing in it may end the line.
const requestPath = z
  .string()
  .max(2048)
  .refine((path) => /^\/[!-~]*$/.test(path), {
    error: 'not the path of a request',
    params: { remedy: 'visible ASCII that begins with "/", such as "/healthz"' },
  })

const health = z
  .strictObject({
    interval: duration('Between checks, give or take a tenth. Default 5s.').optional(),
    timeout: duration('Of one check. Default 2s.').optional(),
    rise: z.int().min(1).max(100).optional().describe('Good checks until a target is used again. Default 2.'),
    fall: z.int().min(1).max(100).optional().describe('Bad checks until a target is left out. Default 3.'),
    type: z
      .union([
        z.enum(['tcp', 'tls']),
        z.strictObject({ http: requestPath.describe('Path to GET; 2xx and 3xx are good. Required.') }),
      ])
      .optional()
      .describe('What a check does: connect, shake hands (the certificate is not verified), or ask. Default tcp.'),
  })
  .describe('Health checks of the targets.')

/** A handler written in the configuration itself. Across processes it is only its route's name: see config/load.ts. */
export type Handler = { connect(socket: unknown, env: Record<string, unknown>, ctx: unknown): void | Promise<void> }
export type InlineHandler = { inline: string }

const handler = z.union([
  text(4096),
  z.strictObject({
    inline: text(63).describe('Made by the gateway itself for a handler in a TypeScript file. Required.'),
  }),
  z.custom<Handler>(
    (value) => typeof value === 'function' || typeof (value as Handler | null)?.connect === 'function',
    {
      error: 'not a handler',
      params: { remedy: 'a module path, or an object with a connect(socket, env, ctx) function' },
    },
  ),
])

const forward = z.strictObject({
  type: z.literal('forward').describe('Forward to targets. Required.'),
  targets: z.array(target).min(1).max(256).describe('Where connections go. Required.'),
  balance: z
    .enum(['round-robin', 'source-hash', 'least-connections'])
    .optional()
    .describe('How a target is chosen. Default round-robin.'),
  tls: tls.optional(),
  forwardingEngine: z
    .enum(['auto', 'nftables', 'user'])
    .optional()
    .describe(
      'auto: the kernel where it can; nftables: the kernel or a failed start; user: never the kernel. Default auto.',
    ),
  preserveSourceIp: z
    .boolean()
    .optional()
    .describe("Keep the client's address towards the target (kernel carrier only). Default false: masquerade."),
  sendProxyProtocol: z
    .enum(['v1', 'v2'])
    .optional()
    .describe('Send a PROXY protocol header to the target. Default: none.'),
  allowHalfOpen: z
    .boolean()
    .optional()
    .describe('Leave the other direction open after one FIN, bounded by idle and parity only. Default false.'),
  health: health.optional(),
})
const socketHandler = z.strictObject({
  type: z.literal('socket-handler').describe('Run a handler module. Required.'),
  handler: handler.describe('Module path relative to the configuration file, or a handler. Required.'),
  tls: tls.optional(),
  env: z.record(z.string(), z.json()).optional().describe('Given to the handler as env; JSON. Default {}.'),
  reach: z
    .strictObject({
      private: z.boolean().optional().describe('connect() may reach private and own addresses. Default false.'),
      ports: z.array(port).max(1024).optional().describe('Ports connect() may reach. Default: all but 25.'),
    })
    .optional()
    .describe('What connect() in the handler may reach.'),
})
const redirect = z.strictObject({
  type: z.literal('redirect').describe('Answer with an HTTP redirect. Required.'),
  to: text(2048).describe('URL with {host}, {port}, {path}. Required.'),
  status: z
    .union([z.literal(301), z.literal(302), z.literal(303), z.literal(307), z.literal(308)])
    .optional()
    .describe('HTTP status. Default 308.'),
})
const block = z.strictObject({ type: z.literal('block').describe('Refuse every connection. Required.') })

export const routeSchema = z.strictObject({
  name: z
    .string()
    .refine((name) => NAME.test(name), {
      error: 'not a route name',
      params: { remedy: 'up to 63 letters, digits, "_", ".", ":" or "-", beginning with a letter or digit' },
    })
    .describe('Unique name. Required.'),
  match: z
    .strictObject({
      ports: ports.describe('Port, or a list of ports and { from, to } ranges. Required.'),
      domains: z
        .union([domain, z.array(domain).min(1).max(1024)])
        .optional()
        .describe(
          'Server names (TLS) or Host names (redirect): exact, or with "*" such as *.example.com, example.* or api-*.example.com. Default: all.',
        ),
      addresses: z.array(address).min(1).max(256).optional().describe('Local addresses to listen on. Default: all.'),
      clientIps: z.array(network).min(1).max(4096).optional().describe('Clients this route is for. Default: all.'),
      protocol: z.enum(['tcp', 'udp']).optional().describe('Protocol; udp only with the kernel carrier. Default tcp.'),
    })
    .describe('Which connections the route is for. Required.'),
  action: z
    .discriminatedUnion('type', [forward, socketHandler, redirect, block])
    .describe('What happens to them. Required.'),
  security: security.optional(),
  acceptProxyProtocol: z
    .strictObject({ from: z.array(network).min(1).max(1024).describe('Trusted senders. Required.') })
    .optional()
    .describe('Take the client from a PROXY protocol header. Default: no header expected.'),
  keepAlive: z
    .union([
      z.literal(false),
      z.strictObject({
        idle: duration('Silence before the first probe. Default 60s.').optional(),
        interval: duration('Between probes. Default 15s.').optional(),
        count: z
          .int()
          .min(1)
          .max(127)
          .optional()
          .describe('Probes without an answer until the peer counts as gone. Default 5.'),
      }),
    ])
    .optional()
    .describe('TCP keepalive. Default on.'),
  timeouts: timeouts.optional(),
  priority: z.int().min(-1_000_000).max(1_000_000).optional().describe('Higher wins over more specific. Default 0.'),
  enabled: z.boolean().optional().describe('false leaves the route out. Default true.'),
  drain: z
    .string()
    .refine((value) => value === 'finish' || value === 'cut' || parseDuration(value) !== undefined, {
      error: 'not a drain policy',
      params: { remedy: '"finish", "cut", or a deadline such as "5m"' },
    })
    .optional()
    .describe(
      "What happens to live connections when the route is removed or retargeted: 'finish', 'cut', or a deadline. Default finish.",
    ),
})

export const configSchema = z.strictObject({
  routes: z.array(routeSchema).max(65536).describe('The routes. Required.'),
  kernel: z
    .strictObject({
      table: z
        .string()
        .refine((name) => /^[a-z][a-z0-9_]{0,30}$/.test(name), {
          error: 'not a table name',
          params: { remedy: 'up to 31 lower-case letters, digits or "_", beginning with a letter' },
        })
        .optional()
        .describe('Name of our nft table. Default sluice.'),
      markBase: z
        .int()
        .min(0x01000000)
        .max(0xff000000)
        .refine((mark) => (mark & 0x00ffffff) === 0, {
          error: 'has bits outside the top byte',
          params: { remedy: 'a number such as 0x51000000' },
        })
        .optional()
        .describe('Top byte of the conntrack marks of our flows. Default 0x51000000.'),
      onStop: z
        .enum(['keep', 'remove'])
        .optional()
        .describe('What a real stop does with the kernel rules. Default remove.'),
    })
    .optional()
    .describe('The kernel plane.'),
  admin: z
    .strictObject({
      socket: text(107).optional().describe('Unix socket of the admin API. Default /run/sluice/admin.sock.'),
      http: z
        .strictObject({
          hostname: address.optional().describe('Address to listen on. Default 127.0.0.1.'),
          port: port.describe('Port. Required.'),
          token: text(256)
            .optional()
            .describe('Bearer token, of 16 characters or more. Default: made once and kept in stateDir/admin.token.'),
        })
        .optional()
        .describe('Admin API and dashboard over HTTP. Default: off.'),
    })
    .optional()
    .describe('The admin API.'),
  acme: z
    .strictObject({
      email: z.email().describe('Contact of the account. Required.'),
      directory: z
        .url()
        .max(2048)
        .refine((url) => !URL.canParse(url) || new URL(url).protocol === 'https:', {
          error: 'not an https URL',
          params: { remedy: 'such as "https://acme.example/directory"; "ca" names who signs that of an internal CA' },
        })
        .optional()
        .describe("Directory of the CA, https. Default: Let's Encrypt."),
      ca: text(4096).optional().describe('PEM file that signs the directory. Default: the system.'),
      termsAgreed: z
        .boolean()
        .refine((agreed) => agreed, {
          error: 'a CA issues nothing before its terms are agreed to',
          params: { remedy: "read the CA's terms of service, and write true" },
        })
        .describe("Whether the CA's terms are agreed to; has to be true. Required."),
      challengePort: port.optional().describe('Port of HTTP-01. Default 80.'),
      renewBeforeDays: z.int().min(1).max(365).optional().describe('Days before expiry. Default 30.'),
      eab: z
        .strictObject({
          kid: text(1024).describe('Key id. Required.'),
          hmacKey: text(1024)
            .refine((key) => /^[A-Za-z0-9_-]+={0,2}$/.test(key), {
              error: 'not base64url',
              params: { remedy: 'write it as the CA shows it: letters, digits, "-" and "_"' },
            })
            .describe('HMAC key, base64url. Required.'),
        })
        .optional()
        .describe('External account binding.'),
    })
    .optional()
    .describe('Automatic certificates.'),
  log: z
    .strictObject({
      level: z.enum(['debug', 'info', 'warn', 'error']).optional().describe('Level of the program log. Default info.'),
      access: z
        .union([
          text(4096),
          z.strictObject({
            file: text(4096).describe('File. Required.'),
            durable: z
              .boolean()
              .optional()
              .describe('Opening lines are on disk before the first outbound byte. Default false.'),
          }),
        ])
        .optional()
        .describe('Access log: "stdout", "off", or a file. Default stdout.'),
    })
    .optional()
    .describe('Logs.'),
  limits: z
    .strictObject({
      maxConnections: count.optional().describe('Connections at the same time. Default: no limit.'),
      maxConnectionsPerIp: count
        .optional()
        .describe('Connections at the same time from one client address. Default: no limit.'),
      connectionRatePerIp: rate.optional().describe('New connections from one client address. Default: no limit.'),
    })
    .optional()
    .describe('Limits over all routes.'),
  timeouts: timeouts.optional(),
  defaults: z
    .strictObject({
      target: target.optional().describe('For connections that match no route of their TCP port.'),
      security: security.optional().describe('For routes without their own.'),
    })
    .optional()
    .describe('Defaults.'),
  workers: z
    .union([z.int().min(1).max(256), z.literal('auto')])
    .optional()
    .describe('Worker processes. Default 1.'),
  store: text(4096)
    .refine(isStore, {
      error: 'not a store',
      params: { remedy: '"file", or a URL such as "redis://10.0.0.5:6379" or "rediss://:password@redis.internal"' },
    })
    .optional()
    .describe('"file", or "redis://…": certificates, accounts, challenges, locks. Default file.'),
  stateDir: text(4096)
    .optional()
    .describe('Directory of everything that outlives the program. Default /var/lib/sluice.'),
})

/** A configuration as an operator writes it. */
export type Config = z.input<typeof configSchema>
export type Route = z.input<typeof routeSchema>
export type Action = Route['action']
export type Forward = z.input<typeof forward>
export type SocketHandler = z.input<typeof socketHandler>
export type Redirect = z.input<typeof redirect>
export type Target = z.input<typeof target>
export type Tls = z.input<typeof tls>
export type Certificate = z.input<typeof certificate>
export type Security = z.input<typeof security>
export type Timeouts = z.input<typeof timeouts>
export type Health = z.input<typeof health>
