/* How the bytes of one pair travel: those we hold, then little by recv and send, much by splice(2) through a pipe, then
 * the FIN; and how both sockets end. Only the relay thread comes here; nothing here knows the table, the commands or the reports.
 *
 * The rule that everything rests on: a pipe is filled only when it is empty and drained until it is empty or the
 * destination is full. So at most one pipe of a direction's bytes is in our hands, whatever the peers do. */
#define _GNU_SOURCE
#include "relay_parts.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Not SPLICE_F_MORE: it would cork the last segment of every answer for up to 200 ms. */
enum { SPLICE_FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK };

static uint8_t scratch[RELAY_COPY_BYTES];

/* Reads and clears the socket's pending error. */
int relay_socket_error(int fd)
{
  int error = 0;
  socklen_t size = sizeof error;
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

/* What waits in the socket. */
uint32_t relay_unread(int fd)
{
  int queued = 0;
  return ioctl(fd, FIONREAD, &queued) == 0 && queued > 0 ? (uint32_t)queued : 0;
}

static enum relay_turn failed(struct relay_pair *pair, int side, int error)
{
  /* EPIPE and ENOTCONN only say that the socket is gone; if the kernel still knows why, that is the better answer. */
  if (error == EPIPE || error == ENOTCONN) {
    int cause = relay_socket_error(pair->fd[side]);
    error = cause ? cause : error == EPIPE ? EPIPE : ECONNRESET;
  }
  pair->error = (uint16_t)error;
  pair->error_side = (uint8_t)side;
  return RELAY_FAILED;
}

static void count(struct relay_pair *pair, int from, ssize_t n, int64_t now_ms)
{
  _Atomic uint64_t *delivered = &pair->from[from].delivered;
  /* One writer, so load and store do: no locked instruction for every packet. */
  uint64_t before = atomic_load_explicit(delivered, memory_order_relaxed);
  atomic_store_explicit(delivered, before + (uint64_t)n, memory_order_relaxed);
  atomic_store_explicit(&pair->last_byte_ms, now_ms, memory_order_relaxed);
}

static ssize_t deliver_some(struct relay_direction *way, int to)
{
  struct relay_held *held = way->held;
  if (!held)
    return splice(way->pipe.read_end, NULL, to, NULL, way->in_pipe, SPLICE_FLAGS);
  ssize_t n = send(to, held->data + held->sent, held->size - held->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n > 0 && (held->sent += (uint32_t)n) == held->size) {
    free(held);
    way->held = NULL;
  }
  return n;
}

/* Writes what we hold. RELAY_HAS_MORE: all of it is delivered, go on reading. */
static enum relay_turn deliver(struct relay_pair *pair, int from, int64_t now_ms)
{
  struct relay_direction *way = &pair->from[from];
  while (way->held || way->in_pipe) {
    if (!pair->writable[!from])
      return RELAY_WAITS;
    bool spliced = !way->held;
    ssize_t n = deliver_some(way, pair->fd[!from]);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EAGAIN) {
      pair->writable[!from] = false;
      return RELAY_WAITS;
    }
    if (n <= 0)
      return failed(pair, !from, n < 0 ? errno : EIO);
    if (spliced)
      way->in_pipe -= (uint32_t)n;
    count(pair, from, n, now_ms);
  }
  return RELAY_HAS_MORE;
}

/* What was read into the thread's buffer goes on at once; what the destination does not take is kept. */
static enum relay_turn pass_on(struct relay_pair *pair, int from, uint32_t n, int64_t now_ms)
{
  /* Where the FIN is there already it leaves with these bytes: one packet less at each end. It is passed on in this turn or,
   * when more bytes come before it, the cork comes off with those. */
  int corked = pair->hung_up[from] && !pair->closing ? MSG_MORE : 0;
  ssize_t sent = send(pair->fd[!from], scratch, n, MSG_DONTWAIT | MSG_NOSIGNAL | corked);
  if (sent < 0 && errno != EAGAIN && errno != EINTR)
    return failed(pair, !from, errno);
  if (sent < 0 && errno == EAGAIN)
    pair->writable[!from] = false;
  sent = sent < 0 ? 0 : sent;
  if (sent > 0)
    count(pair, from, sent, now_ms);
  if (sent < n && !(pair->from[from].held = relay_hold(scratch + sent, n - (uint32_t)sent)))
    return failed(pair, from, ENOMEM);
  return RELAY_HAS_MORE;
}

/* Reads once, with nothing in our hands. Little is copied, since two calls on a small buffer cost less than two on a pipe;
 * what keeps coming is spliced, while there are pipes. */
static enum relay_turn take(struct relay_pair *pair, int from, int64_t now_ms, uint32_t *taken)
{
  struct relay_direction *way = &pair->from[from];
  bool spliced = !pair->marked[from] && (way->pipe.read_end >= 0 || (way->streaming && relay_pipe_lend(&way->pipe)));
  size_t most = spliced ? RELAY_PIPE_BYTES : RELAY_COPY_BYTES;
  most = pair->closing && way->budget < most ? way->budget : most;
  ssize_t n = spliced ? splice(pair->fd[from], NULL, way->pipe.write_end, NULL, most, SPLICE_FLAGS)
                      : recv(pair->fd[from], scratch, most, MSG_DONTWAIT);
  if (n < 0 && errno == EINTR)
    return RELAY_HAS_MORE;
  if (n < 0 && errno == EAGAIN) {
    /* splice says it for a full pipe as well; ours is empty, so it is the socket, and its next edge will come. */
    pair->readable[from] = pair->marked[from] = false;
    return RELAY_WAITS;
  }
  if (n < 0)
    return failed(pair, from, errno);
  if (n == 0) {
    way->eof = true;
    return RELAY_HAS_MORE;
  }
  way->budget -= pair->closing ? (uint32_t)n : 0;
  way->streaming = n >= (spliced ? RELAY_SMALL_BYTES : RELAY_COPY_BYTES);
  *taken += (uint32_t)n;
  atomic_store_explicit(&pair->last_byte_ms, now_ms, memory_order_relaxed);
  if (spliced) {
    way->in_pipe = (uint32_t)n;
    return RELAY_HAS_MORE;
  }
  /* A short read has emptied the socket: what comes later comes with an edge of its own, a FIN that is there already does not. */
  if ((size_t)n < most && !pair->hung_up[from] && !pair->marked[from])
    pair->readable[from] = false;
  return pass_on(pair, from, (uint32_t)n, now_ms);
}

static enum relay_turn pass_fin(struct relay_pair *pair, int from)
{
  pair->from[from].done = true;
  /* The last FIN goes out with close(). */
  if (pair->from[!from].done && !pair->closing)
    return RELAY_WAITS;
  if (shutdown(pair->fd[!from], SHUT_WR) < 0)
    return failed(pair, !from, errno);
  if (!pair->from[!from].done && !pair->closing) {
    pair->half_side = (uint8_t)from;
    pair->half_pending = true;
  }
  return RELAY_WAITS;
}

static enum relay_turn pump_direction(struct relay_pair *pair, int from, int64_t now_ms)
{
  struct relay_direction *way = &pair->from[from];
  for (uint32_t taken = 0; !way->done;) {
    enum relay_turn turn = deliver(pair, from, now_ms);
    if (turn != RELAY_HAS_MORE)
      return turn;
    if (way->eof || (pair->closing && way->budget == 0))
      return pass_fin(pair, from);
    if (!pair->readable[from] || !pair->writable[!from])
      return RELAY_WAITS;
    if (taken >= RELAY_TURN_BYTES)
      return RELAY_HAS_MORE;
    if ((turn = take(pair, from, now_ms, &taken)) != RELAY_HAS_MORE)
      return turn;
  }
  return RELAY_WAITS;
}

/* One turn of a pair. RELAY_FAILED: error and error_side say why. Over when both directions are done. */
enum relay_turn relay_pump(struct relay_pair *pair, int64_t now_ms)
{
  enum relay_turn turns[2] = {RELAY_WAITS, RELAY_WAITS};
  for (int from = 0; from < 2; from++) {
    struct relay_direction *way = &pair->from[from];
    if ((turns[from] = pump_direction(pair, from, now_ms)) == RELAY_FAILED)
      return RELAY_FAILED;
    if (way->in_pipe == 0)
      relay_pipe_return(&way->pipe, true);
  }
  return turns[0] > turns[1] ? turns[0] : turns[1];
}

/* Closing with grace delivers what the kernel had acknowledged to the peers by now, and no more: a peer that goes on
 * sending must not keep the pair alive. */
void relay_stop_reading(struct relay_pair *pair)
{
  pair->closing = true;
  for (int side = 0; side < 2; side++)
    pair->from[side].budget = relay_unread(pair->fd[side]);
}

/* A RST leaves with close(), and only of the last copy of the descriptor: who handed it to us must have closed his. */
void relay_close_socket(int fd, bool reset)
{
  if (reset)
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1, .l_linger = 0}, sizeof(struct linger));
  close(fd);
}

/* Unread bytes would turn close() into a RST, and that would throw away what is still on its way to the same peer. */
static void discard_unread(int fd)
{
  enum { ROUNDS_MAX = 64 };
  for (int i = 0; i < ROUNDS_MAX && recv(fd, scratch, sizeof scratch, MSG_DONTWAIT) > 0; i++)
    ;
}

/* Closes both sockets and gives back everything but the pair itself. */
void relay_release(struct relay_pair *pair, bool reset)
{
  for (int side = 0; side < 2; side++) {
    struct relay_direction *way = &pair->from[side];
    free(way->held);
    way->held = NULL;
    relay_pipe_return(&way->pipe, way->in_pipe == 0);
    if (pair->fd[side] < 0)
      continue;
    if (pair->closing && !reset)
      discard_unread(pair->fd[side]);
    relay_close_socket(pair->fd[side], reset);
  }
}
