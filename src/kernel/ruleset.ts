// Keeps the kernel's table equal to what is wanted: a level-triggered loop. Whatever happened meanwhile, each round
// compares what is wanted now with what is known to be there and applies the difference; rounds never overlap, wishes
// that arrive during one are served by the next, failures are retried with growing pauses.
import { COMMON, emptyState } from '../plan/kernel-state.ts'
import type { KernelState } from '../plan/types.ts'
import { NftError, type Nft } from './nft.ts'
import {
  chainsOf,
  countElements,
  parseListing,
  programVersion,
  renderAll,
  renderDifference,
  renderRemoval,
  sealOf,
  type Listed,
  type Shape,
} from './program.ts'

const RETRY_MS_MIN = 200
const RETRY_MS_MAX = 5000
/** Process ids of our own transactions, kept for the notifications that may still come. */
const OWN_PIDS_MAX = 64

/** For the log: the first of the commands that undo what somebody did to elements. */
const inShort = (repairs: string[]) => ({ repairs: repairs.slice(0, 5).map((command) => command.slice(0, 200)) })

export interface RulesetOptions {
  table: string
  base: number
  nft: Nft
  /** Remembers, beyond this process, what the kernel made of the static rules (program.ts sealOf). */
  seal: { read(): Promise<string | null>; write(seal: string): Promise<void> }
  log(level: 'info' | 'warn', message: string, fields?: Record<string, unknown>): void
  /** A transaction has brought this state. `whole`: there was no table of ours until then. */
  applied?(state: KernelState, whole: boolean): void
}

export class Ruleset {
  /** In the kernel, as far as we know; null: no table of ours, or not of this version. */
  #have: KernelState | null = null
  /** Generated chains that are there. */
  #chains: string[] = []
  /** What the rules were when we had just written them; what somebody else makes of them differs from it. */
  #shape: Shape | null = null
  #want: KernelState | null = null
  #running: Promise<void> | null = null
  #verify = false
  #stopped = false
  #retry: ReturnType<typeof setTimeout> | undefined
  #retryMs = RETRY_MS_MIN
  #ownPids: number[] = []
  #waiters: { wanted: KernelState; resolve(): void; reject(error: Error): void }[] = []
  /** Why the last round failed; null when it did not. */
  error: string | null = null
  /** Times that something else had changed our table. */
  drifts = 0
  transactions = 0

  constructor(private readonly options: RulesetOptions) {}

  /** Reads what an earlier life left. Resolves to its elements, or null when there is no table of this version. */
  async adopt(): Promise<KernelState | null> {
    const listing = await this.options.nft.list(this.options.table)
    if (!listing) return null
    const found = parseListing(listing, this.options.base)
    // A table of another version, or whose rules were edited, still tells its route numbers; it is replaced by the first round.
    if (found.version === programVersion && (await this.options.seal.read()) === sealOf(found.shape)) this.#take(found)
    return found.state
  }

  #take(found: Listed) {
    this.#have = found.state
    this.#chains = found.chains
    this.#shape = found.shape
  }

  /** What is in the kernel, as far as we know. */
  get state(): KernelState {
    return this.#have ?? emptyState()
  }

  /** The kernel forwards the connections of this route, or refuses them for want of a target: 'as wanted', or still as they
   *  were wanted before. */
  isActive(markKey: string, name: string, wanted = this.#want): 'as wanted' | 'as before' | false {
    const group = this.#have?.groups[markKey]
    if (group?.routes?.[markKey]?.comment !== name) return false
    const diverted = group.divert?.[markKey]?.value
    if (diverted === 'goto user_space' || diverted === 'goto refuse_blocked') return false
    return group === wanted?.groups[markKey] ? 'as wanted' : 'as before'
  }

  get elements(): number {
    return this.#have ? countElements(this.#have) : 0
  }

  get settled(): boolean {
    return this.#have === this.#want && !this.#verify
  }

  /** Wants a state; resolves when it (or a later one) is in the kernel, rejects with the first failure after the wish. */
  want(state: KernelState): Promise<void> {
    this.#want = state
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiters.push({ wanted: state, resolve, reject })
    // A wish made before may still wait for a retry: the new one is tried at once.
    this.#retryMs = RETRY_MS_MIN
    this.#kick()
    return promise
  }

  /** The kernel says that process `pid` changed our table (0: unknown, notifications were lost). */
  notified(pid: number) {
    if (this.#ownPids.includes(pid)) return
    this.#verify = true
    this.#kick()
  }

  #kick() {
    if (this.#running || this.#stopped) return
    clearTimeout(this.#retry)
    this.#retry = undefined
    this.#running = this.#rounds().finally(() => {
      this.#running = null
      // A wish that came after the last look and before this line would otherwise wait for the next one.
      if (this.#isDue && !this.#retry) this.#kick()
    })
  }

  get #isDue() {
    return !this.#stopped && this.#want !== null && (this.#have !== this.#want || this.#verify)
  }

  async #rounds() {
    while (this.#isDue) {
      const goal = this.#want!
      try {
        if (this.#verify) await this.#reread()
        await this.#reach(goal)
        this.error = null
        this.#retryMs = RETRY_MS_MIN
        this.#waiters = this.#waiters.filter((waiter) => waiter.wanted !== goal || void waiter.resolve())
      } catch (error) {
        this.#failed(error as Error)
        return
      }
    }
    for (const waiter of this.#waiters.splice(0)) waiter.resolve()
  }

  /** Someone touched the table: what is there now is what counts. */
  async #reread() {
    // Cleared before reading: a change during the read asks for another round.
    this.#verify = false
    const before = this.#have
    const listing = await this.options.nft.list(this.options.table).catch((error) => {
      this.#verify = true
      throw error
    })
    const found = listing ? parseListing(listing, this.options.base) : null
    const intact = found !== null && found.version === programVersion && this.#isOurs(found.shape)
    if (intact) this.#take({ ...found, shape: { ...found.shape, ...this.#shape } })
    else this.#have = null
    const repairs = intact && before ? renderDifference(this.options.table, found.state, before) : []
    if (before === null || (intact && repairs.length === 0)) return
    this.drifts++
    this.options.log(
      'warn',
      !found
        ? 'Someone removed our nft table; putting it back'
        : intact
          ? 'Someone changed elements of our nft table; repairing it'
          : 'Someone changed rules of our nft table; loading it again',
      { table: this.options.table, drifts: this.drifts, ...(intact ? inShort(repairs) : this.#differences(found)) },
    )
  }

  #isOurs(shape: Shape): boolean {
    const known = this.#shape
    return known !== null && Object.keys({ ...known, ...shape }).every((name) => known[name] === shape[name])
  }

  /** For the log: which chains and sets are not as they were. */
  #differences(found: Listed | null): { changed?: string[] } {
    const known = this.#shape ?? {}
    if (!found) return {}
    const names = Object.keys({ ...known, ...found.shape }).filter((name) => known[name] !== found.shape[name])
    return { changed: names.slice(0, 10) }
  }

  async #reach(goal: KernelState) {
    const { table, base, nft } = this.options
    const whole = this.#have === null
    const commands = whole ? renderAll(table, base, goal) : renderDifference(table, this.#have!, goal, this.#chains)
    const chains = [...chainsOf(goal)]
    const reshaped =
      whole || chains.length !== this.#chains.length || chains.some((name) => !this.#chains.includes(name))
    if (commands.length > 0) {
      // Unknown until the transaction is through: if it fails half way (split, killed) the next round reads again.
      try {
        await nft.apply(commands, (pid) => this.#own(pid))
      } catch (error) {
        if (!whole) this.#verify = true
        throw error
      }
      this.transactions++
    }
    this.error = null
    this.#have = goal
    this.#chains = chains
    if (commands.length > 0) this.options.applied?.(goal, whole)
    if (reshaped) await this.#learn(whole)
  }

  /** Notes what the kernel made of the rules just written; the seal tells the next life of the program. */
  async #learn(whole: boolean) {
    const listing = await this.options.nft.list(this.options.table, 'rules')
    if (!listing) return
    this.#shape = parseListing(listing, this.options.base).shape
    if (whole) await this.options.seal.write(sealOf(this.#shape))
  }

  #own(pid: number) {
    this.#ownPids.push(pid)
    if (this.#ownPids.length > OWN_PIDS_MAX) this.#ownPids.shift()
  }

  #failed(error: Error) {
    const message = error instanceof NftError ? error.message : `Cannot change the nft table: ${error.message}`
    if (message !== this.error) this.options.log('warn', message, { retryMs: this.#retryMs })
    this.error = message
    for (const waiter of this.#waiters.splice(0)) waiter.reject(new NftError(message))
    if (this.#stopped) return
    this.#retry = setTimeout(() => this.#kick(), this.#retryMs)
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MS_MAX)
  }

  /** Ends the loop; then removes the table, or leaves it forwarding. */
  async stop(onStop: 'keep' | 'remove'): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#retry)
    await this.#running
    for (const waiter of this.#waiters.splice(0)) waiter.reject(new NftError('Stopped'))
    if (onStop === 'remove') await this.options.nft.apply([renderRemoval(this.options.table)])
  }

  /** No new flows from now on: every element goes, the table and the flows stay. */
  async empty(): Promise<void> {
    const common = this.#want?.groups[COMMON]
    if (common?.program) await this.want({ groups: { [COMMON]: { program: common.program } } })
  }
}
