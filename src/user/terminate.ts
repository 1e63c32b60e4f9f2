// TLS ends here, and may begin again towards the target. The handshake runs on the accepted socket with the route's kept
// context (tickets live in it); what it shows goes into the record, how it fails into the reason.
import type { Socket } from 'bun'
import { of, type Connection } from './connection.ts'
import { secureHandlers, type Consumer, type End } from './end.ts'
import { peekClientHello } from './peek/client-hello.ts'
import { alpnWire, beginTls, sniOf, untrusted, type TlsWish } from './tls-client.ts'

/** Shared functions, not closures. */
type Next = (connection: Connection) => void

// ---- with the client ----

/** Handshakes as server, beginning with the bytes that are held already, or the first ones that come. */
export function terminateTls(connection: Connection, next: Next) {
  const { client } = connection
  connection.arm(connection.route!.plan.timeoutsMs.handshake, handshakeTimedOut)
  nextOf.set(connection, next)
  client.consumer = beforeHello
  if (client.heldBytes > 0) heardHello(connection)
}

/** What comes after the handshake; not a field, since few connections have one. */
const nextOf = new WeakMap<Connection, Next>()

function handshakeTimedOut(connection: Connection) {
  connection.settle('handshake_timeout')
}

const beforeHello: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    heardHello(of(end))
  },
  ended(end) {
    of(end).settle(end.heldBytes > 0 ? 'handshake_failed' : 'closed_before_data')
  },
  drained() {},
  closed(end) {
    of(end).settle(end.heldBytes > 0 ? 'handshake_failed' : 'closed_before_data')
  },
}

/** Where the port alone chose the route, nobody has read the name that chooses the certificate. */
function heardHello(connection: Connection) {
  if (connection.route!.certificates?.byName && connection.serverName === undefined) {
    const hello = peekClientHello(connection.client.peekHeld())
    if (hello.verdict === 'more') return // bounded: above its limit the verdict is 'no'
    if (hello.verdict === 'yes') connection.serverName = hello.hello.serverName
  }
  beginHandshake(connection)
}

function beginHandshake(connection: Connection) {
  const route = connection.route!
  const secureContext = route.certificates?.contextFor(connection.serverName) ?? null
  if (secureContext === 'pending') return tellPending(connection)
  if (secureContext === null) {
    connection.log('warn', 'A handshake failed: the route has no certificate yet', { client: connection.clientIp })
    return connection.settle('handshake_failed')
  }
  const verify = route.clientCa === null ? {} : { requestCert: true, rejectUnauthorized: true, ca: route.clientCa }
  const problem = beginServerTls(connection, { secureContext, alpn: route.tls!.alpn, ...verify }, handshaking)
  if (problem === undefined) return
  connection.log('debug', `A handshake could not begin: ${problem}`, { client: connection.clientIp })
  connection.settle('handshake_failed')
}

/** Told apart from a name that nobody serves: the client may come again. */
function tellPending(connection: Connection) {
  connection.client.takeHeld()
  connection.client.send(INTERNAL_ERROR)
  // Orderly: the alert is still on its way.
  connection.settle('certificate_pending', true)
}

/** A fatal alert (RFC 8446 6) in a record of its own, as any version of TLS before a handshake. */
const INTERNAL_ERROR = new Uint8Array([21, 3, 3, 0, 2, 2, 80])

/** Begins the handshake as server with what is held; the consumer hears secured(). Answers why it could not begin. */
export function beginServerTls(
  connection: Connection,
  { alpn, ...options }: { secureContext: object; alpn: readonly string[]; ca?: string },
  consumer: Consumer,
): string | undefined {
  const { client } = connection
  const initialData = Buffer.concat(client.takeHeld())
  // The client may have said all and closed its side; then no handshake can succeed, and upgradeTLS would throw.
  client.resume()
  const raw = client.detach()!
  client.consumer = consumer
  client.received = client.sent = 0
  try {
    const [tap, secure] = raw.upgradeTLS<End>({
      isServer: true,
      initialData,
      tls: { ...options, ...(alpn.length > 0 ? { ALPNProtocols: alpnWire(alpn) } : {}) },
      data: client,
      socket: secureHandlers,
    })
    // The raw socket goes on hearing ciphertext; nobody listens.
    tap.data = raw.data
    if (!connection.settled) client.socket = secure
    else secure.terminate()
    return undefined
  } catch (error) {
    raw.terminate()
    return (error as Error).message
  }
}

const handshaking: Consumer = {
  // Records behind the handshake can come before anyone is ready for them, and after a pause.
  received(end, bytes) {
    end.hold(bytes)
  },
  ended(end) {
    handshakeFailed(of(end), 'the client closed its side')
  },
  drained() {},
  closed(end, error) {
    handshakeFailed(of(end), error?.message ?? 'the client closed the connection')
  },
  secured(end, ok, error) {
    const connection = of(end)
    const route = connection.route!
    const socket = end.socket!
    // Never `ok` alone: a client certificate that does not verify comes with ok = true.
    if (!ok || (route.clientCa !== null && !socket.authorized))
      return handshakeFailed(connection, error?.message ?? 'no valid client certificate')
    connection.serverName ??= nameOf(socket)
    connection.tls = seen(socket)
    connection.touch()
    connection.update()
    nextOf.get(connection)!(connection)
  },
}

function handshakeFailed(connection: Connection, why: string) {
  connection.serverName ??= nameOf(connection.client.socket)
  connection.log('debug', `A handshake failed: ${why}`, {
    client: connection.clientIp,
    serverName: connection.serverName,
  })
  // Orderly: the alert that says why is still on its way.
  connection.settle('handshake_failed', true)
}

function nameOf(socket: Socket<End> | null): string | undefined {
  const name = socket?.getServername()
  return typeof name === 'string' && name !== '' ? name.toLowerCase() : undefined
}

export function seen(socket: Socket<End>): NonNullable<Connection['tls']> {
  const alpn = socket.alpnProtocol
  return {
    version: socket.getTLSVersion(),
    cipher: (socket.getCipher() as { name?: string } | undefined)?.name ?? '',
    ...(typeof alpn === 'string' && alpn !== '' ? { alpn } : {}),
  }
}

// ---- with the target ----

/** Handshakes as client on the connected target. Verifies chain and name unless the route says insecure. */
export function encryptTarget(connection: Connection, next: Next) {
  const target = connection.target!
  target.consumer = targetHandshaking
  target.received = target.sent = 0
  nextOf.set(connection, next)
  connection.arm(connection.route!.plan.timeoutsMs.handshake, targetTimedOut)
  const problem = beginTls(target, wishOf(connection))
  if (connection.settled) target.reset()
  else if (problem !== undefined) targetFailed(connection, problem)
}

function wishOf(connection: Connection): TlsWish {
  const name = expectedName(connection)
  const alpn = connection.tls?.alpn
  return {
    name,
    sni: sniOf(name),
    alpn: alpn === undefined ? [] : [alpn],
    ca: connection.route!.upstreamCa,
    insecure: connection.route!.tls!.upstream.insecure,
  }
}

/** The configured name, else the target's host. */
function expectedName(connection: Connection): string {
  const { upstream } = connection.route!.tls!
  if (upstream.serverName !== null) return upstream.serverName
  const { host, name } = connection.slot!.target
  if (name !== null) return name
  return host.kind === 'ip' ? host.address : host.kind === 'name' ? host.name : 'localhost'
}

function targetTimedOut(connection: Connection) {
  targetFailed(connection, 'no answer in time')
}

function targetFailed(connection: Connection, why: string) {
  connection.log('warn', `TLS to the target failed: ${why}`, { target: connection.targetName })
  connection.settle('target_tls_failed')
}

const targetHandshaking: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
  },
  ended(end) {
    targetFailed(of(end), 'the target closed its side')
  },
  drained() {},
  closed(end, error) {
    targetFailed(of(end), error?.message ?? 'the target closed the connection')
  },
  secured(end, ok, error) {
    const connection = of(end)
    const problem = untrusted(wishOf(connection), end.socket!, ok, error)
    if (problem !== undefined) return targetFailed(connection, problem)
    nextOf.get(connection)!(connection)
  },
}
