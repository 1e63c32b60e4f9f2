// sluice doctor: looks at the machine, says what stands in the way of the gateway and what mends it, and changes nothing.
import { access, constants, readFile } from 'node:fs/promises'
import { DEFAULT_SOCKET } from '../base/about.ts'
import { TWIN_PORTS_MAX } from '../base/limits.ts'
import type { Config } from '../config/schema.ts'
import { overlaps, overlapsInKernel, readBoundSockets, withOwners, type Wanted } from '../control/owners.ts'
import { foreignForwardFindings, nftVersion as askNft, probeRules, readForwardChains } from '../kernel/index.ts'
import { listensOf } from '../plan/listeners.ts'
import {
  conntrack,
  forwardChains,
  forwarding,
  kernelRules,
  nftVersion,
  ports,
  privileges,
  type Check,
  type RoutePorts,
} from './doctor-checks.ts'
import { colour, readConfig } from './shared.ts'

const DEFAULT_MARK_BASE = 0x51000000
/** A gateway that has not said by then who it is counts as none. */
const STATUS_MS_MAX = 2000

export async function doctor(options: { config?: string; admin?: string; json?: boolean }): Promise<number> {
  const read = options.config === undefined ? undefined : await readConfig(options.config)
  if (read && !read.ok) return read.exitCode
  const checks = await examine(read?.config, options.admin)
  process.stdout.write(options.json ? `${JSON.stringify({ checks }, null, 2)}\n` : text(checks))
  return checks.some(({ status }) => status === 'fail') ? 1 : 0
}

async function examine(config: Config | undefined, admin: string | undefined): Promise<Check[]> {
  const ours = {
    tables: [config?.kernel?.table ?? 'sluice'],
    base: config?.kernel?.markBase ?? DEFAULT_MARK_BASE,
    iptables: Bun.which('iptables') !== null,
  }
  const version = await askNft()
  const hasNft = typeof version === 'string'
  const [status, rules, chains, legacy] = await Promise.all([
    lookUp('/proc/self/status'),
    hasNft ? probeRules() : 'nft cannot be asked',
    hasNft ? readForwardChains(ours) : { items: [], problems: ['without nft the chains cannot be listed'] },
    legacyTables(),
  ])
  const allowed = privileges(process.getuid!(), /^CapEff:\s*([0-9a-f]+)$/m.exec(status ?? '')?.[1] ?? '0')
  const active = chains.items.some(({ chain }) => chain?.family === 'inet' && ours.tables.includes(chain.table))
  const [forwarding4, forwarding6, count, max] = await Promise.all([
    setting('net.ipv4.ip_forward'),
    setting('net.ipv6.conf.all.forwarding'),
    number('net.netfilter.nf_conntrack_count'),
    number('net.netfilter.nf_conntrack_max'),
  ])
  return [
    allowed,
    nftVersion(version),
    ...(hasNft ? [kernelRules(rules, allowed.status !== 'fail')] : []),
    forwarding(forwarding4, active),
    forwarding(forwarding6, active),
    conntrack(count, max),
    ...forwardChains(foreignForwardFindings(chains.items, ours), chains.problems, legacy),
    ...(config ? await checkPorts(config, admin) : []),
  ]
}

// ---- what is there ----

const lookUp = (path: string) =>
  readFile(path, 'utf8').then(
    (text) => text.trim(),
    () => null,
  )

const pathOf = (name: string) => `/proc/sys/${name.replaceAll('.', '/')}`

async function setting(name: string) {
  const [value, writable] = await Promise.all([
    lookUp(pathOf(name)),
    access(pathOf(name), constants.W_OK).then(
      () => true,
      () => false,
    ),
  ])
  return { setting: name, value, writable }
}

async function number(name: string): Promise<number | null> {
  const text = await lookUp(pathOf(name))
  return text === null ? null : Number(text)
}

async function legacyTables(): Promise<string[]> {
  const found = await Promise.all(
    ['ip', 'ip6'].map(async (family) => {
      const names = await lookUp(`/proc/net/${family}_tables_names`)
      return names?.split('\n').includes('filter') ? [family] : []
    }),
  )
  return found.flat()
}

async function checkPorts(config: Config, admin: string | undefined): Promise<Check[]> {
  const gateway = await runningGateway(admin ?? config.admin?.socket ?? DEFAULT_SOCKET)
  const sockets = [...(await readBoundSockets('tcp')), ...(await readBoundSockets('udp'))]
  const routes = config.routes.filter((route) => route.enabled !== false)
  const found: RoutePorts[] = []
  for (const route of routes)
    for (const wanted of listensOf(route)) {
      const inTheWay = isRange(wanted) ? overlapsInKernel : overlaps
      const taken = await withOwners(
        sockets.filter((socket) => inTheWay(socket, wanted)),
        gateway ?? process.pid,
      )
      found.push({ route: route.name, wanted, taken })
    }
  return ports(found, gateway)
}

const isRange = ({ from, to }: Wanted) => to - from >= TWIN_PORTS_MAX

/** The process id of the gateway that answers there; its workers are its children. */
async function runningGateway(socket: string): Promise<number | null> {
  try {
    const answer = await fetch('http://sluice/v1/status', {
      unix: socket,
      signal: AbortSignal.timeout(STATUS_MS_MAX),
    } as RequestInit)
    const { pid } = (await answer.json()) as { pid?: unknown }
    return typeof pid === 'number' ? pid : null
  } catch {
    return null // none runs there
  }
}

// ---- for people ----

const COLOURS = { ok: 32, warn: 33, fail: 31 }

function text(checks: Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length))
  const lines = checks.flatMap(({ name, status, saw, why, mend }) => [
    `${colour(COLOURS[status], status.padEnd(4))}  ${name.padEnd(width)}  ${saw}`,
    ...(why ? [`      ${why}`] : []),
    ...mend.map((command) => `      ${colour(1, `# ${command}`)}`),
  ])
  return `${lines.join('\n')}\n`
}
