// Answers challenges of a certificate authority, on every port whose first bytes are read. Whatever asks for none that is placed
// goes on as if there were none.
import { CHALLENGE_ANSWER_MS_MAX } from '../base/limits.ts'
import { conclude, takeSocket } from './answer.ts'
import { CHALLENGE_ALPN, mayAskForChallenge } from './challenges.ts'
import { of, type Connection } from './connection.ts'
import type { Consumer } from './end.ts'
import { clientGone } from './opening.ts'
import { peekClientHello } from './peek/client-hello.ts'
import { peekHttpHead } from './peek/http-head.ts'
import { beginServerTls, seen } from './terminate.ts'

/** Answers a challenge in what a client said first. more: it may become one; no: it is none. */
export function answerChallenge(connection: Connection, bytes: Uint8Array): 'yes' | 'more' | 'no' {
  const { challenges } = connection.services
  const hello = peekClientHello(bytes)
  if (hello.verdict === 'more') return 'more'
  if (hello.verdict === 'yes') {
    const context = challenges.contextFor(hello.hello)
    if (!context) return 'no'
    connection.serverName = hello.hello.serverName
    if (admitted(connection)) shakeHands(connection, context)
    return 'yes'
  }
  if (hello.why !== 'http' || !mayAskForChallenge(bytes)) return 'no'
  const http = peekHttpHead(bytes)
  if (http.verdict !== 'yes') return http.verdict
  const authorization = challenges.authorizationFor(http.head)
  if (authorization === undefined) return 'no'
  connection.serverName = http.head.host
  if (admitted(connection))
    conclude(connection, response(http.head.method, authorization), 'challenge_answered', CHALLENGE_ANSWER_MS_MAX)
  return 'yes'
}

/** It belongs to no route, so no route's lists and limits are asked. */
function admitted(connection: Connection): boolean {
  connection.candidates = null
  if (!connection.admitUnrouted()) return false
  if (takeSocket(connection)) return true
  clientGone(connection, undefined)
  return false
}

const response = (method: string, body: string) =>
  Buffer.from(
    'HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n' +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${method === 'HEAD' ? '' : body}`,
  )

// ---- TLS-ALPN-01: the handshake is the answer ----

function shakeHands(connection: Connection, secureContext: object) {
  connection.arm(CHALLENGE_ANSWER_MS_MAX, (late) => late.settle('handshake_timeout'))
  const problem = beginServerTls(connection, { secureContext, alpn: [CHALLENGE_ALPN] }, shaking)
  if (problem !== undefined) connection.settle('handshake_failed')
}

const shaking: Consumer = {
  received() {},
  ended(end) {
    of(end).settle('handshake_failed', true)
  },
  drained() {},
  closed(end) {
    of(end).settle('handshake_failed', true)
  },
  secured(end, ok) {
    const connection = of(end)
    if (!ok) return connection.settle('handshake_failed', true)
    connection.tls = seen(end.socket!)
    conclude(connection, NOTHING, 'challenge_answered', CHALLENGE_ANSWER_MS_MAX)
  },
}

const NOTHING = new Uint8Array(0)
