// Where a certificate comes from and how it is kept good: what the front door asks of each kind. A source never throws once it
// is followed: what goes wrong is its lastError, and what it had is shown on.
import { CERTIFICATE_ERROR_CHARACTERS_MAX } from '../base/limits.ts'
import { presentable } from './acme/problem.ts'
import type { CertificateFiles } from './files.ts'
import type { Pair } from './pair.ts'
import type { CertificateEvent } from './types.ts'

export type SourceKind = CertificateEvent['source']

export interface Source {
  readonly kind: SourceKind
  /** What people call it. */
  readonly name: string
  /** What can be shown now, the best first; empty: nothing yet. */
  readonly pairs: readonly Pair[]
  readonly lastError?: string | undefined
  /** Sentences about what is odd, and does not keep it from being used. */
  readonly warnings?: readonly string[]
  /** Times in ms since 1970. */
  readonly nextAttempt?: number | undefined
  readonly renewAt?: number | undefined
  readonly files?: CertificateFiles
  /** What a configuration needs before it is carried out. Rejects with what is wrong. */
  load(): Promise<void>
  /** From now on it keeps itself good. */
  follow(): void
  /** Every minute. */
  look(): Promise<void>
  /** Now, whatever the schedule. Rejects with what went wrong. */
  renew(): Promise<void>
  stop(): void
}

/** What a source tells the front door. */
export interface SourceHooks {
  now(): number
  /** What it can show is another. */
  changed(source: Source): void
  event(event: CertificateEvent): void
}

/** Of a module, a file or the system: a stranger's text, in logs, tables and events. */
export const wordsOf = (error: unknown): string =>
  presentable(String((error as Error | undefined)?.message ?? error), CERTIFICATE_ERROR_CHARACTERS_MAX)

export const samePairs = (a: readonly Pair[], b: readonly Pair[]): boolean =>
  a.length === b.length && a.every((pair, i) => pair.cert === b[i]!.cert && pair.key === b[i]!.key)
