/* The relay's thread: it waits for edges and commands, and gives every pair that has something to do its turn.
 *
 * A round has a fixed order (`go_round`): everything that may end a pair comes before the pairs' turns, and a pair is
 * freed only when its CLOSED is written, at the round's end. So no list and no event can name a pair that is gone. */
#define _GNU_SOURCE
#include "sluice.h"
#include "relay_parts.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static pthread_t thread;
static int epoll, wake;
static int64_t now_ms;
static struct relay_pair *run, *run_last;    /* have something to do */
static struct relay_pair *soonest, *latest;  /* closing with grace, by deadline */

void relay_run_later(struct relay_pair *pair)
{
  if (pair->queued_to_run || pair->closed)
    return;
  pair->queued_to_run = true;
  pair->run_next = NULL;
  *(run ? &run_last->run_next : &run) = pair;
  run_last = pair;
}

/* ---- deadlines ---- */

static void leave_deadlines(struct relay_pair *pair)
{
  if (!pair->has_deadline)
    return;
  pair->has_deadline = false;
  *(pair->earlier ? &pair->earlier->later : &soonest) = pair->later;
  *(pair->later ? &pair->later->earlier : &latest) = pair->earlier;
}

/* Sorted, searched from the end: with one grace for all, which is the usual case, every insertion is one step; and only
 * pairs whose peer is stalled stay in it beyond their next turn. */
static void enter_deadlines(struct relay_pair *pair, uint32_t grace_ms)
{
  leave_deadlines(pair);
  pair->has_deadline = true;
  pair->deadline_ms = now_ms + grace_ms;
  struct relay_pair *earlier = latest;
  while (earlier && earlier->deadline_ms > pair->deadline_ms)
    earlier = earlier->earlier;
  pair->earlier = earlier;
  pair->later = earlier ? earlier->later : soonest;
  *(pair->earlier ? &pair->earlier->later : &soonest) = pair;
  *(pair->later ? &pair->later->earlier : &latest) = pair;
}

/* ---- the life of a pair ---- */

/* The sockets are gone and the id is free from here on; the pair itself stays until its CLOSED is written. */
void relay_finish(struct relay_pair *pair, int side, int error, bool reset)
{
  if (pair->closed || !relay_forget(pair))
    return;
  leave_deadlines(pair);
  /* close() alone does not take a socket out of the set while anyone holds a copy of the descriptor, and an event of it
   * would then carry the address of a freed pair. */
  for (int i = 0; i < 2; i++)
    if (pair->fd[i] >= 0)
      relay_thread_unwatch(pair->fd[i]);
  if (pair->phase != RELAY_CARRYING)
    pair->unread = relay_unread(pair->fd[SLUICE_CLIENT]);
  relay_release(pair, reset || pair->phase != RELAY_CARRYING);
  pair->closed = true;
  pair->closed_ms = now_ms;
  pair->error = (uint16_t)(pair->closing ? ECANCELED : error); /* whatever came in between, we were asked to */
  pair->error_side = (uint8_t)(pair->closing ? SLUICE_CLIENT : side);
  /* Nobody waits for the end of what flowed; a client without a target has somebody at work for it. */
  relay_report(pair, pair->phase != RELAY_CARRYING);
}

/* Edge-triggered with everything in it: never a system call to change interest. EPOLLOUT costs nothing until a write was
 * refused, because only then does TCP wake its writers. */
int relay_watch(int fd, uint64_t token)
{
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, .data.u64 = token};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
}

void relay_thread_unwatch(int fd)
{
  epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

/* Somebody else's socket becomes ours. */
static int adopt(int fd, uint64_t token)
{
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
    return errno;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* it may be a unix socket */
  return relay_watch(fd, token);
}

static void begin(struct relay_pair *pair)
{
  for (int side = 0; side < 2 && !pair->closed; side++) {
    int error = adopt(pair->fd[side], (uint64_t)(uintptr_t)pair | (uint64_t)side);
    if (error)
      relay_finish(pair, side, error, true);
  }
  relay_run_later(pair);
}

static void end(struct relay_pair *pair, uint32_t grace_ms)
{
  if (pair->phase != RELAY_CARRYING) {
    pair->closing = true;
    relay_finish(pair, SLUICE_CLIENT, ECANCELED, true);
    return;
  }
  if (!pair->closing)
    relay_stop_reading(pair);
  enter_deadlines(pair, grace_ms);
  relay_run_later(pair);
}

static void take_turn(struct relay_pair *pair)
{
  enum relay_turn turn = relay_pump(pair, now_ms);
  if (pair->half_pending)
    relay_report(pair, false);
  if (turn == RELAY_FAILED)
    relay_finish(pair, pair->error_side, pair->error, true);
  else if (pair->from[0].done && pair->from[1].done)
    relay_finish(pair, SLUICE_CLIENT, 0, false);
  else if (turn == RELAY_HAS_MORE)
    relay_run_later(pair);
}

/* ---- a round ---- */

static void notice_pair(struct relay_pair *pair, int side, uint32_t events)
{
  if (pair->closed)
    return;
  if (pair->phase != RELAY_CARRYING) {
    relay_notice_opening(pair, side, events);
    return;
  }
  /* A RST ends the pair at once, also while it is half-closed or its other side is stalled. EPOLLHUP alone is no error:
   * it is how two FINs look. */
  int error = events & EPOLLERR ? relay_socket_error(pair->fd[side]) : 0;
  if (error) {
    relay_finish(pair, side, error, true);
    return;
  }
  pair->hung_up[side] |= (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
  pair->marked[side] |= (events & EPOLLPRI) != 0;
  pair->readable[side] |= (events & ~(uint32_t)EPOLLOUT) != 0;
  pair->writable[side] |= (events & ~(uint32_t)(EPOLLIN | EPOLLPRI | EPOLLRDHUP)) != 0;
  relay_run_later(pair);
}

static void notice(const struct epoll_event *event)
{
  uint64_t token = event->data.u64;
  if (token == RELAY_TOKEN_WAKE)
    eventfd_read(wake, &(eventfd_t){0});
  else if (token == RELAY_TOKEN_REPORTS)
    relay_reports_go_on();
  else if (token & RELAY_TOKEN_LISTENER)
    relay_accept_some((struct relay_listener *)(uintptr_t)(token & ~(uint64_t)RELAY_TOKEN_LISTENER), now_ms);
  else
    notice_pair((struct relay_pair *)(uintptr_t)(token & ~(uint64_t)1), token & 1, event->events);
}

static void obey_one(struct relay_command next)
{
  struct relay_pair *pair = next.pair;
  if (next.requests & RELAY_ADD)
    begin(pair);
  if (!pair->closed && next.requests & (RELAY_RESET | RELAY_CLOSE)) {
    if (next.requests & RELAY_RESET)
      relay_finish(pair, SLUICE_CLIENT, ECANCELED, true);
    else
      end(pair, next.grace_ms);
  }
  if (next.dial && !pair->closed) {
    relay_dial_target(pair, next.dial);
    return;
  }
  if (next.dial)
    free(next.dial->first);
  free(next.dial);
  if (!pair->closed && next.requests & RELAY_MORE)
    relay_read_on(pair);
}

/* False: the relay is to stop. */
static bool obey(void)
{
  for (;;) {
    struct relay_command next = relay_next_command();
    if (next.listeners)
      relay_listeners_changed();
    struct relay_pair *pair = next.pair;
    if (!pair)
      return !next.stopping;
    /* As the command says, not the pair: it may be taken in this moment, and is on the list again then. */
    bool taken = next.requests & RELAY_TAKEN;
    if (taken)
      pair->closed = true; /* its sockets are no longer ours to close */
    if (pair->abandoned || (taken && !pair->queued_to_report)) {
      if (next.dial)
        free(next.dial->first);
      free(next.dial);
      free(pair);
      continue;
    }
    obey_one(next);
  }
}

/* Strictly after the deadline, so that a grace of 0 still leaves one turn for what can be delivered at once. */
static void force_overdue(void)
{
  while (soonest && soonest->deadline_ms < now_ms)
    relay_finish(soonest, SLUICE_CLIENT, ECANCELED, true);
}

/* One turn for each pair that is waiting now; who has more goes to the end of the queue and so to the next round. */
static void take_turns(void)
{
  struct relay_pair *pair = run;
  run = NULL;
  for (struct relay_pair *next; pair; pair = next) {
    next = pair->run_next;
    pair->queued_to_run = false;
    if (!pair->closed)
      take_turn(pair);
    else if (!pair->queued_to_report)
      relay_free(pair); /* its end was told before the turns */
  }
}

static int patience_ms(void)
{
  if (run)
    return 0;
  const int64_t dues[] = {soonest ? soonest->deadline_ms + 1 : 0, relay_reports_due(), relay_accept_due(), relay_pipes_due()};
  int64_t patience = 60000;
  for (unsigned i = 0; i < sizeof dues / sizeof *dues; i++)
    if (dues[i] && dues[i] - now_ms < patience)
      patience = dues[i] - now_ms;
  return patience < 1 ? 1 : (int)patience;
}

static bool go_round(void)
{
  struct epoll_event events[RELAY_WAKEUPS_MAX];
  int n = epoll_wait(epoll, events, RELAY_WAKEUPS_MAX, patience_ms());
  now_ms = relay_coarse_ms();
  for (int i = 0; i < n; i++)
    notice(&events[i]);
  relay_accept_again(now_ms);
  if (!obey())
    return false;
  force_overdue();
  /* Before the turns: whoever decides about new clients does so meanwhile. */
  relay_reports_write(now_ms);
  take_turns();
  relay_reports_write(now_ms);
  relay_pipes_trim(now_ms);
  return true;
}

static void *live(void *unused)
{
  while (go_round())
    ;
  uint32_t bucket = 0;
  for (struct relay_pair *pair; (pair = relay_remaining(&bucket));)
    relay_finish(pair, SLUICE_CLIENT, ECANCELED, true);
  take_turns(); /* all have ended: it only lets go of those whose end was told before a turn that did not come */
  relay_accept_stop();
  relay_reports_write(INT64_MAX);
  return unused;
}

/* ---- for relay.c ---- */

static int spawn(void)
{
  /* Signals belong to the program's own threads, and a blocked SIGPIPE is one that splice() cannot kill us with. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  int error = pthread_create(&thread, &attributes, live, NULL);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!error)
    pthread_setname_np(thread, "sluice-relay");
  return -error;
}

static void close_all(void)
{
  relay_reports_close();
  relay_pipes_close();
  close(epoll);
  close(wake);
}

int relay_thread_start(int events_fd)
{
  run = soonest = latest = NULL;
  now_ms = relay_coarse_ms();
  epoll = epoll_create1(EPOLL_CLOEXEC);
  wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = RELAY_TOKEN_WAKE};
  int result = wake < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event) < 0 ? -errno : 0;
  relay_accept_start(epoll);
  int reports = relay_reports_open(events_fd, epoll);
  result = result ? result : reports;
  result = result ? result : spawn();
  if (result < 0)
    close_all();
  return result;
}

void relay_thread_wake(void)
{
  eventfd_write(wake, 1);
}

void relay_thread_join(void)
{
  pthread_join(thread, NULL);
  close_all();
}
