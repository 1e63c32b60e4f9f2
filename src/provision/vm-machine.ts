// The emulated machine itself: boots Debian's kernel with the files of this one for reading only, shows what it writes, and
// says how its command ended.
import { mkdtemp, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { $ } from 'zx'
import { cpio } from './vm-archive.ts'
import { type Kernel, moduleEntries } from './vm-kernel.ts'

const MEMORY_MIB = 4096
/** What the guest cannot load from the host's files because it needs them to see those. */
const FIRST_MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay']
/** The line by which the guest says how its command ended. */
const ENDED = 'sluice-vm-ended'
const BUSYBOX = '/bin/busybox'
const FILES = join(import.meta.dir, '../../test/vm')

export interface Guest {
  kernel: Kernel
  /** Its process 1, once the host's files are there: a script of test/vm. */
  inside: 'inside' | 'inside-systemd'
  /** A command of the shell. */
  command: string
  /** Of performance.now(); then it is ended. */
  deadline: number
}

export type Ending = { code: number } | 'late' | 'no result'

export async function emulate(guest: Guest): Promise<Ending> {
  const temporary = await mkdtemp(join(tmpdir(), 'sluice-vm-'))
  try {
    const initrd = join(temporary, 'initrd')
    await Bun.write(initrd, await firstFiles(guest))
    return await run(guest, initrd, temporary)
  } finally {
    await rm(temporary, { recursive: true, force: true })
  }
}

async function firstFiles({ kernel, inside, command }: Guest): Promise<Buffer> {
  const settings = { checkout: process.cwd(), modules: kernel.modules, command, ended: ENDED }
  return cpio([
    ...['bin', 'dev', 'proc', 'sys', 'modules'].map((path) => ({ path })),
    { path: 'bin/busybox', content: await Bun.file(BUSYBOX).bytes(), executable: true },
    { path: 'init', content: await Bun.file(join(FILES, 'init')).bytes(), executable: true },
    { path: 'inside', content: await Bun.file(join(FILES, inside)).bytes() },
    {
      path: 'settings',
      content: Object.entries(settings)
        .map(([name, value]) => `${name}=${quoted(value)}\n`)
        .join(''),
    },
    ...(await moduleEntries(await kernel.filesOf(FIRST_MODULES))),
  ])
}

async function run({ kernel, deadline }: Guest, initrd: string, temporary: string): Promise<Ending> {
  // A guest that lost its disk or its kernel ends instead of waiting: panic=-1 reboots, and -no-reboot is the end then.
  const append = 'console=ttyS0 quiet loglevel=4 panic=-1 oops=panic'
  const share = 'local,id=host,path=/,security_model=none,readonly=on,multidevs=remap'
  // exec: the guest is our own child then, and the kernel ends it with us, however we end.
  const machine = $({ stdio: ['ignore', 'pipe', 'inherit'], nothrow: true, quiet: true })`exec setpriv ${[
    ...['--pdeathsig', 'KILL', 'qemu-system-x86_64'],
    ...['-accel', 'tcg,thread=single', '-icount', 'shift=0', '-cpu', 'max', '-smp', '1', '-m', `${MEMORY_MIB}`],
    ...['-nodefaults', '-display', 'none', '-serial', 'stdio', '-no-reboot'],
    ...['-kernel', kernel.image, '-initrd', initrd, '-append', append],
    ...['-fsdev', share, '-device', 'virtio-9p-pci,fsdev=host,mount_tag=host'],
  ]}`
  const kill = () => void machine.kill('SIGKILL').catch(() => {}) // it has just ended by itself
  let late = false
  const timer = setTimeout(() => {
    late = true
    kill()
  }, deadline - performance.now())
  const stop = (signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP') => {
    kill()
    void rm(temporary, { recursive: true, force: true }).finally(() => process.exit(128 + constants.signals[signal]))
  }
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.on(signal, stop)
  let result: number | undefined
  try {
    for await (const line of createInterface({ input: machine.stdout })) {
      // What comes after the result is the kernel saying goodbye.
      if (result === undefined) result = resultIn(line)
      if (result === undefined) console.log(line)
    }
    await machine
  } finally {
    clearTimeout(timer)
    for (const signal of signals) process.off(signal, stop)
  }
  return result === undefined ? (late ? 'late' : 'no result') : { code: result }
}

function resultIn(line: string): number | undefined {
  const [, code] = new RegExp(`^${ENDED} (\\d+)\\r?$`).exec(line) ?? []
  return code === undefined ? undefined : Number(code)
}

/** For the shell of the guest: dash knows single quotes only. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}
