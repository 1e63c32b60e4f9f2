// What the store keeps of one name: its certificate, the order on its way, how the attempts to get one went, and whose turn it is.
import { z } from 'zod'
import type { Lock, Store } from '../store.ts'
import type { StoredCertificate } from '../types.ts'
import { readJson, writeJson } from './json.ts'

const Stored = z.object({
  cert: z.string(),
  key: z.string(),
  issuedAt: z.iso.datetime(),
  notBefore: z.iso.datetime(),
  notAfter: z.iso.datetime(),
  jitter: z.number().min(0).max(1),
})

const Attempts = z.object({
  /** In a row. */
  failures: z.number().int().min(0),
  lastError: z.string().optional(),
  nextAttemptAt: z.iso.datetime().optional(),
})
export type Attempts = z.infer<typeof Attempts>

export class Records {
  constructor(
    private readonly store: Store,
    private readonly directoryId: string,
    private readonly name: string,
  ) {}

  get orderKey(): string {
    return this.#key('orders')
  }

  certificate(): Promise<StoredCertificate | undefined> {
    return readJson(this.store, this.#key('certificates'), Stored)
  }

  async attempts(): Promise<Attempts> {
    return (await readJson(this.store, this.#key('attempts'), Attempts)) ?? { failures: 0 }
  }

  putAttempts(attempts: Attempts): Promise<void> {
    return writeJson(this.store, this.#key('attempts'), attempts)
  }

  /** What led to it is over, but only when it is kept: an order that is still there gives the same certificate again. */
  async putCertificate(issued: StoredCertificate): Promise<void> {
    await writeJson(this.store, this.#key('certificates'), issued)
    await Promise.all([this.store.delete(this.orderKey), this.store.delete(this.#key('attempts'))])
  }

  /** For whoever asks the CA. null: another gateway does. */
  lock(): Promise<Lock | null> {
    return this.store.lock(`locks/issue/${this.directoryId}/${this.name}`)
  }

  #key(kind: string): string {
    return `${kind}/${this.directoryId}/${this.name}`
  }
}
