// Builds records as native/conntrack.c writes them.
import { FLOW, FLOW_BYTES } from '../../src/connections/native-flow.ts'
import { ipBytes } from '../../src/base/addresses.ts'

export interface Flow {
  id: number
  number?: number
  protocol?: number
  client?: [string, number]
  listener?: [string, number]
  target?: [string, number]
  back?: [string, number]
}

export const TCP = { SYN_SENT: 1, ESTABLISHED: 3, FIN_WAIT: 4, TIME_WAIT: 7, CLOSE: 8 } as const
export const BASE = 0x51000000
export const ENDS = {
  FIN_CLIENT: 0x00800000,
  FIN_TARGET: 0x00400000,
  RST_CLIENT: 0x00200000,
  RST_TARGET: 0x00100000,
  FINS: 0x00c00000,
}
export const STATUS = { SEEN_REPLY: 2, ASSURED: 4, DNAT: 32 }

export function nativeFlow(
  kind: keyof typeof FLOW,
  flow: Flow,
  more: {
    state?: number
    counters?: [number, number, number, number]
    startMs?: number
    eventMs?: number
    request?: number
    error?: number
    ends?: number
    status?: number
    timeout?: number
    deletedBy?: number
    establishedMs?: number
    timed?: boolean
  } = {},
): Uint8Array {
  const bytes = new Uint8Array(FLOW_BYTES)
  const view = new DataView(bytes.buffer)
  const {
    client = ['10.0.0.2', 40000],
    listener = ['10.0.0.1', 80],
    target = ['10.1.0.2', 8080],
    back = ['10.1.0.1', 40000],
  } = flow
  bytes[0] = FLOW[kind]
  bytes[1] = client[0].includes(':') ? 6 : 4
  bytes[2] = flow.protocol ?? 6
  bytes[3] = more.state ?? 0
  view.setUint32(4, (BASE | (more.ends ?? 0) | (flow.number ?? 1)) >>> 0, true)
  view.setUint32(8, flow.id, true)
  view.setUint32(12, more.status ?? STATUS.DNAT | STATUS.ASSURED, true)
  view.setUint16(18, more.request ?? 0, true)
  view.setUint16(20, client[1], true)
  view.setUint16(22, listener[1], true)
  view.setUint16(24, target[1], true)
  view.setUint16(26, back[1], true)
  view.setUint32(28, more.deletedBy ?? more.error ?? 0, true)
  bytes.set(ipBytes(client[0]), 32)
  bytes.set(ipBytes(listener[0]), 48)
  bytes.set(ipBytes(target[0]), 64)
  bytes.set(ipBytes(back[0]), 80)
  more.counters?.forEach((value, i) => view.setBigUint64(96 + i * 8, BigInt(value), true))
  view.setBigUint64(128, BigInt(more.startMs ?? 0) * 1_000_000n, true)
  view.setBigUint64(136, BigInt(more.eventMs ?? 1_700_000_000_000) * 1_000_000n, true)
  view.setUint32(144, more.timeout ?? 0, true)
  bytes[148] = more.counters ? 1 : 0
  bytes[149] = more.timed ? 1 : 0
  view.setBigUint64(152, BigInt(more.establishedMs ?? 0) * 1_000_000n, true)
  return bytes
}
