// Ending one kernel flow: its conntrack entry goes, then each peer gets one raw SYN from the address it knows. Its
// challenge ACK meets no NAT any more and draws a RST from our own stack, so an idle flow ends at once too. Nothing about
// the route changes; a SYN of the client opens a new flow as before.
import { native, ptr } from '../base/native.ts'

/** struct sluice_flow. */
const AT = {
  family: 1,
  protocol: 2,
  origSport: 20,
  origDport: 22,
  replySport: 24,
  replyDport: 26,
  origSrc: 32,
  origDst: 48,
  replySrc: 64,
  replyDst: 80,
} as const
const IPPROTO_TCP = 6

/** Call after the entry was deleted. */
export function resetPeers(flow: Uint8Array) {
  if (flow[AT.protocol] !== IPPROTO_TCP) return
  const view = new DataView(flow.buffer, flow.byteOffset)
  const family = flow[AT.family]!
  const at = (offset: number) => ptr(flow.subarray(offset, offset + 16))
  const port = (offset: number) => view.getUint16(offset, true)
  // The client knows us by the listener's address, the target by the address that answers to it.
  native().sluice_send_syn(family, at(AT.origDst), port(AT.origDport), at(AT.origSrc), port(AT.origSport))
  native().sluice_send_syn(family, at(AT.replyDst), port(AT.replyDport), at(AT.replySrc), port(AT.replySport))
}
