/* Callers, clients and the relay thread all at once, for the sanitizers (sanitize.ts): several threads give random orders to
 * clients that others connect, send through and cut, while the relay is stopped and started again. In C, because a runtime full
 * of threads of its own says more to a race detector than it can take. What is checked here: each client that was told of is
 * closed or taken exactly once, and every descriptor is given back. */
#define _GNU_SOURCE
#include "../../native/sluice.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROUNDS = 12, CALLERS = 3, CLIENTS = 3, TOLD_MAX = 1 << 16, SPREAD = 64 };
static const uint64_t FIRST_ID = 1ull << 48;

static atomic_bool over;           /* this round is */
static atomic_bool reads;          /* who is read may not be taken: so in some rounds the one, in others the other */
static atomic_ullong newest;       /* id that was told last */
static atomic_int port, target_port;
/* What became of each client, by its id; the reader and the callers write. */
static atomic_uchar accepted[TOLD_MAX], closed[TOLD_MAX], taken[TOLD_MAX];
static atomic_uint connected, refused;

static uint32_t next_random(uint32_t *state) { return (*state = *state * 1664525 + 1013904223) >> 8; }

static void fail(const char *what, long value) {
  fprintf(stderr, "%s: %ld\n", what, value);
  exit(1);
}

static void note(const struct sluice_relay_event *event) {
  if (event->id < FIRST_ID) return;
  uint64_t index = event->id - FIRST_ID;
  if (index >= TOLD_MAX) fail("too many clients", (long)index);
  if (event->kind == SLUICE_RELAY_ACCEPTED) {
    accepted[index]++;
    newest = event->id;
  } else if (event->kind == SLUICE_RELAY_CLOSED)
    closed[index]++;
  else if (event->kind == SLUICE_RELAY_CONNECTED)
    connected++;
  else if (event->kind == SLUICE_RELAY_REFUSED)
    refused++;
}

/* Until the relay has closed its end. */
static void *read_events(void *argument) {
  static _Alignas(8) uint8_t message[128 << 10];
  int fd = *(int *)argument;
  for (ssize_t n;;) {
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    poll(&readable, 1, -1);
    if ((n = recv(fd, message, sizeof message, MSG_DONTWAIT)) == 0) return NULL;
    if (n < 0 && errno != EAGAIN) return NULL;
    for (ssize_t at = 0; at < n;) {
      const struct sluice_relay_event *event = (const void *)(message + at);
      note(event);
      at += (ssize_t)sizeof *event + ((event->length + 7) & ~7);
    }
  }
}

static void order(uint64_t id, uint32_t *state) {
  static const char bytes[3000];
  uint32_t kind = next_random(state) % 16, size = next_random(state) % sizeof bytes;
  struct sluice_relay_event event;
  if (kind < 2 && reads) sluice_relay_more(id);
  else if (kind < 7) sluice_relay_dial(id, next_random(state), "127.0.0.1", (uint16_t)(kind < 6 ? target_port : 1), kind == 3 ? "127.0.0.9" : NULL, bytes, size);
  else if (kind == 7) sluice_relay_dial(id, next_random(state), "", 0, NULL, NULL, 0);
  else if (kind == 8) sluice_relay_dial(id, next_random(state), "/nowhere", 0, NULL, NULL, 0);
  else if (kind == 9) sluice_relay_keepalive(id, 60, 10, 3);
  else if (kind == 10) sluice_relay_stats(id, &event);
  else if (kind < 13) {
    int fd = reads ? -1 : sluice_relay_take(id);
    if (fd < 0) return;
    close(fd);
    taken[id - FIRST_ID]++;
  } else
    sluice_relay_close(id, kind == 13, next_random(state) % 5);
}

static void *give_orders(void *argument) {
  uint32_t state = (uint32_t)(uintptr_t)argument;
  while (!over) {
    uint64_t id = newest;
    if (id >= FIRST_ID + SPREAD) id -= next_random(&state) % SPREAD;
    if (id >= FIRST_ID) order(id, &state);
    if (next_random(&state) % 512 == 0) sluice_relay_accept(next_random(&state) % 2 ? 1 << 18 : 0, 1 << 20);
    if (next_random(&state) % 8 == 0) usleep(next_random(&state) % 200);
  }
  sluice_relay_accept(1 << 18, 1 << 20);
  return NULL;
}

static int connect_to(int to) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) return fd;
  close(fd);
  return -1;
}

static void *come_and_go(void *argument) {
  static const char bytes[20000];
  uint32_t state = (uint32_t)(uintptr_t)argument;
  int fds[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  while (!over) {
    int *fd = &fds[next_random(&state) % 8];
    if (*fd < 0) *fd = connect_to(port);
    else if (next_random(&state) % 3) send(*fd, bytes, next_random(&state) % sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    else if (next_random(&state) % 3 == 0) shutdown(*fd, SHUT_WR);
    else {
      setsockopt(*fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
      close(*fd);
      *fd = -1;
    }
    usleep(next_random(&state) % 200);
  }
  for (int i = 0; i < 8; i++)
    if (fds[i] >= 0) close(fds[i]);
  return NULL;
}

/* A target: takes what comes, says something, goes. */
static void *answer(void *argument) {
  int listening = *(int *)argument;
  uint32_t state = 7;
  char bytes[20000] = {0};
  while (!over) {
    struct pollfd waiting = {.fd = listening, .events = POLLIN};
    if (poll(&waiting, 1, 10) <= 0) continue;
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) continue;
    (void)!send(fd, bytes, next_random(&state) % sizeof bytes, MSG_NOSIGNAL);
    if (next_random(&state) % 2) recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    close(fd);
  }
  return NULL;
}

static int open_descriptors(void) {
  int count = 0;
  DIR *folder = opendir("/proc/self/fd");
  while (readdir(folder)) count++;
  closedir(folder);
  return count;
}

static void go_round(uint32_t round, int target) {
  pthread_t reader, server, callers[CALLERS], clients[CLIENTS];
  int events[2];
  over = false;
  newest = 0;
  reads = round % 3 != 0;
  if (sluice_socketpair(SOCK_SEQPACKET, events) < 0 || sluice_relay_start(events[1]) < 0) fail("start", errno);
  int listening = sluice_listen("127.0.0.1", 0, 128);
  port = sluice_port(listening);
  if (sluice_relay_listen(round, listening, reads) < 0) fail("listen", round);
  pthread_create(&reader, NULL, read_events, &events[0]);
  pthread_create(&server, NULL, answer, &target);
  for (uintptr_t i = 0; i < CALLERS; i++) pthread_create(&callers[i], NULL, give_orders, (void *)(round * 100 + i));
  for (uintptr_t i = 0; i < CLIENTS; i++) pthread_create(&clients[i], NULL, come_and_go, (void *)(round * 100 + 50 + i));
  for (uint32_t i = 1; i <= 40; i++) {
    usleep(10000);
    int more = sluice_listen("127.0.0.1", 0, 128);
    sluice_relay_listen(1000 + i, more, 1);
    if (i % 2) sluice_relay_unlisten(1000 + i);
  }
  /* In every other round the callers are still at it. */
  if (round % 2) over = true;
  if (sluice_relay_stop() < 0) fail("stop", round);
  over = true;
  for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
  for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i], NULL);
  pthread_join(server, NULL);
  pthread_join(reader, NULL);
  close(events[0]);
}

int main(void) {
  int target = sluice_listen("127.0.0.1", 0, 128);
  target_port = sluice_port(target);
  int before = open_descriptors();
  for (uint32_t round = 0; round < ROUNDS; round++) {
    go_round(round, target);
    /* Those that still wait for the target. */
    for (int fd; (fd = accept(target, NULL, NULL)) >= 0;) close(fd);
  }
  long clients = 0, all_taken = 0;
  for (long i = 0; i < TOLD_MAX; i++) {
    clients += accepted[i];
    all_taken += taken[i];
    if (accepted[i] > 1 || closed[i] + taken[i] > 1) fail("told twice of client", i);
    if (accepted[i] && closed[i] + taken[i] != 1) fail("no end was told of client", i);
  }
  if (open_descriptors() != before) fail("descriptors left", open_descriptors() - before);
  close(target);
  printf("%ld clients, %ld taken, %u connected, %u refusals\n", clients, all_taken, connected, refused);
  return clients > 0 && all_taken > 0 && connected > 0 && refused > 0 ? 0 : 1;
}
