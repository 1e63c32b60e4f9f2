// Ending one kernel flow: its conntrack entry goes, then each peer gets one raw SYN from the address it knows. Its
// challenge ACK meets no NAT any more and draws a RST from our own stack, so an idle flow ends at once too. Nothing about
// the route changes; a SYN of the client opens a new flow as before.
import { FLOW_CUTS_PER_TURN } from '../base/limits.ts'
import { native, ptr } from '../base/native.ts'
import { inTurns } from '../base/turns.ts'

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

/** The kernel tells of a deletion a moment before the entry is out of the way. */
const GONE_RETRY_MS = 5
const GONE_TRIES = 20
/** Who deletes them all holds a lock until the last: reading an entry would wait for it, and the event loop with us. */
const QUIET_MS = 30
const QUIET_WAIT_MS_MAX = 1000

/** Flows whose entries somebody else deleted, until their peers have been told: as many as there were flows, for a moment. */
export class Orphans {
  #waiting: Uint8Array[] = []
  #lastMs = 0
  #telling: Promise<void> | null = null

  /** @param isThere whether the flow has an entry still: a SYN would get another port than the peer knows. */
  constructor(private readonly isThere: (flow: Uint8Array) => boolean) {}

  add(flow: Uint8Array) {
    this.#waiting.push(flow)
    this.#lastMs = performance.now()
    this.#telling ??= this.#tell().finally(() => {
      this.#telling = null
    })
  }

  /** Resolves when every peer has been told. */
  async told(): Promise<void> {
    while (this.#telling) await this.#telling
  }

  async #tell() {
    const latestMs = performance.now() + QUIET_WAIT_MS_MAX
    do await Bun.sleep(QUIET_MS)
    while (performance.now() - this.#lastMs < QUIET_MS && performance.now() < latestMs)
    let still: Uint8Array[] = []
    for (let tries = 1; this.#waiting.length > 0 || still.length > 0; tries++) {
      const flows = [...still, ...this.#waiting]
      this.#waiting = []
      still = []
      await inTurns(flows, FLOW_CUTS_PER_TURN, (flow) => {
        if (tries < GONE_TRIES && this.isThere(flow)) still.push(flow)
        else resetPeers(flow)
      })
      if (still.length > 0) await Bun.sleep(GONE_RETRY_MS)
      else tries = 0
    }
  }
}
