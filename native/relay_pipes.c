/* The pool of pipes that the relay splices through. A pipe is lent to a direction while it holds bytes of it, so there
 * are as many as there are stalled directions, not as there are connections. Only the relay thread comes here. */
#define _GNU_SOURCE
#include "relay_parts.h"
#include <fcntl.h>
#include <unistd.h>

static struct relay_pipe pooled[RELAY_PIPES_POOLED_MAX];
static unsigned pooled_count, open_count;

/* False when there is none to be had (the cap, EMFILE, the user's pipe pages): the caller then copies. */
bool relay_pipe_lend(struct relay_pipe *pipe)
{
  if (pooled_count > 0) {
    *pipe = pooled[--pooled_count];
    return true;
  }
  int ends[2];
  if (open_count == RELAY_PIPES_MAX || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
    return false;
  /* An unprivileged user gets EPERM here after 256 such pipes (pipe-user-pages-soft). What the kernel gave will do. */
  (void)fcntl(ends[1], F_SETPIPE_SZ, RELAY_PIPE_BYTES);
  *pipe = (struct relay_pipe){.read_end = ends[0], .write_end = ends[1]};
  open_count++;
  return true;
}

static void close_pipe(struct relay_pipe *pipe)
{
  close(pipe->read_end);
  close(pipe->write_end);
  open_count--;
}

/* A pipe with bytes left in it must never be lent again: they would come out of another connection. */
void relay_pipe_return(struct relay_pipe *pipe, bool empty)
{
  if (pipe->read_end < 0)
    return;
  if (empty && pooled_count < RELAY_PIPES_POOLED_MAX)
    pooled[pooled_count++] = *pipe;
  else
    close_pipe(pipe);
  *pipe = (struct relay_pipe){.read_end = -1, .write_end = -1};
}

void relay_pipes_close(void)
{
  while (pooled_count > 0)
    close_pipe(&pooled[--pooled_count]);
}
