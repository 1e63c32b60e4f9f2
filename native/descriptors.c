/* Sockets and descriptors that Bun has no call for: listening sockets with our own backlog, held UDP ports,
 * descriptor passing, raw SYN. */
#define _GNU_SOURCE
#include "sluice.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

int sluice_socketpair(int type, int32_t fds[2]) {
  int pair[2];
  if (socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0) return -errno;
  fds[0] = pair[0];
  fds[1] = pair[1];
  return 0;
}

static int parse_address(const char *address, uint16_t port, struct sockaddr_storage *out, socklen_t *length) {
  memset(out, 0, sizeof *out);
  struct sockaddr_in *v4 = (struct sockaddr_in *)out;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
  if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    *length = sizeof *v4;
    return AF_INET;
  }
  if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    *length = sizeof *v6;
    return AF_INET6;
  }
  return -EINVAL;
}

/* A socket bound to the address; "::" is both families. shared: others that agree may have the port on other addresses. */
static int bind_at(int type, const char *address, uint16_t port, int shared) {
  struct sockaddr_storage at;
  socklen_t length;
  int family = parse_address(address, port, &at, &length);
  if (family < 0) return family;
  int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0 && family == AF_INET6 && strcmp(address, "::") == 0 && errno == EAFNOSUPPORT)
    return bind_at(type, "0.0.0.0", port, shared); /* a machine without IPv6 */
  if (fd < 0) return -errno;
  int one = 1, v6only = strcmp(address, "::") != 0;
  /* With UDP it would let two programs have the same address and port. */
  if (type == SOCK_STREAM) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (shared) setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof v6only);
  if (bind(fd, (struct sockaddr *)&at, length) < 0) {
    int error = errno;
    close(fd);
    if (error == EADDRNOTAVAIL && strcmp(address, "::") == 0) return bind_at(type, "0.0.0.0", port, shared);
    return -error;
  }
  return fd;
}

static int listen_at(const char *address, uint16_t port, int backlog, int shared) {
  int fd = bind_at(SOCK_STREAM, address, port, shared);
  if (fd < 0 || listen(fd, backlog) == 0) return fd;
  int error = errno;
  close(fd);
  return -error;
}

int sluice_listen(const char *address, uint16_t port, int backlog) { return listen_at(address, port, backlog, 0); }

static void share(const int *fds, int count, int on) {
  for (int i = 0; i < count; i++) setsockopt(fds[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
}

int sluice_listen_beside(const char *address, uint16_t port, int backlog, const int *fds, int count) {
  share(fds, count, 1);
  int fd = listen_at(address, port, backlog, 1);
  share(fds, count, 0);
  if (fd >= 0) share(&fd, 1, 0);
  return fd;
}

int sluice_reserve_udp(const char *address, uint16_t port, const int *fds, int count) {
  share(fds, count, 1);
  int fd = bind_at(SOCK_DGRAM, address, port, count > 0);
  share(fds, count, 0);
  if (fd < 0) return fd;
  int smallest = 1;
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &smallest, sizeof smallest);
  share(&fd, 1, 0);
  return fd;
}

int sluice_port(int fd) {
  struct sockaddr_storage at;
  socklen_t length = sizeof at;
  if (getsockname(fd, (struct sockaddr *)&at, &length) < 0) return -errno;
  if (at.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&at)->sin_port);
  if (at.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&at)->sin6_port);
  return -EAFNOSUPPORT;
}

int sluice_dup(int fd) {
  int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return copy < 0 ? -errno : copy;
}

int sluice_close(int fd) { return close(fd) < 0 ? -errno : 0; }

int sluice_flock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0; }

/* The kernel gives the lowest number that is free: asking for each in turn costs as many calls as are wanted, not as there
 * are descriptors. */
int sluice_descriptors_free(int any, int below, int enough) {
  int found = 0;
  for (int from = 0; found < enough && from < below; found++) {
    int fd = fcntl(any, F_DUPFD_CLOEXEC, from);
    if (fd < 0) return errno == EMFILE || errno == EINVAL ? found : -errno;
    close(fd);
    if (fd >= below) return found;
    from = fd + 1;
  }
  return found;
}

int sluice_send_fd(int sock, uint32_t tag, int fd) {
  union { char buffer[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
  struct iovec part = {&tag, sizeof tag};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof control.buffer};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(sock, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int sluice_recv_fd(int sock, uint32_t *tag) {
  union { char buffer[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
  struct iovec part = {tag, sizeof *tag};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof control.buffer};
  ssize_t got = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return -errno;
  if (got == 0) return -EPIPE;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (got != sizeof *tag || !header || header->cmsg_type != SCM_RIGHTS) return -EBADMSG;
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

int sluice_raise_nofile(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -errno;
  /* Root may raise its hard limit up to nr_open; everyone may raise the soft limit to the hard one. */
  rlim_t wanted = 1048576;
  struct rlimit high = {wanted, limit.rlim_max > wanted ? limit.rlim_max : wanted};
  if (setrlimit(RLIMIT_NOFILE, &high) == 0) return (int)wanted;
  limit.rlim_cur = limit.rlim_max > wanted ? wanted : limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : (int)limit.rlim_cur;
}

static uint32_t add16(uint32_t sum, const void *data, size_t n) {
  const uint8_t *byte = data;
  for (; n > 1; n -= 2, byte += 2) sum += (uint32_t)(byte[0] << 8 | byte[1]);
  return sum;
}

int sluice_send_syn(int family, const uint8_t *src, uint16_t sport, const uint8_t *dst, uint16_t dport) {
  size_t width = family == 4 ? 4 : 16;
  struct tcphdr tcp = {.source = htons(sport), .dest = htons(dport), .seq = htonl(1), .doff = 5, .syn = 1, .window = htons(1024)};
  uint32_t sum = add16(add16(IPPROTO_TCP + sizeof tcp, src, width), dst, width);
  sum = add16(sum, &tcp, sizeof tcp);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  tcp.check = htons((uint16_t)~sum);

  int fd = socket(family == 4 ? AF_INET : AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  if (fd < 0) return -errno;
  struct sockaddr_storage from = {0}, to = {0};
  socklen_t length;
  /* The source is an address that is ours on one side only (the listener towards the client, the masqueraded one towards
   * the target) and may not be ours at all with preserveSourceIp: bind needs the transparent option then. */
  int one = 1;
  if (family == 4) {
    setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof one);
    struct sockaddr_in *a = (struct sockaddr_in *)&from, *b = (struct sockaddr_in *)&to;
    a->sin_family = b->sin_family = AF_INET;
    memcpy(&a->sin_addr, src, 4);
    memcpy(&b->sin_addr, dst, 4);
    length = sizeof *a;
  } else {
    setsockopt(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, &one, sizeof one);
    struct sockaddr_in6 *a = (struct sockaddr_in6 *)&from, *b = (struct sockaddr_in6 *)&to;
    a->sin6_family = b->sin6_family = AF_INET6;
    memcpy(&a->sin6_addr, src, 16);
    memcpy(&b->sin6_addr, dst, 16);
    length = sizeof *a;
  }
  int error = 0;
  if (bind(fd, (struct sockaddr *)&from, length) < 0 || sendto(fd, &tcp, sizeof tcp, 0, (struct sockaddr *)&to, length) < 0) error = errno;
  close(fd);
  return -error;
}
