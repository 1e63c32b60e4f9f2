// What sluice doctor makes of what it saw on the machine: each check says what was seen, why it matters, and what mends it. Pure.
import { takenText, type Taken, type Wanted } from '../control/owners.ts'
import type { ForwardFinding } from '../kernel/index.ts'

export interface Check {
  name: string
  /** fail: sluice or its connections will not work. warn: they may not, or only for now. */
  status: 'ok' | 'warn' | 'fail'
  saw: string
  /** Empty when all is well. */
  why: string
  /** Commands to be typed as they are. */
  mend: string[]
}

export const ok = (name: string, saw: string): Check => ({ name, status: 'ok', saw, why: '', mend: [] })
export const warn = (name: string, saw: string, why: string, mend: string[] = []): Check => ({
  name,
  status: 'warn',
  saw,
  why,
  mend,
})
export const fail = (name: string, saw: string, why: string, mend: string[] = []): Check => ({
  ...warn(name, saw, why, mend),
  status: 'fail',
})

/** linux/capability.h */
const CAPABILITIES: { bit: bigint; name: string; needed: boolean; why: string }[] = [
  { bit: 12n, name: 'CAP_NET_ADMIN', needed: true, why: 'the kernel rules and the conntrack entries need it' },
  { bit: 13n, name: 'CAP_NET_RAW', needed: true, why: 'closing a kernel flow sends a raw segment' },
  { bit: 10n, name: 'CAP_NET_BIND_SERVICE', needed: true, why: 'ports below 1024 are opened with it' },
  { bit: 7n, name: 'CAP_SETUID', needed: false, why: 'workers run as a user of their own with it' },
  { bit: 6n, name: 'CAP_SETGID', needed: false, why: 'workers run as a user of their own with it' },
  { bit: 8n, name: 'CAP_SETPCAP', needed: false, why: 'workers give up what they could ever get with it' },
  { bit: 5n, name: 'CAP_KILL', needed: false, why: 'a worker that hangs is killed with it' },
  {
    bit: 24n,
    name: 'CAP_SYS_RESOURCE',
    needed: false,
    why: 'without it the limit of descriptors is what was given to us',
  },
]

/** @param effective as below. */
export const hasCapability = (effective: string, name: string) =>
  CAPABILITIES.some((one) => one.name === name && ((BigInt(`0x${effective}`) >> one.bit) & 1n) === 1n)

/** @param effective CapEff of /proc/self/status, hexadecimal. */
export function privileges(uid: number, effective: string): Check {
  const name = 'privileges'
  const bits = BigInt(`0x${effective}`)
  const missing = CAPABILITIES.filter(({ bit }) => ((bits >> bit) & 1n) === 0n)
  const who = uid === 0 ? 'root' : `user ${uid}`
  if (missing.length === 0) return ok(name, `${who}, with every capability that the gateway uses`)
  const saw = `${who}, without ${missing.map((one) => one.name).join(', ')}`
  const why = missing.map((one) => `${one.name}: ${one.why}`).join('; ')
  const mend = uid === 0 ? [] : ['sudo sluice doctor']
  return missing.some((one) => one.needed) ? fail(name, saw, why, mend) : warn(name, saw, why, mend)
}

const NFT_MIN = [1, 0, 6]

/** @param version as nft says it; or why nft cannot be asked. */
export function nftVersion(version: string | { error: string }): Check {
  const name = 'nft'
  const why = 'the kernel rules are loaded with it; without it everything is carried in user space'
  if (typeof version !== 'string')
    return fail(name, version.error, why, ['apt-get install -y --no-install-recommends nftables'])
  const numbers = version.split('.').map(Number)
  const at = NFT_MIN.findIndex((least, i) => numbers[i] !== least)
  return at >= 0 && !(numbers[at]! > NFT_MIN[at]!)
    ? fail(name, `nft ${version}`, `sluice needs nft ${NFT_MIN.join('.')} or newer: ${why}`)
    : ok(name, `nft ${version}`)
}

/** @param problem why rules like ours are not taken; null when they are. */
export function kernelRules(problem: string | null, privileged: boolean): Check {
  const name = 'kernel'
  if (problem === null) return ok(name, 'takes rules like ours: NAT, conntrack marks, maps, limits')
  if (!privileged)
    return fail(name, `cannot be asked: ${problem}`, 'nft needs CAP_NET_ADMIN (root)', ['sudo sluice doctor'])
  return fail(name, `does not take rules like ours: ${problem}`, 'nothing can be carried in the kernel without them', [
    'modprobe -a nf_tables nft_chain_nat nft_ct nft_fib_inet nft_masq nft_numgen nft_hash nft_reject_inet nft_connlimit nf_conntrack_netlink',
  ])
}

export interface Forwarding {
  setting: string
  /** null: this machine does not have it. */
  value: string | null
  writable: boolean
}

/** @param active our rules are in the kernel now. */
export function forwarding({ setting, value, writable }: Forwarding, active: boolean): Check {
  const name = setting.startsWith('net.ipv4') ? 'forwarding IPv4' : 'forwarding IPv6'
  if (value === null) return ok(name, `there is no ${setting} here: nothing to forward`)
  if (value !== '0') return ok(name, `${setting} = ${value}`)
  const saw = `${setting} = 0${writable ? '' : ', and it cannot be set'}`
  const mend = [`sysctl -w ${setting}=1`]
  if (active) return fail(name, saw, 'our rules are in the kernel, which forwards no packet to their targets', mend)
  if (!writable)
    return fail(name, saw, 'the kernel forwards no packet to a target; set it where this namespace was made', mend)
  return warn(name, saw, 'sluice sets it when the first route goes to the kernel, and puts it back when it stops', mend)
}

const CONNTRACK_FULL = 0.8
const CONNTRACK_ALMOST = 0.95
const CONNTRACK_SMALL = 65_536

export function conntrack(count: number | null, max: number | null): Check {
  const name = 'conntrack'
  if (count === null || max === null)
    return warn(name, 'not loaded', 'the first kernel rule loads it; where modules are not allowed to load, none can', [
      'modprobe nf_conntrack',
    ])
  const part = count / max
  const saw = `${count} of ${max} entries (${Math.round(part * 100)} %)`
  const why = 'when the table is full, new connections are dropped, whoever they are for'
  const mend = [`sysctl -w net.netfilter.nf_conntrack_max=${Math.max(max * 2, CONNTRACK_SMALL * 4)}`]
  if (part > CONNTRACK_ALMOST) return fail(name, saw, why, mend)
  if (part > CONNTRACK_FULL) return warn(name, saw, why, mend)
  if (max < CONNTRACK_SMALL)
    return warn(name, saw, `each connection is an entry, until two minutes after its end; ${why}`, mend)
  return ok(name, saw)
}

/** @param problems what could not be read. @param legacy tables of iptables-legacy, which nft does not show. */
export function forwardChains(findings: ForwardFinding[], problems: string[], legacy: string[]): Check[] {
  const name = 'forward chains'
  const checks = findings.map(({ family, table, chain, drops, madeBy, commands, note }) =>
    fail(
      name,
      `table ${family} ${table}, chain ${chain}${madeBy ? ` (${madeBy})` : ''}: ${drops}`,
      `it drops what the kernel forwards for us; every chain at this hook has to let a packet through. The rule lets our flows through and nothing else; ${note}`,
      commands,
    ),
  )
  for (const problem of problems)
    checks.push(warn(name, problem, 'a chain that drops forwarded packets may be there unseen', ['nft list chains']))
  for (const family of legacy)
    checks.push(
      warn(
        name,
        `${family}tables-legacy has a filter table`,
        'nft does not show its rules: look there for a FORWARD that drops',
        [`${family}tables-legacy -S FORWARD`],
      ),
    )
  return checks.length > 0 ? checks : [ok(name, 'no chain of others drops forwarded packets')]
}

export interface RoutePorts {
  route: string
  wanted: Wanted
  taken: Taken[]
}

/** @param gateway the process id of a gateway that runs; its own ports are not in `taken`. */
export function ports(routes: RoutePorts[], gateway: number | null): Check[] {
  const name = 'ports'
  const checks = routes
    .filter(({ taken }) => taken.length > 0)
    .map(({ route, wanted, taken }) => {
      const { protocol, from, to } = wanted
      return fail(
        name,
        `route "${route}", ${protocol.toUpperCase()} ${from === to ? from : `${from}-${to}`}: ${takenText(taken)}`,
        'a port of another program is never taken from it: the route cannot be served. Stop the program, or give the route another port or an address of its own',
        [`ss -Hln${protocol === 'tcp' ? 't' : 'u'}p 'sport = :${taken[0]!.socket.port}'`],
      )
    })
  if (checks.length > 0) return checks
  return [
    ok(
      name,
      `those of ${routes.length} listens are ${gateway === null ? 'free' : `free, or of the gateway that runs (pid ${gateway})`}`,
    ),
  ]
}
