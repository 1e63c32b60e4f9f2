// The worker process: everything that touches a byte from the network. It gives up root first, then takes listening
// descriptors and plans from control and reports what becomes of the connections. When control goes, it goes.
import { Channel } from './channel/channel.ts'
import { WORKER_ENDS, WORKER_ENVIRONMENT, type ToControl, type ToWorker, type WorkerStart } from './channel/messages.ts'
import { UNCAUGHT_LOG_INTERVAL_MS, UNCAUGHT_LOG_LINES_MAX } from './base/limits.ts'
import { native } from './base/native.ts'
import { missingAbilities } from './user/abilities.ts'
import { UserPlane } from './user/index.ts'

export async function runWorker(): Promise<void> {
  const start = JSON.parse(process.env[WORKER_ENVIRONMENT] ?? '{}') as WorkerStart
  native().sluice_raise_nofile()
  const warnings = dropPrivileges(start.user)
  const missing = await missingAbilities()
  if (missing.length > 0) {
    process.stderr.write(`sluice: this Bun (${Bun.version}) lacks ${missing.join(', ')}; 1.4.5 has it\n`)
    process.exit(1)
  }

  const descriptors = new Map<number, number>()
  let applying = Promise.resolve()
  const channel = await Channel.open<ToControl, ToWorker>(WORKER_ENDS, onMessage, () => process.exit(0))
  const log = (level: 'debug' | 'info' | 'warn' | 'error', message: string, fields?: Record<string, unknown>) =>
    channel.send({ type: 'log', level, message, fields })
  const plane = new UserPlane(
    {
      report: (events) => channel.send({ type: 'connections', ...events }),
      dialed: (dials) => channel.send({ type: 'dialed', dials }),
      checked: (results) => channel.send({ type: 'checked', results }),
      swept: (count) => channel.send({ type: 'swept', count }),
      accepting: (state) => channel.send({ type: 'accepting', ...state }),
      log,
    },
    { idPrefix: start.idPrefix, configFile: start.configFile },
  )

  // A bug in one connection must not end all the others: it is logged with its place, and the process goes on.
  const uncaught = (kind: string) => {
    let [said, unsaid, nextAt] = [0, 0, 0]
    return (error: unknown) => {
      const now = performance.now()
      // A handler's timer can throw a thousand times a second.
      if (now >= nextAt) [said, nextAt] = [0, now + UNCAUGHT_LOG_INTERVAL_MS]
      if (said++ >= UNCAUGHT_LOG_LINES_MAX) return void unsaid++
      log('error', `${kind} in the worker`, {
        error: String((error as Error | null)?.stack ?? error),
        connections: plane.size,
        ...(unsaid > 0 ? { unsaid } : {}),
      })
      unsaid = 0
    }
  }
  process.on('uncaughtException', uncaught('Uncaught error'))
  process.on('unhandledRejection', uncaught('Unhandled rejection'))
  // Control decides when a worker stops; a terminal's Ctrl-C reaches the whole process group.
  process.on('SIGINT', () => {})
  process.on('SIGTERM', () => {})

  channel.send({ type: 'ready', pid: process.pid, uid: process.getuid!() })
  for (const warning of warnings) log('warn', warning)

  function onMessage(message: ToWorker) {
    switch (message.type) {
      case 'descriptors':
        for (const [tag, fd] of channel.takeDescriptors()) descriptors.set(tag, fd)
        return
      case 'plan': {
        // Those of the next plan may have come already: they overtake its line, and are not this one's to close.
        const named = new Set(message.plan.listeners.map(({ descriptor }) => descriptor))
        const given = new Map([...descriptors].filter(([tag]) => named.has(tag)))
        for (const tag of given.keys()) descriptors.delete(tag)
        // One after another: a plan is whole, the last one counts.
        applying = applying.then(async () => {
          const problems = await plane.apply(message.plan, given)
          channel.send({ type: 'applied', generation: message.plan.generation, problems })
        })
        return
      }
      case 'routes':
        applying = applying.then(async () => void (await plane.updateRoutes(message.routes)))
        return
      case 'certificates':
        applying = applying.then(async () => {
          for (const { route, message: problem } of await plane.updateCertificates(message.certificates))
            log('error', problem, { route })
        })
        return
      case 'challenges':
        plane.challenge(message)
        channel.send({ type: 'challenged', generation: message.generation })
        return
      case 'health':
        plane.check(message.checks)
        return
      case 'written':
        plane.written(message.ids, message.ok)
        return
      case 'close':
        plane.close(message.id, message.reason)
        return
      case 'closeTarget':
        // Behind the change that leaves the target out: what is closed before it could come back to it.
        applying = applying.then(() => plane.closeTarget(message.route, message.endpoint, message.reason))
        return
      case 'drain':
        plane.drain(message.route, message.deadlineMs)
        return
      case 'sample':
        channel.send({ type: 'sampled', request: message.request, counts: plane.sample() })
        return
      case 'count':
        void plane.tellCounts((counts, isLast) => channel.send({ type: 'counted', counts, isLast }))
        return
      case 'ping':
        channel.send({ type: 'pong' })
        return
      case 'stop':
        void plane.stop(message.graceMs).then(() => channel.send({ type: 'stopped' }))
        return
    }
  }
}

/** Gives up root for good, and everything else that no worker needs: it is the process that strangers talk to, and in which
 *  handlers run. Returns what could not be given up. */
function dropPrivileges(user: WorkerStart['user']): string[] {
  const warnings: string[] = []
  const has = (result: number, what: string) => {
    if (result !== 0) warnings.push(`${what}: ${result < 0 ? `error ${-result}` : `${result} threads did not answer`}`)
  }
  // While it may: changing the user takes the capabilities of now, not those that an exec could gain.
  has(native().sluice_drop_bounding(), 'The worker keeps its bounding set of capabilities')
  const asRoot = becomeUser(user)
  if (asRoot) warnings.push(asRoot)
  has(native().sluice_drop_capabilities(), 'The worker keeps capabilities')
  has(native().sluice_refuse_calls(), 'This kernel does not filter the system calls of the worker (seccomp)')
  return warnings
}

/** Returns a warning when it stays root. */
function becomeUser(user: WorkerStart['user']): string | null {
  if (process.getuid!() !== 0) return null
  if (!user) return 'The worker runs as root: this machine has no other user for it'
  try {
    process.setgroups!([])
    process.setgid!(user.gid)
    process.setuid!(user.uid)
    return null
  } catch (error) {
    return `The worker runs as root: ${(error as Error).message} (no second user id here)`
  }
}
