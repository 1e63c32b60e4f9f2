// A certificate of the local authority: made when it is needed, and made again when two thirds of its life are over.
import type { LocalAuthority } from './authority.ts'
import { endOf, parsePair, renewalOf, type Pair } from './pair.ts'
import { samePairs, wordsOf, type Source, type SourceHooks } from './source.ts'

export class OwnSource implements Source {
  readonly kind = 'self-signed'
  readonly name: string
  pairs: readonly Pair[] = []
  lastError: string | undefined
  #stopped = false

  constructor(
    private readonly names: string[],
    private readonly authority: () => Promise<LocalAuthority>,
    private readonly hooks: SourceHooks,
  ) {
    this.name = names[0]!
  }

  get renewAt(): number | undefined {
    return this.pairs.length > 0 ? renewalOf(this.pairs) : undefined
  }

  async load() {
    const { cert, key } = await (await this.authority()).issue(this.names)
    this.pairs = [parsePair(cert, key)]
  }

  follow() {}

  async look() {
    // What failed is told by #renew, and tried again with the next look.
    if (this.hooks.now() >= (this.renewAt ?? 0)) await this.#renew(false).catch(() => {})
  }

  renew() {
    return this.#renew(true)
  }

  async #renew(anew: boolean) {
    try {
      const before = this.pairs
      const authority = await this.authority()
      if (anew) authority.forget(this.names)
      await this.load()
      if (this.#stopped) return
      this.lastError = undefined
      if (samePairs(before, this.pairs)) return
      this.hooks.changed(this)
      const notAfter = new Date(endOf(this.pairs)).toISOString()
      const what = before.length === 0 ? 'issued' : 'renewed'
      this.hooks.event({ name: this.name, source: this.kind, what, notAfter })
    } catch (error) {
      const words = wordsOf(error)
      if (words !== this.lastError && !this.#stopped)
        this.hooks.event({ name: this.name, source: this.kind, what: 'failed', error: words })
      this.lastError = words
      throw error
    }
  }

  stop() {
    this.#stopped = true
  }
}
