// The ports: control opens and keeps the listening sockets, workers get copies. So their backlog outlives a worker, and low
// ports need no privilege there. UDP ports are only held, and ranges too large for sockets are looked at: what another
// program has is never taken from it silently.
import { formatEnd } from '../base/addresses.ts'
import { TWIN_PORTS_MAX } from '../base/limits.ts'
import { cString, native, ptr } from '../base/native.ts'
import { ANY } from '../plan/listeners.ts'
import type { Listen, Plan, PlannedListener } from '../plan/types.ts'
import { GatewayError } from './changes.ts'
import type { Socket } from './handover.ts'
import {
  overlaps,
  overlapsInKernel,
  ownerText,
  readBoundSockets,
  takenText,
  withOwners,
  type BoundSocket,
  type Protocol,
} from './owners.ts'

/** The kernel holds this many accepted connections that a worker has not taken yet (capped by net.core.somaxconn). */
const BACKLOG = 4096
const EADDRINUSE = 98
/** Sockets opened before the event loop gets a turn. */
const AT_ONCE = 64

interface Held {
  key: string
  port: number
  fd: number
}

export interface Listener extends Held {
  /** Names the descriptor to a worker, once and for all. */
  tag: number
}

/** What one change has opened, to be closed again when the change fails. */
export interface Opened {
  listeners: Listener[]
  reservations: Held[]
}

export class Listeners {
  readonly #byKey = new Map<string, Listener>()
  /** UDP ports, held by sockets that nobody reads: the kernel's rules take their packets before they would come here. */
  readonly #reserved = new Map<string, Held>()
  /** From an earlier life, until the first plan has taken what it needs: "tcp [::]:443" → descriptor. */
  readonly #inherited = new Map<string, number>()
  /** Those that it does without; a handful. */
  readonly #missed = new Set<string>()
  #nextTag = 1

  /** @param workerCloses resolves when the worker has closed what it was told to; false: there was nothing to wait for.
   *  @param without told of a port that another program has, and that the gateway can do without. */
  constructor(
    private readonly workerCloses: () => Promise<boolean>,
    private readonly without: (message: string) => void,
  ) {}

  get size() {
    return this.#byKey.size
  }

  /** Everything that is held, for the next life. */
  sockets(): Socket[] {
    return [
      ...Array.from(this.#byKey.values(), ({ key, port, fd }) => ({ key, port, fd, protocol: 'tcp' as const })),
      ...Array.from(this.#reserved.values(), ({ key, port, fd }) => ({ key, port, fd, protocol: 'udp' as const })),
    ]
  }

  /** What an earlier life held open: used where the plan wants the same, the rest is closed by the next keep(). */
  inherit(sockets: Socket[]) {
    for (const { protocol, key, fd } of sockets) this.#inherited.set(`${protocol} ${key}`, fd)
  }

  /** As far as nobody has wanted it yet. */
  get inherited(): Socket[] {
    return Array.from(this.#inherited, ([id, fd]) => {
      const [protocol, key] = id.split(' ') as [Protocol, string]
      return { protocol, key, port: Number(key.slice(key.lastIndexOf(':') + 1)), fd }
    })
  }

  #take(protocol: Protocol, key: string): number | undefined {
    const id = `${protocol} ${key}`
    const fd = this.#inherited.get(id)
    this.#inherited.delete(id)
    return fd
  }

  /** undefined: the gateway does without it, because another program has the port. */
  tag(key: string): number | undefined {
    return this.#byKey.get(key)?.tag
  }

  /** tag → descriptor of those listeners. */
  descriptors(wanted: Set<string>): Map<number, number> {
    return new Map([...this.#byKey.values()].filter(({ key }) => wanted.has(key)).map(({ tag, fd }) => [tag, fd]))
  }

  /** Opens what is not open yet; returns it. All of them, or none and an error that names the port and who has it. */
  async open(listeners: PlannedListener[], reservations: Plan['reservations'] = []): Promise<Opened> {
    const opened: Opened = { listeners: [], reservations: [] }
    try {
      for (const { key, address, port, optional } of listeners) {
        if (this.#byKey.has(key)) continue
        const fd = this.#take('tcp', key) ?? (await this.#listen(key, address, port, optional))
        if (fd === null) continue
        const listener = { key, port, fd, tag: this.#nextTag++ }
        this.#byKey.set(key, listener)
        opened.listeners.push(listener)
        if (opened.listeners.length % AT_ONCE === 0) await turn()
      }
      for (const { key, address, port } of reservations) {
        if (this.#reserved.has(key)) continue
        const held = { key, port, fd: this.#take('udp', key) ?? (await this.#hold(key, address, port)) }
        this.#reserved.set(key, held)
        opened.reservations.push(held)
        if (opened.reservations.length % AT_ONCE === 0) await turn()
      }
      return opened
    } catch (error) {
      this.close(opened)
      throw error
    }
  }

  /** Ranges with too many ports for a socket each: nothing is opened for them, so nobody but us would notice that another
   *  program has a port there. Throws an error that names it. Ranges that are `taken` already are ours: a resolver's
   *  short-lived socket in one of them stops no later change. */
  async checkRanges(listens: Listen[], taken: Listen[]): Promise<void> {
    const before = new Set(taken.map(rangeKey))
    const added = listens.filter((one) => one.to - one.from >= TWIN_PORTS_MAX && !before.has(rangeKey(one)))
    for (const protocol of ['tcp', 'udp'] as const) {
      const ranges = added.filter((one) => one.protocol === protocol)
      if (ranges.length === 0) continue
      const sockets = (await readBoundSockets(protocol)).filter((socket) => !this.#isOurs(socket))
      for (const range of ranges) {
        const others = await withOwners(
          sockets.filter((socket) => overlapsInKernel(socket, range)),
          process.pid,
        )
        if (others.length > 0)
          throw new GatewayError(
            `Cannot take the ${protocol.toUpperCase()} ports ${rangeText(range)}: ${takenText(others)}`,
          )
      }
    }
  }

  /** With this address and port, or all addresses of the port, in our hands nobody else can have it. */
  #isOurs({ protocol, address, port }: BoundSocket): boolean {
    const held = protocol === 'tcp' ? this.#byKey : this.#reserved
    return held.has(formatEnd(address, port)) || held.has(formatEnd(ANY, port))
  }

  /** null: it is not needed, and another program has it. */
  async #listen(key: string, address: string, port: number, optional = false): Promise<number | null> {
    const text = cString(address)
    const open = () => native().sluice_listen(ptr(text), port, BACKLOG)
    let fd = open()
    // A change before this one may have closed the port here, and the worker is about to close it there.
    if (fd === -EADDRINUSE && (await this.workerCloses())) fd = open()
    if (fd === -EADDRINUSE) fd = this.#listenBeside(address, port)
    if (fd >= 0) return fd
    const why = fd === -EADDRINUSE ? await this.#inUse('tcp', address, port) : errorText(-fd)
    const message = `Cannot listen on ${key}: ${why}`
    if (!optional) throw new GatewayError(message)
    // Said once: each change tries again.
    if (!this.#missed.has(key)) this.without(message)
    this.#missed.add(key)
    return null
  }

  /** One address of a port whose other addresses, or all of them, are ours already: the kernel gives a connection to the
   *  narrower socket, but it lets only those in beside each other that agree to it. */
  #listenBeside(address: string, port: number): number {
    const ours = descriptorsOf(this.#byKey, port)
    if (ours.length === 0) return -EADDRINUSE
    const text = cString(address)
    return native().sluice_listen_beside(ptr(text), port, BACKLOG, ptr(ours), ours.length)
  }

  async #hold(key: string, address: string, port: number): Promise<number> {
    const text = cString(address)
    let fd = native().sluice_reserve_udp(ptr(text), port, null, 0)
    if (fd === -EADDRINUSE) {
      const ours = descriptorsOf(this.#reserved, port)
      if (ours.length > 0) fd = native().sluice_reserve_udp(ptr(text), port, ptr(ours), ours.length)
    }
    if (fd >= 0) return fd
    const why = fd === -EADDRINUSE ? await this.#inUse('udp', address, port) : errorText(-fd)
    throw new GatewayError(`Cannot hold the UDP port ${key}: ${why}`)
  }

  /** The kernel has said that it is in use: by whom. */
  async #inUse(protocol: Protocol, address: string, port: number): Promise<string> {
    const wanted = { protocol, address, from: port, to: port }
    const sockets = await readBoundSockets(protocol)
    const taken = await withOwners(
      sockets.filter((socket) => overlaps(socket, wanted) && !this.#isOurs(socket)),
      process.pid,
    )
    const owner = (taken.find((one) => one.owner !== null) ?? taken[0])?.owner ?? null
    if (owner === null) return errorText(EADDRINUSE)
    return `${ownerText(owner)} ${protocol === 'tcp' ? 'listens there' : 'has it'}`
  }

  close({ listeners, reservations }: Opened) {
    for (const { key, fd } of listeners) {
      native().sluice_close(fd)
      this.#byKey.delete(key)
    }
    for (const { key, fd } of reservations) {
      native().sluice_close(fd)
      this.#reserved.delete(key)
    }
  }

  /** Closes all the others. */
  keep(listeners: Set<string>, reservations: Set<string> = new Set()) {
    const others = <T extends Held>(held: Map<string, T>, wanted: Set<string>) =>
      [...held.values()].filter(({ key }) => !wanted.has(key))
    this.close({
      listeners: others(this.#byKey, listeners),
      reservations: others(this.#reserved, reservations),
    })
    for (const fd of this.#inherited.values()) native().sluice_close(fd)
    this.#inherited.clear()
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve))

const descriptorsOf = (held: Map<string, Held>, port: number) =>
  Int32Array.from(
    [...held.values()].filter((one) => one.port === port),
    ({ fd }) => fd,
  )

const rangeKey = ({ protocol, address, from, to }: Listen) => `${protocol} ${address} ${from} ${to}`
const rangeText = ({ address, from, to }: Listen) => `${from}-${to}${address === null ? '' : ` of ${address}`}`

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
