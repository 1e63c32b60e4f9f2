// sluice doctor: looks at the machine, says what stands in the way of the gateway and what mends it, and changes nothing.
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
  hasCapability,
  kernelRules,
  nftVersion,
  ports,
  privileges,
  type Check,
  type RoutePorts,
} from './doctor-checks.ts'
import { certificates, challenges, files, targetNames } from './doctor-config.ts'
import { clock, conntrackTimeouts, descriptors, modules, reversePath, seccomp, serviceUser } from './doctor-machine.ts'
import {
  lookUp,
  number,
  readCertificates,
  readChallenges,
  readClock,
  readDescriptors,
  readFiles,
  readModules,
  readReversePath,
  readTargetNames,
  readUsers,
  setting,
  type Running,
} from './doctor-read.ts'
import { printable } from './format.ts'
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
  const gateway = await runningGateway(admin ?? config?.admin?.socket ?? DEFAULT_SOCKET)
  const [status, users, clockNow, reverse, actions, kernels] = await Promise.all([
    lookUp('/proc/self/status'),
    readUsers(),
    readClock(),
    readReversePath(),
    lookUp('/proc/sys/kernel/seccomp/actions_avail'),
    readModules(),
  ])
  const capabilities = /^CapEff:\s*([0-9a-f]+)$/m.exec(status ?? '')?.[1] ?? '0'
  const allowed = privileges(process.getuid!(), capabilities)
  return [
    allowed,
    serviceUser(users),
    seccomp(actions),
    descriptors(await readDescriptors(gateway, hasCapability(capabilities, 'CAP_SYS_RESOURCE'))),
    clock(clockNow),
    modules(kernels),
    ...(await examineKernel(config, allowed.status !== 'fail')),
    reversePath(reverse),
    ...(config ? await examineConfig(config, gateway) : []),
  ]
}

async function examineKernel(config: Config | undefined, privileged: boolean): Promise<Check[]> {
  const ours = {
    tables: [config?.kernel?.table ?? 'sluice'],
    base: config?.kernel?.markBase ?? DEFAULT_MARK_BASE,
    iptables: Bun.which('iptables') !== null,
  }
  const version = await askNft()
  const hasNft = typeof version === 'string'
  const [rules, chains, legacy] = await Promise.all([
    hasNft ? probeRules() : 'nft cannot be asked',
    hasNft ? readForwardChains(ours) : { items: [], problems: ['without nft the chains cannot be listed'] },
    legacyTables(),
  ])
  const active = chains.items.some(({ chain }) => chain?.family === 'inet' && ours.tables.includes(chain.table))
  const [forwarding4, forwarding6, count, max, established, timeWait] = await Promise.all([
    setting('net.ipv4.ip_forward'),
    setting('net.ipv6.conf.all.forwarding'),
    number('net.netfilter.nf_conntrack_count'),
    number('net.netfilter.nf_conntrack_max'),
    number('net.netfilter.nf_conntrack_tcp_timeout_established'),
    number('net.netfilter.nf_conntrack_tcp_timeout_time_wait'),
  ])
  return [
    nftVersion(version),
    ...(hasNft ? [kernelRules(rules, privileged)] : []),
    forwarding(forwarding4, active),
    forwarding(forwarding6, active),
    conntrack(count, max),
    conntrackTimeouts(established, timeWait),
    ...forwardChains(foreignForwardFindings(chains.items, ours), chains.problems, legacy),
  ]
}

async function examineConfig(config: Config, gateway: Running | null): Promise<Check[]> {
  const nowMs = Date.now()
  const [ofPorts, pairs, unreadable, asked, names] = await Promise.all([
    checkPorts(config, gateway),
    readCertificates(config, nowMs),
    readFiles(config),
    readChallenges(config, gateway),
    readTargetNames(config),
  ])
  return [
    ...ofPorts,
    ...certificates(pairs, nowMs),
    ...files(unreadable),
    ...challenges(asked),
    ...targetNames(names.all, names.missing),
  ]
}

// ---- what is there ----

async function legacyTables(): Promise<string[]> {
  const found = await Promise.all(
    ['ip', 'ip6'].map(async (family) => {
      const names = await lookUp(`/proc/net/${family}_tables_names`)
      return names?.split('\n').includes('filter') ? [family] : []
    }),
  )
  return found.flat()
}

async function checkPorts(config: Config, gateway: Running | null): Promise<Check[]> {
  const sockets = [...(await readBoundSockets('tcp')), ...(await readBoundSockets('udp'))]
  const routes = config.routes.filter((route) => route.enabled !== false)
  const found: RoutePorts[] = []
  for (const route of routes)
    for (const wanted of listensOf(route)) {
      const inTheWay = isRange(wanted) ? overlapsInKernel : overlaps
      const taken = await withOwners(
        sockets.filter((socket) => inTheWay(socket, wanted)),
        gateway?.pid ?? process.pid,
      )
      found.push({ route: route.name, wanted, taken })
    }
  return ports(found, gateway?.pid ?? null)
}

const isRange = ({ from, to }: Wanted) => to - from >= TWIN_PORTS_MAX

/** The gateway that answers there; its workers are its children. */
async function runningGateway(socket: string): Promise<Running | null> {
  try {
    const answer = await fetch('http://sluice/v1/status', {
      unix: socket,
      signal: AbortSignal.timeout(STATUS_MS_MAX),
    } as RequestInit)
    const { pid, worker } = (await answer.json()) as { pid?: unknown; worker?: { descriptorsMax?: number | null } }
    return typeof pid === 'number' ? { pid, descriptorsMax: worker?.descriptorsMax ?? null } : null
  } catch {
    return null // none runs there
  }
}

// ---- for people ----

const COLOURS = { ok: 32, warn: 33, fail: 31 }

function text(checks: Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length))
  const lines = checks.flatMap(({ name, status, saw, why, mend }) => [
    `${colour(COLOURS[status], status.padEnd(4))}  ${name.padEnd(width)}  ${printable(saw)}`,
    ...(why ? [`      ${why}`] : []),
    ...mend.map((command) => `      ${colour(1, `# ${command}`)}`),
  ])
  return `${lines.join('\n')}\n`
}
