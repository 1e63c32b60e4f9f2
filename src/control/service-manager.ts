// What the gateway tells the service manager that started it (systemd, or another that reads sd_notify(3)): when it serves,
// reloads and stops, in a line for `systemctl status`, and that it is alive. Where nobody listens nothing is said, and what
// cannot be said is no reason to stop.
import { NOTIFY_RETRY_MS, NOTIFY_TRIES_MAX } from '../base/limits.ts'
import { cString, native, ptr } from '../base/native.ts'
import type { Log } from '../observe/log.ts'

const EAGAIN = -11
/** A worker that is silent for a moment costs one beat of four. */
const BEATS_PER_WATCHDOG = 4

export interface Heartbeat {
  /** Whether there is reason to say that we live. */
  alive(): Promise<boolean>
  /** The line for those who look. */
  status(): string
}

export class ServiceManager {
  /** One after another: what is said last is what counts. */
  #saying: Promise<void> = Promise.resolve()
  #failed = false
  #timer: ReturnType<typeof setInterval> | undefined
  #status = ''

  private constructor(
    private readonly socket: string,
    private readonly watchdogMs: number | null,
    private readonly log: Log,
  ) {}

  /** null: nobody has started us who listens. */
  static find(log: Log, environment: Record<string, string | undefined> = process.env): ServiceManager | null {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = environment
    // Whoever this process hands over to is watched in its place.
    delete environment.WATCHDOG_PID
    if (!NOTIFY_SOCKET) return null
    const ours = WATCHDOG_PID === undefined || Number(WATCHDOG_PID) === process.pid
    const watchdogMs = ours && Number(WATCHDOG_USEC) > 0 ? Number(WATCHDOG_USEC) / 1000 : null
    return new ServiceManager(NOTIFY_SOCKET, watchdogMs, log)
  }

  /** Every route is served; from now on it hears that we live. */
  ready(heartbeat: Heartbeat) {
    this.#say('READY=1')
    this.#tell(heartbeat.status())
    clearInterval(this.#timer)
    if (this.watchdogMs === null) return
    this.#say('WATCHDOG=1')
    this.#timer = setInterval(() => void this.#beat(heartbeat), this.watchdogMs / BEATS_PER_WATCHDOG)
  }

  /** Until ready() is called again. */
  reloading() {
    this.#say(`RELOADING=1\nMONOTONIC_USEC=${native().sluice_monotonic_us()}`)
  }

  /** The process that is the gateway from now on; what this one says no longer counts. */
  handedOver(pid: number) {
    this.#say(`MAINPID=${pid}`)
    clearInterval(this.#timer)
  }

  /** It goes on hearing that we live: a stop may take the whole grace period. */
  stopping() {
    this.#say('STOPPING=1\nSTATUS=Stopping: connections may finish')
  }

  /** It keeps a copy of the descriptor under this name, for the next start; it may refuse, and does not say so. */
  keep(name: string, fd: number) {
    // A copy until it is sent: the listener may be closed before.
    const copy = native().sluice_dup(fd)
    if (copy < 0) return
    this.#say(`FDSTORE=1\nFDNAME=${name}`, copy)
  }

  forget(name: string) {
    this.#say(`FDSTOREREMOVE=1\nFDNAME=${name}`)
  }

  /** Nothing is said any more. */
  close() {
    clearInterval(this.#timer)
  }

  async #beat({ alive, status }: Heartbeat) {
    const lives = await alive().catch(() => false)
    if (!lives) return this.log('warn', 'The worker does not answer: the service manager is not told that we live')
    this.#say('WATCHDOG=1')
    this.#tell(status())
  }

  #tell(status: string) {
    if (status !== this.#status) this.#say(`STATUS=${status}`)
    this.#status = status
  }

  /** @param descriptor goes with it, and is closed. */
  #say(text: string, descriptor = -1) {
    this.#saying = this.#saying
      .then(() => this.#deliver(text, descriptor))
      .finally(() => descriptor >= 0 && native().sluice_close(descriptor))
  }

  async #deliver(text: string, descriptor: number) {
    const [path, words] = [cString(this.socket), cString(text)]
    for (let tries = 1; ; tries++) {
      const result = native().sluice_notify(ptr(path), ptr(words), descriptor)
      if (result === 0) return
      if (result !== EAGAIN || tries >= NOTIFY_TRIES_MAX) return this.#cannot(-result)
      await Bun.sleep(NOTIFY_RETRY_MS)
    }
  }

  #cannot(errno: number) {
    if (!this.#failed) this.log('warn', `Cannot reach the service manager at ${this.socket}: error ${errno}`)
    this.#failed = true
  }
}
