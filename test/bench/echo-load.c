/* The client of an echo: keeps N connections busy for some seconds.
 *
 *   echo-load HOST PORT CONNECTIONS MESSAGE_BYTES WARMUP_SECONDS SECONDS
 *
 * Each sends a message, waits for all of it to come back, and sends the next. With MESSAGE_BYTES 0 each sends as fast as
 * it can and reads what comes back. Prints what load prints, and the number of messages; the bytes are those that came
 * back, the times those of a message's way there and back. */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <sys/epoll.h>

enum { CONNECTIONS_MAX = 4096, MESSAGE_BYTES_MAX = 4096, BLOCK_BYTES = 65536 };

static struct connection {
  int fd;
  uint32_t got;
  uint64_t started_ns;
} connections[CONNECTIONS_MAX];

static uint32_t message_bytes;
static uint64_t messages, bytes;
static int ep;

static void say(struct connection *c) {
  c->got = 0;
  c->started_ns = now_ns();
  /* Nothing is under way, so there is room. */
  if (send(c->fd, request, message_bytes, MSG_NOSIGNAL) != (ssize_t)message_bytes) die("send");
}

static void begin(struct connection *c) {
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&target, target_size)) die("connect");
  /* Levels: a stream that could go on for ever has one turn, as everybody else. */
  struct epoll_event event = {.events = message_bytes ? EPOLLIN : EPOLLIN | EPOLLOUT, .data.ptr = c};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
  if (message_bytes) say(c);
}

static void hear(struct connection *c) {
  static char heard[MESSAGE_BYTES_MAX];
  ssize_t n = recv(c->fd, message_bytes ? heard : NULL, message_bytes ? message_bytes - c->got : 8 << 20,
                   MSG_DONTWAIT | (message_bytes ? 0 : MSG_TRUNC));
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    fprintf(stderr, "an echo ended: %s\n", n < 0 ? strerror(errno) : "closed");
    exit(1);
  }
  bytes += n;
  if (!message_bytes) return;
  if (memcmp(heard, request + c->got, n) != 0) {
    fprintf(stderr, "an echo of something else\n");
    exit(1);
  }
  if ((c->got += n) < message_bytes) return;
  messages++;
  note_latency(c->started_ns);
  say(c);
}

static void run_until(uint64_t deadline_ns) {
  static char block[BLOCK_BYTES];
  for (uint64_t now; (now = now_ns()) < deadline_ns;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, (int)((deadline_ns - now) / 1000000) + 1);
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (events[i].events & EPOLLOUT && send(c->fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN)
        die("send");
      if (events[i].events & ~EPOLLOUT) hear(c);
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: echo-load HOST PORT CONNECTIONS MESSAGE_BYTES WARMUP_SECONDS SECONDS\n");
    return 2;
  }
  set_target(argv[1], argv[2]);
  int count = atoi(argv[3]);
  message_bytes = atoi(argv[4]);
  if (count < 1 || count > CONNECTIONS_MAX || message_bytes > MESSAGE_BYTES_MAX)
    return fprintf(stderr, "1 to %d connections, messages of up to %d bytes\n", CONNECTIONS_MAX, MESSAGE_BYTES_MAX), 2;
  for (uint32_t i = 0; i < message_bytes; i++) request[i] = (char)i;
  ep = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < count; i++) begin(&connections[i]);
  run_until(now_ns() + (uint64_t)(atof(argv[5]) * 1e9));

  messages = bytes = 0;
  memset(latency, 0, sizeof latency);
  puts("measuring");
  fflush(stdout);
  double busy = busy_seconds();
  uint64_t start = now_ns();
  run_until(start + (uint64_t)(atof(argv[6]) * 1e9));
  double seconds = (now_ns() - start) / 1e9;
  busy = busy_seconds() - busy;

  printf("{\"seconds\":%.3f,\"connections\":%d,\"failed\":0,\"bytes\":%llu,\"messages\":%llu,\"busySeconds\":%.2f,"
         "\"p50us\":%d,\"p99us\":%d,\"lastError\":\"\"}\n",
         seconds, count, (unsigned long long)bytes, (unsigned long long)messages, busy, percentile(0.50), percentile(0.99));
  return 0;
}
