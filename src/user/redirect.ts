// The gateway answers itself: one HTTP redirect, then the connection is over. What the client sent goes into the answer only
// after it was checked to be a host and a path (peek/http-head.ts).
import { matchesName } from '../base/names.ts'
import { conclude } from './answer.ts'
import { of, type Connection } from './connection.ts'
import type { Consumer } from './end.ts'
import { clientGone, leftEarly } from './opening.ts'
import { peekHttpHead } from './peek/http-head.ts'

export function answerRedirect(connection: Connection) {
  connection.client.consumer = readingHead
  connection.arm(connection.route!.plan.timeoutsMs.firstByte, headTimedOut)
  if (connection.client.heldBytes > 0) readHead(connection)
  const { client } = connection
  // It said all that it has to say before anybody read it.
  if (client.ended && client.consumer === readingHead && !connection.settled) readingHead.ended(client)
}

function headTimedOut(connection: Connection) {
  connection.settle('first_byte_timeout')
}

const readingHead: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    readHead(of(end))
  },
  ended(end) {
    leftEarly(end)
    // Half a head and nothing more to come.
    if (!of(end).settled) of(end).settle('malformed_hello')
  },
  drained() {},
  closed(end, error) {
    clientGone(of(end), error)
  },
}

function readHead(connection: Connection) {
  const { client } = connection
  const peeked = peekHttpHead(client.peekHeld())
  if (peeked.verdict === 'more') return // bounded: above its limit the verdict is 'no'
  if (peeked.verdict === 'no') {
    if (peeked.why === 'not-http') return connection.settle('malformed_hello')
    return respond(connection, response(peeked.why === 'oversize' ? 431 : 400))
  }
  const { host, path } = peeked.head
  const { action, domains } = connection.route!.plan
  if (action.type !== 'redirect') return
  if (!connection.tls && domains.length > 0 && !domains.some((pattern) => matchesName(pattern, host)))
    return connection.settle('no_route')
  if (host === undefined && action.to.includes('{host}')) return respond(connection, response(400))
  const to = fill(action.to, { host: host ?? '', port: String(connection.port), path })
  respond(connection, response(action.status, to))
}

const respond = (connection: Connection, answer: string) =>
  conclude(connection, Buffer.from(answer, 'latin1'), 'responded', connection.route!.plan.timeoutsMs.halfClosed)

// ---- text ----

const STATUS: Record<number, string> = {
  301: 'Moved Permanently',
  302: 'Found',
  303: 'See Other',
  307: 'Temporary Redirect',
  308: 'Permanent Redirect',
  400: 'Bad Request',
  431: 'Request Header Fields Too Large',
}

const response = (status: number, location?: string) =>
  `HTTP/1.1 ${status} ${STATUS[status] ?? 'Redirect'}\r\n${location === undefined ? '' : `Location: ${location}\r\n`}` +
  'Content-Length: 0\r\nConnection: close\r\n\r\n'

export const fill = (template: string, values: { host: string; port: string; path: string }) =>
  template.replace(/\{(host|port|path)\}/g, (_, name: keyof typeof values) => values[name])
