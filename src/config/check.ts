// unknown input → Config, or every problem at once: path, what is wrong, what would be right. The schema checks single
// fields; this file checks what needs two fields or two routes. Nothing effectful: paths are not looked at.
import { canonicalIp, isIp, isLoopback, parseTarget } from '../base/addresses.ts'
import { checkAcme, checkCertificate } from './check-tls.ts'
import { isDurable, isWide, neverKernel, readsName, terminates, userSpaceOnly, WIDE } from './needs.ts'
import { toProblems, type Problem } from './problems.ts'
import { configSchema, type Config, type Route } from './schema.ts'

export type { Problem } from './problems.ts'

export type Checked = { ok: true; config: Config } | { ok: false; problems: Problem[] }

/** More than this many problems in one file help nobody. */
const PROBLEMS_MAX = 200

export function check(input: unknown): Checked {
  const parsed = configSchema.safeParse(input, { reportInput: true })
  const problems = parsed.success ? [] : parsed.error.issues.flatMap((issue) => toProblems(issue, []))
  // The cross checks look at whatever has the right shape, so that one run lists everything.
  const routes = routesOf(input)
  problems.push(...duplicateNames(routes), ...routes.flatMap(({ route, path }) => checkRoute(route, path)))
  problems.push(...checkAcme(routes, (input as { acme?: unknown } | null)?.acme))
  if (parsed.success) problems.push(...sameMatch(parsed.data.routes), ...checkGlobal(parsed.data))
  if (problems.length > 0) return { ok: false, problems: problems.slice(0, PROBLEMS_MAX) }
  return { ok: true, config: parsed.data as Config }
}

// ---- across fields and routes ----

function routesOf(input: unknown): { route: Route; path: string }[] {
  const routes = (input as { routes?: unknown } | null)?.routes
  if (!Array.isArray(routes)) return []
  return routes.flatMap((route, i) =>
    route &&
    typeof route === 'object' &&
    route.action &&
    typeof route.action === 'object' &&
    route.match &&
    typeof route.match === 'object'
      ? [{ route: route as Route, path: `routes[${i}]` }]
      : [],
  )
}

function duplicateNames(routes: { route: Route; path: string }[]): Problem[] {
  const seen = new Map<string, string>()
  return routes.flatMap(({ route, path }) => {
    const first = seen.get(route.name)
    if (first === undefined) {
      seen.set(route.name, path)
      return []
    }
    return [
      {
        path: `${path}.name`,
        message: `the name is used by ${first} too`,
        remedy: 'give each route a name of its own',
      },
    ]
  })
}

function checkRoute(route: Route, path: string): Problem[] {
  const problems: Problem[] = []
  const add = (where: string, message: string, remedy: string) =>
    problems.push({ path: `${path}.${where}`, message, remedy })
  const { action, match } = route
  const tls = 'tls' in action ? action.tls : undefined

  if (match.protocol === 'udp') problems.push(...checkUdp(route, path))
  if (readsName(route) && !tls && action.type !== 'redirect' && action.type !== 'block')
    add(
      'match.domains',
      'a name can only be read from TLS, or from HTTP for a redirect',
      'add action.tls, for example { mode: "passthrough" }, or remove match.domains',
    )

  if (action.type === 'forward') {
    if (action.forwardingEngine === 'nftables') {
      const why = neverKernel(route)
      if (why)
        add(
          'action.forwardingEngine',
          `the kernel cannot carry this route: ${why}`,
          'use "auto", or remove what has to be read',
        )
    }
    if (action.preserveSourceIp && neverKernel(route))
      add(
        'action.preserveSourceIp',
        `only the kernel carrier can keep the client's address, and it cannot carry this route: ${neverKernel(route)}`,
        'remove preserveSourceIp, or use sendProxyProtocol',
      )
    if (action.tls?.mode === 'passthrough' && action.tls.certificate !== undefined)
      add('action.tls.certificate', 'passthrough does not show a certificate', 'remove it, or use mode "terminate"')
    if (action.tls?.upstream && action.tls.mode !== 'terminate-and-reencrypt')
      add(
        'action.tls.upstream',
        'there is no TLS of ours to the target',
        'use mode "terminate-and-reencrypt", or remove it',
      )
    if (Array.isArray(action.targets)) {
      action.targets.forEach((target, i) => {
        const host = parseTarget(target?.host ?? '')
        if (host?.kind === 'unix' && target.port !== undefined)
          add(`action.targets[${i}].port`, 'a unix socket has no port', 'remove it')
      })
      if (action.targets.length > 0 && action.targets.every((target) => target?.weight === 0))
        add('action.targets', 'every target has weight 0', 'give at least one target a weight of 1 or more')
    }
  }
  const userSpace = userSpaceOnly(route)
  if (userSpace && isWide(route)) add('match.ports', `${userSpace}, and ${WIDE}`, 'name smaller ranges')
  if (action.type === 'socket-handler' && action.tls?.mode === 'passthrough')
    add(
      'action.tls.mode',
      'a handler reads the bytes, so TLS has to end here',
      'use mode "terminate", or remove action.tls',
    )
  if (action.type === 'socket-handler' && action.tls?.mode === 'terminate-and-reencrypt')
    add('action.tls.mode', 'a handler has no target to encrypt to', 'use mode "terminate"')
  if (action.type === 'redirect' && typeof action.to === 'string' && !/^(https?:\/\/|\/)/.test(action.to))
    add('action.to', 'not a URL', 'such as "https://{host}{path}"')
  if (terminates(route)) problems.push(...checkCertificate(route, path))
  return problems
}

/** Datagrams are forwarded by the kernel or not at all: what needs user space is refused by name. */
function checkUdp(route: Route, path: string): Problem[] {
  const problems: Problem[] = []
  const never = neverKernel(route)
  if (never)
    problems.push({
      path: `${path}.match.protocol`,
      message: `UDP is carried by the kernel only, which cannot carry this route: ${never}`,
      remedy: 'use "tcp", or a forward action to addresses without what has to be read',
    })
  const { action } = route
  if (action.type !== 'forward' || !Array.isArray(action.targets)) return problems
  if (action.health)
    problems.push({
      path: `${path}.action.health`,
      message: 'a UDP target cannot be asked whether it works',
      remedy: 'remove it; write a TCP route with health for a service that has both',
    })
  action.targets.forEach((target, i) => {
    const host = parseTarget(target?.host ?? '')
    const where = `${path}.action.targets[${i}].host`
    if (host?.kind === 'unix')
      problems.push({ path: where, message: 'UDP does not go to a unix socket', remedy: 'use an address or a name' })
    if (host?.kind === 'ip' && isLoopback(host.address))
      problems.push({
        path: where,
        message: 'the kernel does not forward to a loopback address, and UDP has no user space to do it',
        remedy: 'use an address of the machine that is not a loopback address',
      })
  })
  for (const [i, address] of (Array.isArray(route.match.addresses) ? route.match.addresses : []).entries())
    if (typeof address === 'string' && isIp(address) && isLoopback(canonicalIp(address)))
      problems.push({
        path: `${path}.match.addresses[${i}]`,
        message: 'UDP clients of a loopback address cannot be forwarded by the kernel',
        remedy: 'listen on an address that is not a loopback address',
      })
  return problems
}

/** Two routes of which one can never be reached. Only exact copies of a match are certain enough to refuse. */
function sameMatch(routes: Route[]): Problem[] {
  const seen = new Map<string, string>()
  return routes.flatMap((route, i) => {
    if (route.enabled === false) return []
    const key = JSON.stringify([
      route.match.ports,
      [route.match.domains ?? '*']
        .flat()
        .map((name) => name.toLowerCase())
        .toSorted(),
      route.match.addresses ?? [],
      route.match.clientIps ?? [],
      route.match.protocol ?? 'tcp',
      route.priority ?? 0,
    ])
    const first = seen.get(key)
    seen.set(key, first ?? route.name)
    return first === undefined
      ? []
      : [
          {
            path: `routes[${i}].match`,
            message: `matches the same connections as route "${first}"`,
            remedy: 'give one of them another port, name, address or priority',
          },
        ]
  })
}

/** What fits in a header, and takes more than a few guesses. */
const ADMIN_TOKEN = /^[\x21-\x7e]{16,}$/

function checkGlobal(config: Config): Problem[] {
  const problems: Problem[] = []
  const add = (path: string, message: string, remedy: string) => problems.push({ path, message, remedy })
  const { token } = config.admin?.http ?? {}
  if (token !== undefined && !ADMIN_TOKEN.test(token))
    add('admin.http.token', 'is not 16 or more letters, digits and signs without spaces', 'remove it: one is made')
  const { target } = config.defaults ?? {}
  if (target && parseTarget(target.host)?.kind === 'unix' && target.port !== undefined)
    add('defaults.target.port', 'a unix socket has no port', 'remove it')
  if (target?.weight === 0) add('defaults.target.weight', 'the only target has weight 0', 'remove it')
  if (config.workers !== undefined && config.workers !== 1)
    add('workers', 'one worker is run in this version', 'remove it')
  if (isDurable(config)) problems.push(...checkDurable(config))
  return problems
}

function checkDurable({ log, routes }: Config): Problem[] {
  const problems: Problem[] = []
  const add = (path: string, message: string, remedy: string) => problems.push({ path, message, remedy })
  const { file } = log!.access as { file: string }
  if (file === 'stdout' || file === 'off')
    add(
      'log.access.file',
      `"${file}" is no file that could be brought to disk`,
      'name a file, such as "./access.jsonl"',
    )
  routes.forEach((route, i) => {
    const { match, action, enabled } = route
    if (enabled === false) return
    const path = `routes[${i}]`
    const remedy = 'remove it, or set log.access.durable to false'
    const why = 'the kernel carries nothing while the access log is durable'
    if (action.type === 'forward' && action.forwardingEngine === 'nftables')
      add(`${path}.action.forwardingEngine`, why, 'use "auto", or set log.access.durable to false')
    if (action.type === 'forward' && action.preserveSourceIp)
      add(`${path}.action.preserveSourceIp`, `${why}, and nobody else keeps the client's address`, remedy)
    if (match.protocol === 'udp') add(`${path}.match.protocol`, `${why}, and nobody else carries UDP`, remedy)
    else if (isWide(route) && !userSpaceOnly(route))
      add(`${path}.match.ports`, `${why}, and ${WIDE}`, 'name smaller ranges, or set log.access.durable to false')
  })
  return problems
}
