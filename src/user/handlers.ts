// Runs a handler for a connection. A handler that returns has not ended anything: the socket belongs to the connection, which
// ends when both directions are done, when someone closes it, or at a limit. One that throws ends this connection only.
import { formatEnd } from '../base/addresses.ts'
import type { CloseReason } from '../connections/reasons.ts'
import { of, type Attachment, type Connection } from './connection.ts'
import type { Consumer } from './end.ts'
import { HandlerSocket } from './handler-socket.ts'
import { armIdle } from './idle.ts'
import { brokenBy, codeOf } from './opening.ts'

export function runHandler(connection: Connection) {
  const { action } = connection.route!.plan
  const invoke = connection.route!.handler
  // The problem was reported when the route was applied.
  if (action.type !== 'handler' || typeof invoke !== 'function') return connection.settle('handler_failed')
  const running = new Running(connection)
  connection.attachment = running
  connection.client.consumer = handling
  connection.setState('open')
  armIdle(connection)
  running.socket.start()
  try {
    const result = invoke(running.socket, action.env, contextOf(connection))
    // A rejection that nobody takes would end the process.
    if (result instanceof Promise || typeof (result as PromiseLike<unknown> | null)?.then === 'function')
      Promise.resolve(result).then(undefined, (error) => running.failed(error))
  } catch (error) {
    running.failed(error)
  }
}

class Running implements Attachment {
  readonly socket: HandlerSocket

  constructor(readonly connection: Connection) {
    this.socket = new HandlerSocket(connection)
  }

  failed(error: unknown) {
    // After the end its own errors are only the echo of it: "the connection is closed".
    if (this.connection.settled || this.socket.closing) return
    this.connection.log('error', 'A handler failed', {
      client: formatEnd(this.connection.clientIp, this.connection.clientPort),
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    })
    this.connection.settle('handler_failed')
  }

  release(reason: CloseReason) {
    this.socket.released(reason)
  }
}

const handling: Consumer = {
  received(end, bytes) {
    socketOf(of(end)).received(bytes)
  },
  ended(end) {
    socketOf(of(end)).ended()
  },
  drained(end) {
    socketOf(of(end)).drained()
  },
  closed(end, error) {
    const connection = of(end)
    if (!error && end.ended && end.finished) return socketOf(connection).ended()
    connection.settle(error || !end.ended ? brokenBy('client', codeOf(error)) : 'finished')
  },
}

const socketOf = (connection: Connection) => (connection.attachment as Running).socket

function contextOf(connection: Connection) {
  const { client, route } = connection
  return {
    connectionId: connection.id,
    routeName: route!.name,
    clientIp: connection.clientIp,
    clientPort: connection.clientPort,
    /** The trusted sender of the PROXY header that named the client. */
    proxy: connection.proxy?.sender ?? null,
    serverIp: client.socket?.localAddress ?? null,
    port: connection.port,
    domain: connection.serverName ?? null,
    isTls: connection.tls !== undefined,
    tlsVersion: connection.tls?.version ?? null,
    timestamp: connection.openedAt,
    /** Nothing here ends when the handler returns; what is given is only watched for its failure. */
    waitUntil(promise: unknown) {
      Promise.resolve(promise).catch((error) =>
        connection.log('error', 'A handler failed in the background', {
          error: error instanceof Error ? (error.stack ?? error.message) : String(error),
        }),
      )
    },
    passThroughOnException() {},
    props: {},
  }
}
