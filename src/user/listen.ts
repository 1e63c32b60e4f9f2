// One listening socket that control opened for us: accepts, names both addresses in one spelling, and passes the socket on.
import type { Socket, TCPSocketListener } from 'bun'
import { canonicalIp, formatEnd } from '../base/addresses.ts'
import { native } from '../base/native.ts'
import type { PlannedListener } from '../plan/types.ts'
import { endHandlers, type End } from './end.ts'
import type { LiveRoute } from './route.ts'
import { NetworkList } from './security.ts'

export type OnAccept = (listener: Listener, socket: Socket<End>) => void

/** Who reads what a client says first: Bun's sockets, or the relay thread, at once or when it is asked to. */
export type Reads = 'typescript' | 'thread' | 'thread-when-asked'

/** In what a client says first: the name of a route, or nothing but a challenge, where the port alone decides otherwise. */
export type LooksFor = 'name' | 'challenge'

/** What is looked for where a name decides includes challenges; where none does, they alone may be the reason to read. */
export function looksFor(planned: PlannedListener, routes: readonly LiveRoute[]): LooksFor | null {
  if (!planned.peek) return null
  return planned.challenge && routes.every((route) => route.domains.length === 0) ? 'challenge' : 'name'
}

/** The relay thread accepts where first bytes decide, and where at least some connections are forwarded as they are. Not where
 *  only a challenge is looked for: after a while nobody waits for the first bytes any more, and the thread may just then have
 *  read them. */
export function readsBy(planned: PlannedListener, routes: readonly LiveRoute[]): Reads {
  if (planned.peek) return looksFor(planned, routes) === 'name' ? 'thread' : 'typescript'
  return planned.trusted.length > 0 || routes.some((route) => route.forwardsPlain) ? 'thread-when-asked' : 'typescript'
}

/** A listening socket, whoever accepts on it. */
export abstract class Listening {
  routes: readonly LiveRoute[] = []
  /** null: nothing is read. */
  looksFor: LooksFor | null = null
  /** Senders whose connections begin with a PROXY header. */
  trusted = NOBODY

  constructor(
    public plan: PlannedListener,
    readonly reads: Reads,
  ) {}

  /** How many it has. */
  abstract readonly descriptors: number
  /** Some descriptor of it, -1 when it has none. */
  abstract readonly anyDescriptor: number
  /** Accepts no more; the kernel completes handshakes and keeps them in the backlog. */
  abstract pause(): void
  abstract resume(): void
  /** Closes the listening socket; its connections go on. Resolves when the last one that came to it is known. */
  abstract stop(): Promise<void>
}

const NOBODY = new NetworkList([])

/** One on which Bun accepts. */
export class Listener extends Listening {
  /** null: it is paused. */
  #listening: TCPSocketListener<Listener> | null
  /** The same socket once more. Bun stops accepting only by closing its descriptor, and a second one is needed for that at a
   *  moment when no more are to be had. */
  #second: number

  /** Owns the descriptor from here on, also when it throws: it is no listening socket. */
  constructor(
    plan: PlannedListener,
    fd: number,
    readonly onAccept: OnAccept,
  ) {
    super(plan, 'typescript')
    try {
      this.#listening = this.#listen(fd)
    } catch (error) {
      native().sluice_close(fd)
      throw error
    }
    this.#second = native().sluice_dup(fd)
  }

  #listen(fd: number) {
    return Bun.listen<Listener>({ fd, allowHalfOpen: true, data: this, socket: acceptHandlers })
  }

  readonly descriptors = 2

  get anyDescriptor(): number {
    return this.#second
  }

  pause() {
    if (this.#second < 0) return
    this.#listening?.stop(false)
    this.#listening = null
  }

  resume() {
    if (this.#listening) return
    this.#listening = this.#listen(this.#second)
    this.#second = native().sluice_dup(this.#second)
  }

  stop(): Promise<void> {
    this.#listening?.stop(false)
    if (this.#second >= 0) native().sluice_close(this.#second)
    return Promise.resolve()
  }

  localEnd(socket: Socket<End>): string {
    const { address, port } = this.plan
    return formatEnd(address === '::' || address === '0.0.0.0' ? plainIp(socket.localAddress) : address, port)
  }
}

/** Shared by all listeners: until it is accepted, a socket's data is its Listener. */
const acceptHandlers = {
  ...endHandlers,
  open(socket: Socket<any>) {
    const listener: Listener = socket.data
    listener.onAccept(listener, socket)
  },
}

/** A dual-stack socket spells IPv4 clients "::ffff:a.b.c.d"; every other place knows them as IPv4. */
export function plainIp(address: string | undefined): string {
  if (address === undefined) return '0.0.0.0'
  if (!address.includes(':')) return address
  if (address.startsWith('::ffff:') && address.includes('.')) return address.slice(7)
  return canonicalIp(address.split('%')[0]!)
}
