// Listening sockets that outlive this process without another one: the service manager keeps a copy of each (sd_notify(3), FDSTORE),
// and gives them back to the next start (sd_listen_fds(3)). Clients that come in between wait in the backlog.
import { native } from '../base/native.ts'
import type { Socket } from './handover.ts'
import type { ServiceManager } from './service-manager.ts'

/** SD_LISTEN_FDS_START. */
const FIRST = 3
const ASKING_MS_MAX = 2000

/** What the manager has kept for us. The environment is emptied of it: it is not for the programs that we start. */
export function keptSockets(environment: Record<string, string | undefined> = process.env): Socket[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = '' } = environment
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete environment[name]
  if (Number(LISTEN_PID) !== process.pid) return []
  const names = LISTEN_FDNAMES.split(':')
  return Array.from({ length: Number(LISTEN_FDS) || 0 }, (_, i) => ({ name: names[i] ?? '', fd: FIRST + i })).flatMap(
    ({ name, fd }) => {
      const socket = socketOf(name)
      // A copy that our children do not inherit.
      const copy = socket ? native().sluice_dup(fd) : -1
      native().sluice_close(fd)
      return socket && copy >= 0 ? [{ ...socket, fd: copy }] : []
    },
  )
}

export class DescriptorStore {
  readonly #kept: Set<string>

  /** @param kept what is there already, from an earlier life. */
  constructor(
    private readonly manager: ServiceManager,
    kept: Socket[],
  ) {
    this.#kept = new Set(kept.map(nameOf))
  }

  /** From now on these and no others. */
  keep(sockets: Socket[]) {
    const wanted = new Map(sockets.map((socket) => [nameOf(socket), socket.fd]))
    for (const name of this.#kept) {
      if (wanted.has(name)) continue
      this.#kept.delete(name)
      this.manager.forget(name)
    }
    for (const [name, fd] of wanted) {
      if (this.#kept.has(name)) continue
      this.#kept.add(name)
      this.manager.keep(name, fd)
    }
  }
}

// A name in the store has no colon: "tcp [~~]~443".
const nameOf = ({ protocol, key }: Pick<Socket, 'protocol' | 'key'>) => `${protocol} ${key.replaceAll(':', '~')}`

function socketOf(name: string): Omit<Socket, 'fd'> | undefined {
  const found = /^(tcp|udp) (\S*~(\d+))$/.exec(name)
  if (!found) return undefined
  const [, protocol, key, port] = found
  return { protocol: protocol as 'tcp' | 'udp', key: key!.replaceAll('~', ':'), port: Number(port) }
}

/** Whether systemd stops this service only to start it again: then the kernel's rules stay. The unit says its own name
 *  (src/provision/system-files.ts); false where nobody can say. */
export async function isRestarting(unit = process.env.SLUICE_UNIT): Promise<boolean> {
  if (!unit) return false
  const jobs = await listJobs().catch(() => '')
  return jobs.split('\n').some((line) => {
    const words = line.trim().split(/\s+/)
    return words.includes(unit) && words.includes('restart')
  })
}

async function listJobs(): Promise<string> {
  const child = Bun.spawn(['systemctl', 'list-jobs', '--no-legend', '--no-pager', '--full'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const late = setTimeout(() => child.kill('SIGKILL'), ASKING_MS_MAX)
  try {
    return await child.stdout.text()
  } finally {
    clearTimeout(late)
    child.kill('SIGKILL')
  }
}
