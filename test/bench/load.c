/* The client of the benchmark: keeps N connections busy for some seconds. Each sends the request, reads the answer to its
 * end, closes, and makes room for the next. A short load has short answers; a bulk load has one that does not end.
 *
 *   load HOST PORT CONNECTIONS RECEIVE_BYTES WARMUP_SECONDS SECONDS < request
 *
 * Prints the line "measuring" when the warm-up is over, and one JSON object about the measured seconds. The busy time of
 * the whole machine is read here, at the two moments that bound the count, so that both are about the same seconds. Bytes
 * are thrown away unread (MSG_TRUNC), and a connection costs one epoll registration: the less this program spends, the
 * more of the machine is the gateway's. RECEIVE_BYTES is the receive buffer of each connection, 0 for what the kernel
 * finds best: small ones make senders wait. */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <sys/epoll.h>

enum { CONNECTIONS_MAX = 4096 };

static struct connection {
  int fd;
  int sent;
  uint64_t started_ns, got;
} connections[CONNECTIONS_MAX];

static int ep, receive_bytes;

static uint64_t finished, failed, bytes, in_a_row;
static uint64_t until_ns; /* end of the warm-up, then of the measurement */
static int last_errno;

static void begin(struct connection *c) {
  *c = (struct connection){.started_ns = now_ns()};
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (c->fd < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event)) die("socket");
  if (receive_bytes > 0) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
  /* A failure that shows at once (no free port, no route) has no event of its own. */
  if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS) die("connect");
}

/* The answer is whole when its sender has closed; without a single byte of it the connection has failed. */
static void over(struct connection *c, int error) {
  if (error || !c->got) {
    failed++;
    last_errno = error;
    if (++in_a_row > FAILURES_MAX) {
      fprintf(stderr, "every connection fails: %s\n", error ? strerror(error) : "closed without an answer");
      exit(1);
    }
  } else {
    finished++;
    in_a_row = 0;
  }
  close(c->fd);
  begin(c);
}

static void advance(struct connection *c) {
  if (!c->sent) {
    if (send(c->fd, request, request_bytes, MSG_NOSIGNAL) != request_bytes) {
      if (errno == EAGAIN || errno == ENOTCONN) return;
      over(c, errno);
      return;
    }
    c->sent = 1;
  }
  /* A fast sender never lets this loop run dry: the clock ends it. */
  while (now_ns() < until_ns) {
    ssize_t n = recv(c->fd, NULL, 8 << 20, MSG_TRUNC);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      over(c, n < 0 ? errno : 0);
      return;
    }
    if (!c->got) note_latency(c->started_ns);
    c->got += n;
    bytes += n;
  }
}

static void run_until(uint64_t deadline_ns) {
  until_ns = deadline_ns;
  for (uint64_t now; (now = now_ns()) < deadline_ns;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, (int)((deadline_ns - now) / 1000000) + 1);
    for (int i = 0; i < n; i++) advance(events[i].data.ptr);
  }
}

int main(int argc, char **argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: load HOST PORT CONNECTIONS RECEIVE_BYTES WARMUP_SECONDS SECONDS < request\n");
    return 2;
  }
  set_target(argv[1], argv[2]);
  int count = atoi(argv[3]);
  receive_bytes = atoi(argv[4]);
  if (count < 1 || count > CONNECTIONS_MAX) return fprintf(stderr, "1 to %d connections\n", CONNECTIONS_MAX), 2;
  read_request();
  raise_descriptor_limit();

  ep = epoll_create1(EPOLL_CLOEXEC);
  uint64_t start = now_ns() + (uint64_t)(atof(argv[5]) * 1e9);
  until_ns = start;
  for (int i = 0; i < count; i++) begin(&connections[i]);
  run_until(start);

  finished = failed = bytes = 0;
  memset(latency, 0, sizeof latency);
  puts("measuring");
  fflush(stdout);
  double busy = busy_seconds();
  start = now_ns();
  /* Events are edges: one that the end of the warm-up left half read would not be told again. */
  until_ns = start + (uint64_t)(atof(argv[6]) * 1e9);
  for (int i = 0; i < count; i++) advance(&connections[i]);
  run_until(until_ns);
  double seconds = (now_ns() - start) / 1e9;
  busy = busy_seconds() - busy;

  printf("{\"seconds\":%.3f,\"connections\":%llu,\"failed\":%llu,\"bytes\":%llu,\"busySeconds\":%.2f,\"p50us\":%d,\"p99us\":%d",
         seconds, (unsigned long long)finished, (unsigned long long)failed, (unsigned long long)bytes, busy,
         percentile(0.50), percentile(0.99));
  printf(",\"lastError\":\"%s\"}\n", failed ? last_errno ? strerror(last_errno) : "closed without an answer" : "");
  return 0;
}
