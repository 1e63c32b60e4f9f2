/* The backend of the benchmark: reads a request of a known length, answers with a known number of bytes, closes first.
 *
 *   load-server PORT:ANSWER_BYTES:REQUEST_BYTES[:hold]...
 *
 * With `hold` it leaves closing to the client. Else it closes first so that TIME_WAIT stays here, where no new connection needs the port. The answer comes from a memory
 * file by sendfile, without a copy: whatever this program spends would blur the difference between two gateways. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTENERS_MAX = 8, DESCRIPTORS_MAX = 65536, PAGE_BYTES = 4 << 20, EVENTS = 256 };

struct service {
  int fd;
  uint64_t answer_bytes;
  uint64_t request_bytes;
  int hold;
};

/* One per descriptor number, so that nothing is allocated per connection. */
static struct connection {
  struct service *service; /* NULL: a listener's own descriptor */
  uint64_t answered;
  uint64_t requested;
} connections[DESCRIPTORS_MAX];

static struct service services[LISTENERS_MAX];
static int service_count, ep, content;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void serve(const char *text) {
  struct service *s = &services[service_count++];
  unsigned port;
  unsigned long long answer, asked;
  char hold[8] = "";
  int fields = sscanf(text, "%u:%llu:%llu:%7s", &port, &answer, &asked, hold);
  if (fields < 3 || (fields == 4 && strcmp(hold, "hold") != 0)) {
    fprintf(stderr, "not PORT:ANSWER_BYTES:REQUEST_BYTES[:hold]: %s\n", text);
    exit(2);
  }
  s->answer_bytes = answer;
  s->request_bytes = asked;
  s->hold = fields == 4;
  s->fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(s->fd, (struct sockaddr *)&address, sizeof address) || listen(s->fd, 8192)) die("listen");
  struct epoll_event event = {.events = EPOLLIN, .data.fd = s->fd};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &event)) die("epoll_ctl");
}

static void advance(int fd) {
  struct connection *c = &connections[fd];
  while (c->requested < c->service->request_bytes) {
    ssize_t n = recv(fd, NULL, 8 << 20, MSG_TRUNC);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) goto over;
    c->requested += n;
  }
  while (c->answered < c->service->answer_bytes) {
    uint64_t left = c->service->answer_bytes - c->answered;
    off_t from = c->answered % PAGE_BYTES;
    size_t count = left < (uint64_t)(PAGE_BYTES - from) ? left : (size_t)(PAGE_BYTES - from);
    ssize_t n = sendfile(fd, content, &from, count);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) goto over;
    c->answered += n;
  }
  while (c->service->hold) {
    ssize_t n = recv(fd, NULL, 8 << 20, MSG_TRUNC);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) break;
  }
over:
  close(fd);
}

static void welcome(struct service *s) {
  for (;;) {
    int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (fd >= DESCRIPTORS_MAX) {
      close(fd);
      continue;
    }
    connections[fd] = (struct connection){.service = s};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
  }
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  ep = epoll_create1(EPOLL_CLOEXEC);
  content = memfd_create("answer", MFD_CLOEXEC);
  static char block[PAGE_BYTES];
  if (content < 0 || write(content, block, sizeof block) != sizeof block) die("memfd");
  if (argc < 2 || argc - 1 > LISTENERS_MAX) {
    fprintf(stderr, "usage: load-server PORT:ANSWER_BYTES:REQUEST_BYTES[:hold]...\n");
    return 2;
  }
  for (int i = 1; i < argc; i++) serve(argv[i]);
  for (;;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (connections[fd].service) {
        advance(fd);
        continue;
      }
      for (int k = 0; k < service_count; k++)
        if (services[k].fd == fd) welcome(&services[k]);
    }
  }
}
