// What is done with a connection whose route is known. The one place where the parts of the room are put together.
import { takeSocket } from './answer.ts'
import type { Connection } from './connection.ts'
import { Dial } from './dial.ts'
import { runHandler } from './handlers.ts'
import { Hold } from './hold.ts'
import { clientGone, opening } from './opening.ts'
import { pair } from './pair.ts'
import { headerFor } from './proxy-out.ts'
import { answerRedirect } from './redirect.ts'
import { carryKept, relay } from './relay.ts'
import { encryptTarget, terminateTls } from './terminate.ts'

export function carry(connection: Connection) {
  if (connection.services.reporter.durable) new Hold(connection, begin)
  else begin(connection)
}

function begin(connection: Connection) {
  const route = connection.route!
  // What is forwarded as it is stays with the relay thread; for anything else TypeScript has to have the socket.
  if (!route.forwardsPlain && !takeSocket(connection)) return clientGone(connection, undefined)
  if (route.forwardsPlain) connection.carrier = route.plan.carrier
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
  const { forwardsPlain, tls } = connection.route!
  if (connection.client.keeper) return carryKept(connection)
  const header = headerFor(connection)
  if (header) {
    const target = connection.target!
    target.send(header)
    // A fresh socket takes so few bytes, unless the target has gone; nothing may come before them.
    if (target.queuedBytes > 0) return connection.settle('target_reset')
  }
  if (tls?.mode === 'terminate-and-reencrypt') encryptTarget(connection, pair)
  else if (forwardsPlain && relay(connection)) return
  else pair(connection)
}
