/* Outbound connections that can be given up: a non-blocking connect() whose descriptor exists from the first moment, so
 * that closing it takes the SYN back. Bun's own connect can be neither timed out nor aborted. */
#define _GNU_SOURCE
#include "sluice.h"
#include "relay_parts.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(int fd, const struct sockaddr *to, socklen_t length) {
  if (connect(fd, to, length) == 0 || errno == EINPROGRESS) return fd;
  int error = errno;
  close(fd);
  return -error;
}

/* The source is bound without a port, so that the kernel may choose one that is free towards this target alone. */
static int bind_from(int fd, const char *from) {
  struct sockaddr_in v4 = {.sin_family = AF_INET};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
  int one = 1, is4 = inet_pton(AF_INET, from, &v4.sin_addr) == 1;
  if (!is4 && inet_pton(AF_INET6, from, &v6.sin6_addr) != 1) return -EINVAL;
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  int result = is4 ? bind(fd, (struct sockaddr *)&v4, sizeof v4) : bind(fd, (struct sockaddr *)&v6, sizeof v6);
  return result < 0 ? -errno : 0;
}

int sluice_connect(const char *address, uint16_t port) { return sluice_connect_from(address, port, NULL); }

int sluice_connect_from(const char *address, uint16_t port, const char *from) { return sluice_connect_saying(address, port, from, 0); }

int sluice_connect_saying(const char *address, uint16_t port, const char *from, int at_once) {
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  int is4 = inet_pton(AF_INET, address, &v4.sin_addr) == 1;
  if (!is4 && inet_pton(AF_INET6, address, &v6.sin6_addr) != 1) return -EINVAL;
  int fd = socket(is4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  /* The ACK that ends the handshake then goes out with the first bytes. */
  int zero = 0;
  if (at_once) setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &zero, sizeof zero);
  int bound = from ? bind_from(fd, from) : 0;
  if (bound < 0) {
    close(fd);
    return bound;
  }
  return is4 ? connect_to(fd, (struct sockaddr *)&v4, sizeof v4) : connect_to(fd, (struct sockaddr *)&v6, sizeof v6);
}

int sluice_connect_unix(const char *path) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof to.sun_path) return -EINVAL;
  memcpy(to.sun_path, path, length);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  /* A full backlog answers EAGAIN at once: a unix socket has no connect in progress. */
  return connect_to(fd, (struct sockaddr *)&to, sizeof to);
}

/* How long the kernel waits at most between two attempts to get data through, since Linux 6.15. */
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#endif
/* net.ipv4.tcp_retries2: the attempts after which it gives up. */
enum { RETRIES = 15, RTO_MS_MIN = 1000, RTO_MS_MAX = 120000 };

/* While data waits for its acknowledgement keepalive is silent, and retransmission takes 15 minutes to give up. With its
 * pauses this short it takes about as long as keepalive would. Not TCP_USER_TIMEOUT: that one also ends a peer that is there
 * and answers, but takes nothing for so long (measured: a reader that pauses is cut). A kernel without the option: 15 minutes. */
static void bound_retransmission(int fd, int64_t limit_s) {
  int64_t ms = limit_s * 1000 / RETRIES;
  int pause_ms = ms < RTO_MS_MIN ? RTO_MS_MIN : ms > RTO_MS_MAX ? RTO_MS_MAX : (int)ms;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, &pause_ms, sizeof pause_ms);
}

int sluice_keepalive(int fd, int idle_s, int interval_s, int count) {
  int on = idle_s > 0;
  if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) < 0) return -errno;
  if (!on) return 0;
  if (setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s) < 0 ||
      setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s) < 0 ||
      setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count) < 0)
    return -errno;
  bound_retransmission(fd, idle_s + (int64_t)interval_s * count);
  return 0;
}
