// Why a connection ended: the closed list that records, the access log and the metrics use. The README explains each.

export const reasons = {
  finished: 'both sides closed in order',
  client_reset: 'the client reset the connection',
  target_reset: 'the target reset the connection',
  client_vanished: 'the client answered no more: neither data nor keepalive was acknowledged',
  target_vanished: 'the target answered no more: neither data nor keepalive was acknowledged',
  closed_before_data: 'the client left before its first byte arrived',
  first_byte_timeout: 'the client sent nothing in time where its first bytes decide the route',
  malformed_hello: 'the first bytes were neither TLS nor anything else this port speaks',
  malformed_proxy_header: 'a trusted sender did not begin with a whole and valid PROXY protocol header',
  no_route: 'no route matches the server name or the client',
  handshake_failed: 'the TLS handshake with the client failed',
  certificate_pending: 'the certificate for this server name is still being issued',
  handshake_timeout: 'the TLS handshake with the client took too long',
  target_refused: 'the target refused the connection',
  target_unreachable: 'the target could not be reached or its name not resolved',
  target_tls_failed: 'the TLS handshake with the target failed',
  connect_timeout: 'the target did not answer in time',
  idle_timeout: 'no byte in either direction for too long',
  half_closed_timeout: 'one side had closed and the other did not follow in time',
  handler_failed: 'the socket handler threw or its module could not be loaded',
  handler_closed: 'the socket handler closed the connection',
  responded: 'the gateway answered itself (redirect)',
  challenge_answered: 'the gateway answered a challenge of the certificate authority',
  drained: 'the route or the gateway was drained and the grace period ended',
  target_down: 'the target was found dead; the client should connect again',
  not_logged: 'its opening could not be written to the durable access log, or not in time',
  killed: 'closed on request of the operator',
  worker_died: 'the worker process that carried it died',
  nftables_closed: 'the entry of a kernel flow was gone when the kernel was asked, or says only that it is over',
  conntrack_flushed: 'the conntrack entry of a kernel flow was deleted by someone else',
  internal_error: 'an error inside the gateway, which the log describes',
} as const

export type CloseReason = keyof typeof reasons

/** Why a connection was refused: it has no record, it is counted by route and reason. */
export const refusals = {
  route_ip_blocked: 'the client is on the block list, or not on the allow list',
  route_limit: 'the route has its maximum of connections',
  route_ip_limit: 'the client has its maximum of connections on the route',
  route_rate: 'the client opens connections to the route too fast',
  global_limit: 'the gateway has its maximum of connections',
  global_ip_limit: 'the client has its maximum of connections on the gateway',
  global_rate: 'the client opens connections to the gateway too fast',
  draining: 'the route is being drained',
  no_target: 'no target of the route is usable (down or drained)',
  blocked: "the route's action is block",
  descriptors: 'the process is near its limit of descriptors',
} as const

export type RefusalReason = keyof typeof refusals
