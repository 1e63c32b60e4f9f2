/* The stage: records on their way to TypeScript. Under load they wait here for a moment, so that a short connection, which
 * makes its two events within a few milliseconds, becomes one record. When little happens they leave at once. */
#define _GNU_SOURCE
#include "conntrack_parts.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define RECORDS_PER_MESSAGE 96 /* 15 KiB: several such datagrams fit the socket's buffer */
#define HOLD_NS 25000000       /* longer than most short connections live, shorter than a person notices */
#define INDEX_SIZE (STAGE_RECORDS * 4)

static struct {
  struct sluice_flow records[STAGE_RECORDS];
  unsigned count;
  uint64_t since_ns;          /* when the oldest record came */
  int32_t index[INDEX_SIZE];  /* position + 1 by flow, open addressing; a flow's newest record */
  int out, wake;
  volatile int *stopping;
} stage;

void stage_open(int fd, int wake, volatile int *stopping) {
  memset(&stage, 0, sizeof stage);
  stage.out = fd;
  stage.wake = wake;
  stage.stopping = stopping;
}

/* Waits when TypeScript does not read: then the kernel's buffer fills, overruns, and LOST is said. Nothing piles up here. */
static void send_all(void) {
  for (unsigned at = 0; at < stage.count && !*stage.stopping;) {
    unsigned n = stage.count - at < RECORDS_PER_MESSAGE ? stage.count - at : RECORDS_PER_MESSAGE;
    if (send(stage.out, &stage.records[at], n * sizeof stage.records[0], MSG_NOSIGNAL) >= 0) {
      at += n;
      continue;
    }
    if (errno != EAGAIN && errno != EINTR) break;
    struct pollfd wait[2] = {{.fd = stage.out, .events = POLLOUT}, {.fd = stage.wake, .events = POLLIN}};
    poll(wait, 2, 1000);
  }
  stage.count = 0;
  memset(stage.index, 0, sizeof stage.index);
}

int stage_flush(int now) {
  if (!stage.count) return -1;
  uint64_t age = ct_now_ns() - stage.since_ns; /* a clock that was set back makes this huge, and the stage is sent */
  if (!now && age < HOLD_NS) return (int)((HOLD_NS - age) / 1000000) + 1;
  send_all();
  return -1;
}

unsigned stage_room(void) { return STAGE_RECORDS - stage.count; }

struct sluice_flow *stage_append(uint8_t kind) {
  if (stage.count == STAGE_RECORDS) send_all();
  if (!stage.count) stage.since_ns = ct_now_ns();
  struct sluice_flow *record = &stage.records[stage.count++];
  memset(record, 0, sizeof *record);
  record->kind = kind;
  return record;
}

static int same_flow(const struct sluice_flow *a, const struct sluice_flow *b) {
  return a->id == b->id && a->orig_sport == b->orig_sport && a->orig_dport == b->orig_dport && a->zone == b->zone &&
         a->protocol == b->protocol && memcmp(a->orig_src, b->orig_src, 32) == 0;
}

/* The place in the index of the flow, or the empty one where it would stand. */
static int32_t *place_of(const struct sluice_flow *flow) {
  unsigned i = (flow->id ^ flow->id >> 15) % INDEX_SIZE; /* CTA_ID is a hash already */
  while (stage.index[i] && !same_flow(&stage.records[stage.index[i] - 1], flow)) i = (i + 1) % INDEX_SIZE;
  return &stage.index[i];
}

static struct sluice_flow *append_copy(const struct sluice_flow *event) {
  struct sluice_flow *record = stage_append(event->kind);
  *record = *event;
  *place_of(event) = (int32_t)(record - stage.records) + 1;
  return record;
}

struct sluice_flow *stage_event(const struct sluice_flow *event) {
  int32_t at = *place_of(event);
  struct sluice_flow *known = at ? &stage.records[at - 1] : NULL;
  int open = known && (known->kind == SLUICE_FLOW_NEW || known->kind == SLUICE_FLOW_UPDATE);
  switch (event->kind) {
  case SLUICE_FLOW_UPDATE:
    if (!open) append_copy(event);
    else {
      known->mark = event->mark;
      known->status = event->status;
      if (event->established_ns && !known->established_ns) {
        known->established_ns = event->established_ns;
        known->tcp_state = event->tcp_state;
      }
    }
    return NULL;
  case SLUICE_FLOW_CLOSED:
    if (!open) return append_copy(event);
    known->mark = event->mark;
    known->status = event->status;
    if (known->kind == SLUICE_FLOW_NEW) known->start_ns = known->event_ns;
    known->event_ns = event->event_ns;
    known->kind = known->kind == SLUICE_FLOW_NEW ? SLUICE_FLOW_WHOLE : SLUICE_FLOW_CLOSED;
    return known;
  default:
    append_copy(event);
    return NULL;
  }
}
