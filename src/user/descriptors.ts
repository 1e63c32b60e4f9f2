// Accepting goes on while there are descriptors for what was accepted. Without one accept(2) fails, and Bun tries it again
// and again at a whole core; so the plane stops before, and what comes meanwhile waits in the kernel's backlog.
import { ACCEPT_RETRY_MS, DESCRIPTORS_GAP_MAX, DESCRIPTORS_RESERVED } from '../base/limits.ts'

/** From how many on accepting pauses, and down to how many it goes on: with a gap, or it would do both for each connection. */
export function thresholds(limit: number): { pauseAt: number; resumeAt: number } {
  // A limit that is hardly more than the reserve still serves someone.
  const pauseAt = Math.max(limit - DESCRIPTORS_RESERVED, Math.floor(limit / 2))
  return { pauseAt, resumeAt: pauseAt - Math.min(DESCRIPTORS_GAP_MAX, Math.max(2, Math.floor(pauseAt / 16))) }
}

export interface Pausing {
  /** What the connections will have when each has its target; they must not be accepted and then fail for want of one. */
  promised(): number
  /** RLIMIT_NOFILE now. */
  limit(): number
  /** Descriptors under `below` that are free, counted up to `enough`: whoever has the others, handlers too. */
  free(below: number, enough: number): number
  pause(): void
  resume(): void
  /** Until the next look accepting may go on by itself until so many are in use or promised. */
  bound(descriptors: number): void
  /** The limit is another than before. */
  limited(): void
  now(): number
}

/** Decides when to pause; what that means is the plane's. */
export class Accepting {
  paused = false
  limit = Infinity
  #pauseAt = Infinity
  #resumeAt = Infinity
  #triedAt = 0

  constructor(private readonly plane: Pausing) {}

  /** The limit may have changed; called with a plan, and every now and then. */
  look() {
    const before = this.limit
    this.limit = this.plane.limit()
    if (this.limit !== before) this.plane.limited()
    const { pauseAt, resumeAt } = thresholds(this.limit)
    this.#pauseAt = pauseAt
    this.#resumeAt = resumeAt
    // Not only what we count: a handler may have opened any number of files.
    if (this.paused) this.#tryAgain()
    else if (this.plane.promised() >= pauseAt || this.plane.free(pauseAt, 1) === 0) this.#pause()
    else this.plane.bound(pauseAt)
  }

  /** A connection came. The kernel gives the lowest number that is free, so `descriptor` says how many there are in use. */
  accepted(descriptor: number) {
    if (!this.paused && (descriptor >= this.#pauseAt || this.plane.promised() >= this.#pauseAt)) this.#pause()
  }

  /** It came although accepting pauses, and its target could have the last one. */
  isTooLate(descriptor: number): boolean {
    return this.paused && descriptor >= this.limit - DESCRIPTORS_RESERVED / 2
  }

  /** A connection went. */
  left() {
    if (!this.paused || this.plane.promised() > this.#resumeAt) return
    const now = this.plane.now()
    if (now - this.#triedAt < ACCEPT_RETRY_MS) return
    this.#triedAt = now
    this.#tryAgain()
  }

  #tryAgain() {
    const gap = this.#pauseAt - this.#resumeAt
    if (this.plane.promised() > this.#resumeAt || this.plane.free(this.#pauseAt, gap) < gap) return
    this.paused = false
    this.plane.resume()
    this.plane.bound(this.#pauseAt)
  }

  #pause() {
    this.paused = true
    this.plane.pause()
  }
}
