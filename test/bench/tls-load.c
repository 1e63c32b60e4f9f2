/* The TLS client of the benchmark: keeps N connections busy for some seconds, TLS 1.3 only.
 *
 *   tls-load HOST PORT CONNECTIONS MODE SERVER_NAME THREADS WARMUP_SECONDS SECONDS < request
 *
 *   full       each connection shakes hands anew, sends the request, reads the short answer to its end
 *   resumed    the same with the last ticket of its predecessor
 *   download   one answer that does not end
 *   upload     one request that does not end
 *
 * Prints what load prints, and how many of the counted connections were resumed. Every subject is asked for the same
 * cipher and group, and nothing is verified: only the servers are compared. A client spends as much on a handshake as
 * its server, so several threads make them. Of a download the first bytes are decrypted, which shows that they can be;
 * the rest is counted as it comes from the network (22 bytes of a record of 16 KiB are TLS's own). */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>

enum { CONNECTIONS_MAX = 4096, THREADS_MAX = 8, DECRYPTED_BYTES_MIN = 1 << 20, RECORD_BYTES = 16384 };

static struct connection {
  int fd;
  SSL *ssl;
  SSL_SESSION *session; /* the newest ticket: it outlives its connection */
  int shaken, sent;
  uint64_t started_ns, got;
} connections[CONNECTIONS_MAX];

static enum { FULL, RESUMED, DOWNLOAD, UPLOAD } mode;
static const char *server_name;
static int count, threads;

static struct figures {
  uint64_t finished, failed, bytes, resumed;
} now;
static uint64_t in_a_row;
static char last_error[256];
static int measuring;

static struct thread {
  pthread_t id;
  int ep, index;
  SSL_CTX *context;
} pool[THREADS_MAX];

static void add(uint64_t *counter, uint64_t n) { __atomic_fetch_add(counter, n, __ATOMIC_RELAXED); }

static struct figures snapshot(void) {
  return (struct figures){
      .finished = __atomic_load_n(&now.finished, __ATOMIC_RELAXED),
      .failed = __atomic_load_n(&now.failed, __ATOMIC_RELAXED),
      .bytes = __atomic_load_n(&now.bytes, __ATOMIC_RELAXED),
      .resumed = __atomic_load_n(&now.resumed, __ATOMIC_RELAXED),
  };
}

static int keep_session(SSL *ssl, SSL_SESSION *session) {
  struct connection *c = SSL_get_app_data(ssl);
  SSL_SESSION_free(c->session);
  c->session = session;
  return 1; /* the reference is ours */
}

static void begin(struct thread *t, struct connection *c) {
  *c = (struct connection){.session = c->session, .started_ns = now_ns()};
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (c->fd < 0 || epoll_ctl(t->ep, EPOLL_CTL_ADD, c->fd, &event)) die("socket");
  /* As every client of TLS: the request follows the end of the handshake, which not every server answers at once. */
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS) die("connect");
  c->ssl = SSL_new(t->context);
  if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) die("SSL_new");
  SSL_set_app_data(c->ssl, c);
  SSL_set_tlsext_host_name(c->ssl, server_name);
  SSL_set_connect_state(c->ssl);
  if (mode == RESUMED && c->session) SSL_set_session(c->ssl, c->session);
}

static void over(struct thread *t, struct connection *c, const char *problem) {
  if (problem || !c->got) {
    add(&now.failed, 1);
    unsigned long code = ERR_peek_last_error();
    if (code) ERR_error_string_n(code, last_error, sizeof last_error);
    else snprintf(last_error, sizeof last_error, "%s", problem ? problem : "closed without an answer");
    if (__atomic_add_fetch(&in_a_row, 1, __ATOMIC_RELAXED) > FAILURES_MAX) {
      fprintf(stderr, "every connection fails: %s\n", last_error);
      exit(1);
    }
  } else {
    add(&now.finished, 1);
    if (SSL_session_reused(c->ssl)) add(&now.resumed, 1);
    __atomic_store_n(&in_a_row, 0, __ATOMIC_RELAXED);
  }
  ERR_clear_error();
  /* Its ticket stays good, although nobody says goodbye. */
  SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
  SSL_free(c->ssl);
  close(c->fd);
  begin(t, c);
}

/* 1: has to wait; 0: over. */
static int wait_or_end(struct thread *t, struct connection *c, int result) {
  int what = SSL_get_error(c->ssl, result);
  if (what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE) return 1;
  over(t, c, what == SSL_ERROR_ZERO_RETURN ? NULL : what == SSL_ERROR_SYSCALL && errno ? strerror(errno) : "TLS error");
  return 0;
}

static void advance(struct thread *t, struct connection *c) {
  static char block[RECORD_BYTES];
  static __thread char plain[RECORD_BYTES];
  ERR_clear_error();
  errno = 0;
  if (!c->shaken) {
    int result = SSL_do_handshake(c->ssl);
    if (result != 1) {
      wait_or_end(t, c, result);
      return;
    }
    c->shaken = 1;
  }
  if (!c->sent) {
    int result = SSL_write(c->ssl, request, request_bytes);
    if (result <= 0) {
      wait_or_end(t, c, result);
      return;
    }
    c->sent = 1;
  }
  /* A fast peer never lets these loops run dry: other connections wait for their turn at most this long. Readiness is
   * an edge, so whoever stops on its own account asks to be told once more. */
  for (int turn = 0; turn < 64; turn++) {
    if (mode == UPLOAD) {
      int result = SSL_write(c->ssl, block, sizeof block);
      if (result <= 0) {
        wait_or_end(t, c, result);
        return;
      }
      c->got += result;
      add(&now.bytes, result);
      continue;
    }
    ssize_t n;
    if (mode == DOWNLOAD && c->got >= DECRYPTED_BYTES_MIN) {
      n = recv(c->fd, NULL, 8 << 20, MSG_TRUNC);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        over(t, c, n < 0 ? strerror(errno) : NULL);
        return;
      }
    } else {
      n = SSL_read(c->ssl, plain, sizeof plain);
      if (n <= 0) {
        wait_or_end(t, c, (int)n);
        return;
      }
    }
    if (!c->got && measuring) note_latency(c->started_ns);
    c->got += n;
    add(&now.bytes, n);
  }
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  epoll_ctl(t->ep, EPOLL_CTL_MOD, c->fd, &event);
}

static void *work(void *argument) {
  struct thread *t = argument;
  for (int i = t->index; i < count; i += threads) begin(t, &connections[i]);
  for (;;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(t->ep, events, EVENTS, -1);
    for (int i = 0; i < n; i++) advance(t, events[i].data.ptr);
  }
  return NULL;
}

static void prepare(struct thread *t, int index) {
  t->index = index;
  t->ep = epoll_create1(EPOLL_CLOEXEC);
  /* One for each thread: they would wait for each other's locks. */
  t->context = SSL_CTX_new(TLS_client_method());
  if (!t->context || !SSL_CTX_set_min_proto_version(t->context, TLS1_3_VERSION) ||
      !SSL_CTX_set_ciphersuites(t->context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set1_groups_list(t->context, "X25519"))
    die("SSL_CTX_new");
  SSL_CTX_set_verify(t->context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_options(t->context, SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(t->context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(t->context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(t->context, keep_session);
}

static void pause_until(uint64_t deadline_ns) {
  struct timespec deadline = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) continue;
}

int main(int argc, char **argv) {
  static const char *const modes[] = {"full", "resumed", "download", "upload"};
  int known = 0;
  for (int i = 0; argc == 9 && i < 4; i++)
    if (strcmp(argv[4], modes[i]) == 0) mode = i, known = 1;
  if (!known) {
    fprintf(stderr, "usage: tls-load HOST PORT CONNECTIONS full|resumed|download|upload SERVER_NAME THREADS "
                    "WARMUP_SECONDS SECONDS < request\n");
    return 2;
  }
  set_target(argv[1], argv[2]);
  count = atoi(argv[3]), server_name = argv[5], threads = atoi(argv[6]);
  if (count < 1 || count > CONNECTIONS_MAX || threads < 1 || threads > THREADS_MAX)
    return fprintf(stderr, "1 to %d connections, 1 to %d threads\n", CONNECTIONS_MAX, THREADS_MAX), 2;
  read_request();
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN); /* SSL_write knows no MSG_NOSIGNAL */

  uint64_t start = now_ns() + (uint64_t)(atof(argv[7]) * 1e9);
  for (int i = 0; i < threads; i++) {
    prepare(&pool[i], i);
    if (pthread_create(&pool[i].id, NULL, work, &pool[i])) die("pthread_create");
  }
  pause_until(start);

  puts("measuring");
  fflush(stdout);
  measuring = 1;
  struct figures before = snapshot();
  double busy = busy_seconds();
  start = now_ns();
  pause_until(start + (uint64_t)(atof(argv[8]) * 1e9));
  struct figures after = snapshot();
  double seconds = (now_ns() - start) / 1e9;
  busy = busy_seconds() - busy;

  printf("{\"seconds\":%.3f,\"connections\":%llu,\"failed\":%llu,\"bytes\":%llu,\"resumed\":%llu,\"busySeconds\":%.2f,"
         "\"p50us\":%d,\"p99us\":%d,\"lastError\":\"%s\"}\n",
         seconds, (unsigned long long)(after.finished - before.finished), (unsigned long long)(after.failed - before.failed),
         (unsigned long long)(after.bytes - before.bytes), (unsigned long long)(after.resumed - before.resumed), busy,
         percentile(0.50), percentile(0.99), after.failed > before.failed ? last_error : "");
  fflush(stdout);
  _exit(0); /* the threads are in the middle of something */
}
