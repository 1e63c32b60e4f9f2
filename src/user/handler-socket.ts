// The client's connection as a handler's socket: it is the connection itself, so its ends are reasons of the record.
import { formatEnd } from '../base/addresses.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Connection } from './connection.ts'
import type { Gate } from './gate.ts'
import { brokenBy, codeOf } from './opening.ts'
import { Stream, type Party } from './stream.ts'

/** Reasons that are an end and no failure: `closed` resolves. */
export const CLEAN: ReadonlySet<CloseReason> = new Set<CloseReason>(['finished', 'handler_closed'])

/** The streams of the client. open() begins them. */
export class ClientParty implements Party {
  readonly inbound = true
  readonly allowHalfOpen = false
  /** The handler may answer after the client's FIN, for as long as the route's halfClosed says. */
  readonly closesWithPeer = false
  readonly stream: Stream

  constructor(
    readonly connection: Connection,
    readonly gate: Gate,
    private readonly scope: { client: ClientParty | null },
  ) {
    this.stream = new Stream(this, connection.tls ? 'on' : 'off')
  }

  open() {
    const { client, clientIp, clientPort, listener, tls } = this.connection
    this.stream.open(client, {
      remoteAddress: formatEnd(clientIp, clientPort),
      localAddress: listener,
      alpn: tls?.alpn ?? null,
    })
  }

  done() {
    this.connection.settle(this.stream.closing ? 'handler_closed' : 'finished', true)
  }

  oneSided() {
    const { connection } = this
    connection.setState('half-closed')
    connection.arm(connection.route!.plan.timeoutsMs.halfClosed, oneSided)
  }

  closing() {
    const { connection } = this
    connection.setState('closing')
    connection.arm(connection.route!.plan.timeoutsMs.grace, graceOver)
  }

  abort() {
    this.connection.settle('handler_closed')
  }

  broken(error: Error | undefined) {
    const { connection } = this
    connection.settle(error || !connection.client.ended ? brokenBy('client', codeOf(error)) : 'finished')
  }

  handedOver() {
    this.scope.client = null
  }

  /** The connection has settled. */
  over(reason: CloseReason, error: Error) {
    this.stream.over(CLEAN.has(reason) ? null : error)
  }
}

function oneSided(connection: Connection) {
  const left = connection.route!.plan.timeoutsMs.halfClosed - connection.idleMs
  if (left > 0) connection.arm(left, oneSided)
  else connection.settle('half_closed_timeout', true)
}

function graceOver(connection: Connection) {
  connection.settle('handler_closed', true)
}
