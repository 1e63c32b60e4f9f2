// The files that `make install` puts on a machine beside the program, as texts: the unit, kernel settings, logrotate.

/** What control needs of root, and what for. test/netns/privileges.test.ts runs the gateway with these and no other. */
export const CONTROL_CAPABILITIES = [
  'CAP_NET_ADMIN', // nftables, conntrack, the kernel settings of net
  'CAP_NET_RAW', // the SYN that ends a kernel flow
  'CAP_NET_BIND_SERVICE', // ports below 1024
  'CAP_SETUID', // workers become another user,
  'CAP_SETGID', // with its group,
  'CAP_SETPCAP', // give up their bounding set,
  'CAP_KILL', // and are killed when they hang
]
