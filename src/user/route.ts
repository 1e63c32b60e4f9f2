// A route made ready to carry connections: lists compiled, counters attached, TLS material and handler loaded. Built once
// for each change of a route, of which connections keep the one they began with; what changes every few seconds (the weights
// of targets, draining) is changed in place.
import { ROUTE_LOG_INTERVAL_MS } from '../base/limits.ts'
import type { RouteCertificates } from '../channel/messages.ts'
import { choiceOf, type Choice } from '../plan/choose.ts'
import type { UserRoute, UserTls } from '../plan/types.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import { Balancer } from './balance.ts'
import { ServedCertificates } from './certificates.ts'
import { loadHandler, type LoadedHandler } from './handler-module.ts'
import { Counters, NetworkList, Rate, type Guard } from './security.ts'

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
  /** Null while there are none: handshakes fail then. */
  certificates: ServedCertificates | null = null
  clientCa: string | null = null
  upstreamCa: string | null = null
  /** How to call the handler, or why it cannot be called. */
  handler: LoadedHandler | { problem: string } | null = null
  /** What prepare() found, repeated with every plan that leaves it so. */
  readonly problems: string[] = []
  #lastLog = -Infinity
  #unlogged = 0

  constructor(
    public plan: UserRoute,
    /** Those of the route's earlier version, so that limits go on counting what it carries. */
    readonly counters: Counters,
  ) {
    const { action, security } = plan
    const choice = choiceOf(plan, new NetworkList(plan.clientIps))
    this.name = plan.name
    this.domains = choice.domains
    this.priority = choice.priority
    this.narrowest = choice.narrowest
    this.clients = choice.clients
    this.byHost = choice.byHost
    this.needsTls = choice.needsTls
    this.trusted = new NetworkList(plan.acceptProxyProtocol ?? [])
    this.tls = 'tls' in action ? action.tls : null
    this.terminates = this.tls !== null && this.tls.mode !== 'passthrough'
    this.forwardsPlain = action.type === 'forward' && !this.terminates
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

  /** Answers what cannot be used.
   *  @param before the route's earlier version. */
  setCertificates(given: RouteCertificates | undefined, before: LiveRoute = this): string[] {
    const { terminates, clientCa } = this
    const isBare = !terminates || !given || (this.tls!.clientCa !== null && clientCa === null)
    const rules = { minVersion: this.tls?.minVersion ?? 'TLSv1.3', clientCa }
    this.certificates = isBare ? null : new ServedCertificates(given, rules, before.certificates)
    return this.certificates?.problems ?? []
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
