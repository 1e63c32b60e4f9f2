/* The one header of the native library: what TypeScript may call (src/base/native.ts) and the records it gets back.
 *
 * Rules for every function: no function blocks; errors are returned as -errno; descriptors handed in are owned by the
 * library from then on unless it says otherwise; every descriptor is CLOEXEC and non-blocking. Records are written in the
 * machine's byte order to a unix socket whose other end TypeScript reads; ports are in host byte order, addresses are the
 * 4 or 16 bytes of the wire. */
#ifndef SLUICE_H
#define SLUICE_H
#include <stdint.h>
#include <stddef.h>

/* ---- descriptors (descriptors.c) ---- */

/* A pair of unix sockets. type: 1 SOCK_STREAM, 5 SOCK_SEQPACKET. */
int sluice_socketpair(int type, int32_t fds[2]);
/* A listening TCP socket. address: numeric IPv4 or IPv6, "::" listens on both families. Returns the descriptor. */
int sluice_listen(const char *address, uint16_t port, int backlog);
/* The same beside `count` listening sockets of ours on other addresses of the port: "::" takes every address, so the kernel
 * wants both sides to agree (SO_REUSEPORT). They agree for this call only: nobody else gets in later. */
int sluice_listen_beside(const char *address, uint16_t port, int backlog, const int *fds, int count);
/* A UDP socket that nobody reads: it holds the port against others. Its buffer is the smallest there is. address and `count`
 * sockets of ours on other addresses of the port as above, count 0 for none. */
int sluice_reserve_udp(const char *address, uint16_t port, const int *fds, int count);
/* The local port of a socket, or -errno. */
int sluice_port(int fd);
/* fcntl(F_DUPFD_CLOEXEC). */
int sluice_dup(int fd);
int sluice_close(int fd);
/* flock: holds the open file alone, until its last descriptor is closed, by whatever end of the process; never waits.
 * -EWOULDBLOCK: another open file of the same has it. The caller keeps the descriptor. */
int sluice_flock(int fd);
/* How many descriptors under `below` are free, counted up to `enough`. any: an open descriptor, to ask with. */
int sluice_descriptors_free(int any, int below, int enough);
/* One message with one descriptor (SCM_RIGHTS) over a SEQPACKET socket; the caller keeps its copy of fd. */
int sluice_send_fd(int sock, uint32_t tag, int fd);
/* The next descriptor waiting on the socket, its tag in *tag; -EAGAIN when there is none. */
int sluice_recv_fd(int sock, uint32_t *tag);
/* Raises RLIMIT_NOFILE to what the hard limit (or, with CAP_SYS_RESOURCE, nr_open) allows; returns the soft limit. */
int sluice_raise_nofile(void);
/* Sends one raw TCP SYN from (src, sport) to (dst, dport): see design "cutting is explicit". Needs CAP_NET_RAW. */
int sluice_send_syn(int family, const uint8_t *src, uint16_t sport, const uint8_t *dst, uint16_t dport);

/* ---- outbound connections (connect.c) ---- */

/* Begins a TCP connection to a numeric address, with TCP_NODELAY. Returns the descriptor at once, connected or still
 * connecting, or -errno. Closing it takes the SYN back. */
int sluice_connect(const char *address, uint16_t port);
/* The same from a numeric source address; -EADDRNOTAVAIL: it is not this machine's. */
int sluice_connect_from(const char *address, uint16_t port, const char *from);
/* Connects to a unix stream socket; there is no "still connecting": -EAGAIN when its backlog is full. */
int sluice_connect_unix(const char *path);
/* TCP keepalive of one socket; idle_s 0 turns it off. A peer that has vanished is noticed idle_s + count * interval_s after
 * its last sign, also while data waits for its acknowledgement (there 15 s at least). The caller keeps the descriptor. */
int sluice_keepalive(int fd, int idle_s, int interval_s, int count);

/* ---- what a worker gives up (confine.c) ---- */

/* Every thread of the process gives up its bounding and ambient capabilities. It waits for them, a second at most: how many did
 * not answer, or -errno. */
int sluice_drop_bounding(void);
/* After the user was changed: every thread gives up all its capabilities; no new privileges, no dumps. Returns as above. */
int sluice_drop_capabilities(void);
/* Refuses to the whole process the system calls that no worker needs: starting programs, other processes, namespaces and
 * mounts, the kernel, the machine. -EINVAL, -ENOSYS: this kernel has no such filter. */
int sluice_refuse_calls(void);

/* ---- service manager (notify.c) ---- */

/* One datagram to a unix socket, its path with "@" first when it is abstract. A descriptor that is not negative goes with it. A full
 * queue is -EAGAIN. */
int sluice_notify(const char *path, const char *text, int descriptor);
/* CLOCK_MONOTONIC in microseconds, as service managers count. */
uint64_t sluice_monotonic_us(void);

/* ---- conntrack (conntrack.c) ---- */

/* Bits of the conntrack mark in which the nft program keeps how a flow ended (nft/sluice.nft, chain ending). */
enum sluice_mark { SLUICE_FIN_CLIENT = 0x00800000, SLUICE_FIN_TARGET = 0x00400000, SLUICE_RST_CLIENT = 0x00200000, SLUICE_RST_TARGET = 0x00100000 };

enum sluice_flow_kind {
  SLUICE_FLOW_NEW = 1,
  SLUICE_FLOW_UPDATE = 2,
  SLUICE_FLOW_DESTROY = 3,
  SLUICE_FLOW_DUMPED = 4,   /* one entry of the dump `request` asked for */
  SLUICE_DUMP_END = 5,      /* error: errno or 0 */
  SLUICE_LOST = 6,          /* the kernel dropped events, between start_ns and event_ns: resync */
  SLUICE_FLOW_CLOSED = 7,   /* TCP is over: both FINs or a RST, see the mark; counters were read right after */
  SLUICE_FLOW_WHOLE = 9,    /* NEW and CLOSED in one: start_ns is when it opened, event_ns when it closed */
  SLUICE_NFT_CHANGED = 8    /* a transaction touched our table; mark = process id that did it */
};

struct sluice_flow { /* 160 bytes */
  uint8_t kind, family, protocol, tcp_state; /* family 4|6; tcp_state as enum tcp_conntrack of the kernel */
  uint32_t mark, id, status;                 /* status as enum ip_conntrack_status */
  uint16_t zone, request;
  uint16_t orig_sport, orig_dport, reply_sport, reply_dport;
  uint32_t error;      /* DUMP_END: errno; DESTROY: port id of the socket of somebody else who deleted the entry, or 0 */
  uint8_t orig_src[16], orig_dst[16], reply_src[16], reply_dst[16];
  uint64_t orig_packets, orig_bytes, reply_packets, reply_bytes;
  uint64_t start_ns;   /* CTA_TIMESTAMP_START, wall clock, 0 when unknown */
  uint64_t event_ns;   /* CTA_TIMESTAMP_EVENT or the time of receipt, wall clock */
  uint32_t timeout_s;
  uint8_t counted;     /* 1 when the counters are known */
  uint8_t timed;       /* 1 when event_ns and established_ns are the kernel's own */
  uint16_t unused;
  uint64_t established_ns; /* when TCP was established, told by one flow in eight; else 0 */
};

/* Which entries of flows that have ended a dump lists: those that began at started_ns or later and that conntrack forgets
 * in least_timeout_s[tcp_state] seconds at the earliest. */
struct sluice_ct_ended { /* 48 bytes */
  uint64_t started_ns;
  uint32_t least_timeout_s[10];
};

/* Starts the reader thread: conntrack events with (mark & mask) == base, and nft transactions that touch table `table`,
 * go to events_fd (SOCK_SEQPACKET, several records a message). Returns 0. receive_buffer: bytes, 0 for the default. */
int sluice_ct_start(int events_fd, uint32_t base, uint32_t mask, const char *table, int receive_buffer);
/* Asks the reader for a dump of the entries with that mark whose flow has not ended, and of those `ended` tells (NULL: none);
 * they come as DUMPED records, then DUMP_END. */
int sluice_ct_dump(uint16_t request, const struct sluice_ct_ended *ended);
/* Reads one flow's entry now (counters included) into `flow` (key: its original tuple, zone, id). -ENOENT: gone. */
int sluice_ct_get(struct sluice_flow *flow);
/* Deletes one flow's entry (same key). */
int sluice_ct_delete(const struct sluice_flow *flow);
int sluice_ct_stop(void);

struct sluice_udp_listen { uint8_t family, unused; uint16_t from, to, unused2; uint8_t address[16]; }; /* 24 bytes */

/* Deletes the entries of UDP flows to these local addresses and ports that have no DNAT: see conntrack_release.c. Returns at
 * once; -EBUSY while the call before is at work. */
int sluice_ct_release_udp(const struct sluice_udp_listen *listens, int count);

/* ---- relay (relay.c, relay_accept.c) ---- */

enum sluice_relay_kind {
  /* side sent its FIN. Without a target yet, bytes_in is what waits unread before it, and it is told once, and again to who
   * reads on up to it. */
  SLUICE_RELAY_HALF_CLOSED = 1,
  SLUICE_RELAY_CLOSED = 2,      /* as to bytes_in without a target: the same */
  SLUICE_RELAY_ACCEPTED = 3,    /* struct sluice_relay_accepted and perhaps the first bytes follow */
  SLUICE_RELAY_BYTES = 4,       /* the next bytes of a client that has no target yet follow */
  SLUICE_RELAY_CONNECTED = 5,   /* the target is connected, bytes flow */
  SLUICE_RELAY_REFUSED = 6,     /* error: why this target was not; the client and what it said are still there */
  SLUICE_RELAY_UNLISTENED = 7   /* the last word about a listener: whoever it accepted has been told of before */
};
enum sluice_side { SLUICE_CLIENT = 0, SLUICE_TARGET = 1 };

struct sluice_relay_event { /* 48 bytes, then `length` bytes and padding up to the next multiple of 8 */
  uint64_t id;
  uint8_t kind;
  uint8_t side;        /* HALF_CLOSED: who sent its FIN; CLOSED with error: on whose socket */
  uint16_t error;      /* CLOSED: 0 when both directions ended with FIN, else errno (ECONNRESET, ETIMEDOUT, EPIPE, ECANCELED) */
  uint32_t idle_ms;    /* milliseconds since the last byte */
  uint64_t bytes_in;   /* taken from the client and delivered to the target's socket */
  uint64_t bytes_out;  /* taken from the target and delivered to the client's socket */
  uint32_t tag;        /* ACCEPTED, UNLISTENED: the listener's; CONNECTED, REFUSED: the attempt */
  uint32_t length;
  uint32_t descriptor; /* ACCEPTED: the lowest number that was free, so it says how many are in use */
  uint32_t unused;
};

struct sluice_relay_accepted { /* 40 bytes */
  uint8_t family;      /* 4 or 6; mapped addresses are told as the IPv4 ones they are */
  uint8_t unused[3];
  uint16_t client_port, local_port;
  uint8_t client[16], local[16];
};

/* Starts the relay thread; events go to events_fd (SOCK_SEQPACKET, several events a message). */
int sluice_relay_start(int events_fd);
/* Joins two connected sockets. `to_target` (n bytes) goes to the target before anything read from the client, and
 * counts as bytes_in; `to_client` likewise. The library copies both and owns both descriptors from the call on, also
 * when it fails. Ids of callers are below 2^48. */
int sluice_relay_add(uint64_t id, int client, int target, const void *to_target, uint32_t n, const void *to_client, uint32_t m);
/* Ends a pair: reset = 1 sends RST both ways at once; reset = 0 closes both (FIN) after the bytes in flight are
 * delivered, at most grace_ms later; one without a target is always reset. A CLOSED event with ECANCELED follows.
 * -ENOENT: no such pair. */
int sluice_relay_close(uint64_t id, int reset, uint32_t grace_ms);
/* Counts of a live pair without waiting for an event. -ENOENT: no such pair. */
int sluice_relay_stats(uint64_t id, struct sluice_relay_event *out);
/* sluice_keepalive for both sockets of a pair. -ENOENT: no such pair. */
int sluice_relay_keepalive(uint64_t id, int idle_s, int interval_s, int count);
int sluice_relay_stop(void);

/* Accepts on a listening TCP socket, which is the library's from the call on, also when it fails. Each connection is told
 * (ACCEPTED, ids from 2^48 on), with reads = 1 also its first bytes, as soon as there are some (BYTES); then it waits, unread,
 * for one of the four calls that follow. */
int sluice_relay_listen(uint32_t tag, int fd, int reads);
/* Closes the listening socket; UNLISTENED follows. -ENOENT: no such listener. */
int sluice_relay_unlisten(uint32_t tag);
/* Listeners accept while there are fewer pairs than that, and get descriptors below that; the kernel queues meanwhile. It holds
 * until the next call, also for a thread that starts later. */
int sluice_relay_accept(uint32_t pairs, int below);
/* Reads on: BYTES follows when there is more. */
int sluice_relay_more(uint64_t id);
/* Connects the client to a target, numeric address and port or an absolute path of a unix socket; CONNECTED or REFUSED
 * follows. The first call hands over what goes to the target first (n bytes, copied); they are kept until a target is
 * connected. `from`: numeric source address or NULL. Called again before CONNECTED it gives up the target before; with an
 * empty address it does only that. CONNECTED and REFUSED repeat `attempt`, since they may cross with such a call. */
int sluice_relay_dial(uint64_t id, uint32_t attempt, const char *address, uint16_t port, const char *from, const void *to_target, uint32_t n);
/* Gives the client's descriptor back to the caller, who owns it from then on; nothing more is told of it. Not while it is read
 * (no BYTES since the listener's reads = 1, or since more): what is read in this moment would be lost. -EBUSY: it was dialled
 * for. -ENOENT: it is gone. */
int sluice_relay_take(uint64_t id);

#endif
