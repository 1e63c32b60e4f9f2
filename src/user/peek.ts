// Ports where the first bytes decide: collects them within a limit and a deadline, then chooses the route. Nothing is
// consumed: what was read is held and goes on to the target, the TLS engine or the handler, once and first.
import { reasonWithout, selectRoute, type FirstBytes } from '../plan/choose.ts'
import { CHALLENGE_FIRST_BYTES_MS_MAX } from '../base/limits.ts'
import { carry } from './carry.ts'
import { answerChallenge } from './challenge-answer.ts'
import { of, type Connection, type OnDeadline } from './connection.ts'
import type { Consumer, End } from './end.ts'
import type { LooksFor } from './listen.ts'
import { clientGone, opening } from './opening.ts'
import { peekClientHello } from './peek/client-hello.ts'
import { peekHttpHead } from './peek/http-head.ts'
import { peekProxyHeader } from './peek/proxy-header.ts'
import type { LiveRoute } from './route.ts'

type Routes = readonly LiveRoute[]

/** A trusted sender: its PROXY header comes before everything else, and says who the client is. A route that does not trust
 *  this sender gets none of its connections: its lists and limits would be the sender's to evade.
 *  @param after what the listener looks for behind it. */
export function readProxyHeader(connection: Connection, routes: Routes, after: LooksFor | null) {
  const trusting = routes.filter((route) => route.trusted.has(connection.clientBytes))
  if (trusting.length === 0) return connection.settle('no_route')
  connection.client.consumer = after === null ? headerOnly : headerThen[after]
  wait(connection, trusting.length === routes.length ? routes : trusting, silent)
}

/** Chooses a route by address alone. */
export function chooseUnread(connection: Connection, routes: Routes) {
  choose(connection, routes, 'unread', undefined)
}

/** Reads first. The connection has a record once a route admits it, or once it ends without one. */
export function peek(connection: Connection, routes: Routes, what: LooksFor) {
  if (routes.length === 0) return connection.settle('no_route')
  connection.client.consumer = looking[what]
  if (what === 'name') return wait(connection, routes, silent)
  connection.candidates = routes
  connection.arm(Math.min(patienceOf(routes), CHALLENGE_FIRST_BYTES_MS_MAX), silentlyNone)
}

function wait(connection: Connection, routes: Routes, onDeadline: OnDeadline) {
  connection.candidates = routes
  connection.arm(patienceOf(routes), onDeadline)
}

/** Of the most patient of them; a listener of ten thousand names is not asked each time. */
function patienceOf(routes: Routes): number {
  let ms = patience.get(routes)
  if (ms === undefined) {
    ms = 0
    for (const route of routes) ms = Math.max(ms, route.plan.timeoutsMs.firstByte)
    patience.set(routes, ms)
  }
  return ms
}

const patience = new WeakMap<Routes, number>()

const silent = (connection: Connection) => connection.settle('first_byte_timeout')

const headerConsumer = (then: (connection: Connection, routes: Routes) => void): Consumer => ({
  received(end, bytes) {
    end.hold(bytes)
    const connection = of(end)
    const peeked = peekProxyHeader(end.peekHeld())
    if (peeked.verdict === 'more') return // bounded: above its limit the verdict is 'no'
    if (peeked.verdict === 'no') return connection.settle('malformed_proxy_header')
    const { header } = peeked
    const rest = end.peekHeld().subarray(header.length)
    end.takeHeld()
    // The sender's words are no payload of the client.
    end.received -= header.length
    if (rest.length > 0) end.hold(rest)
    connection.acceptHeader(header)
    then(connection, connection.candidates!)
  },
  ended(end) {
    of(end).settle(end.heldBytes > 0 ? 'malformed_proxy_header' : 'closed_before_data')
  },
  drained() {},
  closed(end, error) {
    clientGone(of(end), error)
  },
})

const headerOnly = headerConsumer(chooseUnread)
const headerThen: Record<LooksFor, Consumer> = {
  // Under the same deadline.
  name: headerConsumer((connection) => {
    connection.client.consumer = peeking
    if (connection.client.heldBytes > 0) decide(connection.client)
  }),
  challenge: headerConsumer((connection, routes) => {
    peek(connection, routes, 'challenge')
    if (connection.client.heldBytes > 0) seek(connection.client)
  }),
}

const peeking: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    decide(end)
  },
  ended(end) {
    // A hello or head that is cut short will not become whole any more.
    of(end).settle(end.heldBytes > 0 ? 'malformed_hello' : 'closed_before_data')
  },
  drained() {},
  closed(end, error) {
    clientGone(of(end), error)
  },
}

/** Where the port alone decides: what is no challenge costs it no more than the wait for its first bytes. */
const seeking: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    seek(end)
  },
  ended(end) {
    noChallenge(of(end))
    // As if nobody had looked.
    if (end.consumer === opening && !of(end).settled) opening.ended(end)
  },
  drained() {},
  closed(end, error) {
    clientGone(of(end), error)
  },
}

const looking: Record<LooksFor, Consumer> = { name: peeking, challenge: seeking }

const noChallenge = (connection: Connection) => chooseUnread(connection, connection.candidates!)

/** The relay thread has only those that came while the port began to be read, and may just now have read what they said. */
const silentlyNone = (connection: Connection) =>
  connection.client.keeper ? connection.settle('first_byte_timeout') : noChallenge(connection)

function seek(end: End) {
  const connection = of(end)
  const isChallenge = connection.services.challenges.placed ? answerChallenge(connection, end.peekHeld()) : 'no'
  if (isChallenge === 'no') noChallenge(connection)
}

function decide(end: End) {
  const connection = of(end)
  const routes = connection.candidates!
  const bytes = end.peekHeld()
  if (connection.services.challenges.placed && answerChallenge(connection, bytes) !== 'no') return
  const hello = peekClientHello(bytes)
  if (hello.verdict === 'yes') {
    connection.serverName = hello.hello.serverName
    return choose(connection, routes, 'tls', hello.hello.serverName)
  }
  if (hello.verdict === 'more') return // bounded: above its limit the verdict is 'no'
  if (hello.why === 'malformed' || hello.why === 'oversize') return connection.settle('malformed_hello')
  if (!routes.some((route) => route.byHost)) return choose(connection, routes, 'other', undefined)
  const http = peekHttpHead(bytes)
  if (http.verdict === 'more') return
  if (http.verdict === 'no') return choose(connection, routes, 'other', undefined)
  connection.serverName = http.head.host
  choose(connection, routes, 'http', http.head.host)
}

function choose(connection: Connection, routes: Routes, first: FirstBytes, name: string | undefined) {
  connection.candidates = null
  const route = selectRoute(routes, first, name, connection)
  if (!route) return connection.settle(reasonWithout(routes, first))
  if (route.plan.action.type === 'challenge') return connection.settle('no_route')
  if (!connection.admit(route)) return
  carry(connection)
}
