/* What the files of the relay share: the pair, its two directions, and the limits. Not part of the public contract
 * (sluice.h). Everything here belongs to the relay thread, except where a field says otherwise.
 *
 *   relay.c          the public functions; the table and the commands, which callers and thread share
 *   relay_accept.c   the thread's listeners, and how a client without a target gets one
 *   relay_thread.c   the thread: what it does in which order, deadlines
 *   relay_pump.c     how the bytes and the end of one pair travel
 *   relay_pipes.c    the pool of pipes
 *   relay_reports.c  the records it writes */
#ifndef SLUICE_RELAY_PARTS_H
#define SLUICE_RELAY_PARTS_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum relay_limit {
  RELAY_PAIRS_MAX = 1 << 18,        /* refused beyond: two descriptors each, more than nr_open allows by default */
  RELAY_INITIAL_BYTES_MAX = 16 << 20, /* of one initial buffer; refused beyond: a peeked head is a few KiB */
  RELAY_PIPE_BYTES = 256 << 10,     /* 64 slots, so that a GRO'd burst fits in one turn */
  RELAY_PIPES_MAX = 256,            /* what an unprivileged user gets of that size; beyond it bytes are copied */
  RELAY_PIPES_KEPT = 8,             /* open while nobody needs them; more are closed when they were spare for a while: */
  RELAY_PIPES_SPARE_MS = 50,
  RELAY_TURN_BYTES = 256 << 10,     /* a direction moves at most one pipe more than this before others get their turn */
  RELAY_COPY_BYTES = 16 << 10,      /* read at once where nothing is spliced; also what a stalled direction then holds */
  RELAY_SMALL_BYTES = 4 << 10,      /* a direction whose spliced pieces are smaller is copied again */
  RELAY_MESSAGE_BYTES = 64 << 10,   /* of event records, clients' first bytes among them */
  RELAY_ACCEPTS_MAX = 64,           /* connections accepted in one round, of each listener */
  RELAY_ACCEPT_PAUSE_MS = 100,      /* when the kernel has no descriptor or memory for another one */
  RELAY_LAZY_MS = 2,                /* news that nobody waits for is told with what comes next, or then */
  RELAY_WAKEUPS_MAX = 256           /* descriptors looked at in one round */
};

struct relay_pipe {
  int read_end, write_end; /* -1: none */
};

/* Bytes in our hands and in no pipe: read before the pair was ours, or more than the destination took. */
struct relay_held {
  uint32_t size, sent;
  uint8_t data[];
};

/* One way through a pair, named after the side it comes from. */
struct relay_direction {
  _Atomic uint64_t delivered; /* also read by sluice_relay_stats */
  struct relay_held *held;
  struct relay_pipe pipe; /* lent only while it holds something */
  uint32_t in_pipe;
  uint32_t budget; /* while closing: what may still be read */
  bool streaming;  /* more came than a small buffer takes: splice */
  bool eof;        /* nothing more will be read */
  bool done;       /* everything is delivered and the FIN passed on */
};

/* A pair that was added is carrying from the start; one whose client was accepted here goes through all of them. */
enum relay_phase {
  RELAY_ASKING,  /* what to do with this client? */
  RELAY_DIALING, /* fd[SLUICE_TARGET] is connecting */
  RELAY_CARRYING
};

struct relay_pair {
  uint64_t id;
  struct relay_pair *bucket_next, *command_next, *run_next, *report_next, *later, *earlier;
  struct relay_direction from[2];
  _Atomic int64_t last_byte_ms; /* also read by sluice_relay_stats */
  int64_t deadline_ms, closed_ms;
  int fd[2]; /* -1: none */
  uint16_t error, refusal;
  uint8_t error_side, half_side;
  uint8_t phase;
  bool readable[2], writable[2]; /* since the last edge; cleared by EAGAIN and short reads alone */
  bool hung_up[2];               /* a FIN is there or on its way out of the socket: read to the end */
  bool marked[2];                /* an urgent mark, where recv stops short and splice for ever: copy, until EAGAIN */
  bool half_pending, connected_pending, refused_pending;
  bool fin_told;                 /* ASKING: that the client has sent one */
  bool listening;                /* ASKING: the client may be read */
  bool queued_to_report, queued_to_run, closing, has_deadline, closed;
  /* Under the lock of relay.c, because callers write them too. */
  uint8_t requests;
  bool commanded, abandoned, dialed;
  atomic_bool taken; /* also read without it */
  uint32_t grace_ms;
  uint32_t attempt;
  uint32_t unread; /* of a client that never had a target, when it ended */
  struct relay_dial *dial; /* what the next command says */
};

_Static_assert(sizeof(struct relay_pair) <= 272, "an idle pair costs little");

/* A target to connect to. */
struct relay_dial {
  char address[108]; /* as long as sun_path */
  char from[46];     /* empty: whatever the kernel chooses */
  uint16_t port;
  uint32_t attempt;
  struct relay_held *first; /* NULL: none, or the pair has it already */
};

struct relay_listener {
  int fd;
  uint32_t tag;
  struct relay_listener *next; /* under the lock of relay.c */
  bool watched, closing;       /* closing under the lock */
  bool reads;
};

/* What epoll hands back: one of the first two, a listener's address with this bit, or a pair's with the side in its lowest bit. */
enum relay_token { RELAY_TOKEN_WAKE = 0, RELAY_TOKEN_REPORTS = 1, RELAY_TOKEN_LISTENER = 2 };

/* relay.c */
enum relay_request { RELAY_ADD = 1, RELAY_CLOSE = 2, RELAY_RESET = 4, RELAY_MORE = 8, RELAY_DIAL = 16, RELAY_TAKEN = 32 };
struct relay_command {
  struct relay_pair *pair;
  struct relay_dial *dial; /* owned by who gets it */
  unsigned requests;
  uint32_t grace_ms;
  bool stopping, listeners;
};
struct relay_command relay_next_command(void);
bool relay_forget(struct relay_pair *pair);
int relay_enter_accepted(struct relay_pair *pair);
void relay_set_target(struct relay_pair *pair, int fd);
bool relay_is_full(void);
struct relay_listener *relay_next_to_close(bool all);
void relay_each_listener(bool (*visit)(struct relay_listener *listener));
struct relay_held *relay_hold(const void *bytes, uint32_t n);
void relay_free(struct relay_pair *pair);
struct relay_pair *relay_remaining(uint32_t *bucket);

/* relay_thread.c: start owns events_fd, also when it fails */
int relay_thread_start(int events_fd);
void relay_thread_wake(void);
void relay_thread_unwatch(int fd);
void relay_thread_join(void);
/* For the other files of the thread. */
int relay_watch(int fd, uint64_t token);
void relay_run_later(struct relay_pair *pair);
void relay_finish(struct relay_pair *pair, int side, int error, bool reset);

/* connect.c: at_once = 1: the first bytes follow as soon as it is connected. */
int sluice_connect_saying(const char *address, uint16_t port, const char *from, int at_once);

/* relay_accept.c */
extern atomic_uint relay_accept_pairs;
extern atomic_int relay_accept_below;
int relay_prepare_listener(struct relay_listener *listener, int fd); /* also for callers: touches only its arguments */
void relay_accept_start(int epoll_fd);
void relay_accept_stop(void);
void relay_listeners_changed(void);
void relay_accept_some(struct relay_listener *listener, int64_t now_ms);
void relay_accept_again(int64_t now_ms);
int64_t relay_accept_due(void);
ssize_t relay_listen_to(struct relay_pair *pair, void *into, size_t most);
void relay_read_on(struct relay_pair *pair);
void relay_dial_target(struct relay_pair *pair, struct relay_dial *dial);
void relay_notice_opening(struct relay_pair *pair, int side, uint32_t events);

/* relay_reports.c */
struct sluice_relay_event;
int64_t relay_coarse_ms(void);
int relay_reports_open(int events_fd, int epoll_fd);
/* urgent: somebody waits for it; else it may wait RELAY_LAZY_MS for company. */
void relay_report(struct relay_pair *pair, bool urgent);
/* Both at once, where there is room. */
bool relay_reports_room(void);
struct sluice_relay_accepted;
void relay_report_accepted(struct relay_pair *pair, uint32_t tag, const struct sluice_relay_accepted *ends);
void relay_report_unlistened(uint32_t tag);
void relay_describe(const struct relay_pair *pair, struct sluice_relay_event *event);
int64_t relay_reports_due(void);
void relay_reports_go_on(void);
void relay_reports_write(int64_t now_ms);
void relay_reports_close(void);

/* relay_pump.c */
enum relay_turn { RELAY_WAITS, RELAY_HAS_MORE, RELAY_FAILED };
enum relay_turn relay_pump(struct relay_pair *pair, int64_t now_ms);
void relay_stop_reading(struct relay_pair *pair);
int relay_socket_error(int fd);
uint32_t relay_unread(int fd);
void relay_close_socket(int fd, bool reset);
void relay_release(struct relay_pair *pair, bool reset);

/* relay_pipes.c */
bool relay_pipe_lend(struct relay_pipe *pipe);
void relay_pipe_return(struct relay_pipe *pipe, bool empty);
void relay_pipes_trim(int64_t now_ms);
int64_t relay_pipes_due(void);
void relay_pipes_close(void);

#endif
