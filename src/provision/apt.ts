// Installs Debian packages as root without starting any service, and says what it does.
import { constants } from 'node:os'
import { $, type ProcessPromise } from 'zx'
import { missingOf } from './packages.ts'
import { withoutServices } from './services.ts'

/** How long apt waits for another apt to finish. */
const LOCK_SECONDS_MAX = 300

export async function installPackages(names: string[]): Promise<void> {
  let running: ProcessPromise | undefined
  let stopped: NodeJS.Signals | undefined
  // A signal ends apt-get first and us afterwards: dpkg is not to be left half way, nor policy-rc.d in its place.
  const stop = (signal: NodeJS.Signals) => {
    stopped = signal
    running?.kill('SIGINT').catch(() => {}) // it has just ended by itself
  }
  const apt = async (...args: string[]) => {
    if (stopped) throw new Error(`stopped by ${stopped}`)
    running = $({
      verbose: true,
      nothrow: true,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    })`apt-get -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=${LOCK_SECONDS_MAX} ${args}`
    const { exitCode, signal } = await running
    if (stopped || exitCode !== 0)
      throw new Error(`Cannot install packages: apt-get ${args[0]} ended with ${signal ?? exitCode}`)
  }
  const update = () => {
    console.log('Reading the package lists anew')
    return apt('update', '-q')
  }
  const install = () => apt('install', '-q', '-y', '--no-install-recommends', ...names)

  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.on(signal, stop)
  try {
    console.log(`Installing ${names.join(' ')}`)
    await withoutServices(async () => {
      const fresh = !(await allKnown(names))
      if (fresh) await update()
      // Old lists name files the mirror no longer has.
      await install().catch(async (error) => {
        if (fresh || stopped) throw error
        await update()
        await install()
      })
    })
    const missing = await missingOf(names)
    if (missing.length > 0)
      throw new Error(`Cannot install ${missing.join(' ')}: apt-get says it did and dpkg does not know`)
  } catch (error) {
    if (stopped) process.exit(128 + constants.signals[stopped])
    throw error
  } finally {
    for (const signal of signals) process.off(signal, stop)
  }
}

/** Whether the package lists of this machine have a version of each: on a fresh machine there are no lists. */
async function allKnown(names: string[]): Promise<boolean> {
  const policy = await $({ quiet: true, env: { ...process.env, LC_ALL: 'C' } })`apt-cache policy ${names}`
  return (policy.stdout.match(/^ {2}Candidate: (?!\(none\))/gm) ?? []).length === names.length
}
