// `make test-vm`: the tests of the kernel and of the service on the kernel that Debian ships, emulated, whatever kernel runs here.
// The guest is this very machine with another kernel: its root is our own file system, for reading only, with memory above it for
// what it writes.
//
//   bun src/provision/vm.ts [--minutes 90] [TEXT...]      runs the test files whose path contains one of the texts
//
// Two guests, one after the other: one with nothing but the kernel tests, and one ("systemd" stands for all of its tests) whose
// process 1 is systemd, where the program is installed and operated as a service.
//
// Software emulation needs no rights and no KVM. It is slow, so the guest's clock counts instructions instead of seconds
// (-icount): a program on it sees a computer of ordinary speed, and no deadline comes early because the host is busy.
import { parseArgs } from 'node:util'
import { debianKernel } from './vm-kernel.ts'
import { emulate, type Ending, type Guest, quoted } from './vm-machine.ts'

const MINUTES = 90
/** By this the limits of the tests grow. */
const SLOWNESS = 8
const SYSTEMD = 'systemd'
const SERVICE_TESTS = 'test/vm/'
const KERNEL_TESTS = 'test/netns/'

const { values, positionals: texts } = parseArgs({
  options: { minutes: { type: 'string', default: String(MINUTES) } },
  allowPositionals: true,
})
const minutes = Number(values.minutes)
if (!(minutes > 0)) {
  console.error(`usage: bun src/provision/vm.ts [--minutes ${MINUTES}] [TEXT...]`)
  process.exit(2)
}

const kernel = await debianKernel('build/vm').catch((error: Error) => {
  console.error(error.message)
  process.exit(1)
})
const deadline = performance.now() + minutes * 60_000
const others = texts.filter((text) => text !== SYSTEMD)
const guests: Pick<Guest, 'inside' | 'command'>[] = []
if (texts.length === 0 || others.length > 0)
  guests.push({ inside: 'inside', command: tests({}, texts.length === 0 ? [KERNEL_TESTS] : others) })
if (texts.length === 0 || texts.includes(SYSTEMD))
  guests.push({ inside: 'inside-systemd', command: tests({ SLUICE_TEST_MACHINE: '1' }, [SERVICE_TESTS]) })

let failed = 0
for (const guest of guests) {
  console.log(`Booting Linux ${kernel.version}, emulated; at most ${minutes} minutes for all`)
  const started = performance.now()
  const ending = await emulate({ ...guest, kernel, deadline })
  failed ||= exitCode(ending, Math.round((performance.now() - started) / 1000))
}
process.exit(failed)

function tests(environment: Record<string, string>, texts: string[]): string {
  const color = process.stdout.isTTY ? 'FORCE_COLOR=1' : 'NO_COLOR=1'
  const settings = Object.entries(environment).map(([name, value]) => `${name}=${value}`)
  const words = [process.execPath, 'src/provision/test.ts', ...texts].map(quoted)
  return ['env', `SLUICE_TEST_SLOW=${SLOWNESS}`, color, ...settings, ...words].join(' ')
}

function exitCode(ending: Ending, seconds: number): number {
  if (ending === 'late') console.error(`The guest was ended: ${minutes} minutes are over`)
  else if (ending === 'no result') console.error(`The guest ended after ${seconds} s without a result`)
  else {
    console.log(`The guest took ${seconds} s`)
    return ending.code
  }
  return ending === 'late' ? 124 : 1
}
