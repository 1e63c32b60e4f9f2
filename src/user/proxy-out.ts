// The PROXY protocol header that a target gets before every other byte, where the route says so.
import { parseEnd } from '../base/addresses.ts'
import type { Connection } from './connection.ts'
import { proxyHeader } from './peek/proxy-header.ts'

/** null: the route sends none. */
export function headerFor(connection: Connection): Uint8Array | null {
  const { action } = connection.route!.plan
  if (action.type !== 'forward' || !action.sendProxyProtocol) return null
  const { clientIp, clientPort, proxy } = connection
  const listener = parseEnd(connection.listener)
  const ends = { clientIp, clientPort, listenerIp: listener.ip, listenerPort: listener.port }
  return proxyHeader(action.sendProxyProtocol, ends, proxy?.header)
}
