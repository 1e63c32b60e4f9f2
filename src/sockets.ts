// The public module 'sluice/sockets', which code written for 'cloudflare:sockets' gets, too: connect(), proxy(), and the types of
// a handler module, which stand in types/sockets.d.ts with their documentation. What they do lives in src/user/.
import type { ProxyOptions, Socket, SocketAddress, SocketOptions } from './types/sockets.d.ts'
import { connect as open } from './user/outbound.ts'
import { proxy as join } from './user/proxy.ts'

export type * from './types/sockets.d.ts'
export { SocketError, socketErrors } from './user/socket-error.ts'

export function connect(address: string | SocketAddress, options?: SocketOptions): Socket {
  return open(address, options) as unknown as Socket
}

export function proxy(a: Socket, b: Socket, options?: ProxyOptions): void {
  join(a, b, options)
}
