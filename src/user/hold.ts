// A connection that waits until control has its opening on disk (log.access.durable). Nothing of it goes anywhere before that:
// no SYN to a target, no byte of a handshake, no handler; what the client says meanwhile is held, as while a target is dialled.
import { OPENING_WRITTEN_MS_MAX } from '../base/limits.ts'
import type { Attachment, Connection } from './connection.ts'
import { opening } from './opening.ts'

export class Hold implements Attachment {
  /** @param next what was to be done. Shared functions, not closures. */
  constructor(
    readonly connection: Connection,
    readonly next: (connection: Connection) => void,
  ) {
    connection.attachment = this
    connection.client.consumer = opening
    connection.arm(OPENING_WRITTEN_MS_MAX, unwritten)
    connection.services.reporter.hurry()
  }

  /** Control has answered. */
  written(ok: boolean) {
    const { connection } = this
    if (!ok) return unwritten(connection)
    connection.disarm()
    connection.attachment = null
    this.next(connection)
  }

  release() {}
}

const unwritten = (connection: Connection) => connection.settle('not_logged')
