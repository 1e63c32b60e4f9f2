/* What the relay tells, several records to a message. A record is made when there is room for it in the message, from the
 * pair, and a client's first bytes are read then; so what waits for a slow reader is a flag in the pair and bytes in a
 * socket: no memory of ours but the one message. */
#define _GNU_SOURCE
#include "sluice.h"
#include "relay_parts.h"
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct sluice_relay_event) == 48, "the record TypeScript reads");

static int reader, epoll;
static bool full;   /* the reader took no more: the message waits as it is */
static bool urgent; /* somebody waits for what is in the message or in the list */
static int64_t lazy_ms; /* when the oldest news that may wait came; 0: none */
static struct relay_pair *first, *last; /* pairs with something to tell */
static _Alignas(8) uint8_t message[RELAY_MESSAGE_BYTES];
static unsigned used;

/* The most that one pair adds: its first bytes, and a few records. */
enum { PAIR_BYTES_MAX = RELAY_COPY_BYTES + 8 + 4 * sizeof(struct sluice_relay_event) + sizeof(struct sluice_relay_accepted) };
_Static_assert(sizeof(struct sluice_relay_accepted) == 40, "the addresses TypeScript reads");

int relay_reports_open(int events_fd, int epoll_fd)
{
  reader = events_fd;
  epoll = epoll_fd;
  full = urgent = false;
  first = last = NULL;
  lazy_ms = used = 0;
  /* Asked for nothing until a message is refused. Once, because a reader that is gone would be news for ever. */
  struct epoll_event nothing = {.events = EPOLLONESHOT, .data.u64 = RELAY_TOKEN_REPORTS};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, reader, &nothing) < 0 ? -errno : 0;
}

/* A few milliseconds coarse, but free: it is read in every round. */
int64_t relay_coarse_ms(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void relay_report(struct relay_pair *pair, bool at_once)
{
  urgent |= at_once;
  if (!at_once && lazy_ms == 0)
    lazy_ms = relay_coarse_ms();
  if (pair->queued_to_report)
    return;
  pair->queued_to_report = true;
  pair->report_next = NULL;
  *(first ? &last->report_next : &first) = pair;
  last = pair;
}

/* When to write although nothing else happens; 0: when the reader takes more, or never. */
int64_t relay_reports_due(void)
{
  if (full)
    return 0;
  return urgent ? 1 : lazy_ms ? lazy_ms + RELAY_LAZY_MS : 0;
}

void relay_reports_go_on(void)
{
  full = false;
}

/* Also called by sluice_relay_stats, under the table's lock: only with an open pair, whose counters are atomic. */
void relay_describe(const struct relay_pair *pair, struct sluice_relay_event *event)
{
  int64_t idle_ms = (pair->closed ? pair->closed_ms : relay_coarse_ms()) - pair->last_byte_ms;
  *event = (struct sluice_relay_event){
      .id = pair->id,
      /* A round's clock is read at its beginning, so it may be behind the caller who added the pair. */
      .idle_ms = idle_ms < 0 ? 0 : idle_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)idle_ms,
      .bytes_in = pair->from[SLUICE_CLIENT].delivered,
      .bytes_out = pair->from[SLUICE_TARGET].delivered,
  };
}

static struct sluice_relay_event *append(const struct relay_pair *pair, uint8_t kind)
{
  struct sluice_relay_event *event = (struct sluice_relay_event *)(message + used);
  relay_describe(pair, event);
  event->kind = kind;
  used += sizeof *event;
  return event;
}

/* What follows the record begins here; its length may grow while nothing else is appended. */
static void lengthen(struct sluice_relay_event *event, uint32_t by)
{
  event->length += by;
  used = (unsigned)((uint8_t *)(event + 1) - message + ((event->length + 7) & ~7u));
}

static void append_first_bytes(struct relay_pair *pair, struct sluice_relay_event *event)
{
  ssize_t n = relay_listen_to(pair, (uint8_t *)(event + 1) + event->length, RELAY_COPY_BYTES);
  lengthen(event, (uint32_t)n);
}

static void append_half(struct relay_pair *pair)
{
  struct sluice_relay_event *event = append(pair, SLUICE_RELAY_HALF_CLOSED);
  event->side = pair->half_side;
  if (pair->phase != RELAY_CARRYING)
    event->bytes_in = relay_unread(pair->fd[SLUICE_CLIENT]);
  pair->half_pending = false;
  pair->fin_told = true;
}

static void append_news(struct relay_pair *pair)
{
  if (pair->refused_pending) {
    struct sluice_relay_event *event = append(pair, SLUICE_RELAY_REFUSED);
    event->error = pair->refusal;
    event->tag = pair->attempt;
  }
  pair->refused_pending = false;
  if (pair->phase == RELAY_ASKING && pair->listening && pair->readable[SLUICE_CLIENT] && !pair->closed) {
    struct sluice_relay_event *event = append(pair, SLUICE_RELAY_BYTES);
    append_first_bytes(pair, event);
    if (event->length == 0)
      used -= sizeof *event;
  }
  if (pair->connected_pending)
    append(pair, SLUICE_RELAY_CONNECTED)->tag = pair->attempt;
  pair->connected_pending = false;
  if (pair->half_pending && !pair->closed)
    append_half(pair);
  if (pair->closed) {
    struct sluice_relay_event *event = append(pair, SLUICE_RELAY_CLOSED);
    event->error = pair->error;
    event->side = pair->error_side;
    if (pair->phase != RELAY_CARRYING)
      event->bytes_in = pair->unread;
  }
}

/* False: the reader took nothing. */
static bool send_message(void)
{
  ssize_t sent = send(reader, message, used, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0 && (errno == ENOBUFS || errno == ENOMEM))
    return false; /* no edge will tell when there is memory again: the next round tries */
  if (sent < 0 && errno == EAGAIN) {
    full = true;
    struct epoll_event once = {.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = RELAY_TOKEN_REPORTS};
    epoll_ctl(epoll, EPOLL_CTL_MOD, reader, &once);
    return false;
  }
  /* Any other error: the reader is gone for good. The bytes go on; there is only nobody left to tell. */
  used = 0;
  return true;
}

/* Room for everything that one pair may have to tell. */
bool relay_reports_room(void)
{
  return used + PAIR_BYTES_MAX <= sizeof message || (!full && send_message());
}

void relay_report_accepted(struct relay_pair *pair, uint32_t tag, const struct sluice_relay_accepted *ends)
{
  struct sluice_relay_event *event = append(pair, SLUICE_RELAY_ACCEPTED);
  event->tag = tag;
  event->descriptor = (uint32_t)pair->fd[SLUICE_CLIENT];
  memcpy(event + 1, ends, sizeof *ends);
  lengthen(event, sizeof *ends);
  if (pair->listening)
    append_first_bytes(pair, event);
  urgent = true;
  if (pair->half_pending && !pair->closed)
    append_half(pair);
}

void relay_report_unlistened(uint32_t tag)
{
  struct relay_pair nobody = {.fd = {-1, -1}};
  append(&nobody, SLUICE_RELAY_UNLISTENED)->tag = tag;
  urgent = true;
}

void relay_reports_write(int64_t now_ms)
{
  if (full || !(urgent || (lazy_ms && now_ms >= lazy_ms + RELAY_LAZY_MS)))
    return;
  while (first) {
    if (!relay_reports_room())
      return;
    struct relay_pair *pair = first;
    first = pair->report_next;
    /* Still as queued: reading its first bytes may end it, and that is told here too. */
    if (!pair->taken)
      append_news(pair);
    pair->queued_to_report = false;
    /* One that still has a turn is freed when its turn comes: the list of turns runs through it. */
    if (pair->closed && !pair->queued_to_run)
      relay_free(pair);
  }
  lazy_ms = 0;
  urgent = used > 0 && !send_message(); /* also what could wait: nothing else might ever ask for it again */
}

/* What the reader did not take in time is dropped, because stopping waits for nobody. */
void relay_reports_close(void)
{
  for (struct relay_pair *pair; (pair = first);) {
    first = pair->report_next;
    relay_free(pair);
  }
  close(reader);
}
