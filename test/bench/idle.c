/* The client that does nothing: opens N connections, each of which has sent the request and heard the first of the answer,
 * and keeps them.
 *
 *   idle HOST PORT CONNECTIONS < request
 *
 * Prints the line "open" when all of them are, and on SIGTERM how many still were. */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>

/* So many are on their way at a time: more would fill the accept queue. */
enum { CONNECTIONS_MAX = 50000, AT_ONCE = 256, OPENING_SECONDS_MAX = 30 };

static struct connection {
  int fd;
  int sent;
} connections[CONNECTIONS_MAX];
static int ep, count;

static void begin(struct connection *c) {
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
  if (c->fd < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event)) die("socket");
  if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS) die("connect");
}

/* 1: the first of the answer is here. */
static int advance(struct connection *c) {
  if (!c->sent) {
    if (send(c->fd, request, request_bytes, MSG_NOSIGNAL) != request_bytes) {
      if (errno == EAGAIN || errno == ENOTCONN) return 0;
      die("send");
    }
    c->sent = 1;
  }
  char answer[4096];
  ssize_t n = recv(c->fd, answer, sizeof answer, 0);
  if (n < 0 && errno == EAGAIN) return 0;
  if (n > 0) return 1;
  fprintf(stderr, "a connection ended before it was idle: %s\n", n < 0 ? strerror(errno) : "closed");
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: idle HOST PORT CONNECTIONS < request\n"), 2;
  set_target(argv[1], argv[2]);
  count = atoi(argv[3]);
  if (count < 1 || count > CONNECTIONS_MAX) return fprintf(stderr, "1 to %d connections\n", CONNECTIONS_MAX), 2;
  read_request();
  raise_descriptor_limit();
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, NULL);
  ep = epoll_create1(EPOLL_CLOEXEC);

  int begun = 0, idle = 0;
  uint64_t deadline_ns = now_ns() + OPENING_SECONDS_MAX * 1000000000ull;
  while (idle < count) {
    while (begun < count && begun - idle < AT_ONCE) begin(&connections[begun++]);
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, 1000);
    if (now_ns() > deadline_ns) {
      fprintf(stderr, "only %d connections were open after %d s\n", idle, OPENING_SECONDS_MAX);
      return 1;
    }
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (!advance(c)) continue;
      idle++;
      epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
    }
  }
  puts("open");
  fflush(stdout);
  int signal_number, open = 0;
  sigwait(&term, &signal_number);
  for (int i = 0; i < count; i++) {
    char byte;
    ssize_t n = recv(connections[i].fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    open += n > 0 || (n < 0 && errno == EAGAIN);
  }
  printf("%d\n", open);
  return 0;
}
