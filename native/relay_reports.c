/* What the relay tells: HALF_CLOSED and CLOSED records, several to a message. A record is made when it is written, from
 * the pair, so what waits for a slow reader is a flag in the pair: no memory, no more of it than there are pairs. */
#define _GNU_SOURCE
#include "sluice.h"
#include "relay_parts.h"
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct sluice_relay_event) == 48, "the record TypeScript reads");

static int reader, epoll;
static bool full;
static struct relay_pair *first, *last; /* pairs with something to tell */

int relay_reports_open(int events_fd, int epoll_fd)
{
  reader = events_fd;
  epoll = epoll_fd;
  full = false;
  first = last = NULL;
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

void relay_report(struct relay_pair *pair)
{
  if (pair->queued_to_report)
    return;
  pair->queued_to_report = true;
  pair->report_next = NULL;
  *(first ? &last->report_next : &first) = pair;
  last = pair;
}

bool relay_reports_waiting(void)
{
  return first != NULL;
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

static unsigned describe_pending(const struct relay_pair *pair, struct sluice_relay_event *events)
{
  unsigned n = 0;
  if (pair->half_pending) {
    relay_describe(pair, &events[n]);
    events[n].kind = SLUICE_RELAY_HALF_CLOSED;
    events[n++].side = pair->half_side;
  }
  if (pair->closed) {
    relay_describe(pair, &events[n]);
    events[n].kind = SLUICE_RELAY_CLOSED;
    events[n].error = pair->error;
    events[n++].side = pair->error_side;
  }
  return n;
}

static void reported(struct relay_pair *pair)
{
  first = pair->report_next;
  pair->queued_to_report = pair->half_pending = false;
  if (pair->closed)
    relay_free(pair);
}

void relay_reports_write(void)
{
  while (first && !full) {
    struct sluice_relay_event batch[RELAY_BATCH_MAX];
    struct relay_pair *pair = first;
    unsigned n = 0;
    for (; pair && n + 2 <= RELAY_BATCH_MAX; pair = pair->report_next)
      n += describe_pending(pair, &batch[n]);
    ssize_t sent = send(reader, batch, n * sizeof *batch, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && (errno == ENOBUFS || errno == ENOMEM))
      return; /* no edge will tell when there is memory again: the next round tries */
    if (sent < 0 && errno == EAGAIN) {
      full = true;
      struct epoll_event once = {.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = RELAY_TOKEN_REPORTS};
      epoll_ctl(epoll, EPOLL_CTL_MOD, reader, &once);
      return;
    }
    /* Any other error: the reader is gone for good. The bytes go on; there is only nobody left to tell. */
    while (first != pair)
      reported(first);
  }
}

/* What the reader did not take in time is dropped, because stopping waits for nobody. */
void relay_reports_close(void)
{
  while (first)
    reported(first);
  close(reader);
}
