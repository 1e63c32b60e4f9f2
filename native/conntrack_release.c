/* Lets go of UDP flows that conntrack took for this machine's own before a route was there: each packet of them keeps their
 * entry alive, and NAT is decided on a flow's first packet only, so a client that never falls silent would never reach the
 * route's target. A thread of its own, because a dump takes its time; one at a time. */
#define _GNU_SOURCE
#include "conntrack_parts.h"
#include "sluice.h"
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define AT_ONCE 256 /* deleted after each look: what is left over comes with the next */
#define LOOKS_MAX 256

struct job {
  int count, found;
  struct sluice_flow flows[AT_ONCE];
  struct sluice_udp_listen listens[];
};

static _Atomic int busy;

static int is_wanted(const struct job *job, const struct sluice_flow *flow) {
  if (flow->protocol != IPPROTO_UDP || (flow->status & IPS_DST_NAT)) return 0;
  for (int i = 0; i < job->count; i++) {
    const struct sluice_udp_listen *listen = &job->listens[i];
    if (listen->family == flow->family && flow->orig_dport >= listen->from && flow->orig_dport <= listen->to &&
        memcmp(listen->address, flow->orig_dst, listen->family == 4 ? 4 : 16) == 0)
      return 1;
  }
  return 0;
}

static int on_entry(const struct nlmsghdr *message, void *data) {
  struct job *job = data;
  struct sluice_flow flow = {0};
  ct_parse_flow(message, &flow);
  if (job->found < AT_ONCE && is_wanted(job, &flow)) job->flows[job->found++] = flow;
  return MNL_CB_OK;
}

/* Messages until the answer to the request ends; -1 when the socket fails. */
static int receive(struct mnl_socket *socket, mnl_cb_t callback, void *data) {
  char buffer[32768];
  for (;;) {
    ssize_t got = mnl_socket_recvfrom(socket, buffer, sizeof buffer);
    if (got < 0) return -1;
    int result = mnl_cb_run(buffer, (size_t)got, 0, mnl_socket_get_portid(socket), callback, data);
    if (result <= MNL_CB_STOP) return result;
  }
}

static void release(struct mnl_socket *socket, struct job *job, uint8_t family) {
  char buffer[MNL_SOCKET_BUFFER_SIZE];
  for (int look = 0; look < LOOKS_MAX; look++) {
    job->found = 0;
    struct nlmsghdr *message = ct_start_message(buffer, IPCTNL_MSG_CT_GET, NLM_F_DUMP, family);
    if (mnl_socket_sendto(socket, message, message->nlmsg_len) < 0 || receive(socket, on_entry, job) < 0) return;
    for (int i = 0; i < job->found; i++) {
      message = ct_start_message(buffer, IPCTNL_MSG_CT_DELETE, NLM_F_ACK, family);
      ct_put_tuple(message, &job->flows[i]);
      /* An error means that it has gone by itself. */
      if (mnl_socket_sendto(socket, message, message->nlmsg_len) >= 0) receive(socket, NULL, NULL);
    }
    if (job->found < AT_ONCE) return;
  }
}

static void *run(void *data) {
  struct job *job = data;
  struct mnl_socket *socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
  if (socket && mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) == 0) {
    release(socket, job, AF_INET);
    release(socket, job, AF_INET6);
  }
  if (socket) mnl_socket_close(socket);
  free(job);
  atomic_store(&busy, 0);
  return NULL;
}

int sluice_ct_release_udp(const struct sluice_udp_listen *listens, int count) {
  if (atomic_exchange(&busy, 1)) return -EBUSY;
  struct job *job = malloc(sizeof *job + (size_t)count * sizeof *listens);
  pthread_t thread;
  if (!job) goto failed;
  job->count = count;
  memcpy(job->listens, listens, (size_t)count * sizeof *listens);
  if (pthread_create(&thread, NULL, run, job) != 0) goto failed;
  pthread_detach(thread);
  return 0;
failed:
  free(job);
  atomic_store(&busy, 0);
  return -ENOMEM;
}
