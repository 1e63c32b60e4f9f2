// A certificate of an operator's files. When they change they are validated, and the old certificate is shown until they are good.
import { FILES_SETTLE_RETRY_MS } from '../base/limits.ts'
import { loadCertificates, type CertificateFiles, type LoadedCertificates } from './files.ts'
import { endOf, outOfTime, type Pair } from './pair.ts'
import { samePairs, wordsOf, type Source, type SourceHooks } from './source.ts'
import { FileWatch, type Directories } from './watch.ts'

export class FileSource implements Source {
  readonly kind = 'file'
  pairs: readonly Pair[] = []
  lastError: string | undefined
  warnings: readonly string[] = []
  readonly #watch: FileWatch
  #timer: ReturnType<typeof setTimeout> | undefined
  /** Until then what does not fit may be half of a change. */
  #settlesUntil = 0
  #reading: Promise<string | undefined> | undefined
  #stopped = false

  constructor(
    readonly files: CertificateFiles,
    directories: Directories,
    private readonly hooks: SourceHooks & { settleMs: number },
  ) {
    this.#watch = new FileWatch([...new Set([files.cert, files.key])], directories, () => this.#changed())
  }

  get name(): string {
    return this.pairs[0]?.names[0] ?? this.files.cert
  }

  async load() {
    await this.#watch.remember()
    // One that is over is shown all the same: a restart at night must not take everything away with it.
    this.#take(await loadCertificates(this.files))
  }

  follow() {
    void this.#watch.look()
  }

  async look() {
    await this.#watch.look()
    // Not only a change mends it: permissions do, and time.
    if (this.lastError !== undefined && this.#timer === undefined) await this.#read()
  }

  async renew() {
    const error = await this.#read()
    if (error !== undefined) throw new Error(error)
  }

  stop() {
    this.#stopped = true
    clearTimeout(this.#timer)
    this.#watch.stop()
  }

  #changed() {
    this.#settlesUntil = performance.now() + this.hooks.settleMs
    void this.#read()
  }

  /** @returns what is wrong. One at a time, and one that came while another read is its own reading, of what is there then. */
  async #read(): Promise<string | undefined> {
    await this.#reading
    return (this.#reading ??= this.#readOnce().finally(() => {
      this.#reading = undefined
    }))
  }

  async #readOnce(): Promise<string | undefined> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#stopped) return 'it is not used any more'
    try {
      const loaded = await loadCertificates(this.files)
      this.#refuseWorse(loaded.pairs)
      if (!this.#stopped) this.#replace(loaded)
      return undefined
    } catch (error) {
      const words = wordsOf(error)
      if (this.#stopped) return words
      if (performance.now() < this.#settlesUntil)
        this.#timer = setTimeout(() => void this.#read(), FILES_SETTLE_RETRY_MS)
      else this.#failed(words)
      return words
    }
  }

  #refuseWorse(pairs: Pair[]) {
    const now = this.hooks.now()
    const why = this.pairs.length > 0 ? outOfTime(pairs, now) : undefined
    if (why && !outOfTime(this.pairs, now)) throw new Error(`Cannot use certificate ${this.files.cert}: ${why}`)
  }

  #replace(loaded: LoadedCertificates) {
    const before = this.pairs
    this.lastError = undefined
    this.#take(loaded)
    if (samePairs(before, this.pairs)) return
    this.hooks.changed(this)
    const notAfter = new Date(endOf(this.pairs)).toISOString()
    this.hooks.event({ name: this.name, source: 'file', what: 'replaced', notAfter })
  }

  #take({ pairs, unused }: LoadedCertificates) {
    this.pairs = pairs
    this.warnings = unused
  }

  /** Told once, however often it is tried. */
  #failed(error: string) {
    if (error === this.lastError) return
    this.lastError = error
    this.hooks.event({ name: this.name, source: 'file', what: 'failed', error })
  }
}
