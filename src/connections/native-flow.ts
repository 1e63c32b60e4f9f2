// One flow as the native reader writes it (struct sluice_flow in native/sluice.h), read in place: which flow it is, how it
// ended, what it carried, and its record. Pure functions of (bytes, view of the same bytes, offset).
import { isoTime } from '../base/clock.ts'
import { formatEnd, formatIp } from '../base/addresses.ts'
import type { ConnectionRecord } from './record.ts'
import type { CloseReason } from './reasons.ts'
import type { Carried } from './totals.ts'

/** struct sluice_flow. */
export const FLOW_BYTES = 160

export const FLOW = {
  NEW: 1,
  UPDATE: 2,
  DESTROY: 3,
  DUMPED: 4,
  DUMP_END: 5,
  LOST: 6,
  CLOSED: 7,
  NFT_CHANGED: 8,
  WHOLE: 9,
} as const

/** Offsets in struct sluice_flow. */
export const AT = {
  kind: 0, family: 1, protocol: 2, state: 3, mark: 4, id: 8, status: 12, zone: 16, request: 18, origSport: 20, origDport: 22, replySport: 24, replyDport: 26,
  error: 28, deletedBy: 28, origSrc: 32, origDst: 48, replySrc: 64, replyDst: 80, origPackets: 96, origBytes: 104, replyPackets: 112, replyBytes: 120, startNs: 128, eventNs: 136,
  timeout: 144, counted: 148, timed: 149, establishedNs: 152,
} as const // prettier-ignore

/** enum tcp_conntrack of the kernel (nf_conntrack_tcp.h). */
export const TCP = {
  SYN_SENT: 1,
  SYN_RECV: 2,
  ESTABLISHED: 3,
  FIN_WAIT: 4,
  CLOSE_WAIT: 5,
  LAST_ACK: 6,
  TIME_WAIT: 7,
  CLOSE: 8,
} as const
export const IPPROTO_TCP = 6
/** enum ip_conntrack_status. */
const IPS_SEEN_REPLY = 2
const IPS_ASSURED = 4
/** enum sluice_mark. */
const MARK = { FIN_CLIENT: 0x00800000, FIN_TARGET: 0x00400000, RST_CLIENT: 0x00200000, RST_TARGET: 0x00100000 } as const
const NUMBER_MASK = 0x000fffff

export const PHASE = { OPENING: 0, OPEN: 1, HALF_CLOSED: 2, CLOSING: 3 } as const
export const STATES = ['opening', 'open', 'half-closed', 'closing'] as const

const u64 = (view: DataView, at: number) => view.getUint32(at, true) + view.getUint32(at + 4, true) * 4_294_967_296

export const numberOf = (view: DataView, at: number) => view.getUint32(at + AT.mark, true) & NUMBER_MASK

/** Nanoseconds beyond 2^53 lose their last digits, far below the microseconds that matter. */
export const eventMs = (view: DataView, at: number) => u64(view, at + AT.eventNs) / 1e6
export const openedMs = (view: DataView, at: number) => (u64(view, at + AT.startNs) || u64(view, at + AT.eventNs)) / 1e6
/** 0 when conntrack keeps no timestamps. */
export const startMs = (view: DataView, at: number) => u64(view, at + AT.startNs) / 1e6
export const establishedMs = (view: DataView, at: number) => u64(view, at + AT.establishedNs) / 1e6

/** Seconds for which conntrack remembers a TCP flow in each state: the kernel's defaults, where nothing else is known. */
export const STATE_TIMEOUTS_S: readonly number[] = [0, 120, 60, 432_000, 120, 60, 30, 120, 10, 120]

/** When a flow that is listed after its end ended, to the second below: its entry is forgotten a known time after that. */
export function endedMs(bytes: Uint8Array, view: DataView, at: number, timeoutsS: readonly number[]): number {
  const age = tcpIsOver(bytes, at) ? (timeoutsS[bytes[at + AT.state]!] ?? 0) - view.getUint32(at + AT.timeout, true) : 0
  return Math.max(openedMs(view, at), eventMs(view, at) - Math.max(0, age) * 1000)
}

export function phaseOf(bytes: Uint8Array, view: DataView, at: number): number {
  if (bytes[at + AT.protocol] !== IPPROTO_TCP) return PHASE.OPEN
  const state = bytes[at + AT.state]!
  if (state <= TCP.SYN_RECV) return PHASE.OPENING
  const oneFin = view.getUint32(at + AT.mark, true) & (MARK.FIN_CLIENT | MARK.FIN_TARGET)
  return state === TCP.ESTABLISHED && !oneFin ? PHASE.OPEN : PHASE.HALF_CLOSED
}

/** The protocol has ended, whether or not the nft program saw how. */
export function tcpIsOver(bytes: Uint8Array, at: number): boolean {
  const state = bytes[at + AT.state]!
  return bytes[at + AT.protocol] === IPPROTO_TCP && (state === TCP.TIME_WAIT || state === TCP.CLOSE)
}

/** How the flow ended, from the bits that the nft program keeps in its mark; undefined while it has not. A reset by a peer
 *  that had sent its FIN is no failure: it has closed, and answers late bytes with it. */
export function endReason(view: DataView, at: number): CloseReason | undefined {
  const mark = view.getUint32(at + AT.mark, true)
  if (mark & MARK.RST_CLIENT) return mark & MARK.FIN_CLIENT ? 'finished' : 'client_reset'
  if (mark & MARK.RST_TARGET) {
    if (mark & MARK.FIN_TARGET) return 'finished'
    return view.getUint32(at + AT.status, true) & IPS_ASSURED ? 'target_reset' : 'target_refused'
  }
  return mark & MARK.FIN_CLIENT && mark & MARK.FIN_TARGET ? 'finished' : undefined
}

/** One native record of its own. */
export const isOver = (native: Uint8Array): boolean =>
  endReason(new DataView(native.buffer, native.byteOffset), 0) !== undefined || tcpIsOver(native, 0)

/** An entry that goes without its protocol being over: refused, deleted, or expired. */
export function destroyReason(bytes: Uint8Array, view: DataView, at: number): CloseReason {
  const [status, mark] = [view.getUint32(at + AT.status, true), view.getUint32(at + AT.mark, true)]
  const udp = bytes[at + AT.protocol] !== IPPROTO_TCP
  if (view.getUint32(at + AT.deletedBy, true) !== 0) return 'conntrack_flushed'
  if (udp) return 'idle_timeout'
  if (!(status & IPS_ASSURED)) {
    // A RST as the only answer deletes the entry at once: it was counted, but SEEN_REPLY is set only after that.
    const refused = u64(view, at + AT.replyPackets) > 0 && !(status & IPS_SEEN_REPLY)
    return refused ? 'target_refused' : 'connect_timeout'
  }
  // Time left: it has not expired. The kernel itself has deleted it, as it does when an address that it needs goes.
  if (view.getUint32(at + AT.timeout, true) > 0) return 'conntrack_flushed'
  return mark & (MARK.FIN_CLIENT | MARK.FIN_TARGET) ? 'half_closed_timeout' : 'idle_timeout'
}

/** The target has answered: both ends believe in the connection. A client that has heard nothing sends its SYN again. */
export const bothEndsKnow = (bytes: Uint8Array, view: DataView, at: number) =>
  bytes[at + AT.protocol] === IPPROTO_TCP &&
  (view.getUint32(at + AT.status, true) & (IPS_SEEN_REPLY | IPS_ASSURED)) !== 0

/** The same flow: original tuple, zone and CTA_ID, which alone collides (one pair in 100,000). */
export function sameFlow(a: Uint8Array, atA: number, b: Uint8Array, atB: number): boolean {
  for (let i = AT.id; i < AT.id + 4; i++) if (a[atA + i] !== b[atB + i]) return false
  for (let i = AT.origSport; i < AT.replySport; i++) if (a[atA + i] !== b[atB + i]) return false
  for (let i = AT.origSrc; i < AT.replySrc; i++) if (a[atA + i] !== b[atB + i]) return false
  const zone = AT.zone
  return (
    a[atA + AT.protocol] === b[atB + AT.protocol] &&
    a[atA + zone] === b[atB + zone] &&
    a[atA + zone + 1] === b[atB + zone + 1]
  )
}

/** The same as a key of a set: CTA_ID and 21 bits of the rest, as many as a number holds. */
export const keyOf = (bytes: Uint8Array, view: DataView, at: number): number =>
  view.getUint32(at + AT.id, true) * 0x20_0000 + (tupleHash(bytes, at) & 0x1f_ffff)

/** "k" and a hash of the same: it comes out the same after a restart. `again` tells apart what came soon after another that was
 *  the same: CTA_ID is a hash of the tuple and of the entry's place in memory, and a client that uses its port again within
 *  seconds often gets that place again. */
export const idOf = (bytes: Uint8Array, view: DataView, at: number, again = 0) =>
  `k${view.getUint32(at + AT.id, true).toString(36)}-${tupleHash(bytes, at).toString(36)}${again > 0 ? `.${again.toString(36)}` : ''}`

/** The same from its id, also of one that came soon after another that was the same; undefined when it is none of a kernel flow. */
export function keyOfId(id: string): number | undefined {
  const [ctId, hash] = [ctIdOf(id), parseInt(id.split('-')[1] ?? '', 36)]
  return ctId === undefined || !Number.isInteger(hash) ? undefined : ctId * 0x20_0000 + (hash & 0x1f_ffff)
}

/** CTA_ID of an id; undefined when it is not the id of a kernel flow. */
export function ctIdOf(id: string): number | undefined {
  const ctId = parseInt(id.slice(1), 36)
  return id.startsWith('k') && Number.isInteger(ctId) ? ctId : undefined
}

/** FNV-1a over the original tuple and zone. */
function tupleHash(bytes: Uint8Array, base: number): number {
  let hash = 0x811c9dc5
  const mix = (from: number, to: number) => {
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[base + i]!, 0x01000193)
  }
  mix(AT.zone, AT.zone + 2)
  mix(AT.origSport, AT.replySport)
  mix(AT.origSrc, AT.replySrc)
  return hash >>> 0
}

function end(bytes: Uint8Array, view: DataView, at: number, address: number, port: number): string {
  const ip =
    bytes[at + AT.family] === 4
      ? `${bytes[at + address]}.${bytes[at + address + 1]}.${bytes[at + address + 2]}.${bytes[at + address + 3]}`
      : formatIp(bytes.subarray(at + address, at + address + 16))
  return formatEnd(ip, view.getUint16(at + port, true))
}

/** Payload of one direction: what conntrack counts less the headers. TCP with timestamps has 32 bytes of them, as every
 *  current stack sends; IP 20 or 40. */
function payload(bytes: Uint8Array, view: DataView, at: number, packetsAt: number, bytesAt: number): number {
  const [packets, counted] = [u64(view, at + packetsAt), u64(view, at + bytesAt)]
  const ip = bytes[at + AT.family] === 4 ? 20 : 40
  if (bytes[at + AT.protocol] !== IPPROTO_TCP) return Math.max(0, counted - packets * (ip + 8))
  const long = counted - packets * (ip + 32)
  // Fewer bytes than timestamps alone would take: the ends do not use them. SYN carries 8 bytes more than the rest.
  return Math.max(0, long >= -packets ? long - 8 : counted - packets * (ip + 20) - 20)
}

export const carriedOf = (bytes: Uint8Array, view: DataView, at: number): Carried => ({
  bytesIn: payload(bytes, view, at, AT.origPackets, AT.origBytes),
  bytesOut: payload(bytes, view, at, AT.replyPackets, AT.replyBytes),
  packetsIn: u64(view, at + AT.origPackets),
  packetsOut: u64(view, at + AT.replyPackets),
})

export const targetOf = (bytes: Uint8Array, view: DataView, at: number) =>
  end(bytes, view, at, AT.replySrc, AT.replySport)

/** The target as a number, where it fits in one (IPv4). */
export const targetNumberOf = (bytes: Uint8Array, view: DataView, at: number): number | undefined =>
  bytes[at + AT.family] === 4
    ? view.getUint32(at + AT.replySrc, true) * 65_536 + view.getUint16(at + AT.replySport, true)
    : undefined

export function recordOf(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  route: string,
  target: string,
  phase: number,
  openedMs: number,
  again: number,
): ConnectionRecord {
  return {
    id: idOf(bytes, view, at, again),
    route,
    carrier: 'kernel',
    client: end(bytes, view, at, AT.origSrc, AT.origSport),
    listener: end(bytes, view, at, AT.origDst, AT.origDport),
    target,
    state: STATES[phase]!,
    openedAt: isoTime(openedMs),
    bytesIn: payload(bytes, view, at, AT.origPackets, AT.origBytes),
    bytesOut: payload(bytes, view, at, AT.replyPackets, AT.replyBytes),
  }
}
