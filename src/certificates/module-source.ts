// A certificate that a module of the operator's gives for one name: asked for at the start, again when two thirds of its life
// are over, and after a failure. What it had is shown until there is a better one.
import { access } from 'node:fs/promises'
import { PROVIDER_AGAIN_MS_MAX, PROVIDER_PAUSE_MS_MAX, PROVIDER_PAUSE_MS_MIN } from '../base/limits.ts'
import { certificatesOf } from './files.ts'
import { endOf, outOfTime, renewalOf, type Pair } from './pair.ts'
import { samePairs, wordsOf, type Source, type SourceHooks } from './source.ts'

/** PEM texts, or that ACME is to issue it. */
export type ProviderAnswer = 'acme' | { cert: string; key: string }

/** Runs the module in a process of its own. Rejects when it fails, hangs or is not wanted any more. */
export type Provide = (module: string, name: string, signal: AbortSignal) => Promise<ProviderAnswer>

export interface ModuleHooks extends SourceHooks {
  provide: Provide
  /** What shows the name when the module leaves it to ACME; throws when there is no ACME. */
  automatic(name: string): Source
}

export class ModuleSource implements Source {
  readonly kind = 'module'
  /** Set: the module has left the name to ACME. */
  automatic: Source | undefined
  #own: readonly Pair[] = []
  #error: string | undefined
  #failures = 0
  #nextAttempt = 0
  #asking: Promise<void> | undefined
  readonly #stopped = new AbortController()

  constructor(
    readonly module: string,
    readonly name: string,
    private readonly hooks: ModuleHooks,
  ) {}

  get pairs(): readonly Pair[] {
    return this.automatic?.pairs ?? this.#own
  }

  get lastError(): string | undefined {
    return this.#error ?? this.automatic?.lastError
  }

  get nextAttempt(): number | undefined {
    return this.#error === undefined ? this.automatic?.nextAttempt : this.#nextAttempt
  }

  get renewAt(): number | undefined {
    return (
      this.automatic?.renewAt ?? (this.#own.length > 0 && this.#error === undefined ? this.#nextAttempt : undefined)
    )
  }

  /** It may take long, and an answer for one name is not worth a whole configuration: only whether it is there. */
  async load() {
    await access(this.module).catch((cause: NodeJS.ErrnoException) => {
      const why = cause.code === 'ENOENT' ? 'no such file' : cause.message
      throw new Error(`Cannot use certificate module ${this.module}: ${why}`, { cause })
    })
  }

  follow() {
    void this.look()
  }

  async look() {
    if (this.hooks.now() >= this.#nextAttempt) await this.#ask().catch(() => {}) // it is the lastError, and told
  }

  async renew() {
    await this.#ask()
    await this.automatic?.renew()
  }

  stop() {
    this.#stopped.abort()
  }

  /** One call at a time: who asks meanwhile gets its answer. */
  #ask(): Promise<void> {
    return (this.#asking ??= this.#askOnce().finally(() => {
      this.#asking = undefined
    }))
  }

  async #askOnce() {
    try {
      const answer = await this.hooks.provide(this.module, this.name, this.#stopped.signal)
      if (this.#stopped.signal.aborted) return
      if (answer === 'acme') this.#leave()
      else this.#take(answer)
    } catch (error) {
      if (!this.#stopped.signal.aborted) this.#failed(wordsOf(error))
      throw error
    }
  }

  #leave() {
    const automatic = this.hooks.automatic(this.name)
    const isNew = this.automatic === undefined
    this.automatic = automatic
    this.#own = []
    this.#succeeded(PROVIDER_AGAIN_MS_MAX)
    if (isNew) this.hooks.changed(this)
  }

  #take(answer: { cert: string; key: string }) {
    const from = `that ${this.module} gave for ${this.name}`
    const { pairs } = certificatesOf(answer, { cert: from, key: from })
    const now = this.hooks.now()
    const why = outOfTime(pairs, now)
    if (why) throw new Error(`Cannot use certificate ${from}: ${why}`)
    const before = this.pairs
    this.automatic = undefined
    this.#own = pairs
    // Asked when it was time, and the same came: it is not ready, so a part of what is left.
    const wait =
      renewalOf(pairs) > now ? renewalOf(pairs) - now : Math.max((endOf(pairs) - now) / 3, PROVIDER_PAUSE_MS_MIN)
    this.#succeeded(samePairs(before, pairs) ? Math.min(wait, PROVIDER_AGAIN_MS_MAX) : wait)
    if (samePairs(before, pairs)) return
    this.hooks.changed(this)
    const what = before.length === 0 ? 'issued' : 'renewed'
    this.hooks.event({ name: this.name, source: this.kind, what, notAfter: new Date(endOf(pairs)).toISOString() })
  }

  #succeeded(wait: number) {
    this.#error = undefined
    this.#failures = 0
    this.#nextAttempt = this.hooks.now() + wait
  }

  #failed(error: string) {
    const pause = Math.min(PROVIDER_PAUSE_MS_MIN * 2 ** this.#failures++, PROVIDER_PAUSE_MS_MAX)
    this.#nextAttempt = this.hooks.now() + pause
    this.#error = error
    const nextAttemptAt = new Date(this.#nextAttempt).toISOString()
    this.hooks.event({ name: this.name, source: this.kind, what: 'failed', error, nextAttemptAt })
  }
}
