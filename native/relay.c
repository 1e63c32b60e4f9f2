/* The relay as its callers see it: one thread that carries bytes between pairs of sockets without bringing them into
 * user space. Here are the table of open pairs and the list of commands, all that callers and thread share.
 *
 * Callers never touch a socket. They find or make a pair, mark on it what they want, put it on the list and wake the
 * thread. The mutex is held to move pointers (and for the wake-up), never while anything is transferred, so no caller
 * waits for a transfer, as it would with one mutex around everything. And since the list runs through the pairs
 * themselves, a command needs no memory and cannot fail. */
#include "sluice.h"
#include "relay_parts.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* All of it under the lock. */
static struct {
  pthread_mutex_t lock;
  bool running, stopping;
  struct relay_pair **table; /* open pairs by id */
  uint32_t buckets, count;   /* buckets is a power of two */
  struct relay_pair *commands, *commands_last;
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- the table: with the lock held ---- */

static struct relay_pair **slot_of(uint64_t id)
{
  /* Multiplied by the golden ratio, so that ids with a worker number in their high bits spread as well. */
  struct relay_pair **slot = &shared.table[(id * 0x9e3779b97f4a7c15u >> 32) & (shared.buckets - 1)];
  while (*slot && (*slot)->id != id)
    slot = &(*slot)->bucket_next;
  return slot;
}

static int grow(void)
{
  uint32_t old_buckets = shared.buckets;
  struct relay_pair **old = shared.table, **table = calloc(old_buckets * 2, sizeof *table);
  if (!table)
    return -ENOMEM;
  shared.table = table;
  shared.buckets = old_buckets * 2;
  for (uint32_t i = 0; i < old_buckets; i++) {
    for (struct relay_pair *pair = old[i], *next; pair; pair = next) {
      next = pair->bucket_next;
      pair->bucket_next = NULL;
      *slot_of(pair->id) = pair;
    }
  }
  free(old);
  return 0;
}

static int insert(struct relay_pair *pair)
{
  if (!shared.running || shared.stopping)
    return -ESHUTDOWN;
  if (shared.count == RELAY_PAIRS_MAX)
    return -ENOSPC;
  if (shared.count == shared.buckets && grow() < 0)
    return -ENOMEM;
  struct relay_pair **slot = slot_of(pair->id);
  if (*slot)
    return -EEXIST;
  *slot = pair;
  shared.count++;
  return 0;
}

/* NULL: no such pair. */
static struct relay_pair *find(uint64_t id)
{
  return shared.running && !shared.stopping ? *slot_of(id) : NULL;
}

/* ---- the commands ---- */

/* With the lock held. */
static void command(struct relay_pair *pair, enum relay_request request)
{
  pair->requests = (uint8_t)(pair->requests | request);
  if (pair->commanded)
    return;
  pair->commanded = true;
  pair->command_next = NULL;
  if (!shared.commands)
    relay_thread_wake(); /* later ones are found by the same wake-up */
  *(shared.commands ? &shared.commands_last->command_next : &shared.commands) = pair;
  shared.commands_last = pair;
}

/* For the thread: the next command, or one without a pair when there is none. */
struct relay_command relay_next_command(void)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = shared.commands;
  struct relay_command next = {.pair = pair, .stopping = shared.stopping};
  if (pair) {
    shared.commands = pair->command_next;
    next.requests = pair->requests;
    next.grace_ms = pair->grace_ms;
    pair->requests = 0;
    pair->commanded = false;
  }
  pthread_mutex_unlock(&shared.lock);
  return next;
}

/* For the thread: the pair's id is free from here on. */
void relay_forget(struct relay_pair *pair)
{
  pthread_mutex_lock(&shared.lock);
  *slot_of(pair->id) = pair->bucket_next;
  shared.count--;
  pthread_mutex_unlock(&shared.lock);
}

/* For the thread, with a pair that is forgotten. A caller may have given a command just before that; then the list
 * still holds the pair, and it is freed when the thread comes across it there. */
void relay_free(struct relay_pair *pair)
{
  pthread_mutex_lock(&shared.lock);
  bool listed = pair->commanded;
  pair->abandoned = true;
  pthread_mutex_unlock(&shared.lock);
  if (!listed)
    free(pair);
}

/* For the thread when it stops: any open pair in *bucket or after it. Nothing is added any more. */
struct relay_pair *relay_remaining(uint32_t *bucket)
{
  while (*bucket < shared.buckets && !shared.table[*bucket])
    ++*bucket;
  return *bucket < shared.buckets ? shared.table[*bucket] : NULL;
}

/* ---- the public functions ---- */

static int open_all(int events_fd)
{
  shared.buckets = 1024;
  shared.count = 0;
  shared.commands = NULL;
  shared.table = calloc(shared.buckets, sizeof *shared.table);
  int result = shared.table ? relay_thread_start(events_fd) : -ENOMEM;
  if (!shared.table)
    close(events_fd);
  if (result < 0)
    free(shared.table);
  return result;
}

int sluice_relay_start(int events_fd)
{
  pthread_mutex_lock(&shared.lock);
  int result = -EALREADY;
  if (shared.running)
    close(events_fd);
  else if ((result = open_all(events_fd)) == 0)
    shared.running = true;
  pthread_mutex_unlock(&shared.lock);
  return result;
}

static struct relay_initial *initial_of(const void *bytes, uint32_t n)
{
  struct relay_initial *initial = malloc(sizeof *initial + n);
  if (initial) {
    initial->size = n;
    initial->sent = 0;
    memcpy(initial->data, bytes, n);
  }
  return initial;
}

static int make_pair(uint64_t id, const int fds[2], const void *bytes[2], const uint32_t sizes[2],
                     struct relay_pair **made)
{
  if (sizes[0] > RELAY_INITIAL_BYTES_MAX || sizes[1] > RELAY_INITIAL_BYTES_MAX)
    return -EMSGSIZE;
  struct relay_pair *pair = *made = calloc(1, sizeof *pair);
  if (!pair)
    return -ENOMEM;
  pair->id = id;
  pair->last_byte_ms = relay_coarse_ms();
  for (int side = 0; side < 2; side++) {
    pair->fd[side] = fds[side];
    /* Try before the first edge: what is there to be read may have come long ago. */
    pair->readable[side] = pair->writable[side] = true;
    pair->from[side].pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
  }
  for (int side = 0; side < 2; side++)
    if (sizes[side] > 0 && !(pair->from[side].initial = initial_of(bytes[side], sizes[side])))
      return -ENOMEM;
  return 0;
}

/* Refused: the peers must not take this for an orderly end. */
static void refuse(struct relay_pair *pair, int client, int target)
{
  relay_close_socket(client, true);
  relay_close_socket(target, true);
  if (!pair)
    return;
  free(pair->from[0].initial);
  free(pair->from[1].initial);
  free(pair);
}

int sluice_relay_add(uint64_t id, int client, int target, const void *to_target, uint32_t n, const void *to_client,
                     uint32_t m)
{
  const int fds[2] = {client, target};
  const void *bytes[2] = {to_target, to_client};
  const uint32_t sizes[2] = {n, m};
  struct relay_pair *pair = NULL;
  int result = make_pair(id, fds, bytes, sizes, &pair);
  pthread_mutex_lock(&shared.lock);
  if (result == 0 && (result = insert(pair)) == 0)
    command(pair, RELAY_ADD);
  pthread_mutex_unlock(&shared.lock);
  if (result < 0)
    refuse(pair, client, target);
  return result;
}

int sluice_relay_close(uint64_t id, int reset, uint32_t grace_ms)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  if (pair) {
    pair->grace_ms = grace_ms;
    command(pair, reset ? RELAY_RESET : RELAY_CLOSE);
  }
  pthread_mutex_unlock(&shared.lock);
  return pair ? 0 : -ENOENT;
}

int sluice_relay_stats(uint64_t id, struct sluice_relay_event *out)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  if (pair)
    relay_describe(pair, out);
  pthread_mutex_unlock(&shared.lock);
  return pair ? 0 : -ENOENT;
}

/* The one function that waits: for the thread to finish its round. */
int sluice_relay_stop(void)
{
  pthread_mutex_lock(&shared.lock);
  bool mine = shared.running && !shared.stopping;
  shared.stopping = shared.running;
  if (mine)
    relay_thread_wake();
  pthread_mutex_unlock(&shared.lock);
  if (!mine)
    return -ESHUTDOWN;
  relay_thread_join();
  pthread_mutex_lock(&shared.lock);
  free(shared.table);
  shared.running = shared.stopping = false;
  pthread_mutex_unlock(&shared.lock);
  return 0;
}
