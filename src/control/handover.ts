// Handing over to a new program without loss: the running control process starts it, passes it every listening socket, and
// lets go of what only one can have (kernel rules, admin socket, files) once the new one is ready to go on from there. What
// connects meanwhile waits in the backlog; what user space carries goes on in the old worker, and belongs to the new control from
// then on: it is told of it, and its commands are passed on. A new program that fails before changes nothing.
import { HANDOVER_MS_MAX, HANDOVER_RELEASE_MS_MAX } from '../base/limits.ts'
import { turn } from '../base/turns.ts'
import { Channel, closeEnds, openEnds } from '../channel/channel.ts'
import { WORKER_ENDS, type ToControl, type ToWorker } from '../channel/messages.ts'
import { selfArguments } from '../config/load.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import { GatewayError } from './changes.ts'
import { installedProgram } from './installed.ts'

/** Set where a program is started to take over: its ends of the channel are where a worker's would be. */
const HANDOVER_ENVIRONMENT = 'SLUICE_HANDOVER'

export interface Socket {
  /** As Listeners knows it. */
  key: string
  protocol: 'tcp' | 'udp'
  port: number
  fd: number
}

type ToNew =
  | { type: 'descriptors' }
  /** All have been sent: the descriptor of each has its place in this list as tag. */
  | { type: 'sockets'; sockets: Omit<Socket, 'fd'>[] }
  /** Live connections of the old worker, piece by piece. */
  | { type: 'records'; records: ConnectionRecord[] }
  /** @param workers what the ids of their connections begin with. */
  | { type: 'released'; workers: string[] }
  /** What a worker says from then on. */
  | { type: 'worker'; message: ToControl }
interface Ready {
  type: 'ready'
  version: string
  pid: number
  /** Where its rules are to be: what is elsewhere would go on forwarding, and belong to nobody. */
  kernel: KernelPlace
}
export interface KernelPlace {
  table: string
  markBase: number
}
type ToOld = Ready | { type: 'command'; command: ToWorker }

/** Stands between us and the new program, and is gone before that one takes over. A service manager hears of the end of its own children
 *  only, and waits at a stop for no others: what it is to take for the service has to be an orphan by then, which are its children. */
const BETWEEN = ['sh', '-c', '"$@" <&0 & wait $!', 'sh']

/** About 10 ms. */
const RECORDS_AT_ONCE = 2000

/** The new program, as the old one sees it. */
export class Successor {
  #channel!: Channel<ToNew, ToOld>
  readonly #ready = Promise.withResolvers<Ready>()
  readonly #gone = Promise.withResolvers<void>()
  #onCommand: (command: ToWorker) => void = () => {}
  version = ''
  pid = 0

  /** Starts it with the same arguments, and resolves when it is ready: it has read its configuration and its worker runs. Rejects when it
   *  is not, in time; then it has ended and nothing has changed. */
  static async start(sockets: Socket[], kernel: KernelPlace): Promise<Successor> {
    const program = await startedWith()
    const ends = openEnds()
    const child = Bun.spawn([...BETWEEN, ...program, ...commandLine()], {
      // A process group, to be ended as one.
      detached: true,
      stdio: ['inherit', 'inherit', 'inherit', ends.theirs.lines, ends.theirs.descriptors],
      env: { ...process.env, [HANDOVER_ENVIRONMENT]: '1' },
    })
    closeEnds(ends.theirs)
    const successor = new Successor()
    const end = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {
        // It has ended by itself.
      }
    }
    successor.#ready.promise.catch(() => {}) // heard of below, or too late to matter
    const fail = (why: string) => successor.#ready.reject(new GatewayError(`The new program did not take over: ${why}`))
    successor.#channel = await Channel.open<ToNew, ToOld>(
      ends.ours,
      (message) =>
        message.type === 'ready' ? successor.#ready.resolve(message) : successor.#onCommand(message.command),
      () => {
        successor.#gone.resolve()
        // How it ends says why; and without us it is nothing.
        if (successor.version === '') end()
      },
    )
    void child.exited.then((code) => fail(`it ended with ${child.signalCode ?? `exit code ${code}`}`))
    const late = setTimeout(() => fail(`not ready within ${HANDOVER_MS_MAX / 1000} s`), HANDOVER_MS_MAX)
    try {
      await successor.#channel.sendDescriptors(
        sockets.map(({ fd }, tag) => [tag, fd]),
        { type: 'descriptors' },
      )
      successor.#channel.send({
        type: 'sockets',
        sockets: sockets.map(({ key, protocol, port }) => ({ key, protocol, port })),
      })
      const { version, pid, kernel: wanted } = await successor.#ready.promise
      if (wanted.table !== kernel.table || wanted.markBase !== kernel.markBase)
        throw new GatewayError(
          'kernel.table and kernel.markBase cannot change in an upgrade: stop the gateway and start it',
        )
      child.kill('SIGKILL')
      await child.exited
      Object.assign(successor, { version, pid })
      return successor
    } catch (error) {
      end()
      successor.#channel.close()
      throw error
    } finally {
      clearTimeout(late)
    }
  }

  /** It may have all that was ours. What the workers are to do is told to `onCommand` from then on. */
  async release(records: Iterable<ConnectionRecord>, workers: string[], onCommand: (command: ToWorker) => void) {
    this.#onCommand = onCommand
    const all = [...records]
    for (let at = 0; at < all.length; at += RECORDS_AT_ONCE) {
      this.#channel.send({ type: 'records', records: all.slice(at, at + RECORDS_AT_ONCE) })
      await turn()
    }
    this.#channel.send({ type: 'released', workers })
  }

  /** What a worker that stayed behind has to say. */
  tell(message: ToControl) {
    this.#channel.send({ type: 'worker', message })
  }

  /** Its end: what stayed behind belongs to nobody then. */
  get gone(): Promise<void> {
    return this.#gone.promise
  }

  /** Nothing is left here that it should know of. */
  close() {
    this.#channel.close()
  }
}

/** The old program, as the new one sees it. */
export class Predecessor {
  #channel!: Channel<ToOld, ToNew>
  readonly #sockets = Promise.withResolvers<Omit<Socket, 'fd'>[]>()
  readonly #released = Promise.withResolvers<void>()
  readonly #over = Promise.withResolvers<void>()
  readonly #descriptors = new Map<number, number>()
  /** Said before anybody listens. */
  #early: ToControl[] = []
  #onWorker: (message: ToControl) => void = (message) => void this.#early.push(message)
  readonly records: ConnectionRecord[] = []
  workers: string[] = []

  /** null: nobody hands over to this process. */
  static async find(): Promise<Predecessor | null> {
    if (process.env[HANDOVER_ENVIRONMENT] === undefined) return null
    // Not for the programs that we start.
    delete process.env[HANDOVER_ENVIRONMENT]
    const predecessor = new Predecessor()
    const gone = () => {
      const error = new GatewayError('The program that was to hand over has gone')
      predecessor.#sockets.reject(error)
      predecessor.#released.reject(error)
      predecessor.#over.resolve()
    }
    // Each is waited for in its time only.
    for (const { promise } of [predecessor.#sockets, predecessor.#released]) promise.catch(() => {})
    predecessor.#channel = await Channel.open<ToOld, ToNew>(
      WORKER_ENDS,
      (message) => predecessor.#onMessage(message),
      gone,
    )
    return predecessor
  }

  #onMessage(message: ToNew) {
    switch (message.type) {
      case 'descriptors':
        for (const [tag, fd] of this.#channel.takeDescriptors()) this.#descriptors.set(tag, fd)
        return
      case 'sockets':
        return this.#sockets.resolve(message.sockets)
      case 'records':
        return void this.records.push(...message.records)
      case 'released':
        this.workers = message.workers
        return this.#released.resolve()
      case 'worker':
        return this.#onWorker(message.message)
    }
  }

  /** Every socket that it has. */
  async sockets(): Promise<Socket[]> {
    const sockets = await this.#within(this.#sockets.promise, HANDOVER_MS_MAX, 'sent no sockets')
    return sockets.flatMap((socket, tag) => {
      const fd = this.#descriptors.get(tag)
      return fd === undefined ? [] : [{ ...socket, fd }]
    })
  }

  /** Says that we can begin, and resolves when all is ours: then `records` are the connections that stayed behind. */
  async release(version: string, kernel: KernelPlace): Promise<void> {
    this.#channel.send({ type: 'ready', version, pid: process.pid, kernel })
    await this.#within(this.#released.promise, HANDOVER_RELEASE_MS_MAX, 'does not let go')
  }

  /** What its workers say, from when it let go. */
  listen(onWorker: (message: ToControl) => void) {
    this.#onWorker = onWorker
    for (const message of this.#early) onWorker(message)
    this.#early = []
  }

  /** What its workers are to do as well. */
  send(command: ToWorker) {
    this.#channel.send({ type: 'command', command })
  }

  /** Its last connection has ended, or it has. */
  get over(): Promise<void> {
    return this.#over.promise
  }

  async #within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
    const { promise: late, reject } = Promise.withResolvers<never>()
    const timer = setTimeout(() => reject(new GatewayError(`The program that was to hand over ${what}`)), ms)
    return Promise.race([promise, late]).finally(() => clearTimeout(timer))
  }
}

/** Not compiled it is Bun that runs the source. */
async function startedWith(): Promise<string[]> {
  const source = selfArguments()
  if (source.length > 0) return [process.execPath, ...source]
  const { argv0, execPath, env } = process
  return [await installedProgram({ argv0, execPath, path: env.PATH ?? '' })]
}

/** What this program was started with, behind its own name. */
const commandLine = () => process.argv.slice(2)
