// What would become of a connection, and why, step by step: the way that its first packet takes through the kernel's rules, and
// that its first bytes take through user space. Nothing is tried: it is read from the plan and from what is known now. Pure.
import { familyOf, formatEnd, ipBytes, isLoopback } from '../base/addresses.ts'
import { own } from '../base/own.ts'
import type { Asked } from './asked.ts'
import { reasonWithout, selectRoute, type FirstBytes } from './choose.ts'
import { considered, listOf, readyRoutes, type ReadyRoute } from './explain-routes.ts'
import { refusalBy, refusalByAll } from './explain-limits.ts'
import { CHOICE, nearestListens, percent, quoted, sharesInUserSpace, unusedTargets } from './explain-words.ts'
import type { Explanation, Now, Outcome, Step } from './explanation.ts'
import { kernelPath, type KernelPath } from './kernel-path.ts'
import { ANY } from './listeners.ts'
import type { Carrier, Facts, Plan, PlannedListener, PlannedRoute } from './types.ts'

export function explain(plan: Plan, facts: Facts, asked: Asked, now: Now): Explanation {
  return new Explaining(plan, facts, asked, now).run()
}

class Explaining {
  readonly #steps: Step[] = []
  readonly #listener: string
  #targets: Explanation['targets'] = []
  #carrier: Carrier | null = null
  #route: string | null = null

  constructor(
    private readonly plan: Plan,
    private readonly facts: Facts,
    private readonly asked: Asked,
    private readonly now: Now,
  ) {
    this.#listener = asked.address === null ? `port ${asked.port}` : formatEnd(asked.address, asked.port)
  }

  run(): Explanation {
    const { asked, now } = this
    this.#ok('client', this.#isLocal ? `${asked.client}, on this machine` : asked.client)
    if (asked.address !== null && now.addresses && !isLoopback(asked.address) && !now.addresses.has(asked.address))
      return this.#end('not ours', null, `this machine does not have the address ${asked.address}`)
    const path = this.#kernel()
    if (path.to === 'targets' || path.to === 'refused' || (path.to === 'user space' && path.number > 0)) {
      const route = this.plan.routes.find(({ number }) => number === path.number)
      // Of a plan before this one: its rules go with the next transaction.
      if (!route)
        return this.#end('closed', null, `the kernel has a route ${path.number} there, which is gone from the plan`)
      const refused = this.#admits(route, true)
      if (refused) return refused
      if (path.to === 'refused') return this.#shut(route, path.reason)
      if (path.to === 'targets') return this.#forwarded(route, path)
    }
    if (asked.protocol === 'udp') return this.#noUdp()
    return this.#userSpace(path)
  }

  get #isLocal() {
    const { client } = this.asked
    return isLoopback(client) || this.now.addresses?.has(client) === true
  }

  // ---- the kernel ----

  #kernel(): KernelPath {
    const { address, port, protocol, client } = this.asked
    const goesRound = isLoopback(address ?? client)
    if (goesRound) this.#note('kernel', 'connections to a loopback address stay in user space')
    else if (!this.now.kernel)
      this.#note('kernel', `none of our rules are there: ${this.now.kernelReason ?? 'nothing needs them'}`)
    if (goesRound || !this.now.kernel) return { to: 'nobody' }
    const path = kernelPath(this.now.kernel, { address, port, protocol, family: familyOf(client) })
    const name = 'number' in path && this.plan.routes.find(({ number }) => number === path.number)?.name
    if (path.to === 'nobody') this.#ok('kernel', `our rules say nothing of ${this.#listener}: user space decides`)
    else if (!name) this.#ok('kernel', `our rules leave ${this.#listener} to user space: several routes share it`)
    else this.#ok('kernel', `our rules give ${this.#listener} to route "${name}" from the port alone`)
    return path
  }

  #forwarded(route: PlannedRoute, { targets }: Extract<KernelPath, { to: 'targets' }>): Explanation {
    this.#route = route.name
    this.#carrier = 'kernel'
    this.#ok('carrier', `kernel: ${route.reason}`)
    this.#targets = targets
    this.#tellTargets(route)
    this.#ok(
      'source',
      route.preserveSourceIp
        ? `the target sees ${this.asked.client}`
        : "masquerade: the target sees the gateway's address",
    )
    // What comes from this machine is not forwarded: it passes the output hook.
    const family = familyOf(this.asked.client) === 4 ? 'ip' : 'ip6'
    const drops = this.#isLocal ? [] : this.now.foreign.filter((one) => one.family === family || one.family === 'inet')
    for (const { family, table, chain, drops: what, commands } of drops)
      this.#step(
        'other rules',
        'stop',
        `chain ${chain} of table ${family} ${table} drops it (${what}); to mend it: ${commands.join('; ')}`,
      )
    const [first] = drops
    if (first)
      return this.#end(
        'dropped',
        null,
        `somebody else's rules drop it: chain ${first.chain} of table ${first.family} ${first.table}`,
      )
    return this.#end('carried', null, `the kernel carries it to ${this.#where()}`)
  }

  #noUdp(): Explanation {
    const { port, address } = this.asked
    const route = this.plan.routes.find(({ listens }) =>
      listens.some(
        (one) => one.protocol === 'udp' && one.from <= port && port <= one.to && (one.address ?? address) === address,
      ),
    )
    if (!route) return this.#notListening()
    this.#route = route.name
    const why = route.unserved ?? this.now.kernelReason ?? 'no target of it has an address of this family'
    return this.#end('not ours', null, `nothing carries route "${route.name}" now: ${why}`)
  }

  // ---- user space ----

  #userSpace(path: KernelPath): Explanation {
    const { asked, plan } = this
    const listener = this.#socket()
    if (!listener) return this.#notListening()
    this.#ok(
      'socket',
      `${listener.key} of ${listener.routes.length === 1 ? 'route' : 'routes'} ${quoted(listener.routes)}`,
    )
    let routes = readyRoutes(plan, listener)
    const client = ipBytes(asked.client)
    if (listOf(listener.trusted).has(client)) {
      routes = routes.filter(({ user }) => listOf(user.acceptProxyProtocol ?? []).has(client))
      this.#note(
        'PROXY header',
        `${asked.client} is trusted, and has to begin with one; lists and limits are then for the client that it names, not for this one`,
      )
    }
    const first = this.#firstBytes(listener, routes)
    const chosen = selectRoute(routes, first, asked.serverName ?? undefined, { clientBytes: client })
    for (const line of considered(routes, chosen, first, asked.serverName, client)) this.#ok('considered', line)
    if (!chosen || chosen.user.action.type === 'challenge') {
      const reason = chosen ? 'no_route' : reasonWithout(routes, first)
      return this.#end(
        'closed',
        reason,
        reason === 'no_route' ? 'no route matches it' : 'nobody here speaks what it says',
      )
    }
    this.#ok('route', `"${chosen.name}"`)
    // The kernel has looked at the lists of a port that is all one route's, as they are.
    const seen = 'number' in path && path.number === chosen.planned.number
    const refused = seen ? null : this.#admits(chosen.planned, false)
    return refused ?? this.#carriedByUs(chosen.planned)
  }

  #socket(): PlannedListener | undefined {
    const { address, port } = this.asked
    const there = (key: string) => this.plan.listeners.find((listener) => listener.key === key)
    return (address === null ? undefined : there(formatEnd(address, port))) ?? there(formatEnd(ANY, port))
  }

  #notListening(): Explanation {
    const { protocol } = this.asked
    const near = nearestListens(this.plan, this.asked)
    const where = `no route listens for ${protocol.toUpperCase()} on ${this.#listener}`
    return this.#end('not ours', null, near.length > 0 ? `${where}; the nearest: ${near.join(', ')}` : where)
  }

  #firstBytes(listener: PlannedListener, routes: ReadyRoute[]): FirstBytes {
    const { serverName } = this.asked
    if (listener.peek && listener.challenge)
      this.#note('challenge', 'a certificate authority is awaited: what it asks is answered before any route is chosen')
    const named = routes.some((route) => route.domains.length > 0)
    if (!listener.peek || !named) {
      this.#ok(
        'first bytes',
        serverName === null ? 'not read: the port alone decides' : 'not read: the server name does not matter here',
      )
      return 'unread'
    }
    const speaks = routes.some(({ needsTls }) => needsTls)
      ? 'tls'
      : routes.some(({ byHost }) => byHost)
        ? 'http'
        : 'other'
    const what = { tls: 'TLS', http: 'an HTTP request', other: 'neither TLS nor HTTP' }[speaks]
    this.#ok('first bytes', `read; taken to be ${what} ${serverName === null ? 'without a name' : `for ${serverName}`}`)
    return speaks
  }

  #carriedByUs(route: PlannedRoute): Explanation {
    const { user } = route
    const { action } = user
    const problem = own(this.now.problems, route.name)
    if (problem !== undefined) this.#note('problem', problem)
    if (action.type === 'block') return this.#shut(route, 'blocked')
    if (user.draining) return this.#shut(route, 'draining')
    if (action.type === 'forward' && action.targets.every(({ weight }) => weight === 0))
      return this.#shut(route, 'no_target')
    const all = refusalByAll(this.plan, this.now.counts?.[''])
    for (const note of all.notes) this.#note('limits of all routes', note)
    if (all.refusal) return this.#refused(all.refusal)
    this.#carrier = user.carrier
    const twin = route.carrier === 'kernel'
    this.#ok(
      'carrier',
      `${user.carrier}: ${twin ? 'the kernel has not got this connection, so user space carries it' : route.reason}`,
    )
    if (action.type === 'redirect')
      return this.#end('answered', 'responded', `the gateway answers: ${action.status} to ${action.to}`)
    if (action.type === 'handler')
      return this.#end('carried', null, `its handler gets it (${action.inline ?? action.module})`)
    this.#targets = sharesInUserSpace(route, this.asked.port)
    this.#tellTargets(route)
    this.#ok('source', "the target sees the gateway's address")
    return this.#end('carried', null, `user space carries it to ${this.#where()}`)
  }

  // ---- both ----

  /** null: lists and limits of the route let it in. */
  #admits(route: PlannedRoute, inKernel: boolean): Explanation | null {
    this.#route = route.name
    const { refusal, notes } = refusalBy(route, ipBytes(this.asked.client), own(this.now.counts ?? {}, route.name))
    for (const note of notes) this.#note('lists and limits', note)
    const observed = route.user.security.observe
    if (refusal && observed)
      this.#note('lists and limits', `would be refused (${refusal}), but the route only observes`)
    if (refusal && !observed) return this.#refused(refusal)
    if (!refusal) this.#ok('lists and limits', `route "${route.name}" lets it in`)
    if (!inKernel) return null
    const all = refusalByAll(this.plan, this.now.counts?.[''])
    for (const note of all.notes) this.#note('limits of all routes', note)
    return all.refusal ? this.#refused(all.refusal) : null
  }

  #shut(route: PlannedRoute, reason: string): Explanation {
    this.#route = route.name
    if (reason === 'no_target') for (const line of unusedTargets(route, this.facts)) this.#step('target', 'note', line)
    return this.#refused(reason)
  }

  #refused(reason: string): Explanation {
    return this.#end('refused', reason, `route "${this.#route}" does not let it in: ${reason}`)
  }

  #tellTargets(route: PlannedRoute) {
    const { action } = route.user
    const how = action.type === 'forward' ? action.balance : 'round-robin'
    for (const { target, share } of this.#targets)
      this.#ok(
        'target',
        this.#targets.length === 1 ? target : `${target}: ${percent(share)} of new connections, ${CHOICE[how]}`,
      )
    for (const line of unusedTargets(route, this.facts)) this.#note('target', line)
  }

  #where(): string {
    const [only] = this.#targets
    return this.#targets.length === 1 ? only!.target : `one of ${this.#targets.length} targets`
  }

  #ok(step: string, detail: string) {
    this.#step(step, 'ok', detail)
  }
  #note(step: string, detail: string) {
    this.#step(step, 'note', detail)
  }
  #step(step: string, verdict: Step['verdict'], detail: string) {
    this.#steps.push({ step, verdict, detail })
  }

  #end(outcome: Outcome, reason: string | null, detail: string): Explanation {
    this.#step('verdict', outcome === 'carried' || outcome === 'answered' ? 'ok' : 'stop', detail)
    return {
      client: this.asked.client,
      listener: this.#listener,
      serverName: this.asked.serverName,
      outcome,
      reason,
      route: this.#route,
      carrier: this.#carrier,
      targets: this.#targets,
      steps: this.#steps,
    }
  }
}
