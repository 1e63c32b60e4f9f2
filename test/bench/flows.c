/* Fills conntrack with flows that look as if the nft program had forwarded them: established TCP connections of many clients
 * to one listener, DNATed to one target, with a route's mark.
 *
 *   flows COUNT MARK
 *
 * Prints how many there are. Run it in a network namespace of its own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AT_ONCE = 64, MESSAGE_BYTES = 512 };

static const char *LISTENER = "10.99.1.1", *TARGET = "10.99.2.2", *BACK = "10.99.2.1";

static void put_tuple(struct nlmsghdr *message, int type, uint32_t src, uint16_t sport, uint32_t dst, uint16_t dport) {
  struct nlattr *tuple = mnl_attr_nest_start(message, type);
  struct nlattr *ip = mnl_attr_nest_start(message, CTA_TUPLE_IP);
  mnl_attr_put_u32(message, CTA_IP_V4_SRC, src);
  mnl_attr_put_u32(message, CTA_IP_V4_DST, dst);
  mnl_attr_nest_end(message, ip);
  struct nlattr *proto = mnl_attr_nest_start(message, CTA_TUPLE_PROTO);
  mnl_attr_put_u8(message, CTA_PROTO_NUM, IPPROTO_TCP);
  mnl_attr_put_u16(message, CTA_PROTO_SRC_PORT, htons(sport));
  mnl_attr_put_u16(message, CTA_PROTO_DST_PORT, htons(dport));
  mnl_attr_nest_end(message, proto);
  mnl_attr_nest_end(message, tuple);
}

static void put_nat(struct nlmsghdr *message, int type, uint32_t ip, uint16_t port) {
  struct nlattr *nat = mnl_attr_nest_start(message, type);
  mnl_attr_put_u32(message, CTA_NAT_V4_MINIP, ip);
  mnl_attr_put_u32(message, CTA_NAT_V4_MAXIP, ip);
  struct nlattr *proto = mnl_attr_nest_start(message, CTA_NAT_PROTO);
  mnl_attr_put_u16(message, CTA_PROTONAT_PORT_MIN, htons(port));
  mnl_attr_put_u16(message, CTA_PROTONAT_PORT_MAX, htons(port));
  mnl_attr_nest_end(message, proto);
  mnl_attr_nest_end(message, nat);
}

static size_t put_flow(char *buffer, unsigned n, uint32_t mark, int ack) {
  struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
  message->nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
  message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | (ack ? NLM_F_ACK : 0));
  struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
  header->nfgen_family = AF_INET;
  uint32_t client = htonl(0x0a640000 + n / 50000), listener = inet_addr(LISTENER); /* 10.100.0.0/16 */
  uint16_t port = (uint16_t)(10000 + n % 50000);
  put_tuple(message, CTA_TUPLE_ORIG, client, port, listener, 8400);
  put_tuple(message, CTA_TUPLE_REPLY, listener, 8400, client, port);
  put_nat(message, CTA_NAT_DST, inet_addr(TARGET), 8080);
  put_nat(message, CTA_NAT_SRC, htonl(ntohl(inet_addr(BACK)) + n / 50000), port);
  mnl_attr_put_u32(message, CTA_STATUS, htonl(IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED));
  mnl_attr_put_u32(message, CTA_TIMEOUT, htonl(432000));
  mnl_attr_put_u32(message, CTA_MARK, htonl(mark));
  struct nlattr *info = mnl_attr_nest_start(message, CTA_PROTOINFO), *tcp = mnl_attr_nest_start(message, CTA_PROTOINFO_TCP);
  mnl_attr_put_u8(message, CTA_PROTOINFO_TCP_STATE, TCP_CONNTRACK_ESTABLISHED);
  mnl_attr_nest_end(message, tcp);
  mnl_attr_nest_end(message, info);
  return MNL_ALIGN(message->nlmsg_len);
}

int main(int argc, char **argv) {
  static char buffer[AT_ONCE * MESSAGE_BYTES], answers[65536];
  if (argc != 3) return fprintf(stderr, "usage: flows COUNT MARK\n"), 2;
  unsigned count = (unsigned)atol(argv[1]);
  uint32_t mark = (uint32_t)strtoul(argv[2], NULL, 0);
  struct mnl_socket *socket = mnl_socket_open(NETLINK_NETFILTER);
  if (!socket || mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0) return perror("netlink"), 1;
  for (unsigned n = 0; n < count;) {
    size_t length = 0;
    unsigned first = n;
    for (; n < count && n - first < AT_ONCE; n++) length += put_flow(buffer + length, n, mark, n == first);
    if (mnl_socket_sendto(socket, buffer, length) < 0) return perror("send"), 1;
    ssize_t got = mnl_socket_recvfrom(socket, answers, sizeof answers); /* of the first; an error of any other comes as well */
    int left = (int)got;
    for (struct nlmsghdr *reply = (void *)answers; got > 0 && mnl_nlmsg_ok(reply, left); reply = mnl_nlmsg_next(reply, &left)) {
      int error = reply->nlmsg_type == NLMSG_ERROR ? ((struct nlmsgerr *)mnl_nlmsg_get_payload(reply))->error : 0;
      if (error) return fprintf(stderr, "flow %u: %s\n", first, strerror(-error)), 1;
    }
  }
  return printf("%u\n", count), 0;
}
