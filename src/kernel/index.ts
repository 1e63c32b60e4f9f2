// The kernel plane's front door: the table that follows the plan, the flows that follow the kernel, and what an operator
// does to one of them.
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { COUNTING_SHARE, FLOW_CUTS_PER_TURN, NAMES_KEPT_MAX } from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import { FlowTable, type Adoption, type Written } from '../connections/flows.ts'
import { isOver, TCP } from '../connections/native-flow.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { CloseReason } from '../connections/reasons.ts'
import type { Carried } from '../connections/totals.ts'
import { emptyState, mark } from '../plan/kernel-state.ts'
import type { KernelState, Listen, PlannedRoute } from '../plan/types.ts'
import { Anchor } from './anchor.ts'
import { ConntrackReader, type Ended } from './conntrack.ts'
import { Orphans, resetPeers } from './cut.ts'
import { nft } from './nft.ts'
import { parseListing } from './program.ts'
import { Refusals, type Refusal } from './refusals.ts'
import { releaseUdp } from './release.ts'
import { Ruleset } from './ruleset.ts'
import { SETTINGS, Sysctl } from './sysctl.ts'
import { readStateTimeouts, timeoutsByNumber, watchDeadlines, type Deadlines, type FlowTimeouts } from './timeouts.ts'

export { CapacityWatch, type Capacity } from './capacity.ts'
export { foreignForwardFindings, type ForwardFinding } from './forward-chains.ts'
export { nftVersion, probeRules, readForwardChains } from './inspect.ts'
export { programVersion, renderAll, renderDifference } from './program.ts'

const MARK_MASK = 0xff000000
const RESYNC_PAUSE_MS_MAX = 1000
/** A listing younger than this is fresh enough for another look. */
const FRESH_MS = 500
const RECENT_MS = 1000
const ENDED_S_MORE = 5

/** What the next life has to know. */
export interface Left {
  atMs: number
  /** The flows whose end was told in the last seconds before. */
  told: number[]
}

type Log = (level: 'debug' | 'info' | 'warn' | 'error', message: string, fields?: Record<string, unknown>) => void

export interface KernelOptions {
  table: string
  base: number
  /** File that remembers the settings from before us. */
  sysctlMemory: string
  /** File that remembers what our rules look like in the kernel. */
  sealMemory: string
  log: Log
  /** slot: of flows; null: it is over already. */
  flowOpened(route: string, target: string, openedMs: number, slot: number | null): void
  /** What a flow has carried beyond what was said before. */
  flowCarried(route: string, target: string, openedMs: number, more: Carried): void
  /** `written`: an earlier life has written its record already. */
  flowSettled(record: ConnectionRecord, carried: Carried, written: boolean): void
  /** From SYN to established; of one connection in eight. */
  established?(route: string, target: string, latencyMs: number, clock: 'kernel' | 'receipt'): void
  refused(route: string, refusal: Refusal): void
  /** Bytes of the event socket's buffer, for tests that want it to overrun. */
  receiveBuffer?: number
}

/** Why this machine cannot carry anything in the kernel; null when it can. */
export async function probeKernel(): Promise<{ unusable: string | null; version: string | null }> {
  try {
    const [version] = await Promise.all([nft.version(), nft.list('sluice_probe')])
    return { unusable: null, version }
  } catch (error) {
    const message = (error as Error).message
    return {
      unusable: /not permitted/i.test(message) ? 'the kernel plane needs CAP_NET_ADMIN (root)' : message,
      version: null,
    }
  }
}

/** The numbers that route names have in the kernel now; none without a table. Changes nothing. */
export async function knownNumbers(table: string, base: number): Promise<Record<string, number>> {
  const listing = await nft.list(table)
  return numbersIn(listing && parseListing(listing, base).state)
}

function numbersIn(state: KernelState | null): Record<string, number> {
  const named = Object.entries(state?.groups ?? {}).map(([key, group]) => [group.routes?.[key]?.comment, key] as const)
  return Object.fromEntries(
    named.flatMap(([name, key]) => (name === undefined ? [] : [[name, (Number(key) & ~MARK_MASK) >>> 0]])),
  )
}

export class KernelPlane {
  readonly ruleset: Ruleset
  readonly flows: FlowTable
  readonly #names = new Map<number, string>()
  readonly #sysctl: Sysctl
  readonly #anchor: Anchor
  readonly refusals: Refusals
  #reader: ConntrackReader | undefined
  #deadlines: Deadlines | undefined
  #timeouts: ReadonlyMap<number, FlowTimeouts> = new Map()
  readonly #orphans = new Orphans((flow) => this.#reader?.read(flow) ?? false)
  #adoption: Adoption | null = null
  #dump: Promise<void> | null = null
  #dumpAgain = false
  #lastResync = { atMs: -Infinity, tookMs: 0 }
  #started = false
  #latest: KernelState = emptyState()
  /** The UDP listeners of a state: they are released when that state is in the kernel, not one before it. */
  readonly #udp = new WeakMap<KernelState, Listen[]>()
  /** Where the kernel listens for UDP, as of the last state that it has. */
  #released = ''
  /** How it ceased to hear from the kernel. */
  left: Left | undefined
  /** Times that the kernel dropped events because we were too slow. */
  lost = 0

  constructor(private readonly options: KernelOptions) {
    this.#sysctl = new Sysctl(options.sysctlMemory)
    this.#anchor = new Anchor(options.table, options.base, options.log)
    this.ruleset = new Ruleset({
      applied: (state, whole) => this.#releaseUdp(state, whole),
      table: options.table,
      base: options.base,
      nft,
      seal: {
        read: () => readFile(options.sealMemory, 'utf8').catch(() => null),
        write: async (seal) => {
          await mkdir(dirname(options.sealMemory), { recursive: true })
          await writeFile(options.sealMemory, seal)
        },
      },
      log: options.log,
    })
    this.refusals = new Refusals(
      nft,
      options.table,
      (refusals) => {
        for (const refusal of refusals) {
          const name = this.routeName(refusal.number)
          // What goes on to user space because its route only observes is counted there.
          if (refusal.enforced || this.isActive(refusal.number, name)) options.refused(name, refusal)
        }
      },
      (message) => options.log('warn', message),
    )
    this.flows = new FlowTable((number) => this.routeName(number), {
      opened: (number, target, openedMs, slot) => options.flowOpened(this.routeName(number), target, openedMs, slot),
      carried: (number, target, openedMs, more) => options.flowCarried(this.routeName(number), target, openedMs, more),
      settled: (record, _number, carried, written) => options.flowSettled(record, carried, written),
      established: (number, target, latencyMs, clock) =>
        options.established?.(this.routeName(number), target, latencyMs, clock),
      orphaned: (native) => this.#orphans.add(native),
      lost: () => {
        this.lost++
        void this.resync()
      },
      readEntry: (native) => this.#reader?.read(native) ?? false,
      dumped: (request, error) => this.#reader?.dumped(request, error),
      nftChanged: (pid) => this.ruleset.notified(pid),
    })
  }

  routeName(number: number) {
    return this.#names.get(number) ?? `#${number}`
  }

  /** Names of the numbers of a plan; names of routes that are gone are kept while their flows live on, and some longer. */
  learn(numbers: Record<string, number>) {
    for (const [name, number] of Object.entries(numbers)) this.#names.set(number, name)
    if (this.#names.size <= Object.keys(numbers).length + NAMES_KEPT_MAX) return
    const needed = new Set([...Object.values(numbers), ...this.flows.numbers().keys()])
    for (const number of this.#names.keys()) if (!needed.has(number)) this.#names.delete(number)
  }

  /** Takes over what an earlier life left: table and flows read. Resolves to the numbers found there.
   *  @param since when that life's totals were last stored: flows that ended later have their records now.
   *  @param written those that it had told nevertheless. */
  async start(
    since: number | null = null,
    written: Written | null = null,
  ): Promise<{ numbers: Record<string, number>; numbersInUse: number[]; hadTable: boolean }> {
    this.#started = true
    try {
      return await this.#start(since, written)
    } catch (error) {
      // Another attempt makes everything anew.
      this.#started = false
      this.#leave()
      await this.#anchor.stop()
      throw error
    }
  }

  async #start(since: number | null, written: Written | null) {
    const { base, table, receiveBuffer } = this.options
    const reader = ConntrackReader.start({ base, mask: MARK_MASK, table, receiveBuffer })
    this.#reader = reader
    if (since !== null) this.#adoption = { sinceMs: since, written, heardMs: Date.now() }
    const found = await this.ruleset.adopt()
    // Flows of an earlier life are there already: from here on even a deleted table resets none of them.
    if (found) await this.#anchor.ensure()
    const numbers = numbersIn(found)
    this.learn(numbers)
    this.flows.stateTimeoutsS = await readStateTimeouts()
    // Only now: what was heard meanwhile is of routes that have names.
    await reader.listen(
      (message) => this.flows.ingest(message),
      () => this.options.log('error', 'The conntrack reader has ended; kernel flows are no longer seen'),
    )
    await this.resync()
    this.#deadlines = watchDeadlines(this.flows, {
      refresh: (slot) => this.#refresh(slot),
      cut: (slot, reason) => this.#cut(slot, reason),
      resync: () => this.resync(),
      lastResync: () => this.#lastResync,
      onError: (error) => this.options.log('warn', error.message),
    })
    this.#deadlines.set(this.#timeouts)
    return { numbers, numbersInUse: [...this.flows.numbers().keys()], hadTable: found !== null }
  }

  /** The machine's settings for forwarding; each change is logged, and put back by stop. And the anchor, before the first
   *  rule: a machine whose routes need nothing of the kernel is not made to track its connections. */
  async #prepare() {
    await this.#anchor.ensure()
    const { changed, failed } = await this.#sysctl.apply(SETTINGS)
    for (const { name, from, to, why } of changed) this.options.log('info', `Set ${name} = ${to} (was ${from}): ${why}`)
    for (const { name, message } of failed) this.options.log('warn', `Cannot set ${name}: ${message}`)
  }

  /** Wants the plan's elements in the kernel; resolves when they (or later ones) are, rejects with the first failure. The loop
   *  goes on either way. With `forwards` the machine is made ready first. */
  async apply(state: KernelState, forwards: boolean, udp: Listen[] = []): Promise<void> {
    this.#latest = state
    this.#udp.set(state, udp)
    if (forwards) await this.#prepare()
    // Preparing takes a while, now more, now less: an older wish must not overtake a newer one.
    await this.ruleset.want(this.#latest)
    this.refusals.watch(canRefuse(this.#latest))
  }

  /** Clients that were sending before the UDP listeners were in the kernel, or while our table was gone. */
  #releaseUdp(state: KernelState, whole: boolean) {
    const udp = this.#udp.get(state) ?? []
    const key = JSON.stringify(udp)
    if (!whole && key === this.#released) return
    this.#released = key
    releaseUdp(udp).catch((error: Error) => this.options.log('warn', error.message))
  }

  /** The kernel has the elements of this number, and they are this route's. */
  isActive(number: number, name: string) {
    // What was handed over last counts, although the machine may still be made ready for it.
    return this.ruleset.isActive(mark(this.options.base, number), name, this.#latest)
  }

  // ---- flows ----

  /** Compares the flows with the kernel's own list. One dump at a time; a wish during one is served by the next. */
  resync(): Promise<void> {
    if (this.#dump) {
      this.#dumpAgain = true
      return this.#dump
    }
    this.#dump = this.#resync().finally(() => {
      this.#dump = null
    })
    return this.#dump
  }

  async #resync() {
    do {
      // Dropped again while the table was read: what reads it so often is a part of why.
      if (this.#dumpAgain) await Bun.sleep(Math.min(this.#lastResync.tookMs, RESYNC_PAUSE_MS_MAX))
      this.#dumpAgain = false
      if (this.flows.lossMs !== null)
        this.options.log('warn', 'The kernel dropped conntrack events; reading the table again', { lost: this.lost })
      const adoption = this.#adoption
      this.#adoption = null
      const began = performance.now()
      this.flows.beginDump(adoption)
      await this.#reader
        ?.dump(endedWanted(adoption, this.flows))
        // One that is under way when we stop is no news.
        .catch((error: Error) => this.#reader && this.options.log('warn', error.message))
      await inTurns(this.flows.missing(), FLOW_CUTS_PER_TURN, (slot) => this.flows.endMissing(slot))
      this.#lastResync = { atMs: performance.now(), tookMs: performance.now() - began }
    } while (this.#dumpAgain && this.#reader)
  }

  /** Byte counts of all flows, at most half a second old. */
  async fresh() {
    if (performance.now() - this.#lastResync.atMs > FRESH_MS && this.flows.size > 0) await this.resync()
  }

  /** What flows have carried was told up to here, by performance.now(). */
  get readMs(): number {
    return this.flows.size > 0 ? this.#lastResync.atMs : performance.now()
  }

  /** For somebody who looks again and again: byte counts about a second old, older ones where reading them takes long. */
  async recent() {
    const { atMs, tookMs } = this.#lastResync
    const isRecent = performance.now() - atMs < Math.max(RECENT_MS, tookMs * COUNTING_SHARE)
    if (!isRecent && !this.#dump) await this.fresh()
  }

  /** Ends one flow at both ends. false: there is no such flow. */
  close(id: string, reason: CloseReason): boolean {
    const slot = this.flows.slotOf(id)
    if (slot === undefined) return false
    this.#cut(slot, reason)
    return true
  }

  /** Ends every flow of a route that is there now. Resolves to how many. */
  async closeRoute(number: number, reason: CloseReason): Promise<number> {
    const ids = this.flows.slotsOf(number).map((slot) => this.flows.id(slot))
    await inTurns(ids, FLOW_CUTS_PER_TURN, (id) => void this.close(id, reason))
    return ids.length
  }

  /** How long a flow may take to open, be silent or half closed. Routes that are gone keep theirs while they have flows. */
  setTimeouts(routes: readonly PlannedRoute[]) {
    this.#timeouts = timeoutsByNumber(routes)
    this.#deadlines?.set(this.#timeouts)
  }

  /** Brings the slot up to date with its entry; false when that has gone, or tells that the flow is over. */
  #refresh(slot: number): boolean {
    const native = this.flows.native(slot)
    if (!this.#reader?.read(native)) return false
    this.flows.update(slot, native)
    return !isOver(native)
  }

  #cut(slot: number, reason: CloseReason) {
    const native = this.flows.native(slot)
    if (this.#reader?.read(native)) this.flows.update(slot, native)
    this.#reader?.delete(native)
    resetPeers(native)
    this.flows.end(slot, reason, Date.now())
  }

  // ---- end ----

  /** keep: the table and its flows stay as they are. remove: the table goes and live flows are cut. */
  async stop(onStop: 'keep' | 'remove', graceMs: number): Promise<void> {
    if (!this.#started) return
    if (onStop === 'remove') {
      await this.ruleset.empty().catch(() => {})
      await this.#settleWithin(graceMs)
      for (const number of this.flows.numbers().keys()) await this.closeRoute(number, 'drained')
    }
    await this.#orphans.told()
    await this.ruleset.stop(onStop).catch((error: Error) => this.options.log('warn', error.message))
    this.#leave()
    await this.#anchor.stop()
    if (onStop === 'remove')
      for (const { name, to } of await this.#sysctl.restore())
        this.options.log('info', `Set ${name} = ${to}, as it was`)
  }

  /** Hears no more from the kernel. */
  #leave() {
    if (this.#reader) this.left = { atMs: Date.now(), told: this.flows.settledLately() }
    this.#deadlines?.stop()
    this.#deadlines = undefined
    this.refusals.stop()
    this.#reader?.stop()
    this.#reader = undefined
  }

  async #settleWithin(graceMs: number) {
    const until = performance.now() + graceMs
    while (this.flows.size > 0 && performance.now() < until) await Bun.sleep(20)
  }
}

/** The program as it is may refuse a connection. */
const canRefuse = (state: KernelState) =>
  Object.values(state.groups).some(({ gate, divert }) => gate !== undefined || divert !== undefined)

/** Which ended flows a dump should list: at the start those that ended while nobody watched, after a loss those that began in it. */
function endedWanted(adoption: Adoption | null, flows: FlowTable): Ended | null {
  if (adoption) {
    // Some more: ends are told to the second (ENDED_MS in connections/flows.ts), and the dump is made a while from now.
    const agoS = (Date.now() - adoption.sinceMs) / 1000 + ENDED_S_MORE
    const least = (state: number) => Math.max(0, Math.floor((flows.stateTimeoutsS[state] ?? 0) - agoS))
    return {
      startedMs: 0,
      leastTimeoutS: STATES.map((state) => (state === TCP.TIME_WAIT || state === TCP.CLOSE ? least(state) : 0)),
    }
  }
  const lossMs = flows.lossMs
  return lossMs === null ? null : { startedMs: lossMs, leastTimeoutS: STATES.map(() => 0) }
}
/** enum tcp_conntrack. */
const STATES = Array.from({ length: 10 }, (_, state) => state)
