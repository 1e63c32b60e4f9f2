// A machine of namespaces with a real systemd as its process 1: the root directory is a copy that nobody else sees, and so are
// network, processes and cgroups. It runs one script to its end and is gone.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { slowness } from '../support.ts'

const TOP = resolve(import.meta.dir, '../..')
/** Where this checkout is on the machine: a service does not see /tmp. */
export const CHECKOUT = '/opt/checkout'
export const BUN = process.execPath.replace(TOP, CHECKOUT)
const SYSTEMD = '/lib/systemd/systemd'
const MS_MAX = 40_000 * slowness

/** $1: what is to be run. $2: where it says how it went. */
const ENTER = `set -e
mount --make-rprivate /
mkdir -p /run/machine; mount -t tmpfs tmpfs /run/machine
cd /run/machine; mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp -o mode=1777
mountpoint -q sys/fs/cgroup || mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev -o mode=755
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm; mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666; ln -s pts/ptmx dev/ptmx
mkdir -p .${CHECKOUT}; mount --bind ${TOP} .${CHECKOUT}
mkdir -p host; mount --bind "$2" host
rm -rf etc/systemd/system/*.wants etc/systemd/system/sluice.service* usr/local/lib/systemd etc/sluice var/lib/sluice
cp "$1" etc/trial.sh
cat > etc/systemd/system/trial.service <<UNIT
[Unit]
DefaultDependencies=no
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh -e /etc/trial.sh
StandardOutput=file:/host/out
StandardError=inherit
UNIT
exec env -i PATH="$PATH" container=other chroot . ${SYSTEMD} --unit=trial.service --log-target=console --show-status=no
`

/** The directory of our cgroup, where one of version 2 is mounted and may be divided; else why there is none. */
function cgroup(): { path: string } | { reason: string } {
  const mounted = /^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 /m.exec(readFileSync('/proc/self/mountinfo', 'utf8'))?.[1]
  const own = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1]
  if (!mounted || !own) return { reason: 'no cgroup of version 2' }
  const path = join(mounted, own, `sluice-test-${process.pid}`)
  try {
    mkdirSync(path)
    return { path }
  } catch (error) {
    return { reason: `no cgroup for a systemd: ${(error as Error).message}` }
  }
}

const missing = [SYSTEMD, 'systemctl', 'nsenter', 'openssl'].filter((name) => Bun.which(name) === null)
const alone = readFileSync('/proc/self/uid_map', 'utf8').trim().split(/\s+/)[2] === '1'

/** Why no systemd can run here; null where one can. */
export function whyNoSystemd(): string | null {
  if (missing.length > 0) return `needs ${missing.join(' ')}`
  if (alone) return 'one user only'
  const group = cgroup()
  if ('reason' in group) return group.reason
  removeGroup(group.path)
  return null
}

const removeGroup = (path: string) =>
  Bun.spawnSync(['find', path, '-depth', '-type', 'd', '-exec', 'rmdir', '{}', ';'], { stderr: 'ignore' })

/** What the script prints below each line "== name". */
export async function onMachine(script: string): Promise<Record<string, string>> {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-machine-'))
  const group = cgroup()
  if ('reason' in group) throw new Error(group.reason)
  try {
    for (const [name, text] of Object.entries({ enter: ENTER, trial: script, out: '' }))
      writeFileSync(join(directory, name), text)
    const join_ = `echo $$ > ${group.path}/cgroup.procs && exec unshare -m -p -f --kill-child -n -u -i -C sh "$@"`
    const machine = Bun.spawn(
      ['sh', '-c', join_, 'sh', join(directory, 'enter'), join(directory, 'trial'), directory],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    )
    const late = setTimeout(() => machine.kill('SIGKILL'), MS_MAX)
    const [console_, errors] = await Promise.all([
      new Response(machine.stdout).text(),
      new Response(machine.stderr).text(),
    ])
    await machine.exited
    clearTimeout(late)
    const out = readFileSync(join(directory, 'out'), 'utf8')
    const sections = Object.fromEntries(
      out
        .split(/^== /m)
        .slice(1)
        .map((section) => [section.slice(0, section.indexOf('\n')), section.slice(section.indexOf('\n') + 1).trim()]),
    )
    if (sections.end === undefined)
      throw new Error(`the script did not come to its end:\n${out}\n${console_}\n${errors}`)
    return sections
  } finally {
    removeGroup(group.path)
    rmSync(directory, { recursive: true, force: true })
  }
}
