// Runs a handler for a connection. A handler that returns has not ended anything: the socket belongs to the connection, which
// ends when both directions are done, when someone closes it, or at a limit. One that throws ends this connection only.
import { AsyncLocalStorage } from 'node:async_hooks'
import { formatEnd } from '../base/addresses.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Connection, Scope } from './connection.ts'
import { Gate } from './gate.ts'
import { ClientParty } from './handler-socket.ts'
import { armIdle } from './idle.ts'
import { SocketError } from './socket-error.ts'
import { StreamSocket } from './stream-socket.ts'
import { Timed } from './timers.ts'

export function runHandler(connection: Connection) {
  const { action } = connection.route!.plan
  const handler = connection.route!.handler
  // The problem was reported when the route was applied.
  if (action.type !== 'handler' || !handler || 'problem' in handler) return connection.settle('handler_failed')
  const scope = new HandlerScope(connection)
  connection.scope = scope
  connection.setState('open')
  armIdle(connection)
  const socket = new StreamSocket(scope.client!.stream)
  scope.client!.open()
  const ctx = contextOf(connection, scope)
  scopes.run(scope, () => {
    try {
      const opening = handler.gate?.(action.env, ctx)
      if (opening !== undefined) scope.gate.add(opening)
      const result = handler.connect(socket, action.env, ctx)
      // A rejection that nobody takes would end the process.
      if (isPromise(result)) Promise.resolve(result).then(undefined, (error) => scope.failed(error))
    } catch (error) {
      scope.failed(error)
    }
  })
}

const isPromise = (value: unknown): value is PromiseLike<unknown> =>
  typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'

/** In the scope of which connection the code runs, also behind an await or in a callback: what connect() belongs to. */
const scopes = new AsyncLocalStorage<HandlerScope>()

/** undefined outside of every handler. */
export const currentScope = () => scopes.getStore()

/** A socket that a handler has opened. */
export interface Opened {
  /** The connection has settled. */
  scopeOver(reason: CloseReason, error: Error): void
}

/** The client has left, or was done: what the handler does beyond that, it may bring to an end. After any other reason nobody
 *  wants it to. */
const LINGERING: ReadonlySet<CloseReason> = new Set<CloseReason>([
  'finished',
  'handler_closed',
  'client_reset',
  'client_vanished',
  'half_closed_timeout',
])

/** What a handler has of a connection: the client's socket, those it opened, and the gate before all of them. */
export class HandlerScope extends Timed implements Scope {
  readonly gate: Gate
  /** null: it was handed to proxy(). */
  client: ClientParty | null
  readonly opened = new Set<Opened>()
  /** connect() is of no use any more. */
  isOver = false
  #rejected: SocketError | undefined
  /** Promises given to waitUntil(). */
  #awaited = 0
  /** Ends what was opened; there while it waits for those promises. */
  #over: (() => void) | undefined

  constructor(readonly connection: Connection) {
    super()
    this.gate = new Gate((error) => {
      this.#rejected = new SocketError('gate_rejected', messageOf(error), { cause: error })
      this.#end('A gate was rejected', error)
    })
    this.client = new ClientParty(connection, this.gate, this)
  }

  failed(error: unknown) {
    // After the end its own errors are only the echo of it: "the socket is closed".
    if (this.connection.settled || this.client?.stream.closing) return
    // That it failed is an output, too.
    if (this.gate.closed) this.gate.wait(() => this.failed(error))
    else this.#end('A handler failed', error)
  }

  #end(what: string, error: unknown) {
    const { connection } = this
    if (connection.settled) return
    connection.log('error', what, {
      client: formatEnd(connection.clientIp, connection.clientPort),
      error: said(error),
    })
    // What it has handed to proxy() is not its own any more; nothing passes a gate that was rejected.
    if (this.client && (this.#rejected || !this.client.stream.surrendered)) connection.settle('handler_failed')
  }

  release(reason: CloseReason) {
    const error = this.#rejected ?? new SocketError('client_disconnected', reason)
    this.client?.over(reason, error)
    this.#over = () => {
      this.#over = undefined
      this.isOver = true
      this.connection.services.timers.disarm(this)
      for (const socket of [...this.opened]) socket.scopeOver(reason, error)
    }
    if (this.#awaited > 0 && LINGERING.has(reason) && !this.gate.closed)
      this.connection.services.timers.arm(this, this.connection.route!.plan.timeoutsMs.grace)
    else this.#over()
  }

  /** Sockets that the handler has opened outlive the connection until these promises are settled, for the grace time at most. */
  waitUntil(promise: Promise<unknown>) {
    this.#awaited++
    const settled = () => {
      if (--this.#awaited === 0) this.#over?.()
    }
    promise.then(settled, settled)
  }

  override expired() {
    this.#over?.()
  }
}

function contextOf(connection: Connection, scope: HandlerScope) {
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
    get record() {
      return connection.record()
    },
    waitUntil(promise: unknown) {
      const awaited = Promise.resolve(promise)
      scope.waitUntil(awaited)
      awaited.catch((error) => connection.log('error', 'A handler failed in the background', { error: said(error) }))
    },
    /** Until it resolves nothing leaves for anyone; when it rejects, nothing ever did, and everything ends. */
    gate<T>(promise: T | PromiseLike<T>): Promise<T> {
      const awaited = Promise.resolve(promise)
      scope.gate.add(awaited)
      return awaited
    },
    passThroughOnException() {},
    props: {},
  }
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))
const said = (error: unknown) => (error instanceof Error ? (error.stack ?? error.message) : String(error))
