// `make test`: prepares what it may, runs every test file in a process of its own (a crash, a leaked thread or a changed
// user then ends with its file), those of the kernel in namespaces of their own, and closes with one line of counts.
// As an ordinary user it says what root would have to install, runs all the rest, and gives a reason for each skip.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { $, type ProcessPromise } from 'zx'
import { reachable } from './imports.ts'
import { provide } from './install.ts'
import { aptCommand, packagesOf } from './packages.ts'
import { closingLine, parseJunit, type Results, skipsByReason } from './results.ts'

/** No sane test file needs this long; one that hangs is killed and counted as failed. */
const FILE_MS_MAX = 300_000
/** Bun's own limit for a test that names none. */
const TEST_MS_MAX = 5_000
/** How much longer everything may take on an emulated machine (src/provision/vm.ts). */
const slowness = Number(process.env.SLUICE_TEST_SLOW ?? 1)

const bun = process.execPath
const INSIDE = [bun, 'test/netns/inside.ts']
/** Without these a kernel test cannot even begin. */
const KERNEL_PROGRAMS = ['nft', 'ip', 'unshare', 'setpriv']

const running = new Set<ProcessPromise>()
// Ctrl-C reaches the whole group by itself; other signals reach this process only.
process.on(
  'SIGTERM',
  () => void Promise.all([...running].map((one) => one.kill('SIGTERM'))).finally(() => process.exit(143)),
)

const total: Results = { passed: 0, failed: [], skipped: [] }
const missing = await provide('test').catch((error: Error) => {
  console.error(error.message)
  process.exit(1)
})
if (missing.length > 0)
  console.log(
    `Some packages are missing; what needs them is skipped. To have all, root has to run:\n  ${aptCommand(missing)}\n`,
  )

const only = process.argv.slice(2)
/** Those of test/vm change the machine that they run on: they are for one that is thrown away. */
const onMachine = process.env.SLUICE_TEST_MACHINE === '1'
const files = [...new Bun.Glob('test/**/*.test.ts').scanSync()]
  .filter((path) => path.startsWith('test/vm/') === onMachine)
  .filter((path) => only.length === 0 || only.some((text) => path.includes(text)))
  .sort()
const needsKernel = (path: string) => path.startsWith('test/netns/') || path.startsWith('test/peers/')

const noLibrary = await whyNoLibrary()
const noKernel = files.some(needsKernel) ? await whyNoKernel() : undefined
const reports = await mkdtemp(join(tmpdir(), 'sluice-test-'))
try {
  // Two lanes: tests of the kernel wait more than they work, and all others fill the time; no two of a lane run at once.
  const isOfKernel = (path: string) => path.startsWith('test/netns/')
  await Promise.all([files.filter(isOfKernel), files.filter((path) => !isOfKernel(path))].map(runLane))
} finally {
  await rm(reports, { recursive: true, force: true })
}

console.log()
if (total.skipped.length > 0) console.log(['Skipped:', ...skipsByReason(total.skipped)].join('\n'))
if (total.failed.length > 0) console.log(['Failed:', ...total.failed.map((name) => `  ${name}`)].join('\n'))
const executed = total.passed + total.failed.length
if (executed === 0) console.log('No test was executed: that is a failure')
console.log(closingLine(total))
process.exit(executed > 0 && total.failed.length === 0 ? 0 : 1)

async function runLane(paths: string[]): Promise<void> {
  for (const path of paths) {
    const reason =
      needsKernel(path) && noKernel ? noKernel : noLibrary && (await needsLibrary(path)) ? noLibrary : undefined
    if (reason) total.skipped.push({ name: path, reason })
    else await runFile(path)
  }
}

async function runFile(path: string): Promise<void> {
  const report = join(reports, `${path.replaceAll('/', '-')}.xml`)
  const limit = `--timeout=${TEST_MS_MAX * slowness}`
  const command = [bun, 'test', limit, `./${path}`, '--reporter=junit', `--reporter-outfile=${report}`]
  const child = $({
    stdio: ['ignore', 'pipe', 'pipe'],
    quiet: true,
    nothrow: true,
    timeout: FILE_MS_MAX * slowness,
    timeoutSignal: 'SIGKILL',
  })`${needsKernel(path) ? [...INSIDE, ...command] : command}`
  running.add(child)
  const output = await child
  running.delete(child)
  const { exitCode, signal } = output
  // In one piece: the other lane prints as well.
  process.stdout.write(output.stdall)
  const xml = await Bun.file(report)
    .text()
    .catch(() => '')
  const results = parseJunit(xml)
  total.passed += results.passed
  total.failed.push(...results.failed.map((name) => `${path}: ${name}`))
  total.skipped.push(...results.skipped.map(({ name, reason }) => ({ name: `${path}: ${name}`, reason })))
  // A file that does not load, crashes, hangs or fails between its tests has no failed test to show for it.
  if (exitCode !== 0 && results.failed.length === 0)
    total.failed.push(`${path}: the run itself ended with ${signal ?? `exit code ${exitCode}`}`)
  else if (results.passed + results.failed.length + results.skipped.length === 0)
    total.failed.push(`${path}: contains no test`)
}

/** Builds the native library by the rule of the Makefile. Where it cannot be built because root has to help, says why. */
async function whyNoLibrary(): Promise<string | undefined> {
  const lacking = missing.filter((name) => packagesOf('build').includes(name))
  if (lacking.length > 0) return `the native library cannot be built without ${lacking.join(' ')}`
  const build = await $({ stdio: 'inherit', nothrow: true })`make --silent --no-print-directory build/libsluice.so`
  if (build.exitCode === 0) return undefined
  total.failed.push('build/libsluice.so: does not build')
  return 'the native library does not build'
}

async function needsLibrary(path: string): Promise<boolean> {
  const files = await reachable(path, (file) =>
    Bun.file(file)
      .text()
      .catch(() => undefined),
  )
  return files.has('src/base/native.ts')
}

async function whyNoKernel(): Promise<string | undefined> {
  const lacking = KERNEL_PROGRAMS.filter((name) => Bun.which(name) === null)
  if (lacking.length > 0) return `kernel tests need the programs ${lacking.join(' ')}`
  const probe = await $({ quiet: true, nothrow: true })`${INSIDE} true`
  return probe.exitCode === 0 ? undefined : `no namespaces for kernel tests here: ${probe.stderr.trim().split('\n')[0]}`
}
