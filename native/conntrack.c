/* The conntrack reader: one thread that turns netlink into fixed-size records, and calls that read or delete one flow.
 *
 * Five netlink sockets, because each has its own order and its own overruns: events (filtered in the kernel), nft
 * notifications, dumps, the thread's own reads, and the queries of JavaScript's thread. The thread sleeps in poll; under load it rests a few milliseconds between
 * rounds so that one wake-up of JavaScript serves many flows (the kernel's receive buffer holds them meanwhile). */
#define _GNU_SOURCE
#include "conntrack_parts.h"
#include "sluice.h"
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
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

#define RECEIVE_BUFFER (16 * 1024 * 1024) /* about 20,000 events; an overrun is noticed and repaired, not silent */
#define REST_NS 4000000                   /* between rounds under load */
#define REST_FROM 8                       /* events in a round that count as load */
#define DATAGRAMS 64                      /* read with one system call */
#define DATAGRAM_BYTES 4096               /* the kernel makes no notification larger than a page */
#define EVENTS_PER_ROUND 4096             /* then dumps and nft have their turn */
#define READS 32                          /* flows whose counters are asked for with one system call */
#define LOST_NS 1000000000                /* an overrun that does not end is told this often */

_Static_assert(sizeof(struct sluice_flow) == 160, "the layout is shared with TypeScript");
_Static_assert(sizeof(struct sluice_ct_ended) == 48, "the layout is shared with TypeScript");

static struct {
  struct mnl_socket *events, *nft, *dumps, *reads, *queries;
  uint32_t base, mask;
  char table[64];
  int out, wake;
  pthread_t thread;
  volatile int stopping;
  pthread_mutex_t wish;         /* over the next two */
  uint32_t dump_wanted;         /* request number + 1, 0 for none: a later request replaces an unserved one */
  struct sluice_ct_ended ended_wanted;
  uint16_t dumping;             /* request number being served, and which ended entries it lists */
  struct sluice_ct_ended listed;
  uint64_t heard_ns;            /* no event older than this is missing */
  uint64_t lost_ns;             /* when the overrun was noticed, or last told, that has not ended yet; else 0 */
  int nft_touched;
  struct sluice_flow *ended[READS]; /* staged records that wait for their counters */
  unsigned ended_count;
} ct;

/* Flows that user space carries have the mark too where limits need it; only DNAT makes a flow the kernel's. */
static int is_ours(const struct sluice_flow *flow) { return (flow->mark & ct.mask) == ct.base && (flow->status & IPS_DST_NAT); }

/* ---- one flow: read, delete ---- */

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
      if (answer) ct_parse_flow(reply, answer);
      return 0;
    }
  }
}

int sluice_ct_get(struct sluice_flow *flow) {
  if (!ct.queries) return -ENOTCONN;
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = ct_start_message(buffer, IPCTNL_MSG_CT_GET, 0, flow->family == 4 ? AF_INET : AF_INET6);
  ct_put_tuple(message, flow);
  struct sluice_flow found = {.kind = flow->kind};
  int error = ask(ct.queries, message, &found);
  if (error) return error;
  if (found.id != flow->id) return -ENOENT; /* another flow has the tuple by now */
  *flow = found;
  return 0;
}

int sluice_ct_delete(const struct sluice_flow *flow) {
  if (!ct.queries) return -ENOTCONN;
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = ct_start_message(buffer, IPCTNL_MSG_CT_DELETE, NLM_F_ACK, flow->family == 4 ? AF_INET : AF_INET6);
  ct_put_tuple(message, flow);
  mnl_attr_put_u32(message, CTA_ID, htonl(flow->id)); /* the kernel refuses when the id is another flow's */
  return ask(ct.queries, message, NULL);
}

/* ---- the thread ---- */

static int over(const struct sluice_flow *flow) {
  uint32_t both = SLUICE_FIN_CLIENT | SLUICE_FIN_TARGET;
  return (flow->mark & both) == both || (flow->mark & (SLUICE_RST_CLIENT | SLUICE_RST_TARGET));
}

/* The same of an entry that is listed: its state tells too. */
static int has_ended(const struct sluice_flow *flow) {
  return over(flow) || (flow->protocol == IPPROTO_TCP && (flow->tcp_state == TCP_CONNTRACK_TIME_WAIT || flow->tcp_state == TCP_CONNTRACK_CLOSE));
}

/* A busy gateway has a million entries in TIME_WAIT: of those only what somebody may not know is worth a record. */
static int is_listed(const struct sluice_flow *flow) {
  if (!has_ended(flow)) return 1;
  unsigned states = sizeof ct.listed.least_timeout_s / sizeof ct.listed.least_timeout_s[0];
  return flow->start_ns >= ct.listed.started_ns && flow->tcp_state < states && flow->timeout_s >= ct.listed.least_timeout_s[flow->tcp_state];
}

/* The counters of flows that have just ended: UPDATE carries none. Many requests in one send, each with one answer. A flow
 * whose entry has gone already stays uncounted here: DESTROY brings its counters. */
static void read_ended(void) {
  static char requests[READS * 256], answers[8192];
  if (!ct.ended_count) return;
  size_t length = 0;
  for (unsigned i = 0; i < ct.ended_count; i++) {
    struct nlmsghdr *message = ct_start_message(requests + length, IPCTNL_MSG_CT_GET, 0, ct.ended[i]->family == 4 ? AF_INET : AF_INET6);
    message->nlmsg_seq = i;
    ct_put_tuple(message, ct.ended[i]);
    length += MNL_ALIGN(message->nlmsg_len);
  }
  unsigned expected = ct.ended_count;
  ct.ended_count = 0;
  if (mnl_socket_sendto(ct.reads, requests, length) < 0) return;
  while (expected > 0) {
    ssize_t got = recv(mnl_socket_get_fd(ct.reads), answers, sizeof answers, MSG_DONTWAIT); /* all there: see ask() */
    if (got < 0) break;
    int left = (int)got;
    for (struct nlmsghdr *reply = (struct nlmsghdr *)answers; mnl_nlmsg_ok(reply, left); reply = mnl_nlmsg_next(reply, &left), expected--) {
      struct sluice_flow found = {0};
      if (reply->nlmsg_type == NLMSG_ERROR || reply->nlmsg_seq >= READS) continue;
      ct_parse_flow(reply, &found);
      struct sluice_flow *record = ct.ended[reply->nlmsg_seq];
      if (found.id != record->id || !found.counted) continue;
      record->counted = 1;
      record->orig_packets = found.orig_packets;
      record->orig_bytes = found.orig_bytes;
      record->reply_packets = found.reply_packets;
      record->reply_bytes = found.reply_bytes;
    }
  }
}

static int on_event(const struct nlmsghdr *message, void *data) {
  (void)data;
  struct sluice_flow flow = {0};
  ct_parse_flow(message, &flow);
  if (!is_ours(&flow)) return MNL_CB_OK;
  int type = message->nlmsg_type & 0xff;
  if (type == IPCTNL_MSG_CT_DELETE) {
    flow.kind = SLUICE_FLOW_DESTROY;
    /* The socket that asked for it; 0 when the kernel did on its own: expired. */
    if (message->nlmsg_pid != mnl_socket_get_portid(ct.queries)) flow.error = message->nlmsg_pid;
  } else if (message->nlmsg_flags & (NLM_F_CREATE | NLM_F_EXCL)) flow.kind = SLUICE_FLOW_NEW;
  else flow.kind = over(&flow) ? SLUICE_FLOW_CLOSED : SLUICE_FLOW_UPDATE;
  /* The one event that comes in between, of one flow in eight (nft/sluice.nft). */
  if (flow.kind == SLUICE_FLOW_UPDATE && flow.protocol == IPPROTO_TCP && (flow.status & IPS_ASSURED) && flow.tcp_state == TCP_CONNTRACK_ESTABLISHED)
    flow.established_ns = flow.event_ns;
  struct sluice_flow *ended = stage_event(&flow);
  if (ended) ct.ended[ct.ended_count++] = ended;
  if (ct.ended_count == READS) read_ended();
  return MNL_CB_OK;
}

static int on_dumped(const struct nlmsghdr *message, void *data) {
  (void)data;
  struct sluice_flow flow = {.kind = SLUICE_FLOW_DUMPED, .request = ct.dumping};
  ct_parse_flow(message, &flow);
  flow.request = ct.dumping;
  if (is_ours(&flow) && is_listed(&flow)) *stage_append(flow.kind) = flow;
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
    stage_append(SLUICE_NFT_CHANGED)->mark = process;
    ct.nft_touched = 0;
  }
  return MNL_CB_OK;
}

/* Nothing that `ended` points at may be sent before it has its counters. */
static void make_room(void) {
  if (stage_room() > 0) return;
  read_ended();
  stage_flush(1);
}

enum { DRAINED = 1, OVERRAN = 2 };

/* Reads what is there; returns how many datagrams. *how: whether nothing was left, whether the kernel had dropped some. */
static int drain(struct mnl_socket *socket, mnl_cb_t callback, int *how) {
  static char bytes[DATAGRAMS][DATAGRAM_BYTES];
  struct iovec parts[DATAGRAMS];
  struct mmsghdr messages[DATAGRAMS] = {0};
  int total = 0;
  for (int i = 0; i < DATAGRAMS; i++) {
    parts[i] = (struct iovec){bytes[i], DATAGRAM_BYTES};
    messages[i].msg_hdr.msg_iov = &parts[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  for (int got = DATAGRAMS; got == DATAGRAMS && total < EVENTS_PER_ROUND; total += got > 0 ? got : 0) {
    got = recvmmsg(mnl_socket_get_fd(socket), messages, DATAGRAMS, MSG_DONTWAIT, NULL);
    make_room();
    if (got < 0 && errno == ENOBUFS) {
      *how |= OVERRAN;
      got = DATAGRAMS; /* what was kept is still there to be read */
      total -= DATAGRAMS;
      continue;
    }
    if (got < DATAGRAMS) *how |= DRAINED;
    for (int i = 0; i < got; i++) {
      make_room();
      if (messages[i].msg_hdr.msg_flags & MSG_TRUNC) *how |= OVERRAN;
      else mnl_cb_run(bytes[i], messages[i].msg_len, 0, 0, callback, NULL);
    }
  }
  return total;
}

/* After an overrun the kernel goes on dropping, silently, until the socket has been read to its end: a dump before that would
 * miss what comes after it. So it is told then; and now and then if that does not happen. */
static int drain_events(void) {
  uint64_t before = ct_now_ns();
  int how = 0, events = drain(ct.events, on_event, &how);
  if ((how & OVERRAN) && !ct.lost_ns) ct.lost_ns = before;
  if (ct.lost_ns && ((how & DRAINED) || before - ct.lost_ns > LOST_NS)) {
    make_room();
    struct sluice_flow *lost = stage_append(SLUICE_LOST);
    lost->start_ns = ct.heard_ns;
    lost->event_ns = ct_now_ns();
    ct.lost_ns = how & DRAINED ? 0 : before;
  }
  if (how & DRAINED) ct.heard_ns = before;
  return events;
}

static void drain_nft(void) {
  int how = 0;
  drain(ct.nft, on_nft, &how);
  if (!(how & OVERRAN)) return;
  make_room();
  stage_append(SLUICE_NFT_CHANGED);
}

static void end_dump(int error) {
  struct sluice_flow *end = stage_append(SLUICE_DUMP_END);
  end->request = ct.dumping;
  end->error = (uint32_t)error;
  ct.dumping = 0;
}

/* A dump's datagrams hold many entries each, up to 32 KiB, and the last one says so. */
static void drain_dump(void) {
  static char buffer[64 * 1024];
  for (;;) {
    ssize_t got = recv(mnl_socket_get_fd(ct.dumps), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return end_dump(errno);
    int result = mnl_cb_run(buffer, (size_t)got, 0, 0, on_dumped, NULL);
    if (result <= MNL_CB_STOP) return end_dump(result < 0 ? errno : 0);
  }
}

static void start_dump(void) {
  pthread_mutex_lock(&ct.wish);
  uint32_t wanted = ct.dump_wanted;
  ct.dump_wanted = 0;
  ct.listed = ct.ended_wanted;
  pthread_mutex_unlock(&ct.wish);
  if (!wanted) return;
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  struct nlmsghdr *message = ct_start_message(buffer, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_UNSPEC);
  mnl_attr_put_u32(message, CTA_MARK, htonl(ct.base));
  mnl_attr_put_u32(message, CTA_MARK_MASK, htonl(ct.mask));
  ct.dumping = (uint16_t)(wanted - 1);
  if (mnl_socket_sendto(ct.dumps, message, message->nlmsg_len) < 0) end_dump(errno);
}

static void *run(void *unused) {
  (void)unused;
  struct pollfd wait[4] = {
      {.fd = mnl_socket_get_fd(ct.events), .events = POLLIN},
      {.fd = mnl_socket_get_fd(ct.nft), .events = POLLIN},
      {.fd = mnl_socket_get_fd(ct.dumps), .events = POLLIN},
      {.fd = ct.wake, .events = POLLIN},
  };
  int wait_ms = -1;
  while (!ct.stopping) {
    if (poll(wait, 4, wait_ms) < 0 && errno != EINTR) break;
    uint64_t woken;
    if (wait[3].revents && read(ct.wake, &woken, sizeof woken) < 0) woken = 0;
    if (!ct.dumping) start_dump();
    int events = drain_events();
    read_ended();
    drain_nft();
    if (ct.dumping) drain_dump();
    wait_ms = stage_flush(events < REST_FROM);
    /* Not on the first event after quiet, only when there are many: the rest makes the next round larger. */
    if (events >= REST_FROM) nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
  }
  return NULL;
}

/* ---- start and stop ---- */

static struct mnl_socket *open_socket(unsigned groups, int receive_buffer, int filtered) {
  struct mnl_socket *socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
  if (!socket) return NULL;
  int fd = mnl_socket_get_fd(socket);
  /* Above rmem_max only with CAP_NET_ADMIN in the first user namespace; the plain option takes what it gets. */
  if (receive_buffer && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof receive_buffer) < 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  /* The filter stands before the groups are joined: not one foreign event gets in. */
  if ((filtered && ct_attach_filter(fd, ct.base, ct.mask) < 0) || mnl_socket_bind(socket, groups, MNL_SOCKET_AUTOPID) < 0) {
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
  pthread_mutex_init(&ct.wish, NULL);
  ct.heard_ns = ct_now_ns();
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
  stage_open(events_fd, ct.wake, &ct.stopping);
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

int sluice_ct_dump(uint16_t request, const struct sluice_ct_ended *ended) {
  static const struct sluice_ct_ended none = {.started_ns = UINT64_MAX};
  if (!ct.events) return -ENOTCONN;
  pthread_mutex_lock(&ct.wish);
  ct.dump_wanted = (uint32_t)request + 1;
  ct.ended_wanted = ended ? *ended : none;
  pthread_mutex_unlock(&ct.wish);
  return eventfd_write(ct.wake, 1) < 0 ? -errno : 0;
}

int sluice_ct_stop(void) {
  if (!ct.events) return 0;
  ct.stopping = 1;
  eventfd_write(ct.wake, 1);
  pthread_join(ct.thread, NULL);
  close_sockets();
  close(ct.wake);
  close(ct.out);
  return 0;
}
