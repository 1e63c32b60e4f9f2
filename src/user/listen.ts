// One listening socket that control opened for us: accepts, names both addresses in one spelling, and passes the socket on.
import type { Socket, TCPSocketListener } from 'bun'
import { canonicalIp, formatEnd } from '../base/addresses.ts'
import { native } from '../base/native.ts'
import type { PlannedListener } from '../plan/types.ts'
import { endHandlers, type End } from './end.ts'
import type { LiveRoute } from './route.ts'
import { NetworkList } from './security.ts'

export type OnAccept = (listener: Listener, socket: Socket<End>) => void

export class Listener {
  routes: readonly LiveRoute[] = []
  /** Senders whose connections begin with a PROXY header. */
  trusted = NOBODY
  /** null: it is paused. */
  #listening: TCPSocketListener<Listener> | null
  /** The same socket once more. Bun stops accepting only by closing its descriptor, and a second one is needed for that at a
   *  moment when no more are to be had. */
  #second: number

  /** Owns the descriptor from here on. Throws when it is no listening socket. */
  constructor(
    public plan: PlannedListener,
    readonly descriptor: number,
    fd: number,
    readonly onAccept: OnAccept,
  ) {
    this.#listening = this.#listen(fd)
    this.#second = native().sluice_dup(fd)
  }

  #listen(fd: number) {
    return Bun.listen<Listener>({ fd, allowHalfOpen: true, data: this, socket: acceptHandlers })
  }

  /** Some descriptor of it, -1 when it has none. */
  get anyDescriptor(): number {
    return this.#second
  }

  /** Accepts no more; the kernel completes handshakes and keeps them in the backlog. */
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

  /** Closes the listening socket; its connections go on. */
  stop() {
    this.#listening?.stop(false)
    if (this.#second >= 0) native().sluice_close(this.#second)
  }

  localEnd(socket: Socket<End>): string {
    const { address, port } = this.plan
    return formatEnd(address === '::' || address === '0.0.0.0' ? plainIp(socket.localAddress) : address, port)
  }
}

const NOBODY = new NetworkList([])

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
