// `make test-vm`: the kernel tests on the kernel Debian ships, emulated, whatever kernel runs here. The guest is this very
// machine with another kernel: its root is our own file system, for reading only, with memory above it for what it writes.
//
//   bun src/provision/vm.ts [--minutes 60] [TEXT...]      runs the kernel test files whose path contains one of the texts
//
// Software emulation needs no rights and no KVM. It is slow, so the guest's clock counts instructions instead of seconds
// (-icount): a program on it sees a computer of ordinary speed, and no deadline comes early because the host is busy.
import { mkdtemp, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { $ } from 'zx'
import { cpio } from './vm-archive.ts'
import { debianKernel, moduleEntries } from './vm-kernel.ts'

const MINUTES = 60
/** By this the limits of the tests grow. */
const SLOWNESS = 8
const MEMORY_MIB = 4096
/** What the guest cannot load from the host's files because it needs them to see those. */
const FIRST_MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay']
/** The line by which the guest says how its command ended. */
const ENDED = 'sluice-vm-ended'
const BUSYBOX = '/bin/busybox'

const { values, positionals } = parseArgs({
  options: { minutes: { type: 'string', default: String(MINUTES) } },
  allowPositionals: true,
})
const minutes = Number(values.minutes)
if (!(minutes > 0)) {
  console.error('usage: bun src/provision/vm.ts [--minutes 60] [TEXT...]')
  process.exit(2)
}

const kernel = await debianKernel('build/vm').catch((error: Error) => {
  console.error(error.message)
  process.exit(1)
})
const texts = positionals.length > 0 ? positionals : ['test/netns/']
const color = process.stdout.isTTY ? 'FORCE_COLOR=1' : 'NO_COLOR=1'
const settings = {
  checkout: process.cwd(),
  modules: kernel.modules,
  command: `SLUICE_TEST_SLOW=${SLOWNESS} ${color} ${[process.execPath, 'src/provision/test.ts', ...texts].map(quoted).join(' ')}`,
  ended: ENDED,
}

const temporary = await mkdtemp(join(tmpdir(), 'sluice-vm-'))
const initrd = join(temporary, 'initrd')
const started = performance.now()
let code: number | undefined
let late = false
try {
  await Bun.write(initrd, await firstFiles())
  console.log(`Booting Linux ${kernel.version}, emulated; at most ${minutes} minutes`)
  code = await run()
} finally {
  await rm(temporary, { recursive: true, force: true })
}
const took = `${Math.round((performance.now() - started) / 1000)} s`
if (code === undefined)
  console.error(
    late ? `The guest was ended: ${minutes} minutes are over` : `The guest ended after ${took} without a result`,
  )
process.exit(code ?? (late ? 124 : 1))

async function firstFiles(): Promise<Buffer> {
  const text = (path: string) => Bun.file(join(import.meta.dir, '../../test/vm', path)).bytes()
  return cpio([
    ...['bin', 'dev', 'proc', 'sys', 'modules'].map((path) => ({ path })),
    { path: 'bin/busybox', content: await Bun.file(BUSYBOX).bytes(), executable: true },
    { path: 'init', content: await text('init'), executable: true },
    { path: 'inside', content: await text('inside') },
    {
      path: 'settings',
      content: Object.entries(settings)
        .map(([name, value]) => `${name}=${quoted(value)}\n`)
        .join(''),
    },
    ...(await moduleEntries(await kernel.filesOf(FIRST_MODULES))),
  ])
}

/** Shows what the guest writes; resolves to the exit code of its command, undefined when it never said one. */
async function run(): Promise<number | undefined> {
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
  const deadline = setTimeout(() => {
    late = true
    kill()
  }, minutes * 60_000)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => {
      kill()
      void rm(temporary, { recursive: true, force: true }).finally(() => process.exit(128 + constants.signals[signal]))
    })
  let result: number | undefined
  for await (const line of createInterface({ input: machine.stdout })) {
    // What comes after the result is the kernel saying goodbye.
    if (result === undefined) result = resultIn(line)
    if (result === undefined) console.log(line)
  }
  await machine
  clearTimeout(deadline)
  return result
}

function resultIn(line: string): number | undefined {
  const [, code] = new RegExp(`^${ENDED} (\\d+)$`).exec(line) ?? []
  return code === undefined ? undefined : Number(code)
}

/** For the shell of the guest: dash knows single quotes only. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}
