// UDP clients that were talking before their route was in the kernel: conntrack has an entry without NAT for each, which
// their packets keep alive. It is deleted, so that the next packet is a first one (native/conntrack_release.c).
import { networkInterfaces } from 'node:os'
import { familyOf, ipBytes } from '../base/addresses.ts'
import { native, ptr } from '../base/native.ts'
import type { Listen } from '../plan/types.ts'

/** struct sluice_udp_listen. */
const BYTES = 24
const AGAIN_MS = 200
const ATTEMPTS = 50

/** Listens on every address are those of every address that this machine has now. */
export function encodeListens(listens: Listen[], local: string[]): Uint8Array {
  const each = listens
    .filter((listen) => listen.protocol === 'udp')
    .flatMap((listen) =>
      (listen.address === null ? local : [listen.address]).map((address) => ({ ...listen, address })),
    )
  const bytes = new Uint8Array(each.length * BYTES)
  const view = new DataView(bytes.buffer)
  each.forEach(({ address, from, to }, i) => {
    view.setUint8(i * BYTES, familyOf(address))
    view.setUint16(i * BYTES + 2, from, true)
    view.setUint16(i * BYTES + 4, to, true)
    bytes.set(ipBytes(address), i * BYTES + 8)
  })
  return bytes
}

/** After the rules of these listeners have come into the kernel. */
export async function releaseUdp(listens: Listen[]): Promise<void> {
  const local = Object.values(networkInterfaces()).flatMap((addresses) => addresses!.map(({ address }) => address))
  const bytes = encodeListens(listens, local)
  if (bytes.length === 0) return
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    // The one before is at work: its listeners may be others.
    if (native().sluice_ct_release_udp(ptr(bytes), bytes.length / BYTES) === 0) return
    await Bun.sleep(AGAIN_MS)
  }
}
