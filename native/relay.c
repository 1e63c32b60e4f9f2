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
  struct relay_listener *listeners;
  bool listeners_changed;
  uint32_t listeners_closing;
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

/* For the thread: the next command, or one without a pair when there is none. listeners: some came or are to go. */
struct relay_command relay_next_command(void)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = shared.commands;
  struct relay_command next = {.pair = pair, .stopping = shared.stopping, .listeners = shared.listeners_changed};
  shared.listeners_changed = false;
  if (pair) {
    shared.commands = pair->command_next;
    next.requests = pair->requests;
    next.grace_ms = pair->grace_ms;
    if (pair->requests & RELAY_DIAL) {
      next.dial = pair->dial;
      pair->dial = NULL;
    }
    pair->requests = 0;
    pair->commanded = false;
  }
  pthread_mutex_unlock(&shared.lock);
  return next;
}

/* With the lock held. */
static void forget(struct relay_pair *pair)
{
  *slot_of(pair->id) = pair->bucket_next;
  shared.count--;
}

/* For the thread: the pair's id is free from here on. False: its client was taken, and nothing of it is ours any more. */
bool relay_forget(struct relay_pair *pair)
{
  pthread_mutex_lock(&shared.lock);
  bool ours = !pair->taken;
  if (ours)
    forget(pair);
  pthread_mutex_unlock(&shared.lock);
  return ours;
}

/* For the thread: a client that was accepted. Its id is the next one. */
int relay_enter_accepted(struct relay_pair *pair)
{
  static uint64_t accepted = 1ull << 48;
  pair->id = accepted++;
  pthread_mutex_lock(&shared.lock);
  int result = insert(pair);
  pthread_mutex_unlock(&shared.lock);
  return result;
}

/* For the thread: fd is the target from here on. Under the lock, because a caller may be at work on the one before. */
void relay_set_target(struct relay_pair *pair, int fd)
{
  pthread_mutex_lock(&shared.lock);
  pair->fd[SLUICE_TARGET] = fd;
  pthread_mutex_unlock(&shared.lock);
}

/* For the thread: as many pairs as there may be. */
bool relay_is_full(void)
{
  pthread_mutex_lock(&shared.lock);
  bool full = shared.count >= relay_accept_pairs;
  pthread_mutex_unlock(&shared.lock);
  return full;
}

/* For the thread, with a pair that is forgotten. A caller may have given a command just before that; then the list
 * still holds the pair, and it is freed when the thread comes across it there. */
void relay_free(struct relay_pair *pair)
{
  pthread_mutex_lock(&shared.lock);
  bool listed = pair->commanded;
  pair->abandoned = true;
  struct relay_dial *dial = pair->requests & RELAY_DIAL ? pair->dial : NULL;
  pair->requests &= (uint8_t)~RELAY_DIAL;
  pthread_mutex_unlock(&shared.lock);
  if (dial)
    free(dial->first);
  free(dial);
  if (!listed)
    free(pair);
}

/* For the thread: a listener that is to be closed, taken off the list, or NULL. all: any one, because the thread ends. */
struct relay_listener *relay_next_to_close(bool all)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_listener **at = &shared.listeners, *listener = NULL;
  if (all || shared.listeners_closing > 0) {
    while (*at && !(*at)->closing && !all)
      at = &(*at)->next;
    listener = *at;
  }
  if (listener) {
    *at = listener->next;
    shared.listeners_closing -= listener->closing;
  }
  pthread_mutex_unlock(&shared.lock);
  return listener;
}

/* For the thread: `visit` runs under the lock, newest first, until it says false. */
void relay_each_listener(bool (*visit)(struct relay_listener *listener))
{
  pthread_mutex_lock(&shared.lock);
  for (struct relay_listener *listener = shared.listeners; listener && visit(listener); listener = listener->next)
    ;
  pthread_mutex_unlock(&shared.lock);
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
  shared.listeners = NULL;
  shared.listeners_changed = false;
  shared.listeners_closing = 0;
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

/* A copy of the bytes, or NULL. */
struct relay_held *relay_hold(const void *bytes, uint32_t n)
{
  struct relay_held *held = malloc(sizeof *held + n);
  if (held) {
    held->size = n;
    held->sent = 0;
    memcpy(held->data, bytes, n);
  }
  return held;
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
  pair->phase = RELAY_CARRYING;
  pair->dialed = true;
  pair->last_byte_ms = relay_coarse_ms();
  for (int side = 0; side < 2; side++) {
    pair->fd[side] = fds[side];
    /* Try before the first edge: what is there to be read may have come long ago. */
    pair->readable[side] = pair->writable[side] = true;
    pair->from[side].pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
  }
  for (int side = 0; side < 2; side++)
    if (sizes[side] > 0 && !(pair->from[side].held = relay_hold(bytes[side], sizes[side])))
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
  free(pair->from[0].held);
  free(pair->from[1].held);
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

int sluice_relay_keepalive(uint64_t id, int idle_s, int interval_s, int count)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  int result = pair ? 0 : -ENOENT;
  /* Its sockets are open: the thread forgets a pair, or a target, before it closes them. A unix socket has no keepalive. */
  for (int side = 0; pair && side < 2; side++)
    if (pair->fd[side] >= 0)
      (void)sluice_keepalive(pair->fd[side], idle_s, interval_s, count);
  pthread_mutex_unlock(&shared.lock);
  return result;
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

/* ---- clients that are accepted here ---- */

/* With the lock held: the thread looks for itself what has changed. */
static void listeners_changed(void)
{
  shared.listeners_changed = true;
  relay_thread_wake();
}

int sluice_relay_listen(uint32_t tag, int fd, int reads)
{
  struct relay_listener *listener = calloc(1, sizeof *listener);
  int result = listener ? relay_prepare_listener(listener, fd) : -ENOMEM;
  pthread_mutex_lock(&shared.lock);
  if (result == 0 && (!shared.running || shared.stopping))
    result = -ESHUTDOWN;
  if (result == 0) {
    listener->tag = tag;
    listener->reads = reads != 0;
    listener->next = shared.listeners;
    shared.listeners = listener;
    listeners_changed();
  }
  pthread_mutex_unlock(&shared.lock);
  if (result < 0) {
    free(listener);
    close(fd);
  }
  return result;
}

int sluice_relay_unlisten(uint32_t tag)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_listener *listener = shared.running && !shared.stopping ? shared.listeners : NULL;
  while (listener && (listener->tag != tag || listener->closing))
    listener = listener->next;
  if (listener) {
    listener->closing = true;
    shared.listeners_closing++;
    listeners_changed();
  }
  pthread_mutex_unlock(&shared.lock);
  return listener ? 0 : -ENOENT;
}

int sluice_relay_accept(uint32_t pairs, int below)
{
  bool switched = (pairs > 0) != (relay_accept_pairs > 0);
  relay_accept_pairs = pairs;
  relay_accept_below = below;
  pthread_mutex_lock(&shared.lock);
  if (shared.running && !shared.stopping && switched)
    listeners_changed();
  pthread_mutex_unlock(&shared.lock);
  return 0;
}

int sluice_relay_more(uint64_t id)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  if (pair)
    command(pair, RELAY_MORE);
  pthread_mutex_unlock(&shared.lock);
  return pair ? 0 : -ENOENT;
}

static struct relay_dial *dial_of(uint32_t attempt, const char *address, uint16_t port, const char *from, const void *first, uint32_t n)
{
  struct relay_dial *dial = calloc(1, sizeof *dial);
  if (!dial)
    return NULL;
  dial->attempt = attempt;
  dial->port = port;
  strncpy(dial->address, address, sizeof dial->address - 1);
  strncpy(dial->from, from ? from : "", sizeof dial->from - 1);
  if (n > 0 && !(dial->first = relay_hold(first, n))) {
    free(dial);
    return NULL;
  }
  return dial;
}

int sluice_relay_dial(uint64_t id, uint32_t attempt, const char *address, uint16_t port, const char *from,
                      const void *to_target, uint32_t n)
{
  if (strlen(address) >= sizeof((struct relay_dial *)0)->address || n > RELAY_INITIAL_BYTES_MAX)
    return -EMSGSIZE;
  struct relay_dial *dial = dial_of(attempt, address, port, from, to_target, n), *superseded = NULL;
  if (!dial)
    return -ENOMEM;
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  if (pair) {
    if (pair->requests & RELAY_DIAL) {
      /* The thread has not seen it yet. What goes first came with the first call. */
      superseded = pair->dial;
      if (dial->first)
        free(superseded->first);
      else
        dial->first = superseded->first;
    }
    pair->dial = dial;
    pair->dialed = true;
    command(pair, RELAY_DIAL);
  }
  pthread_mutex_unlock(&shared.lock);
  free(superseded);
  if (!pair) {
    free(dial->first);
    free(dial);
  }
  return pair ? 0 : -ENOENT;
}

int sluice_relay_take(uint64_t id)
{
  pthread_mutex_lock(&shared.lock);
  struct relay_pair *pair = find(id);
  int fd = !pair ? -ENOENT : pair->dialed ? -EBUSY : pair->fd[SLUICE_CLIENT];
  if (fd >= 0) {
    forget(pair);
    pair->taken = true;
    /* From here on the thread hears nothing of the socket; it frees the pair when it comes across it. */
    relay_thread_unwatch(fd);
    command(pair, RELAY_TAKEN);
  }
  pthread_mutex_unlock(&shared.lock);
  return fd;
}
