/* Netlink messages of conntrack, in and out, and the filter that the kernel runs on them. */
#define _GNU_SOURCE
#include "conntrack_parts.h"
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define ATTRIBUTE_TIMESTAMP_EVENT 27 /* CTA_TIMESTAMP_EVENT: kernel 6.14, newer than Debian 12's headers */

uint64_t ct_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- in ---- */

/* libmnl's accessors are calls into another library, 80 of them for one event: these do the same in place. */
#define for_each_attribute(attribute, from, end) \
  for (const struct nlattr *attribute = (const void *)(from); \
       (const char *)(end) - (const char *)attribute >= NLA_HDRLEN && attribute->nla_len >= NLA_HDRLEN && \
       attribute->nla_len <= (const char *)(end) - (const char *)attribute; \
       attribute = (const void *)((const char *)attribute + NLA_ALIGN(attribute->nla_len)))

static int type_of(const struct nlattr *attribute) { return attribute->nla_type & NLA_TYPE_MASK; }
static const char *start_of(const struct nlattr *attribute) { return (const char *)attribute + NLA_HDRLEN; }
static const char *end_of(const struct nlattr *attribute) { return (const char *)attribute + attribute->nla_len; }

/* The kernel's values are exactly as long as their type; a shorter one would be a bug of its, and reads as 0. */
#define READER(name, kind, swap) \
  static kind name(const struct nlattr *attribute) { \
    kind value = 0; \
    if (attribute->nla_len >= NLA_HDRLEN + sizeof value) memcpy(&value, start_of(attribute), sizeof value); \
    return swap(value); \
  }
#define AS_IT_IS(value) (value)
READER(read_u8, uint8_t, AS_IT_IS)
READER(read_u16, uint16_t, ntohs)
READER(read_u32, uint32_t, ntohl)
READER(read_u64, uint64_t, be64toh)

static void read_bytes(const struct nlattr *attribute, uint8_t *to, size_t width) {
  if (attribute->nla_len >= NLA_HDRLEN + width) memcpy(to, start_of(attribute), width);
}

static void parse_ports(const struct nlattr *nest, struct sluice_flow *flow, uint16_t *sport, uint16_t *dport) {
  for_each_attribute(attribute, start_of(nest), end_of(nest)) switch (type_of(attribute)) {
    case CTA_PROTO_NUM: flow->protocol = read_u8(attribute); break;
    case CTA_PROTO_SRC_PORT: *sport = read_u16(attribute); break;
    case CTA_PROTO_DST_PORT: *dport = read_u16(attribute); break;
  }
}

static void parse_ips(const struct nlattr *nest, struct sluice_flow *flow, uint8_t *src, uint8_t *dst) {
  for_each_attribute(attribute, start_of(nest), end_of(nest)) switch (type_of(attribute)) {
    case CTA_IP_V4_SRC: flow->family = 4; read_bytes(attribute, src, 4); break;
    case CTA_IP_V4_DST: read_bytes(attribute, dst, 4); break;
    case CTA_IP_V6_SRC: flow->family = 6; read_bytes(attribute, src, 16); break;
    case CTA_IP_V6_DST: read_bytes(attribute, dst, 16); break;
  }
}

static void parse_tuple(const struct nlattr *nest, struct sluice_flow *flow, int reply) {
  for_each_attribute(attribute, start_of(nest), end_of(nest)) switch (type_of(attribute)) {
    case CTA_TUPLE_IP: parse_ips(attribute, flow, reply ? flow->reply_src : flow->orig_src, reply ? flow->reply_dst : flow->orig_dst); break;
    case CTA_TUPLE_PROTO: parse_ports(attribute, flow, reply ? &flow->reply_sport : &flow->orig_sport, reply ? &flow->reply_dport : &flow->orig_dport); break;
  }
}

static void parse_counters(const struct nlattr *nest, uint64_t *packets, uint64_t *bytes) {
  for_each_attribute(attribute, start_of(nest), end_of(nest)) switch (type_of(attribute)) {
    case CTA_COUNTERS_PACKETS: *packets = read_u64(attribute); break;
    case CTA_COUNTERS_BYTES: *bytes = read_u64(attribute); break;
  }
}

static void parse_tcp_state(const struct nlattr *nest, struct sluice_flow *flow) {
  for_each_attribute(outer, start_of(nest), end_of(nest)) if (type_of(outer) == CTA_PROTOINFO_TCP)
    for_each_attribute(inner, start_of(outer), end_of(outer)) if (type_of(inner) == CTA_PROTOINFO_TCP_STATE) flow->tcp_state = read_u8(inner);
}

void ct_parse_flow(const struct nlmsghdr *message, struct sluice_flow *flow) {
  const char *from = (const char *)message + NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct nfgenmsg));
  for_each_attribute(attribute, from, (const char *)message + message->nlmsg_len) switch (type_of(attribute)) {
    case CTA_TUPLE_ORIG: parse_tuple(attribute, flow, 0); break;
    case CTA_TUPLE_REPLY: parse_tuple(attribute, flow, 1); break;
    case CTA_STATUS: flow->status = read_u32(attribute); break;
    case CTA_PROTOINFO: parse_tcp_state(attribute, flow); break;
    case CTA_TIMEOUT: flow->timeout_s = read_u32(attribute); break;
    case CTA_MARK: flow->mark = read_u32(attribute); break;
    case CTA_ID: flow->id = read_u32(attribute); break;
    case CTA_ZONE: flow->zone = read_u16(attribute); break;
    case CTA_COUNTERS_ORIG: flow->counted = 1; parse_counters(attribute, &flow->orig_packets, &flow->orig_bytes); break;
    case CTA_COUNTERS_REPLY: parse_counters(attribute, &flow->reply_packets, &flow->reply_bytes); break;
    case CTA_TIMESTAMP:
      for_each_attribute(inner, start_of(attribute), end_of(attribute)) if (type_of(inner) == CTA_TIMESTAMP_START) flow->start_ns = read_u64(inner);
      break;
    case ATTRIBUTE_TIMESTAMP_EVENT:
      flow->event_ns = read_u64(attribute);
      flow->timed = flow->event_ns != 0;
      break;
  }
  if (!flow->event_ns) flow->event_ns = ct_now_ns();
}

/* ---- out ---- */

void ct_put_tuple(struct nlmsghdr *message, const struct sluice_flow *flow) {
  size_t width = flow->family == 4 ? 4 : 16;
  struct nlattr *tuple = mnl_attr_nest_start(message, CTA_TUPLE_ORIG);
  struct nlattr *ip = mnl_attr_nest_start(message, CTA_TUPLE_IP);
  mnl_attr_put(message, flow->family == 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, width, flow->orig_src);
  mnl_attr_put(message, flow->family == 4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, width, flow->orig_dst);
  mnl_attr_nest_end(message, ip);
  struct nlattr *proto = mnl_attr_nest_start(message, CTA_TUPLE_PROTO);
  mnl_attr_put_u8(message, CTA_PROTO_NUM, flow->protocol);
  mnl_attr_put_u16(message, CTA_PROTO_SRC_PORT, htons(flow->orig_sport));
  mnl_attr_put_u16(message, CTA_PROTO_DST_PORT, htons(flow->orig_dport));
  mnl_attr_nest_end(message, proto);
  mnl_attr_nest_end(message, tuple);
  if (flow->zone) mnl_attr_put_u16(message, CTA_ZONE, htons(flow->zone));
}

struct nlmsghdr *ct_start_message(char *buffer, uint16_t type, uint16_t flags, uint8_t family) {
  struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
  message->nlmsg_type = (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | type);
  message->nlmsg_flags = NLM_F_REQUEST | flags;
  struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
  header->nfgen_family = family;
  header->version = NFNETLINK_V0;
  header->res_id = 0;
  return message;
}


/* ---- the kernel's side ---- */

/* Runs in the kernel on every event: only those with our mark wake us. The offset of an attribute comes from an ancillary
 * load (kernel documentation, networking/filter). */
int ct_attach_filter(int fd, uint32_t base, uint32_t mask) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_IMM, sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg)),
      BPF_STMT(BPF_LDX | BPF_IMM, CTA_MARK),
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_NLATTR)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, 0), /* no mark */
      BPF_STMT(BPF_MISC | BPF_TAX, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_IND, 4),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, base, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, 0),
      BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
  };
  struct sock_fprog program = {sizeof code / sizeof code[0], code};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}
