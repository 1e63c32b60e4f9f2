/* The bulk TLS client of the benchmark: keeps N connections busy for some seconds, TLS 1.3 only.
 *
 *   tls-load HOST PORT CONNECTIONS download|upload SERVER_NAME WARMUP_SECONDS SECONDS < request
 *
 * download: one answer that does not end; upload: one request that does not. Prints what load prints. Every subject is
 * asked for the same cipher and group, and nothing is verified: only the servers are compared. Of a download the first
 * bytes are decrypted, which shows that they can be; the rest is counted as it comes from the network (22 bytes of a
 * record of 16 KiB are TLS's own). */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/epoll.h>

enum { CONNECTIONS_MAX = 4096, DECRYPTED_BYTES_MIN = 1 << 20, RECORD_BYTES = 16384 };

static struct connection {
  int fd;
  SSL *ssl;
  int sent;
  uint64_t started_ns, got;
} connections[CONNECTIONS_MAX];

static int uploading, ep;
static const char *server_name;
static SSL_CTX *context;
static uint64_t finished, failed, bytes, in_a_row;
static char last_error[256];

static void begin(struct connection *c) {
  *c = (struct connection){.started_ns = now_ns()};
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  /* As every client of TLS: the request follows the end of the handshake, which not every server answers at once. */
  if (c->fd < 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int))) die("socket");
  if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS) die("connect");
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
  c->ssl = SSL_new(context);
  if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) die("SSL_new");
  SSL_set_tlsext_host_name(c->ssl, server_name);
  SSL_set_connect_state(c->ssl);
}

static void over(struct connection *c, const char *problem) {
  if (problem || !c->got) {
    failed++;
    unsigned long code = ERR_peek_last_error();
    if (code) ERR_error_string_n(code, last_error, sizeof last_error);
    else snprintf(last_error, sizeof last_error, "%s", problem ? problem : "closed without an answer");
    if (++in_a_row > FAILURES_MAX) {
      fprintf(stderr, "every connection fails: %s\n", last_error);
      exit(1);
    }
  } else {
    finished++;
    in_a_row = 0;
  }
  ERR_clear_error();
  SSL_free(c->ssl);
  close(c->fd);
  begin(c);
}

/* Of an SSL call that did not do its work: it has to wait, or the connection is over. */
static void wait_or_end(struct connection *c, int result) {
  int what = SSL_get_error(c->ssl, result);
  if (what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE) return;
  over(c, what == SSL_ERROR_ZERO_RETURN ? NULL : what == SSL_ERROR_SYSCALL && errno ? strerror(errno) : "TLS error");
}

static void advance(struct connection *c) {
  static char block[RECORD_BYTES];
  errno = 0;
  if (!c->sent) {
    int result = SSL_write(c->ssl, request, request_bytes);
    if (result <= 0) {
      wait_or_end(c, result);
      return;
    }
    c->sent = 1;
  }
  /* A fast peer never lets this loop run dry: other connections wait for their turn at most this long. Readiness is an
   * edge, so whoever stops on its own account asks to be told once more. */
  for (int turn = 0; turn < 64; turn++) {
    ssize_t n;
    if (!uploading && c->got >= DECRYPTED_BYTES_MIN) {
      n = recv(c->fd, NULL, 8 << 20, MSG_TRUNC);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        over(c, n < 0 ? strerror(errno) : NULL);
        return;
      }
    } else {
      n = uploading ? SSL_write(c->ssl, block, sizeof block) : SSL_read(c->ssl, block, sizeof block);
      if (n <= 0) {
        wait_or_end(c, (int)n);
        return;
      }
    }
    if (!c->got) note_latency(c->started_ns);
    c->got += n;
    bytes += n;
  }
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &event);
}

static void run_until(uint64_t deadline_ns) {
  for (uint64_t now; (now = now_ns()) < deadline_ns;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, (int)((deadline_ns - now) / 1000000) + 1);
    for (int i = 0; i < n; i++) advance(events[i].data.ptr);
  }
}

static void prepare(void) {
  context = SSL_CTX_new(TLS_client_method());
  if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
      !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set1_groups_list(context, "X25519"))
    die("SSL_CTX_new");
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

int main(int argc, char **argv) {
  uploading = argc > 4 && strcmp(argv[4], "upload") == 0;
  if (argc != 8 || (!uploading && strcmp(argv[4], "download") != 0)) {
    fprintf(stderr, "usage: tls-load HOST PORT CONNECTIONS download|upload SERVER_NAME WARMUP_SECONDS SECONDS < request\n");
    return 2;
  }
  set_target(argv[1], argv[2]);
  int count = atoi(argv[3]);
  server_name = argv[5];
  if (count < 1 || count > CONNECTIONS_MAX) return fprintf(stderr, "1 to %d connections\n", CONNECTIONS_MAX), 2;
  read_request();
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN); /* SSL_write knows no MSG_NOSIGNAL */
  prepare();

  ep = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < count; i++) begin(&connections[i]);
  run_until(now_ns() + (uint64_t)(atof(argv[6]) * 1e9));

  finished = failed = bytes = 0;
  memset(latency, 0, sizeof latency);
  puts("measuring");
  fflush(stdout);
  double busy = busy_seconds();
  uint64_t start = now_ns();
  run_until(start + (uint64_t)(atof(argv[7]) * 1e9));
  double seconds = (now_ns() - start) / 1e9;
  busy = busy_seconds() - busy;

  printf("{\"seconds\":%.3f,\"connections\":%llu,\"failed\":%llu,\"bytes\":%llu,\"busySeconds\":%.2f,\"p50us\":%d,\"p99us\":%d",
         seconds, (unsigned long long)finished, (unsigned long long)failed, (unsigned long long)bytes, busy,
         percentile(0.50), percentile(0.99));
  printf(",\"lastError\":\"%s\"}\n", failed ? last_error : "");
  return 0;
}
