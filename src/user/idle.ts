// The deadlines of a connection that is being carried: idle for too long, and half closed for too long. A byte moves a
// timestamp only; the armed deadline looks at it when it fires.
import type { Connection } from './connection.ts'

export function armIdle(connection: Connection) {
  connection.arm(connection.route!.plan.timeoutsMs.idle, idle)
}

function idle(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.idle - connection.idleMs
  if (left > 0) connection.arm(left, idle)
  else connection.cut('idle_timeout')
}

/** One side's FIN has gone through. Unless the route allows half-open, the rest of the connection is bounded from now on. */
export function armHalfClosed(connection: Connection, allowHalfOpen: boolean) {
  connection.setState('half-closed')
  if (allowHalfOpen) quiet(connection)
  else connection.arm(connection.route!.plan.timeoutsMs.halfClosed, late)
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
