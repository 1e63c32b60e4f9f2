// Where certificates, accounts, challenges and locks are kept: what every store can do. One gateway keeps them in files of its
// own, several behind one name share a Redis.

/** What is stored is text under keys such as "certificates/app.example.com": lower-case words, digits, ".", "_", "-", "*" and ":"
 *  between slashes. */
export interface Store {
  /** Other gateways have it too. */
  readonly shared: boolean
  /** undefined: nothing is there. Rejects when the store does not answer: that is not the same. */
  get(key: string): Promise<string | undefined>
  /** Whole and durably, or not at all. With ttlMs it is gone after that time. */
  put(key: string, text: string, options?: { ttlMs?: number }): Promise<void>
  /** Nothing there is no error. */
  delete(key: string): Promise<void>
  /** The keys that begin so, sorted. */
  list(prefix: string): Promise<string[]>
  /** Held by one at a time among all who use the store, until it is released or its holder is gone. null: another has it. */
  lock(key: string): Promise<Lock | null>
  /** Tells of keys that begin so and were put or deleted by anybody, this store's own user included; one change may be told twice. Returns
   *  how to hear no more. */
  watch(prefix: string, changed: (key: string) => void): () => void
  /** Lets go of every lock, connection and timer. */
  close(): Promise<void>
}

export interface Lock {
  /** Aborted when it could not be kept: another may have it now. */
  readonly lost: AbortSignal
  /** Not an error when it was lost before. */
  release(): Promise<void>
}
