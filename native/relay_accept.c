/* Clients that are accepted here: the listeners, the first bytes that somebody else decides by, and the way to a target.
 * Nothing is decided in this file. A client is read once, what it said is told, and it waits until it is told to read on, to
 * dial, or to let go; so what a client sends before it has a target stays in its socket, and no more than a message is in
 * our hands. Everything but relay_prepare_listener runs in the relay thread. */
#define _GNU_SOURCE
#include "sluice.h"
#include "relay_parts.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* How far accepting goes: to so many pairs, and to descriptors below that. */
atomic_uint relay_accept_pairs = RELAY_PAIRS_MAX;
atomic_int relay_accept_below = INT_MAX;

static int epoll;
static bool accepting;
static int64_t paused_until_ms; /* 0: not paused */
static bool closing_waits;      /* for room to tell of it */

/* ---- listeners ---- */

int relay_prepare_listener(struct relay_listener *listener, int fd)
{
  int flags = fcntl(fd, F_GETFL), listens = 0;
  socklen_t size = sizeof listens;
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
    return -errno;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 || !listens)
    return -EINVAL;
  /* What is accepted inherits it: one call instead of one for each connection. */
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  listener->fd = fd;
  return 0;
}

void relay_accept_start(int epoll_fd)
{
  epoll = epoll_fd;
  accepting = relay_accept_pairs > 0;
  paused_until_ms = 0;
  closing_waits = false;
}

/* Level-triggered, so that what one round leaves is there in the next. */
static bool watch_listener(struct relay_listener *listener)
{
  struct epoll_event event = {.events = accepting ? EPOLLIN : 0, .data.u64 = (uint64_t)(uintptr_t)listener | RELAY_TOKEN_LISTENER};
  epoll_ctl(epoll, listener->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, listener->fd, &event);
  return listener->watched = true;
}

/* New ones are in front of all others. */
static bool watch_new_listener(struct relay_listener *listener)
{
  return !listener->watched && watch_listener(listener);
}

static void set_accepting(bool on)
{
  if (accepting == on)
    return;
  accepting = on;
  relay_each_listener(watch_listener);
}

static void close_listener(struct relay_listener *listener)
{
  /* Whoever shares the socket keeps it; here it must leave the set by name. */
  epoll_ctl(epoll, EPOLL_CTL_DEL, listener->fd, NULL);
  close(listener->fd);
  free(listener);
}

/* Some are new, some are to go, or accepting was switched. After the events of the round: none of them names a listener that
 * goes here. */
void relay_listeners_changed(void)
{
  set_accepting(relay_accept_pairs > 0 && paused_until_ms == 0);
  relay_each_listener(watch_new_listener);
  closing_waits = true;
  while (relay_reports_room()) {
    struct relay_listener *listener = relay_next_to_close(false);
    closing_waits = listener != NULL;
    if (!listener)
      return;
    relay_report_unlistened(listener->tag);
    close_listener(listener);
  }
}

void relay_accept_stop(void)
{
  for (struct relay_listener *listener; (listener = relay_next_to_close(true));)
    close_listener(listener);
}

/* The kernel queues meanwhile; a level-triggered listener would otherwise wake us for ever. */
static void pause_accepting(int64_t until_ms)
{
  paused_until_ms = until_ms;
  set_accepting(false);
}

/* When to come back; 0: not before something happens. */
int64_t relay_accept_due(void)
{
  return closing_waits ? 1 : paused_until_ms;
}

void relay_accept_again(int64_t now_ms)
{
  if (closing_waits)
    relay_listeners_changed();
  if (paused_until_ms == 0 || now_ms < paused_until_ms)
    return;
  if (!relay_reports_room()) {
    paused_until_ms = now_ms + 1; /* without a word to epoll about each listener, as going on in vain would cost */
    return;
  }
  paused_until_ms = 0;
  set_accepting(relay_accept_pairs > 0);
}

/* ---- a client arrives ---- */

static uint16_t end_of(const struct sockaddr_storage *at, uint8_t *family, uint8_t ip[16])
{
  const struct sockaddr_in *v4 = (const struct sockaddr_in *)at;
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)at;
  if (at->ss_family == AF_INET) {
    *family = 4;
    memcpy(ip, &v4->sin_addr, 4);
    return ntohs(v4->sin_port);
  }
  bool mapped = IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
  *family = mapped ? 4 : 6;
  memcpy(ip, mapped ? &v6->sin6_addr.s6_addr[12] : &v6->sin6_addr.s6_addr[0], mapped ? 4 : 16);
  return ntohs(v6->sin6_port);
}

static void welcome(int fd, const struct relay_listener *listener, const struct sockaddr_storage *peer)
{
  struct sockaddr_storage local;
  socklen_t size = sizeof local;
  struct sluice_relay_accepted ends = {0};
  struct relay_pair *pair = calloc(1, sizeof *pair);
  if (!pair || getsockname(fd, (struct sockaddr *)&local, &size) < 0) {
    free(pair);
    relay_close_socket(fd, true);
    return;
  }
  ends.local_port = end_of(&local, &ends.family, ends.local);
  ends.client_port = end_of(peer, &ends.family, ends.client);
  pair->fd[SLUICE_CLIENT] = fd;
  pair->fd[SLUICE_TARGET] = -1;
  pair->last_byte_ms = relay_coarse_ms();
  pair->readable[SLUICE_CLIENT] = true;
  pair->listening = listener->reads;
  for (int side = 0; side < 2; side++)
    pair->from[side].pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
  if (relay_enter_accepted(pair) < 0) {
    free(pair);
    relay_close_socket(fd, true);
    return;
  }
  relay_report_accepted(pair, listener->tag, &ends);
  int error = pair->closed ? 0 : relay_watch(fd, (uint64_t)(uintptr_t)pair | SLUICE_CLIENT);
  if (error)
    relay_finish(pair, SLUICE_CLIENT, error, true);
}

void relay_accept_some(struct relay_listener *listener, int64_t now_ms)
{
  for (int i = 0; i < RELAY_ACCEPTS_MAX && accepting; i++) {
    if (!relay_reports_room())
      return pause_accepting(now_ms + 1); /* TypeScript is behind: so are new clients */
    /* Many can come before TypeScript has heard of the first: each of them still needs a descriptor for its target. */
    if (relay_is_full())
      return pause_accepting(now_ms + RELAY_ACCEPT_PAUSE_MS);
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    int fd = accept4(listener->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      welcome(fd, listener, &peer);
      if (fd >= relay_accept_below)
        return pause_accepting(now_ms + RELAY_ACCEPT_PAUSE_MS);
    } else if (errno == EAGAIN)
      return;
    else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
      return pause_accepting(now_ms + RELAY_ACCEPT_PAUSE_MS);
    /* Anything else is about the one connection that is gone again. */
  }
}

/* ---- what it says first ---- */

/* Reads for whoever decides. Bytes: told, and not read on until that is asked for. */
ssize_t relay_listen_to(struct relay_pair *pair, void *into, size_t most)
{
  ssize_t n = recv(pair->fd[SLUICE_CLIENT], into, most, MSG_DONTWAIT);
  if (n > 0) {
    pair->listening = false;
    pair->readable[SLUICE_CLIENT] = (size_t)n == most || pair->hung_up[SLUICE_CLIENT] || pair->marked[SLUICE_CLIENT];
    pair->half_side = SLUICE_CLIENT;
    pair->half_pending |= pair->hung_up[SLUICE_CLIENT] && !pair->fin_told; /* it came with these bytes, and its edge was theirs */
  } else if (n == 0) {
    pair->listening = false;
    pair->half_side = SLUICE_CLIENT;
    pair->half_pending = true;
  } else if (errno == EAGAIN || errno == EINTR) {
    pair->readable[SLUICE_CLIENT] = errno == EINTR;
    pair->marked[SLUICE_CLIENT] = false;
  } else
    relay_finish(pair, SLUICE_CLIENT, errno, true);
  return n < 0 ? 0 : n;
}

void relay_read_on(struct relay_pair *pair)
{
  if (pair->phase != RELAY_ASKING)
    return;
  pair->listening = true;
  if (pair->readable[SLUICE_CLIENT])
    relay_report(pair, true);
}

/* ---- the way to a target ---- */

static void drop_target(struct relay_pair *pair)
{
  int fd = pair->fd[SLUICE_TARGET];
  if (fd < 0)
    return;
  epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
  relay_set_target(pair, -1);
  relay_close_socket(fd, true);
}

static void refused(struct relay_pair *pair, int error)
{
  drop_target(pair);
  pair->phase = RELAY_ASKING;
  pair->listening = false;
  pair->refusal = (uint16_t)error;
  pair->refused_pending = true;
  relay_report(pair, true);
}

/* What was seen of the client so far still holds; the target is new, and its first edges are these events. */
static void connected(struct relay_pair *pair, uint32_t events)
{
  pair->phase = RELAY_CARRYING;
  pair->half_pending = pair->refused_pending = false;
  pair->readable[SLUICE_TARGET] = (events & (EPOLLIN | EPOLLRDHUP)) != 0;
  pair->hung_up[SLUICE_TARGET] = (events & EPOLLRDHUP) != 0;
  pair->marked[SLUICE_TARGET] = (events & EPOLLPRI) != 0;
  pair->writable[SLUICE_CLIENT] = pair->writable[SLUICE_TARGET] = true;
  pair->connected_pending = true;
  relay_report(pair, false);
  relay_run_later(pair);
}

void relay_dial_target(struct relay_pair *pair, struct relay_dial *dial)
{
  if (pair->phase == RELAY_CARRYING) {
    free(dial->first);
    free(dial);
    return;
  }
  drop_target(pair);
  pair->refused_pending = false;
  if (dial->first) {
    free(pair->from[SLUICE_CLIENT].held);
    pair->from[SLUICE_CLIENT].held = dial->first;
  }
  pair->attempt = dial->attempt;
  if (dial->address[0] == 0) {
    free(dial);
    pair->phase = RELAY_ASKING;
    return;
  }
  bool path = dial->address[0] == '/';
  int fd = path ? sluice_connect_unix(dial->address)
                : sluice_connect_saying(dial->address, dial->port, dial->from[0] ? dial->from : NULL,
                                        pair->from[SLUICE_CLIENT].held != NULL);
  free(dial);
  if (fd < 0)
    return refused(pair, -fd);
  relay_set_target(pair, fd);
  pair->phase = RELAY_DIALING;
  pair->listening = false;
  int error = relay_watch(fd, (uint64_t)(uintptr_t)pair | SLUICE_TARGET);
  if (error)
    refused(pair, error);
  else if (path)
    connected(pair, EPOLLIN); /* it was connected before it was watched: try */
}

static void notice_client(struct relay_pair *pair, uint32_t events)
{
  if (events & (EPOLLERR | EPOLLHUP)) {
    int error = relay_socket_error(pair->fd[SLUICE_CLIENT]);
    return relay_finish(pair, SLUICE_CLIENT, error ? error : ECONNRESET, true);
  }
  pair->readable[SLUICE_CLIENT] |= (events & (EPOLLIN | EPOLLRDHUP)) != 0;
  pair->hung_up[SLUICE_CLIENT] |= (events & EPOLLRDHUP) != 0;
  pair->marked[SLUICE_CLIENT] |= (events & EPOLLPRI) != 0;
  if (pair->listening && pair->readable[SLUICE_CLIENT])
    return relay_report(pair, true);
  if (pair->hung_up[SLUICE_CLIENT] && !pair->fin_told) {
    pair->half_side = SLUICE_CLIENT;
    pair->half_pending = true;
    relay_report(pair, true);
  }
}

static void notice_target(struct relay_pair *pair, uint32_t events)
{
  if (pair->phase != RELAY_DIALING)
    return;
  if (events & (EPOLLERR | EPOLLHUP)) {
    int error = relay_socket_error(pair->fd[SLUICE_TARGET]);
    refused(pair, error ? error : ECONNREFUSED);
  } else if (events & EPOLLOUT)
    connected(pair, events);
}

void relay_notice_opening(struct relay_pair *pair, int side, uint32_t events)
{
  if (side == SLUICE_CLIENT)
    notice_client(pair, events);
  else
    notice_target(pair, events);
}
