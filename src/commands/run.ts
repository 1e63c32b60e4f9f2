// sluice run: the gateway in the foreground, with its signals.
import { Directories, FileWatch } from '../certificates/watch.ts'
import { Control } from '../control.ts'
import { GatewayError } from '../control/changes.ts'
import { isRestarting } from '../control/descriptor-store.ts'
import { ServiceManager } from '../control/service-manager.ts'
import { isJournal, makeLog } from '../observe/log.ts'
import { Predecessor } from '../control/handover.ts'
import { readCertificates } from './doctor-read.ts'
import { readConfig } from './shared.ts'

/** For connections in user space, which end with this life. */
const FAILED_GRACE_MS = 2000
const FAILED_STOP_MS_MAX = 15_000

export async function run(options: { config?: string; check?: boolean; watch?: boolean }): Promise<number> {
  const read = await readConfig(options.config)
  if (!read.ok) return read.exitCode
  if (options.check) {
    process.stdout.write(
      `${read.path}: ${read.config.routes.length} ${read.config.routes.length === 1 ? 'route' : 'routes'}, no problem\n`,
    )
    // Not the configuration's own: they may be made before it is used, and a gateway that has better ones keeps them.
    for (const one of await readCertificates(read.config, Date.now()))
      if ('problem' in one) process.stderr.write(`sluice: route "${one.route}" could not end TLS: ${one.problem}\n`)
    return 0
  }
  const predecessor = await Predecessor.find()
  const log = makeLog(read.config.log?.level ?? 'info', await isJournal())
  const manager = ServiceManager.find(log)
  const control = new Control(read.config, { configFile: read.path, predecessor, log, manager })
  const heartbeat = { alive: () => control.answers(), status: () => control.summary }
  const started = Promise.withResolvers<void>()
  // Half of a restart is no stop: the kernel goes on forwarding until the next start takes over.
  const stop = async () => control.stop(undefined, manager && (await isRestarting()) ? 'keep' : undefined)
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  // logrotate has moved the file away, or an operator has changed the configuration: it is not told which.
  const hangUp = async () => {
    await started.promise
    manager?.reloading()
    try {
      await control.reopenLogs().catch((error: Error) => log('error', `Cannot reopen the access log: ${error.message}`))
      const result = await control.reloads.reload()
      if (result.ok) {
        for (const { path, message, remedy } of result.warnings ?? []) log('warn', `${path}: ${message} (${remedy})`)
      } else
        for (const { path, message, remedy } of result.problems)
          log('error', `Not reloaded: ${path}: ${message} (${remedy})`)
    } finally {
      // Refused or not: it serves as before.
      manager?.ready(heartbeat)
    }
  }
  let hangingUp = Promise.resolve()
  let waiting = 0
  const reload = () => {
    // One that has not begun sees what this one is about.
    if (waiting > 1) return
    waiting++
    hangingUp = hangingUp
      .then(hangUp)
      .catch((error: Error) => log('error', `Not reloaded: ${error.message}`))
      .finally(() => waiting--)
  }
  process.on('SIGHUP', reload)
  const watch = options.watch ? new FileWatch([read.path], new Directories(), reload) : null
  await watch?.remember()
  // An error that nobody expected: what is known may be wrong from here on, so say where, and close in order. The kernel goes
  // on forwarding, as after a crash; the next start takes its flows over.
  const failed = (error: unknown) => {
    // A program that we feed has ended before it had read all. Its exit code says so to whoever waits for it; the runtime tells
    // it a second time here.
    if ((error as NodeJS.ErrnoException | null)?.code === 'EPIPE')
      return log('debug', 'A pipe was closed by its reader')
    log('error', 'Uncaught error in control; stopping', { error: String((error as Error)?.stack ?? error) })
    process.exitCode = 1
    void control.stop(FAILED_GRACE_MS, 'keep')
    // The error may be in what a stop needs.
    setTimeout(() => process.exit(1), FAILED_STOP_MS_MAX).unref()
  }
  process.on('uncaughtException', failed)
  process.on('unhandledRejection', failed)
  try {
    await control.start()
    manager?.ready(heartbeat)
    started.resolve()
    await watch?.look()
  } catch (error) {
    await control.done
    if (!(error instanceof Error)) throw error
    // What the system refused needs no place in our program.
    const isKnown = error instanceof GatewayError || 'errno' in error || 'code' in error
    process.stderr.write(`sluice: ${isKnown ? error.message : (error.stack ?? error.message)}\n`)
    // The channel to the program that was to hand over would keep this one, which that one waits for.
    if (predecessor) process.exit(1)
    return 1
  }
  await control.done
  watch?.stop()
  manager?.close()
  return (process.exitCode as number | undefined) ?? 0
}
