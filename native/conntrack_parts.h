/* What the files of the conntrack reader share. */
#ifndef SLUICE_CONNTRACK_PARTS_H
#define SLUICE_CONNTRACK_PARTS_H
#include "sluice.h"
#include <libmnl/libmnl.h>

/* ---- conntrack_messages.c: netlink ⇄ struct sluice_flow; pure but for the clock ---- */

uint64_t ct_now_ns(void);
void ct_parse_flow(const struct nlmsghdr *message, struct sluice_flow *flow);
/* A request about conntrack in `buffer` (MNL_SOCKET_BUFFER_SIZE bytes, or what is left of it). */
struct nlmsghdr *ct_start_message(char *buffer, uint16_t type, uint16_t flags, uint8_t family);
/* Appends the flow's key: original tuple and zone. */
void ct_put_tuple(struct nlmsghdr *message, const struct sluice_flow *flow);
/* Lets only events pass that have our mark and change a record. Returns 0 or -errno. */
int ct_attach_filter(int fd, uint32_t base, uint32_t mask);

/* ---- conntrack_stage.c: records on their way to TypeScript ---- */

#define STAGE_RECORDS 8192

/* A record at the end of the stage, zeroed but for its kind; never NULL: a full stage is sent first. */
struct sluice_flow *stage_append(uint8_t kind);
/* How many records still fit. */
unsigned stage_room(void);
/* Takes an event in: what a staged record already tells of the same flow is brought up to date instead of said twice.
 * Returns the record that ended with this event and has no counters yet, or NULL. */
struct sluice_flow *stage_event(const struct sluice_flow *event);
/* Sends what is staged when it has waited long enough, or `now`. Milliseconds until it has, or -1. */
int stage_flush(int now);
void stage_open(int fd, int wake, volatile int *stopping);

#endif
