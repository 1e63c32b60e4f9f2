// What sluice doctor makes of the machine around the gateway: descriptors, the clock, users, and how its kernel is set. Pure.
import { fail, ok, warn, type Check } from './doctor-checks.ts'
import { age } from './format.ts'

export interface Descriptors {
  /** Of the gateway's worker, or what a gateway would get here; null: nobody says. */
  limit: number | null
  /** The gateway may set its own. */
  raisable: boolean
  /** The process id of the gateway that runs. */
  gateway: number | null
  /** Of the whole machine. */
  open: number | null
  max: number | null
}

const DESCRIPTORS_FEW = 16_384
const MACHINE_FULL = 0.9
const LIMIT_MEND = [
  'mkdir -p /etc/systemd/system/sluice.service.d',
  "printf '[Service]\\nLimitNOFILE=1048576\\n' > /etc/systemd/system/sluice.service.d/descriptors.conf",
  'systemctl daemon-reload',
]

export function descriptors({ limit, raisable, gateway, open, max }: Descriptors): Check {
  const name = 'descriptors'
  if (open !== null && max !== null && open > max * MACHINE_FULL)
    return fail(name, `${open} of ${max} are open on this machine`, 'at the limit nothing opens a file or a socket', [
      `sysctl -w fs.file-max=${max * 2}`,
    ])
  if (limit === null) return warn(name, 'the limit cannot be read', 'near it the gateway accepts no connections')
  const saw = `${limit} ${gateway === null ? 'for a program that is started here' : `for the gateway that runs (pid ${gateway})`}`
  if (limit >= DESCRIPTORS_FEW) return ok(name, saw)
  if (raisable && gateway === null) return ok(name, `${saw}; the gateway raises it`)
  const why = 'a connection in user space takes two; near the limit the gateway pauses accepting, and others wait'
  return warn(name, saw, why, LIMIT_MEND)
}

export interface Clock {
  nowMs: number
  /** What keeps the time here, as far as is seen. */
  keeper: string | null
  /** It says whether it has the right time; null: it does not say. */
  synchronised: boolean | null
}

/** This check was written then: it cannot be earlier. */
const WRITTEN_MS = Date.parse('2026-01-01T00:00:00Z')

export function clock({ nowMs, keeper, synchronised }: Clock): Check {
  const name = 'clock'
  const time = new Date(nowMs).toISOString()
  const why = 'certificates are refused by clients, and renewed too late, when the time is wrong; records carry it'
  const mend = ['timedatectl set-ntp true']
  if (nowMs < WRITTEN_MS) return fail(name, `it says ${time}, which is in the past`, why, mend)
  if (keeper === null)
    return warn(name, `${time}; nothing that keeps it right was found`, why, [
      'apt-get install -y --no-install-recommends systemd-timesyncd',
      ...mend,
    ])
  if (synchronised === false)
    return warn(name, `${time}; ${keeper} has not synchronised it yet`, why, ['timedatectl timesync-status'])
  return ok(name, `${time}, kept by ${keeper}`)
}

/** @param users the names in /etc/passwd. */
export function serviceUser(users: readonly string[]): Check {
  const name = 'worker user'
  if (users.includes('sluice')) return ok(name, 'there is a user sluice')
  const why = 'whatever touches a byte from the network runs as that user, and should share it with nothing else'
  const mend = [
    'useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sluice',
  ]
  return users.includes('nobody')
    ? warn(name, 'there is no user sluice: workers run as nobody', why, mend)
    : fail(name, 'there is neither a user sluice nor nobody: workers run as root', why, mend)
}

/** @param actions /proc/sys/kernel/seccomp/actions_avail; null: there is none. */
export function seccomp(actions: string | null): Check {
  const name = 'seccomp'
  if (actions?.split(' ').includes('errno')) return ok(name, 'the kernel can filter system calls')
  return warn(
    name,
    'this kernel cannot filter system calls',
    'a worker that somebody has taken over could make every call that its user may: run a kernel with CONFIG_SECCOMP_FILTER',
  )
}

/** @param settings rp_filter by interface, with "all". */
export function reversePath(settings: Readonly<Record<string, number>>): Check {
  const name = 'reverse path'
  const { all = 0, default: _, lo: __, ...interfaces } = settings
  const strict = Object.keys(interfaces).filter((one) => Math.max(all, interfaces[one]!) === 1)
  // With one interface there is no other way for an answer to take.
  if (strict.length === 0 || Object.keys(interfaces).length < 2)
    return ok(name, `strict on ${strict.join(', ') || 'no interface'}`)
  return warn(
    name,
    `strict on ${strict.join(', ')}`,
    'packets are dropped unseen where the answer would leave by another interface than they came in by: targets behind two links, asymmetric routes',
    // The larger of "all" and the interface's own counts, and loose is 2.
    ['sysctl -w net.ipv4.conf.all.rp_filter=2'],
  )
}

export interface Modules {
  /** uname -r */
  release: string
  /** Kernels that /lib/modules has modules of; null: there is no such folder. */
  installed: string[] | null
}

export function modules({ release, installed }: Modules): Check {
  const name = 'kernel modules'
  if (installed === null || installed.length === 0)
    return ok(name, `Linux ${release}; there are none here that could be loaded`)
  if (installed.includes(release)) return ok(name, `Linux ${release}, with its modules`)
  return warn(
    name,
    `Linux ${release} runs, and the modules here are those of ${installed.join(', ')}`,
    'what is not loaded yet cannot be loaded: rules that need it are refused, and routes fall back to user space',
    ['systemctl reboot'],
  )
}

const TIME_WAIT_S_MAX = 300

/** In seconds; null: conntrack is not loaded. Flows of sluice have timeouts of their own while they are open. */
export function conntrackTimeouts(established: number | null, timeWait: number | null): Check {
  const name = 'conntrack timeouts'
  if (established === null || timeWait === null) return ok(name, 'not loaded: as the kernel makes them')
  const saw = `a closed connection is remembered for ${age(timeWait * 1000)}, a silent one of others for ${age(established * 1000)}`
  if (timeWait <= TIME_WAIT_S_MAX) return ok(name, saw)
  return warn(name, saw, 'each connection that has ended fills the conntrack table for that long', [
    'sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=120',
  ])
}
