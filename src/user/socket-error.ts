// What goes wrong with a socket of a handler: one class, a stable code for programs, a text for people. Mistakes in the
// arguments of a call are plain TypeErrors, thrown at once.

/** Every code, with what its text says first.
 * @example if (error.code in socketErrors) log(socketErrors[error.code]) */
export const socketErrors = {
  connect_refused: 'proxy request failed, cannot connect to the specified address',
  connect_timeout: 'proxy request failed, cannot connect to the specified address',
  connect_unreachable: 'proxy request failed, cannot connect to the specified address',
  name_not_resolved: 'proxy request failed, cannot connect to the specified address',
  address_blocked: 'proxy request failed, cannot connect to the specified address',
  port_25_blocked: 'Connections to port 25 are prohibited',
  port_blocked: 'Connections to this port are prohibited by the route',
  loop_detected: 'TCP Loop detected',
  too_many_sockets: 'this connection has its maximum of sockets',
  tls_failed: 'TLS Handshake Failed',
  gate_rejected: 'the gate was rejected, nothing has left',
  aborted: 'the socket was aborted',
  closed: 'the socket is closed',
  reset: 'Network connection lost',
  half_closed_timeout: 'one side had closed and the other did not follow in time',
  client_disconnected: 'client disconnected',
  upgraded: 'the socket has been upgraded by startTls(), use the one that it returned',
  handed_over: 'the socket has been handed to proxy()',
  starttls_not_enabled: "The `secureTransport` socket option must be set to 'starttls' for startTls to be used",
  starttls_on_tls: 'Cannot startTls on a TLS socket',
  starttls_twice: 'startTls can only be called once',
  starttls_closed: 'startTls cannot be called on a closed socket',
} as const

export type SocketErrorCode = keyof typeof socketErrors

/** What a socket of a handler fails with. That it is a TypeError, and the prefix of its message, are WinterTC's; `code` is ours.
 * @example socket.opened.catch((error) => error.code === 'connect_refused' && connect(spare)) */
export class SocketError extends TypeError {
  constructor(
    readonly code: SocketErrorCode,
    /** What is known beyond the code. */
    detail?: string,
    options?: ErrorOptions,
  ) {
    super(`SocketError: ${socketErrors[code]}${detail === undefined ? '' : `: ${detail}`}`, options)
  }
}
