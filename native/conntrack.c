/* The conntrack reader: one thread that turns netlink into fixed-size records, and calls that read or delete one flow.
 *
 * Four netlink sockets, because each has its own order and its own overruns: events (filtered in the kernel), nft
 * notifications, dumps, and single queries. The thread sleeps in poll; under load it rests a few milliseconds between
 * rounds so that one wake-up of JavaScript serves many flows (the kernel's receive buffer holds them meanwhile). */
#define _GNU_SOURCE
#include "sluice.h"
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/filter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RECORDS_PER_MESSAGE 96            /* 15 KiB: below the default limit of one unix datagram */
#define RECEIVE_BUFFER (16 * 1024 * 1024) /* about 20,000 events; an overrun is noticed and repaired, not silent */
#define REST_NS 4000000                   /* between rounds under load */
#define REST_FROM 4                       /* events in a round that count as load */
#define ATTRIBUTE_TIMESTAMP_EVENT 27      /* CTA_TIMESTAMP_EVENT: kernel 6.14, newer than Debian 12's headers */

_Static_assert(sizeof(struct sluice_flow) == 160, "the layout is shared with TypeScript");

static struct {
  struct mnl_socket *events, *nft, *dumps, *reads, *queries;
  uint32_t base, mask;
  char table[64];
  int out, wake;
  pthread_t thread;
  atomic_int stopping;
  _Atomic uint32_t dump_wanted; /* request number + 1, 0 for none: a later request replaces an unserved one */
  uint16_t dumping;             /* request number being served */
  int nft_touched;
  struct sluice_flow pending[RECORDS_PER_MESSAGE];
  unsigned pending_count;
} ct;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- out: records to TypeScript ---- */

/* Blocks when TypeScript does not read: then the kernel's buffer fills, overruns, and we say LOST. Nothing else is bounded by us. */
static void flush(void) {
  size_t bytes = ct.pending_count * sizeof ct.pending[0];
  while (ct.pending_count && !atomic_load(&ct.stopping)) {
    if (send(ct.out, ct.pending, bytes, MSG_NOSIGNAL) >= 0 || (errno != EAGAIN && errno != EINTR)) break;
    struct pollfd wait[2] = {{.fd = ct.out, .events = POLLOUT}, {.fd = ct.wake, .events = POLLIN}};
    poll(wait, 2, 1000);
  }
  ct.pending_count = 0;
}

static struct sluice_flow *next_record(uint8_t kind) {
  if (ct.pending_count == RECORDS_PER_MESSAGE) flush();
  struct sluice_flow *record = &ct.pending[ct.pending_count++];
  memset(record, 0, sizeof *record);
  record->kind = kind;
  return record;
}

/* ---- in: netlink attributes ---- */

static void parse_ports(const struct nlattr *nest, struct sluice_flow *flow, uint16_t *sport, uint16_t *dport) {
  struct nlattr *attribute;
  mnl_attr_for_each_nested(attribute, nest) switch (mnl_attr_get_type(attribute)) {
    case CTA_PROTO_NUM: flow->protocol = mnl_attr_get_u8(attribute); break;
    case CTA_PROTO_SRC_PORT: *sport = ntohs(mnl_attr_get_u16(attribute)); break;
    case CTA_PROTO_DST_PORT: *dport = ntohs(mnl_attr_get_u16(attribute)); break;
  }
}

static void parse_ips(const struct nlattr *nest, struct sluice_flow *flow, uint8_t *src, uint8_t *dst) {
  struct nlattr *attribute;
  mnl_attr_for_each_nested(attribute, nest) switch (mnl_attr_get_type(attribute)) {
    case CTA_IP_V4_SRC: flow->family = 4; memcpy(src, mnl_attr_get_payload(attribute), 4); break;
    case CTA_IP_V4_DST: memcpy(dst, mnl_attr_get_payload(attribute), 4); break;
    case CTA_IP_V6_SRC: flow->family = 6; memcpy(src, mnl_attr_get_payload(attribute), 16); break;
    case CTA_IP_V6_DST: memcpy(dst, mnl_attr_get_payload(attribute), 16); break;
  }
}

static void parse_tuple(const struct nlattr *nest, struct sluice_flow *flow, int reply) {
  struct nlattr *attribute;
  mnl_attr_for_each_nested(attribute, nest) switch (mnl_attr_get_type(attribute)) {
    case CTA_TUPLE_IP: parse_ips(attribute, flow, reply ? flow->reply_src : flow->orig_src, reply ? flow->reply_dst : flow->orig_dst); break;
    case CTA_TUPLE_PROTO: parse_ports(attribute, flow, reply ? &flow->reply_sport : &flow->orig_sport, reply ? &flow->reply_dport : &flow->orig_dport); break;
  }
}

static void parse_counters(const struct nlattr *nest, uint64_t *packets, uint64_t *bytes) {
  struct nlattr *attribute;
  mnl_attr_for_each_nested(attribute, nest) switch (mnl_attr_get_type(attribute)) {
    case CTA_COUNTERS_PACKETS: *packets = be64toh(mnl_attr_get_u64(attribute)); break;
    case CTA_COUNTERS_BYTES: *bytes = be64toh(mnl_attr_get_u64(attribute)); break;
  }
}

static void parse_tcp_state(const struct nlattr *nest, struct sluice_flow *flow) {
  struct nlattr *outer, *inner;
  mnl_attr_for_each_nested(outer, nest) if (mnl_attr_get_type(outer) == CTA_PROTOINFO_TCP)
    mnl_attr_for_each_nested(inner, outer) if (mnl_attr_get_type(inner) == CTA_PROTOINFO_TCP_STATE) flow->tcp_state = mnl_attr_get_u8(inner);
}

static void parse_flow(const struct nlmsghdr *message, struct sluice_flow *flow) {
  struct nlattr *attribute, *inner;
  mnl_attr_for_each(attribute, message, sizeof(struct nfgenmsg)) switch (mnl_attr_get_type(attribute)) {
    case CTA_TUPLE_ORIG: parse_tuple(attribute, flow, 0); break;
    case CTA_TUPLE_REPLY: parse_tuple(attribute, flow, 1); break;
    case CTA_STATUS: flow->status = ntohl(mnl_attr_get_u32(attribute)); break;
    case CTA_PROTOINFO: parse_tcp_state(attribute, flow); break;
    case CTA_TIMEOUT: flow->timeout_s = ntohl(mnl_attr_get_u32(attribute)); break;
    case CTA_MARK: flow->mark = ntohl(mnl_attr_get_u32(attribute)); break;
    case CTA_ID: flow->id = ntohl(mnl_attr_get_u32(attribute)); break;
    case CTA_ZONE: flow->zone = ntohs(mnl_attr_get_u16(attribute)); break;
    case CTA_COUNTERS_ORIG: flow->counted = 1; parse_counters(attribute, &flow->orig_packets, &flow->orig_bytes); break;
    case CTA_COUNTERS_REPLY: parse_counters(attribute, &flow->reply_packets, &flow->reply_bytes); break;
    case CTA_TIMESTAMP:
      mnl_attr_for_each_nested(inner, attribute) if (mnl_attr_get_type(inner) == CTA_TIMESTAMP_START) flow->start_ns = be64toh(mnl_attr_get_u64(inner));
      break;
    case ATTRIBUTE_TIMESTAMP_EVENT: flow->event_ns = be64toh(mnl_attr_get_u64(attribute)); break;
  }
  if (!flow->event_ns) flow->event_ns = now_ns();
}

/* Flows that user space carries have the mark too where limits need it; only DNAT makes a flow the kernel's. */
static int is_ours(const struct sluice_flow *flow) { return (flow->mark & ct.mask) == ct.base && (flow->status & IPS_DST_NAT); }

/* ---- one flow: read, delete ---- */

static void put_tuple(struct nlmsghdr *message, const struct sluice_flow *flow) {
  size_t width = flow->family == 4 ? 4 : 16;
  struct nlattr *tuple = mnl_attr_nest_start(message, CTA_TUPLE_ORIG);
  struct nlattr *ip = mnl_attr_nest_start(message, CTA_TUPLE_IP);
  mnl_attr_put(message, flow->family == 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, width, flow->orig_src);
  mnl_attr_put(message, flow->family == 4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, width, flow->orig_dst);
  mnl_attr_nest_end(message, ip);
  struct nlattr *proto = mnl_attr_nest_start(message, CTA_TUPLE_PROTO);
  mnl_attr_put_u8(message, CTA_PROTO_NUM, flow->protocol);
  mnl_attr_put_u16(message, CTA_PROTO_SRC_PORT, htons(flow->orig_sport));
  mnl_attr_put_u16(message, CTA_PROTO_DST_PORT, htons(flow->orig_dport));
  mnl_attr_nest_end(message, proto);
  mnl_attr_nest_end(message, tuple);
  if (flow->zone) mnl_attr_put_u16(message, CTA_ZONE, htons(flow->zone));
}

static struct nlmsghdr *start_message(char *buffer, uint16_t type, uint16_t flags, uint8_t family) {
  struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
  message->nlmsg_type = (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | type);
  message->nlmsg_flags = NLM_F_REQUEST | flags;
  struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
  header->nfgen_family = family;
  header->version = NFNETLINK_V0;
  header->res_id = 0;
  return message;
}

/* Netlink answers within the send: the receive never waits for another process. */
static int ask(struct mnl_socket *socket, struct nlmsghdr *message, struct sluice_flow *answer) {
  static _Atomic uint32_t sequence;
  message->nlmsg_seq = atomic_fetch_add(&sequence, 1) + 1;
  if (mnl_socket_sendto(socket, message, message->nlmsg_len) < 0) return -errno;
  char buffer[8192];
  for (;;) {
    ssize_t got = mnl_socket_recvfrom(socket, buffer, sizeof buffer);
    if (got < 0) return -errno;
    int left = (int)got;
    for (struct nlmsghdr *reply = (struct nlmsghdr *)buffer; mnl_nlmsg_ok(reply, left); reply = mnl_nlmsg_next(reply, &left)) {
      if (reply->nlmsg_seq != message->nlmsg_seq) continue; /* left over from a call that failed half way */
      if (reply->nlmsg_type == NLMSG_ERROR) return ((struct nlmsgerr *)mnl_nlmsg_get_payload(reply))->error;
      if (answer) parse_flow(reply, answer);
      return 0;
    }
  }
}

static int read_flow(struct mnl_socket *socket, struct sluice_flow *flow) {
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = start_message(buffer, IPCTNL_MSG_CT_GET, 0, flow->family == 4 ? AF_INET : AF_INET6);
  put_tuple(message, flow);
  struct sluice_flow found = {.kind = flow->kind};
  int error = ask(socket, message, &found);
  if (error) return error;
  if (found.id != flow->id) return -ENOENT; /* another flow has the tuple by now */
  found.event_ns = flow->event_ns;
  *flow = found;
  return 0;
}

int sluice_ct_get(struct sluice_flow *flow) { return ct.queries ? read_flow(ct.queries, flow) : -ENOTCONN; }

int sluice_ct_delete(const struct sluice_flow *flow) {
  if (!ct.queries) return -ENOTCONN;
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = start_message(buffer, IPCTNL_MSG_CT_DELETE, NLM_F_ACK, flow->family == 4 ? AF_INET : AF_INET6);
  put_tuple(message, flow);
  mnl_attr_put_u32(message, CTA_ID, htonl(flow->id)); /* the kernel refuses when the id is another flow's */
  return ask(ct.queries, message, NULL);
}

/* ---- the thread ---- */

static int over(const struct sluice_flow *flow) {
  return flow->protocol == IPPROTO_TCP && (flow->tcp_state == TCP_CONNTRACK_TIME_WAIT || flow->tcp_state == TCP_CONNTRACK_CLOSE);
}

static int on_event(const struct nlmsghdr *message, void *data) {
  (void)data;
  struct sluice_flow flow = {0};
  parse_flow(message, &flow);
  if (!is_ours(&flow)) return MNL_CB_OK;
  int type = message->nlmsg_type & 0xff;
  if (type == IPCTNL_MSG_CT_DELETE) flow.kind = SLUICE_FLOW_DESTROY;
  else if (message->nlmsg_flags & (NLM_F_CREATE | NLM_F_EXCL)) flow.kind = SLUICE_FLOW_NEW;
  else if (over(&flow)) {
    flow.kind = SLUICE_FLOW_CLOSED;
    read_flow(ct.reads, &flow); /* UPDATE carries no counters; when the entry has gone already, DESTROY brings them */
    flow.kind = SLUICE_FLOW_CLOSED;
  } else flow.kind = SLUICE_FLOW_UPDATE;
  *next_record(flow.kind) = flow;
  return MNL_CB_OK;
}

static int on_dumped(const struct nlmsghdr *message, void *data) {
  (void)data;
  struct sluice_flow flow = {.kind = SLUICE_FLOW_DUMPED, .request = ct.dumping};
  parse_flow(message, &flow);
  flow.request = ct.dumping;
  if (is_ours(&flow)) *next_record(flow.kind) = flow;
  return MNL_CB_OK;
}

/* A transaction's messages end with NEWGEN, which says whose it was. */
static int on_nft(const struct nlmsghdr *message, void *data) {
  (void)data;
  int type = message->nlmsg_type & 0xff;
  uint32_t process = 0;
  struct nlattr *attribute;
  mnl_attr_for_each(attribute, message, sizeof(struct nfgenmsg)) {
    if (type == NFT_MSG_NEWGEN && mnl_attr_get_type(attribute) == NFTA_GEN_PROC_PID) process = ntohl(mnl_attr_get_u32(attribute));
    /* Attribute 1 is the table's name in messages about tables, chains, rules, sets, elements and objects alike. */
    if (type != NFT_MSG_NEWGEN && mnl_attr_get_type(attribute) == 1 && strncmp(mnl_attr_get_str(attribute), ct.table, mnl_attr_get_payload_len(attribute)) == 0)
      ct.nft_touched = 1;
  }
  if (type == NFT_MSG_NEWGEN && ct.nft_touched) {
    next_record(SLUICE_NFT_CHANGED)->mark = process;
    ct.nft_touched = 0;
  }
  return MNL_CB_OK;
}

/* Reads what is there; returns how many datagrams. An overrun becomes a record instead of an error. */
static int drain(struct mnl_socket *socket, mnl_cb_t callback, uint8_t lost) {
  static char buffer[64 * 1024];
  int count = 0;
  for (; count < 4096; count++) {
    ssize_t got = recv(mnl_socket_get_fd(socket), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && errno == ENOBUFS) {
      next_record(lost);
      continue;
    }
    if (got <= 0) break;
    if (callback == on_dumped) {
      int result = mnl_cb_run(buffer, (size_t)got, 0, 0, callback, NULL);
      if (result > MNL_CB_STOP) continue;
      struct sluice_flow *end = next_record(SLUICE_DUMP_END);
      end->request = ct.dumping;
      end->error = result < 0 ? (uint32_t)errno : 0;
      ct.dumping = 0;
      continue;
    }
    mnl_cb_run(buffer, (size_t)got, 0, 0, callback, NULL);
  }
  return count;
}

static void start_dump(void) {
  uint32_t wanted = atomic_exchange(&ct.dump_wanted, 0);
  if (!wanted) return;
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = start_message(buffer, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_UNSPEC);
  mnl_attr_put_u32(message, CTA_MARK, htonl(ct.base));
  mnl_attr_put_u32(message, CTA_MARK_MASK, htonl(ct.mask));
  ct.dumping = (uint16_t)(wanted - 1);
  if (mnl_socket_sendto(ct.dumps, message, message->nlmsg_len) < 0) {
    struct sluice_flow *end = next_record(SLUICE_DUMP_END);
    end->request = ct.dumping;
    end->error = (uint32_t)errno;
    ct.dumping = 0;
  }
}

static void *run(void *unused) {
  (void)unused;
  struct pollfd wait[4] = {
      {.fd = mnl_socket_get_fd(ct.events), .events = POLLIN},
      {.fd = mnl_socket_get_fd(ct.nft), .events = POLLIN},
      {.fd = mnl_socket_get_fd(ct.dumps), .events = POLLIN},
      {.fd = ct.wake, .events = POLLIN},
  };
  while (!atomic_load(&ct.stopping)) {
    if (poll(wait, 4, -1) < 0 && errno != EINTR) break;
    uint64_t woken;
    if (wait[3].revents && read(ct.wake, &woken, sizeof woken) < 0) woken = 0;
    if (!ct.dumping) start_dump();
    int events = drain(ct.events, on_event, SLUICE_LOST);
    drain(ct.nft, on_nft, SLUICE_NFT_CHANGED);
    if (wait[2].revents) drain(ct.dumps, on_dumped, SLUICE_DUMP_END);
    flush();
    if (events >= REST_FROM) nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
  }
  return NULL;
}

/* ---- start and stop ---- */

/* Runs in the kernel on every event: our mark, and of the TCP states only those that change a record. SYN_RECV, CLOSE_WAIT
 * and LAST_ACK never wake us. Attribute offsets come from the ancillary loads of filter.txt (kernel documentation). */
static int attach_filter(int fd) {
  enum { NLATTR = (int)(SKF_AD_OFF + SKF_AD_NLATTR), NEST = (int)(SKF_AD_OFF + SKF_AD_NLATTR_NEST) };
  struct sock_filter code[] = {
      /*  0 */ BPF_STMT(BPF_LD | BPF_IMM, sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg)),
      /*  1 */ BPF_STMT(BPF_LDX | BPF_IMM, CTA_MARK),
      /*  2 */ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)NLATTR),
      /*  3 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 21, 0), /* no mark: drop */
      /*  4 */ BPF_STMT(BPF_MISC | BPF_TAX, 0),
      /*  5 */ BPF_STMT(BPF_LD | BPF_W | BPF_IND, 4),
      /*  6 */ BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ct.mask),
      /*  7 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ct.base, 0, 17), /* another's mark: drop */
      /*  8 */ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 4 + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)),
      /*  9 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPCTNL_MSG_CT_DELETE, 16, 0), /* DESTROY: keep */
      /* 10 */ BPF_STMT(BPF_LD | BPF_IMM, sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg)),
      /* 11 */ BPF_STMT(BPF_LDX | BPF_IMM, CTA_PROTOINFO),
      /* 12 */ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)NLATTR),
      /* 13 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 12, 0), /* not TCP: keep */
      /* 14 */ BPF_STMT(BPF_LDX | BPF_IMM, CTA_PROTOINFO_TCP),
      /* 15 */ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)NEST),
      /* 16 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 9, 0),
      /* 17 */ BPF_STMT(BPF_LDX | BPF_IMM, CTA_PROTOINFO_TCP_STATE),
      /* 18 */ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)NEST),
      /* 19 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 6, 0),
      /* 20 */ BPF_STMT(BPF_MISC | BPF_TAX, 0),
      /* 21 */ BPF_STMT(BPF_LD | BPF_B | BPF_IND, 4),
      /* 22 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TCP_CONNTRACK_SYN_RECV, 2, 0),
      /* 23 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TCP_CONNTRACK_CLOSE_WAIT, 1, 0),
      /* 24 */ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TCP_CONNTRACK_LAST_ACK, 0, 1),
      /* 25 */ BPF_STMT(BPF_RET | BPF_K, 0),
      /* 26 */ BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
  };
  struct sock_fprog program = {sizeof code / sizeof code[0], code};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

static struct mnl_socket *open_socket(unsigned groups, int receive_buffer, int filtered) {
  struct mnl_socket *socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
  if (!socket) return NULL;
  int fd = mnl_socket_get_fd(socket);
  /* Above rmem_max only with CAP_NET_ADMIN in the first user namespace; the plain option takes what it gets. */
  if (receive_buffer && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof receive_buffer) < 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  /* The filter stands before the groups are joined: not one foreign event gets in. */
  if ((filtered && attach_filter(fd) < 0) || mnl_socket_bind(socket, groups, MNL_SOCKET_AUTOPID) < 0) {
    int error = errno;
    mnl_socket_close(socket);
    errno = error;
    return NULL;
  }
  return socket;
}

static void close_sockets(void) {
  struct mnl_socket **all[] = {&ct.events, &ct.nft, &ct.dumps, &ct.reads, &ct.queries};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
    if (*all[i]) mnl_socket_close(*all[i]);
    *all[i] = NULL;
  }
}

int sluice_ct_start(int events_fd, uint32_t base, uint32_t mask, const char *table, int receive_buffer) {
  if (ct.events) return -EALREADY;
  memset(&ct, 0, sizeof ct);
  ct.base = base;
  ct.mask = mask;
  ct.out = events_fd;
  snprintf(ct.table, sizeof ct.table, "%s", table);
  int wide = 2 * 1024 * 1024;
  setsockopt(events_fd, SOL_SOCKET, SO_SNDBUF, &wide, sizeof wide);
  if (!receive_buffer) receive_buffer = RECEIVE_BUFFER;
  unsigned events = 1u << (NFNLGRP_CONNTRACK_NEW - 1) | 1u << (NFNLGRP_CONNTRACK_UPDATE - 1) | 1u << (NFNLGRP_CONNTRACK_DESTROY - 1);
  ct.events = open_socket(events, receive_buffer, 1);
  ct.nft = open_socket(1u << (NFNLGRP_NFTABLES - 1), receive_buffer, 0);
  ct.dumps = open_socket(0, RECEIVE_BUFFER, 0);
  ct.reads = open_socket(0, 0, 0);
  ct.queries = open_socket(0, 0, 0);
  ct.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int error = 0;
  if (!ct.events || !ct.nft || !ct.dumps || !ct.reads || !ct.queries || ct.wake < 0) error = errno ? errno : EIO;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to JavaScript's thread */
  if (!error) error = pthread_create(&ct.thread, NULL, run, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    close_sockets();
    if (ct.wake >= 0) close(ct.wake);
    return -error;
  }
  pthread_setname_np(ct.thread, "sluice-ct");
  return 0;
}

int sluice_ct_dump(uint16_t request) {
  if (!ct.events) return -ENOTCONN;
  atomic_store(&ct.dump_wanted, (uint32_t)request + 1);
  return eventfd_write(ct.wake, 1) < 0 ? -errno : 0;
}

int sluice_ct_stop(void) {
  if (!ct.events) return 0;
  atomic_store(&ct.stopping, 1);
  eventfd_write(ct.wake, 1);
  pthread_join(ct.thread, NULL);
  close_sockets();
  close(ct.wake);
  close(ct.out);
  return 0;
}
