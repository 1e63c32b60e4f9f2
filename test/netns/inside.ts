// Runs a command where it may build network namespaces and firewall rules and cannot touch the machine:
//
//   bun test/netns/inside.ts COMMAND...
//
// The command gets its own network, mount and process namespaces and an empty /run. Without root, or when
// SLUICE_TEST_USERNS=1 is set, a user namespace is added, in which the caller is root and the only user there is; as real
// root there are other users as well, so tests that drop privileges can run. Everything in it dies with this process.
import { constants } from 'node:os'

const command = process.argv.slice(2)
if (command.length === 0) {
  console.error('usage: bun test/netns/inside.ts COMMAND...')
  process.exit(2)
}

const ordinary = process.getuid!() !== 0 || process.env.SLUICE_TEST_USERNS === '1'

// The shell stays as process 1: it collects orphans, and a process 1 of its own making would ignore Ctrl-C.
// /proc must show the new process namespace, or nobody could find and kill what a test left behind.
const prepare = `
mount -t proc proc /proc &&
mount -t tmpfs tmpfs /run && mkdir /run/netns &&
ip link set lo up || exit 125
"$@"
exit $?`

const child = Bun.spawn(
  [
    // unshare has to go when this process is killed; --kill-child then takes the rest.
    ...['setpriv', '--pdeathsig', 'KILL'],
    ...['unshare', ordinary ? '-Urnm' : '-nm', '--pid', '--fork', '--kill-child'],
    ...['sh', '-c', prepare, 'sh', ...command],
  ],
  { stdio: ['inherit', 'inherit', 'inherit'] },
)

// The terminal sends SIGINT to the whole group itself. unshare ignores SIGTERM while it waits, so it is killed.
process.on('SIGINT', () => {})
for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill('SIGKILL'))

await child.exited
process.exit(child.exitCode ?? 128 + (constants.signals[child.signalCode as NodeJS.Signals] ?? 0))
