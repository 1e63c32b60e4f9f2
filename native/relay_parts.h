/* What the files of the relay share: the pair, its two directions, and the limits. Not part of the public contract
 * (sluice.h). Everything here belongs to the relay thread, except where a field says otherwise.
 *
 *   relay.c          the public functions; the table and the commands, which callers and thread share
 *   relay_thread.c   the thread: what it does in which order, deadlines
 *   relay_pump.c     how the bytes and the end of one pair travel
 *   relay_pipes.c    the pool of pipes
 *   relay_reports.c  the records it writes */
#ifndef SLUICE_RELAY_PARTS_H
#define SLUICE_RELAY_PARTS_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum relay_limit {
  RELAY_PAIRS_MAX = 1 << 18,        /* refused beyond: two descriptors each, more than nr_open allows by default */
  RELAY_INITIAL_BYTES_MAX = 16 << 20, /* of one initial buffer; refused beyond: a peeked head is a few KiB */
  RELAY_PIPE_BYTES = 256 << 10,     /* asked for; 64 slots, so that a GRO'd burst fits in one turn */
  RELAY_PIPES_MAX = 2048,           /* lent and pooled; beyond it bytes are copied */
  RELAY_PIPES_POOLED_MAX = 64,      /* kept open while nobody needs them */
  RELAY_TURN_BYTES = 256 << 10,     /* a direction moves at most one pipe more than this before others get their turn */
  RELAY_COPY_BYTES = 64 << 10,      /* the one buffer of the thread */
  RELAY_BATCH_MAX = 64,             /* event records in a message */
  RELAY_WAKEUPS_MAX = 256           /* descriptors looked at in one round */
};

struct relay_pipe {
  int read_end, write_end; /* -1: none */
};

/* Bytes that were read before the pair was ours. */
struct relay_initial {
  uint32_t size, sent;
  uint8_t data[];
};

/* One way through a pair, named after the side it comes from. */
struct relay_direction {
  _Atomic uint64_t delivered; /* also read by sluice_relay_stats */
  struct relay_initial *initial;
  struct relay_pipe pipe; /* lent only while it holds something */
  uint32_t in_pipe;
  uint32_t budget; /* while closing: what may still be read */
  bool eof;        /* nothing more will be read */
  bool done;       /* everything is delivered and the FIN passed on */
};

struct relay_pair {
  uint64_t id;
  struct relay_pair *bucket_next, *command_next, *run_next, *report_next, *later, *earlier;
  struct relay_direction from[2];
  _Atomic int64_t last_byte_ms; /* also read by sluice_relay_stats */
  int64_t deadline_ms, closed_ms;
  int fd[2];
  uint16_t error;
  uint8_t error_side, half_side;
  bool readable[2], writable[2]; /* since the last edge; cleared by EAGAIN alone */
  bool half_pending, queued_to_report, queued_to_run, closing, has_deadline, closed;
  /* Under the lock of relay.c, because callers write them too. */
  uint8_t requests;
  bool commanded, abandoned;
  uint32_t grace_ms;
};

_Static_assert(sizeof(struct relay_pair) <= 256, "an idle pair costs little");

/* What epoll hands back: one of these, or a pair's address with the side in its lowest bit. */
enum relay_token { RELAY_TOKEN_WAKE = 0, RELAY_TOKEN_REPORTS = 1 };

/* relay.c */
enum relay_request { RELAY_ADD = 1, RELAY_CLOSE = 2, RELAY_RESET = 4 };
struct relay_command {
  struct relay_pair *pair;
  unsigned requests;
  uint32_t grace_ms;
  bool stopping;
};
struct relay_command relay_next_command(void);
void relay_forget(struct relay_pair *pair);
void relay_free(struct relay_pair *pair);
struct relay_pair *relay_remaining(uint32_t *bucket);

/* relay_thread.c: start owns events_fd, also when it fails */
int relay_thread_start(int events_fd);
void relay_thread_wake(void);
void relay_thread_join(void);

/* relay_reports.c */
struct sluice_relay_event;
int64_t relay_coarse_ms(void);
int relay_reports_open(int events_fd, int epoll_fd);
void relay_report(struct relay_pair *pair);
void relay_describe(const struct relay_pair *pair, struct sluice_relay_event *event);
bool relay_reports_waiting(void);
void relay_reports_go_on(void);
void relay_reports_write(void);
void relay_reports_close(void);

/* relay_pump.c */
enum relay_turn { RELAY_WAITS, RELAY_HAS_MORE, RELAY_FAILED };
enum relay_turn relay_pump(struct relay_pair *pair, int64_t now_ms);
void relay_stop_reading(struct relay_pair *pair);
int relay_socket_error(int fd);
void relay_close_socket(int fd, bool reset);
void relay_release(struct relay_pair *pair, bool reset);

/* relay_pipes.c */
bool relay_pipe_lend(struct relay_pipe *pipe);
void relay_pipe_return(struct relay_pipe *pipe, bool empty);
void relay_pipes_close(void);

#endif
