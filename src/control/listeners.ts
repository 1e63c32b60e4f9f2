// The listening sockets: control opens and keeps them, workers get copies. So their backlog outlives a worker, and low ports
// need no privilege there.
import { cString, native, ptr } from '../base/native.ts'
import type { PlannedListener } from '../plan/types.ts'
import { GatewayError } from './changes.ts'

/** The kernel holds this many accepted connections that a worker has not taken yet (capped by net.core.somaxconn). */
const BACKLOG = 4096
const EADDRINUSE = 98
/** Sockets opened before the event loop gets a turn. */
const AT_ONCE = 64

export interface Listener {
  key: string
  port: number
  /** Names the descriptor to a worker, once and for all. */
  tag: number
  fd: number
}

export class Listeners {
  readonly #byKey = new Map<string, Listener>()
  #nextTag = 1

  /** @param workerCloses resolves when the worker has closed what it was told to; false: there was nothing to wait for. */
  constructor(private readonly workerCloses: () => Promise<boolean>) {}

  get size() {
    return this.#byKey.size
  }

  tag(key: string): number {
    return this.#byKey.get(key)!.tag
  }

  /** tag → descriptor of those listeners. */
  descriptors(wanted: Set<string>): Map<number, number> {
    return new Map([...this.#byKey.values()].filter(({ key }) => wanted.has(key)).map(({ tag, fd }) => [tag, fd]))
  }

  /** Opens what is not open yet; returns it. All of them, or none and an error that names the port. */
  async open(planned: PlannedListener[]): Promise<Listener[]> {
    const opened: Listener[] = []
    for (const { key, address, port } of planned) {
      if (this.#byKey.has(key)) continue
      const fd = await this.#openOne(address, port)
      if (fd < 0) {
        this.close(opened)
        throw new GatewayError(`Cannot listen on ${key}: ${errorText(-fd)}`)
      }
      const listener = { key, port, tag: this.#nextTag++, fd }
      this.#byKey.set(key, listener)
      opened.push(listener)
      if (opened.length % AT_ONCE === 0) await new Promise((turn) => setImmediate(turn))
    }
    return opened
  }

  async #openOne(address: string, port: number): Promise<number> {
    const text = cString(address)
    const open = () => native().sluice_listen(ptr(text), port, BACKLOG)
    let fd = open()
    // A change before this one may have closed the port here, and the worker is about to close it there.
    if (fd === -EADDRINUSE && (await this.workerCloses())) fd = open()
    return fd === -EADDRINUSE ? this.#openBeside(address, port) : fd
  }

  /** One address of a port whose other addresses, or all of them, are ours already: the kernel gives a connection to the
   *  narrower socket, but it lets only those in beside each other that agree to it. */
  #openBeside(address: string, port: number): number {
    const ours = [...this.#byKey.values()].filter((listener) => listener.port === port)
    if (ours.length === 0) return -EADDRINUSE
    const text = cString(address)
    const fds = Int32Array.from(ours, (listener) => listener.fd)
    return native().sluice_listen_beside(ptr(text), port, BACKLOG, ptr(fds), fds.length)
  }

  close(listeners: Listener[]) {
    for (const { key, fd } of listeners) {
      native().sluice_close(fd)
      this.#byKey.delete(key)
    }
  }

  /** Closes all the others. */
  keep(wanted: Set<string>) {
    this.close([...this.#byKey.values()].filter(({ key }) => !wanted.has(key)))
  }
}

/** The errors a listening socket can have, in words. */
function errorText(errno: number): string {
  const texts: Record<number, string> = {
    13: 'permission denied (ports below 1024 need root)',
    98: 'the port is in use by another program',
    99: 'this machine does not have the address',
    24: 'too many open descriptors',
    97: 'this machine has no IPv6',
  }
  return texts[errno] ?? `error ${errno}`
}
