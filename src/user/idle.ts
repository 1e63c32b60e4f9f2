// The deadlines of a connection that is being carried: idle for too long, and half closed for too long. A byte moves a
// timestamp only; the armed deadline looks at it when it fires.
import { KEEP_ALIVE_AFTER_MS } from '../base/limits.ts'
import { native } from '../base/native.ts'
import type { Connection } from './connection.ts'

export function armIdle(connection: Connection) {
  connection.arm(Math.min(connection.route!.plan.timeoutsMs.idle, KEEP_ALIVE_AFTER_MS), lasting)
}

/** Most connections are over before this: keepalive costs each of their sockets four system calls, and finds nothing. */
function lasting(connection: Connection) {
  keepAlive(connection)
  idle(connection)
}

/** TCP keepalive on both ends, as the route says. */
export function keepAlive(connection: Connection) {
  const { keepAlive } = connection.route!.plan
  if (!keepAlive) return
  for (const socket of [connection.client.socket, connection.target?.socket])
    if (socket?.remotePort !== undefined)
      native().sluice_keepalive(socket.fd, keepAlive.idleS, keepAlive.intervalS, keepAlive.count)
}

function idle(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.idle - connection.idleMs
  if (left > 0) connection.arm(left, idle)
  else connection.cut('idle_timeout')
}

/** One side's FIN has gone through. Unless the route allows half-open, the rest of the connection is bounded from now on. */
export function armHalfClosed(connection: Connection, allowHalfOpen: boolean) {
  connection.setState('half-closed')
  if (allowHalfOpen) {
    keepAlive(connection)
    quiet(connection)
  } else connection.arm(connection.route!.plan.timeoutsMs.halfClosed, late)
}

/** Orderly: the side that got its FIN may still be taking what the kernel holds for it. */
function late(connection: Connection) {
  connection.settle('half_closed_timeout', true)
}

function quiet(connection: Connection) {
  const { parity, idle } = connection.route!.plan.timeoutsMs
  const left = Math.min(parity, idle) - connection.idleMs
  if (left > 0) connection.arm(left, quiet)
  else connection.cut('half_closed_timeout')
}
