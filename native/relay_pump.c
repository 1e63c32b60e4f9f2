/* How the bytes of one pair travel: initial bytes, then socket to pipe to socket by splice(2), then the FIN; and how
 * both sockets end. Only the relay thread comes here; nothing here knows the table, the commands or the reports.
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
  struct relay_initial *initial = way->initial;
  if (!initial)
    return splice(way->pipe.read_end, NULL, to, NULL, way->in_pipe, SPLICE_FLAGS);
  ssize_t n = send(to, initial->data + initial->sent, initial->size - initial->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n > 0 && (initial->sent += (uint32_t)n) == initial->size) {
    free(initial);
    way->initial = NULL;
  }
  return n;
}

/* Writes what we hold. RELAY_HAS_MORE: all of it is delivered, go on reading. */
static enum relay_turn deliver(struct relay_pair *pair, int from, int64_t now_ms)
{
  struct relay_direction *way = &pair->from[from];
  while (way->initial || way->in_pipe) {
    if (!pair->writable[!from])
      return RELAY_WAITS;
    bool spliced = !way->initial;
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

/* Without a pipe: look, send, then take exactly what was sent. A full destination leaves everything in the source's
 * socket, so running out of pipes costs copies but neither memory nor another connection's progress. On -1 *side is the
 * socket that errno is about. */
static ssize_t copy(struct relay_pair *pair, int from, size_t most, int64_t now_ms, int *side)
{
  ssize_t seen = recv(pair->fd[from], scratch, most < sizeof scratch ? most : sizeof scratch, MSG_PEEK | MSG_DONTWAIT);
  if (seen <= 0)
    return seen;
  *side = !from;
  ssize_t sent = send(pair->fd[!from], scratch, (size_t)seen, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0)
    return sent;
  count(pair, from, sent, now_ms);
  *side = from;
  return recv(pair->fd[from], scratch, (size_t)sent, MSG_DONTWAIT);
}

/* Reads once, with nothing in our hands: splice says EAGAIN for a full pipe as well as for an empty socket, and only
 * with an empty pipe is it certain that the socket has no more, and that its next edge will come. */
static enum relay_turn take(struct relay_pair *pair, int from, int64_t now_ms, uint32_t *taken)
{
  struct relay_direction *way = &pair->from[from];
  size_t most = pair->closing && way->budget < RELAY_PIPE_BYTES ? way->budget : RELAY_PIPE_BYTES;
  bool spliced = way->pipe.read_end >= 0 || relay_pipe_lend(&way->pipe);
  int side = from;
  ssize_t n = spliced ? splice(pair->fd[from], NULL, way->pipe.write_end, NULL, most, SPLICE_FLAGS)
                      : copy(pair, from, most, now_ms, &side);
  if (n < 0 && errno == EINTR)
    return RELAY_HAS_MORE;
  if (n < 0 && errno == EAGAIN) {
    *(side == from ? &pair->readable[from] : &pair->writable[side]) = false;
    return RELAY_WAITS;
  }
  if (n < 0)
    return failed(pair, side, errno);
  if (n == 0) {
    way->eof = true;
    return RELAY_HAS_MORE;
  }
  way->in_pipe = spliced ? (uint32_t)n : 0;
  way->budget -= pair->closing ? (uint32_t)n : 0;
  *taken += (uint32_t)n;
  atomic_store_explicit(&pair->last_byte_ms, now_ms, memory_order_relaxed);
  return RELAY_HAS_MORE;
}

static enum relay_turn pass_fin(struct relay_pair *pair, int from)
{
  pair->from[from].done = true;
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
    /* The copying path gets here with a full destination; the pipe never does. */
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
  for (int side = 0; side < 2; side++) {
    int queued = 0;
    pair->from[side].budget = ioctl(pair->fd[side], FIONREAD, &queued) == 0 && queued > 0 ? (uint32_t)queued : 0;
  }
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
  enum { ROUNDS_MAX = 16 };
  for (int i = 0; i < ROUNDS_MAX && recv(fd, scratch, sizeof scratch, MSG_DONTWAIT) > 0; i++)
    ;
}

/* Closes both sockets and gives back everything but the pair itself. */
void relay_release(struct relay_pair *pair, bool reset)
{
  for (int side = 0; side < 2; side++) {
    struct relay_direction *way = &pair->from[side];
    if (pair->closing && !reset)
      discard_unread(pair->fd[side]);
    relay_close_socket(pair->fd[side], reset);
    relay_pipe_return(&way->pipe, way->in_pipe == 0);
    free(way->initial);
    way->initial = NULL;
  }
}
