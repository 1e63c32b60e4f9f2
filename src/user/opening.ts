// The client while nobody reads it yet: a route is being chosen, a target dialled, a module loaded. It is left reading, since a
// paused socket would not show that the client has gone; what it sends is held up to a cap.
import { PENDING_BYTES_MAX } from '../base/limits.ts'
import type { CloseReason } from '../connections/reasons.ts'
import { of, type Connection } from './connection.ts'
import type { Consumer, End } from './end.ts'

export const opening: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    if (end.heldBytes >= PENDING_BYTES_MAX) end.pause()
  },
  ended(end) {
    leftEarly(end)
  },
  drained() {},
  closed(end, error) {
    clientGone(of(end), error)
  },
}

/** FIN before anything was said is a client that left. After data it may be a request whose answer is still wanted. */
export function leftEarly(end: End) {
  const connection = of(end)
  const action = connection.route?.plan.action
  if (end.received > 0 || (action?.type === 'forward' && action.allowHalfOpen))
    return connection.attachment?.clientEnded?.()
  if (!connection.tls) connection.settle('closed_before_data')
  else connection.settle('finished', true)
}

export function clientGone(connection: Connection, error: Error | undefined) {
  if (connection.client.received === 0 && !connection.tls) connection.settle('closed_before_data')
  else connection.settle(error ? brokenBy('client', codeOf(error)) : 'finished')
}

/** One side is gone without a FIN: it was reset, or the kernel gave it up. */
export const brokenBy = (side: 'client' | 'target', code: string | undefined): CloseReason =>
  code === 'ETIMEDOUT' || code === 'EHOSTUNREACH' ? `${side}_vanished` : `${side}_reset`

export const codeOf = (error: Error | undefined) => (error as NodeJS.ErrnoException | undefined)?.code
