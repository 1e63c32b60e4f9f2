// What Bun's native sockets can do beyond their type definitions (measured on 1.4.5). Nothing promises these abilities, so
// the program tries them when it starts.
import type { End } from './user/end.ts'

declare module 'bun' {
  interface Socket<Data> {
    /** The socket's descriptor, -1 once closed. */
    readonly fd: number
  }
  interface TLSUpgradeOptions<Data> {
    /** Answers the handshake on an accepted socket. */
    isServer?: boolean
    /** Bytes that were read before the upgrade: all of them. */
    initialData?: Uint8Array
  }
  interface TLSOptions {
    /** The `.context` of node:tls createSecureContext. Kept, it also keeps the session tickets valid. */
    secureContext?: object
  }
  interface AdoptedListener<Data> {
    fd: number
    allowHalfOpen: boolean
    data: Data
    socket: SocketHandler<any>
  }
  interface AdoptedSocket {
    fd: number
    allowHalfOpen: boolean
    data: End | undefined
    socket: SocketHandler<any>
  }
  function listen<Data>(options: AdoptedListener<Data>): TCPSocketListener<Data>
  /** `open` fires before this returns; a connect in progress ends with `drain` or `close`. */
  function connect(options: AdoptedSocket): Promise<Socket<any>>
}
