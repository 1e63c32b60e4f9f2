/* The pool of pipes that the relay splices through. A pipe is lent to a direction while it holds bytes of it, so there
 * are as many as there are stalled directions, not as there are connections. Only the relay thread comes here. */
#define _GNU_SOURCE
#include "relay_parts.h"
#include <fcntl.h>
#include <unistd.h>

static struct relay_pipe pooled[RELAY_PIPES_MAX];
static unsigned pooled_count, open_count;
static unsigned spare; /* pooled at every moment since the last trim */
static int64_t trimmed_ms;

static void close_pipe(struct relay_pipe *pipe)
{
  close(pipe->read_end);
  close(pipe->write_end);
  open_count--;
}

/* False when there is none to be had (the cap, EMFILE, the user's pipe pages): the caller then copies. */
bool relay_pipe_lend(struct relay_pipe *pipe)
{
  if (pooled_count > 0) {
    *pipe = pooled[--pooled_count];
    spare = pooled_count < spare ? pooled_count : spare;
    return true;
  }
  int ends[2];
  if (open_count == RELAY_PIPES_MAX || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
    return false;
  *pipe = (struct relay_pipe){.read_end = ends[0], .write_end = ends[1]};
  open_count++;
  /* An unprivileged user gets EPERM here when others of its processes have pipes too (pipe-user-pages-soft), and then
   * pipes of 8 KiB: a copy is better than those. */
  if (fcntl(ends[1], F_SETPIPE_SZ, RELAY_PIPE_BYTES) >= RELAY_PIPE_BYTES)
    return true;
  close_pipe(pipe);
  *pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
  return false;
}

/* A pipe with bytes left in it must never be lent again: they would come out of another connection. */
void relay_pipe_return(struct relay_pipe *pipe, bool empty)
{
  if (pipe->read_end < 0)
    return;
  if (empty)
    pooled[pooled_count++] = *pipe;
  else
    close_pipe(pipe);
  *pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
}

/* When the pool should be looked at again; 0: not before somebody uses it. */
int64_t relay_pipes_due(void)
{
  return pooled_count > RELAY_PIPES_KEPT ? trimmed_ms + RELAY_PIPES_SPARE_MS : 0;
}

void relay_pipes_trim(int64_t now_ms)
{
  if (now_ms < trimmed_ms + RELAY_PIPES_SPARE_MS)
    return;
  for (; spare > RELAY_PIPES_KEPT; spare--)
    close_pipe(&pooled[--pooled_count]);
  spare = pooled_count;
  trimmed_ms = now_ms;
}

void relay_pipes_close(void)
{
  while (pooled_count > 0)
    close_pipe(&pooled[--pooled_count]);
  spare = 0;
}
