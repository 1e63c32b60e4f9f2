// A certificate of a CA, for one name: ACME keeps it good, this shows it.
import { outOfTime, parsePair, type Pair } from './pair.ts'
import type { Source } from './source.ts'
import type { CertificateStatus, StoredCertificate } from './types.ts'

/** What is needed of ACME (acme/index.ts). */
export interface Automatic {
  /** What is stored of the name, so that it can be served at once; asks nothing of the CA. */
  load(name: string): Promise<void>
  /** All names that are wanted from now on. */
  follow(names: string[]): void
  get(name: string): StoredCertificate | undefined
  /** undefined: nobody wants the name. */
  status(name: string): CertificateStatus | undefined
  /** Now, whatever the schedule; joins an order in flight. */
  renew(name: string): Promise<unknown>
  stop(): Promise<void>
}

export class AutoSource implements Source {
  readonly kind = 'auto'
  #cert: string | undefined
  #pairs: Pair[] = []

  constructor(
    readonly name: string,
    private readonly acme: Automatic,
    private readonly now: () => number,
  ) {}

  get pairs(): readonly Pair[] {
    const issued = this.acme.get(this.name)
    if (issued?.cert !== this.#cert) {
      this.#cert = issued?.cert
      this.#pairs = issued ? readable(issued) : []
    }
    return this.#pairs
  }

  get lastError(): string | undefined {
    return this.#status?.lastError
  }

  get nextAttempt(): number | undefined {
    return timeOf(this.#status?.nextAttemptAt)
  }

  get renewAt(): number | undefined {
    return timeOf(this.#status?.renewAt)
  }

  get #status(): CertificateStatus | undefined {
    return this.acme.status(this.name)
  }

  async renew() {
    await this.acme.renew(this.name)
    const { failures, lastError } = this.#status ?? { failures: 0 }
    if (failures > 0 && lastError !== undefined) throw new Error(lastError)
    const why = this.pairs.length === 0 ? 'nothing was issued' : outOfTime(this.pairs, this.now())
    if (why) throw new Error(`Cannot use the new certificate for ${this.name}: ${why}`)
  }

  /** Of a configuration that is refused nothing is asked of the CA: the front door tells ACME its names when it is followed. */
  load(): Promise<void> {
    return this.acme.load(this.name)
  }
  follow() {}
  async look() {}
  stop() {}
}

/** A store that was damaged is no reason to fail for others; ACME replaces what cannot be used. */
function readable({ cert, key }: StoredCertificate): Pair[] {
  try {
    return [parsePair(cert, key)]
  } catch {
    return []
  }
}

const timeOf = (text: string | undefined) => (text === undefined ? undefined : Date.parse(text))
