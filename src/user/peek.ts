// Ports where the first bytes decide: collects them within a limit and a deadline, then chooses the route. Nothing is
// consumed: what was read is held and goes on to the target, the TLS engine or the handler, once and first.
import type { CloseReason } from '../connections/reasons.ts'
import { carry } from './carry.ts'
import { of, type Connection } from './connection.ts'
import type { Consumer, End } from './end.ts'
import { clientGone } from './opening.ts'
import { peekClientHello } from './peek/client-hello.ts'
import { peekHttpHead } from './peek/http-head.ts'
import type { LiveRoute } from './route.ts'
import { selectRoute, type FirstBytes } from './select.ts'

/** Chooses a route by address alone. */
export function chooseUnread(connection: Connection, routes: readonly LiveRoute[]) {
  choose(connection, routes, 'unread', undefined)
}

/** Reads first. The connection has a record once a route admits it, or once it ends without one. */
export function peek(connection: Connection, routes: readonly LiveRoute[]) {
  if (routes.length === 0) return connection.settle('no_route')
  routesOf.set(connection, routes)
  connection.client.consumer = peeking
  connection.arm(Math.max(...routes.map((route) => route.plan.timeoutsMs.firstByte)), silent)
}

/** Those the listener had when the connection came. */
const routesOf = new WeakMap<Connection, readonly LiveRoute[]>()

const silent = (connection: Connection) => connection.settle('first_byte_timeout')

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

function decide(end: End) {
  const connection = of(end)
  const routes = routesOf.get(connection)!
  const bytes = end.peekHeld()
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

function choose(connection: Connection, routes: readonly LiveRoute[], first: FirstBytes, name: string | undefined) {
  const route = selectRoute(routes, first, name, connection)
  if (!route) return connection.settle(reasonWithout(routes, first))
  if (!connection.admit(route)) return
  carry(connection)
}

/** Either nobody here speaks what came, or those who do do not want this name or client. */
function reasonWithout(routes: readonly LiveRoute[], first: FirstBytes): CloseReason {
  const spoken =
    first === 'unread' ||
    first === 'tls' ||
    routes.some((route) => !route.needsTls && (first === 'http' || !route.byHost))
  return spoken ? 'no_route' : 'malformed_hello'
}
