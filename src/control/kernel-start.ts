// Brings the kernel plane up, in the background and again when it could not be: a machine that cannot do it now may be able
// to later (nft is installed, a lock is released).
import { KernelPlane, probeKernel, type KernelOptions } from '../kernel/index.ts'
import type { Log } from '../observe/log.ts'
import { GatewayError } from './changes.ts'

const RETRY_MS_MIN = 1000
const RETRY_MS_MAX = 30_000

export type KernelPhase = 'idle' | 'starting' | 'ready' | 'unusable'
type Found = Awaited<ReturnType<KernelPlane['start']>>

export interface KernelStartOptions {
  log: Log
  plane: KernelOptions
  /** When the totals were stored that this life goes on from, and the records that were written since. */
  earlier(): Promise<Parameters<KernelPlane['start']>>
  /** The plane is there, with what an earlier life left in it. */
  ready(found: Found): void
  unusable(reason: string): void
  /** Carries the configuration out again, with or without the kernel. Rejects when a route demands it. */
  carryOut(): Promise<void>
}

export class KernelStart {
  phase: KernelPhase = 'idle'
  /** Why it is unusable. */
  reason: string | null = null
  /** There from the moment in which it takes over what an earlier life left. */
  plane: KernelPlane | undefined
  #attempt: Promise<void> | undefined
  #retry: ReturnType<typeof setTimeout> | undefined
  #stopped = false

  constructor(private readonly options: KernelStartOptions) {}

  /** The plane when it is ready for elements. */
  get usable(): KernelPlane | undefined {
    return this.phase === 'ready' ? this.plane : undefined
  }

  start(retryMs = RETRY_MS_MIN): Promise<void> {
    return (this.#attempt = this.#try(retryMs))
  }

  async #try(retryMs: number): Promise<void> {
    const before = this.reason
    if (this.phase === 'idle') this.phase = 'starting'
    try {
      await this.#bringUp()
    } catch (error) {
      this.#failed((error as Error).message, retryMs)
      if (this.reason === before) return
    }
    if (!this.#stopped) await this.options.carryOut()
  }

  async #bringUp() {
    const probe = await probeKernel()
    if (this.#stopped) return
    if (probe.unusable) throw new GatewayError(probe.unusable)
    this.plane = new KernelPlane(this.options.plane)
    const found = await this.plane.start(...(await this.options.earlier()))
    this.options.ready(found)
    if (found.hadTable)
      this.options.log('info', 'Took over the kernel table of an earlier run', {
        routes: Object.keys(found.numbers).length,
        flows: this.plane.flows.size,
      })
    this.phase = 'ready'
    this.reason = null
  }

  #failed(reason: string, retryMs: number) {
    if (reason !== this.reason) this.options.log('warn', `The kernel carries nothing: ${reason}`)
    this.plane = undefined
    this.phase = 'unusable'
    this.reason = reason
    this.options.unusable(reason)
    if (this.#stopped) return
    const again = () => this.start(Math.min(retryMs * 2, RETRY_MS_MAX))
    this.#retry = setTimeout(() => again().catch((error: Error) => this.options.log('warn', error.message)), retryMs)
  }

  /** No further attempt; resolves when the one under way is over. */
  async stop(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#retry)
    await this.#attempt?.catch(() => {})
  }
}
