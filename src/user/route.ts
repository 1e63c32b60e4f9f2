// A route made ready to carry connections: lists compiled, counters attached, TLS material and handler loaded. Built once
// for each change of a route, of which connections keep the one they began with; what changes every few seconds (the weights
// of targets, draining) is changed in place.
import tls from 'node:tls'
import { ROUTE_LOG_INTERVAL_MS } from '../base/limits.ts'
import type { UserRoute, UserTls } from '../plan/types.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import { Balancer } from './balance.ts'
import { loadHandler, type LoadedHandler } from './handler-module.ts'
import { Counters, NetworkList, Rate, type Guard } from './security.ts'
import { narrowestOf, type Choice } from './select.ts'

export type Certificate = { cert: string; key: string }

export class LiveRoute implements Choice, Guard {
  readonly name: string
  readonly domains: readonly string[]
  readonly priority: number
  readonly narrowest: number
  readonly clients: NetworkList
  /** Whose PROXY header it believes. */
  readonly trusted: NetworkList
  readonly byHost: boolean
  readonly needsTls: boolean
  readonly rules: UserRoute['security']
  readonly allow: NetworkList
  readonly block: NetworkList
  readonly rate: Rate | null
  readonly tls: UserTls | null
  /** Tls ends here; false for passthrough. */
  readonly terminates: boolean
  /** Its bytes go on as they are: nothing here has to see them. */
  readonly forwardsPlain: boolean
  readonly balancer: Balancer | null
  /** Null while there is no certificate: handshakes fail then. */
  secureContext: object | null = null
  clientCa: string | null = null
  upstreamCa: string | null = null
  /** How to call the handler, or why it cannot be called. */
  handler: LoadedHandler | { problem: string } | null = null
  /** What prepare() found, repeated with every plan that leaves it so. */
  readonly problems: string[] = []
  /** What the context was made of. */
  #material: string | undefined
  #lastLog = -Infinity
  #unlogged = 0

  constructor(
    public plan: UserRoute,
    /** Those of the route's earlier version, so that limits go on counting what it carries. */
    readonly counters: Counters,
  ) {
    const { action, security } = plan
    this.name = plan.name
    this.domains = plan.domains
    this.priority = plan.priority
    this.narrowest = narrowestOf(plan.domains)
    this.clients = new NetworkList(plan.clientIps)
    this.trusted = new NetworkList(plan.acceptProxyProtocol ?? [])
    this.tls = action.type === 'block' ? null : action.tls
    this.terminates = this.tls !== null && this.tls.mode !== 'passthrough'
    this.forwardsPlain = action.type === 'forward' && !this.terminates
    this.byHost = action.type === 'redirect' && !this.terminates
    this.needsTls = this.tls !== null || (plan.domains.length > 0 && !this.byHost)
    this.rules = security
    this.allow = new NetworkList(security.allow)
    this.block = new NetworkList(security.block)
    this.rate = security.rate ? new Rate(security.rate.count, security.rate.perMs) : null
    this.balancer = action.type === 'forward' ? new Balancer(action.targets, action.balance) : null
  }

  /** Why it takes no connection now, from whomever. */
  get shut(): RefusalReason | undefined {
    if (this.plan.action.type === 'block') return 'blocked'
    if (this.plan.draining) return 'draining'
    return this.balancer?.slots.length === 0 ? 'no_target' : undefined
  }

  /** Takes over a plan of the same route; false where more has changed than its targets and its draining. */
  retarget(plan: UserRoute): boolean {
    if (!Bun.deepEquals(steady(this.plan), steady(plan))) return false
    this.plan = plan
    if (plan.action.type === 'forward') this.balancer!.retarget(plan.action.targets)
    return true
  }

  /** Reads files and modules. What went wrong is in `problems`; the route then serves what it still can. */
  async prepare(configFile: string | undefined): Promise<void> {
    const { problems } = this
    const { action } = this.plan
    if (this.tls) {
      this.clientCa = await pem(this.tls.clientCa, problems)
      this.upstreamCa = await pem(this.tls.upstream.ca, problems)
    }
    if (action.type === 'handler') {
      this.handler = await loadHandler(action, configFile)
      if ('problem' in this.handler) problems.push(this.handler.problem)
    }
  }

  /** A new context only where it would be another one: session tickets live in it, and are good for nothing else.
   *  @param before the route's earlier version. */
  setCertificate(certificate: Certificate | undefined, before?: LiveRoute): string | undefined {
    if (!this.terminates || !certificate || (this.tls!.clientCa !== null && this.clientCa === null)) {
      this.secureContext = null
      return undefined
    }
    const options = {
      ...certificate,
      minVersion: this.tls!.minVersion,
      ciphers: CIPHERS,
      honorCipherOrder: true,
      ...(this.clientCa === null ? {} : { ca: this.clientCa }),
    }
    const material = JSON.stringify(options)
    const earlier = [this, before].find((one) => one?.secureContext && one.#material === material)
    this.#material = material
    if (earlier) {
      this.secureContext = earlier.secureContext
      return undefined
    }
    this.secureContext = null
    try {
      this.secureContext = tls.createSecureContext(options).context as object
      return undefined
    } catch (error) {
      return `Cannot use the certificate: ${(error as Error).message}`
    }
  }

  /** At most a line a second for what a client can cause as often as it likes; undefined: only counted. */
  logLine(message: string, nowMs: number): string | undefined {
    if (nowMs - this.#lastLog < ROUTE_LOG_INTERVAL_MS) {
      this.#unlogged++
      return undefined
    }
    const line = this.#unlogged > 0 ? `${message} (and ${this.#unlogged} more since the last line)` : message
    this.#lastLog = nowMs
    this.#unlogged = 0
    return line
  }
}

/** Of TLS 1.2 (those of 1.3 are all good): forward secrecy, and no CBC, whose padding has been an oracle again and again.
 *  Mozilla's intermediate list; within the brackets the client chooses, who knows whether it has AES in hardware. */
const CIPHERS = ['ECDSA', 'RSA']
  .map((kind) => `[ECDHE-${kind}-AES128-GCM-SHA256|ECDHE-${kind}-CHACHA20-POLY1305]:ECDHE-${kind}-AES256-GCM-SHA384`)
  .join(':')

/** What a LiveRoute is built from. */
const steady = (plan: UserRoute) => ({
  ...plan,
  draining: false,
  action: plan.action.type === 'forward' ? { ...plan.action, targets: [] } : plan.action,
})

/** The text itself, or a file that holds it. */
async function pem(source: string | null, problems: string[]): Promise<string | null> {
  if (source === null || source.includes('-----BEGIN')) return source
  try {
    return await Bun.file(source).text()
  } catch (error) {
    problems.push(`Cannot read ${source}: ${(error as Error).message}`)
    return null
  }
}
