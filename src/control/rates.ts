// Looks once a second at what both planes have carried, so that rates are known when somebody asks, and the counts of live
// proxied connections are never much older: a long transfer is in the totals as it goes, not at its end.
import { COUNTING_SHARE, RATES_LAG_MS_MAX } from '../base/limits.ts'
import { Throughput, type Counted, type Minute, type Rates } from '../connections/throughput.ts'

const EVERY_MS = 1000
/** A person does not notice. Above: the rates are those of the reading before. */
const READ_MS_MAX = 500

export interface RateSources {
  totals(): Iterable<readonly [string, Counted]>
  /** Proxied connections that are there now. */
  proxied(): number
  /** Has the worker say what they have carried; false: it did not answer in time. */
  count(): Promise<boolean>
  /** null: it has not taken over yet what an earlier life left. */
  kernel(): {
    /** What flows carried is in the totals up to here, by performance.now(). */
    readonly readMs: number
    recent(): Promise<void>
  } | null
  onError(error: Error): void
}

export class RateWatch {
  readonly #throughput: Throughput
  #timer: ReturnType<typeof setInterval> | undefined
  #counting = false
  #countedMs = -Infinity
  #tookMs = 0

  private constructor(private readonly sources: RateSources) {
    this.#throughput = new Throughput(() => sources.totals())
  }

  /** What the totals have by now is of earlier. */
  static async begin(sources: RateSources): Promise<RateWatch> {
    const watch = new RateWatch(sources)
    await watch.#look()
    return watch
  }

  start() {
    this.#timer ??= setInterval(() => void this.count().catch(this.sources.onError), EVERY_MS)
  }

  stop() {
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  /** Asks the worker, unless asking takes it so long that it should be asked less often. */
  async count() {
    if (this.#counting) return
    this.#counting = true
    try {
      const began = performance.now()
      const pauseMs = Math.min(this.#tookMs * COUNTING_SHARE, RATES_LAG_MS_MAX)
      if (this.sources.proxied() > 0 && began - this.#countedMs >= pauseMs) {
        const answered = await this.sources.count()
        const now = performance.now()
        this.#tookMs = now - began
        if (answered) this.#countedMs = now
      }
      await this.#look()
    } finally {
      this.#counting = false
    }
  }

  /** For somebody who asks now: with what the kernel has carried until now, if it says so soon. A status has to be told also, and
   *  even more so, when something hangs. */
  async refresh() {
    const kernel = this.sources.kernel()
    if (kernel) {
      const { promise: late, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, READ_MS_MAX)
      await Promise.race([kernel.recent(), late]).finally(() => clearTimeout(timer))
    }
    await this.#look()
  }

  #look(): Promise<void> {
    const nowMs = performance.now()
    const userMs = this.sources.proxied() > 0 ? this.#countedMs : nowMs
    return this.#throughput.look({ nowMs, userMs, kernelMs: this.sources.kernel()?.readMs ?? null })
  }

  /** @param route null: the gateway. The answer is null when it is not known. */
  rates(route: string | null): Rates | null {
    return this.#throughput.rates(route)
  }

  /** @param route null: the gateway. */
  history(route: string | null): Minute[] {
    return this.#throughput.history(route, performance.now(), Date.now())
  }
}
