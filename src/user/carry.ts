// What is done with a connection whose route is known. The one place where the parts of the room are put together.
import { parseEnd } from '../base/addresses.ts'
import type { Connection } from './connection.ts'
import { Dial } from './dial.ts'
import { runHandler } from './handlers.ts'
import { opening } from './opening.ts'
import { pair } from './pair.ts'
import { proxyHeader } from './peek/proxy-header.ts'
import { answerRedirect } from './redirect.ts'
import { relay } from './relay.ts'
import { encryptTarget, terminateTls } from './terminate.ts'

export function carry(connection: Connection) {
  const route = connection.route!
  if (route.terminates) terminateTls(connection, act)
  else act(connection)
}

function act(connection: Connection) {
  const { action } = connection.route!.plan
  connection.client.consumer = opening
  if (action.type === 'forward') new Dial(connection, targetOpen).next()
  else if (action.type === 'handler') runHandler(connection)
  else if (action.type === 'redirect') answerRedirect(connection)
}

function targetOpen(connection: Connection) {
  const { plan, tls } = connection.route!
  if (plan.action.type === 'forward' && plan.action.sendProxyProtocol) {
    const target = connection.target!
    target.send(headerOf(connection, plan.action.sendProxyProtocol))
    // A fresh socket takes so few bytes, unless the target has gone; nothing may come before them.
    if (target.queuedBytes > 0) return connection.settle('target_reset')
  }
  if (tls?.mode === 'terminate-and-reencrypt') encryptTarget(connection, pair)
  else if (plan.carrier === 'splice' && relay(connection)) return
  else pair(connection)
}

function headerOf(connection: Connection, version: 'v1' | 'v2'): Uint8Array {
  const { clientIp, clientPort, proxy } = connection
  const listener = parseEnd(connection.listener)
  const ends = { clientIp, clientPort, listenerIp: listener.ip, listenerPort: listener.port }
  return proxyHeader(version, ends, proxy?.header)
}
