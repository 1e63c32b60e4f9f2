/* What the traffic programs share: clocks, the machine's busy time, an address, and how long things took. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_BYTES_MAX = 16384, LATENCY_US_MAX = 4 << 20, FAILURES_MAX = 1000, EVENTS = 256 };

static struct sockaddr_storage target;
static socklen_t target_size;
static char request[REQUEST_BYTES_MAX];
static ssize_t request_bytes;
/* How many saw what they waited for after so many microseconds. */
static uint32_t latency[LATENCY_US_MAX + 1];

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

/* Busy ticks of all processors: user, nice, system, irq and softirq; neither idle, waiting nor stolen. */
static inline double busy_seconds(void) {
  unsigned long long user, nice, system, idle, iowait, irq, softirq;
  FILE *f = fopen("/proc/stat", "r");
  if (!f || fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &iowait, &irq, &softirq) != 7)
    die("/proc/stat");
  fclose(f);
  return (double)(user + nice + system + irq + softirq) / sysconf(_SC_CLK_TCK);
}

/* Threads may note at the same time. */
static inline void note_latency(uint64_t started_ns) {
  uint64_t us = (now_ns() - started_ns) / 1000;
  __atomic_fetch_add(&latency[us < LATENCY_US_MAX ? us : LATENCY_US_MAX], 1, __ATOMIC_RELAXED);
}

static inline int percentile(double share) {
  uint64_t all = 0, seen = 0;
  for (int us = 0; us <= LATENCY_US_MAX; us++) all += latency[us];
  for (int us = 0; us <= LATENCY_US_MAX; us++)
    if ((seen += latency[us]) > all * share) return us;
  return 0;
}

static inline void set_target(const char *host, const char *port) {
  struct sockaddr_in *v4 = (void *)&target;
  struct sockaddr_in6 *v6 = (void *)&target;
  if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET, v4->sin_port = htons(atoi(port)), target_size = sizeof *v4;
  } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6, v6->sin6_port = htons(atoi(port)), target_size = sizeof *v6;
  } else {
    fprintf(stderr, "not an address: %s\n", host);
    exit(2);
  }
}

static inline void read_request(void) {
  for (ssize_t n; (n = read(0, request + request_bytes, sizeof request - request_bytes)) > 0;) request_bytes += n;
  if (request_bytes > 0) return;
  fprintf(stderr, "no request on standard input\n");
  exit(2);
}

static inline void raise_descriptor_limit(void) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}
