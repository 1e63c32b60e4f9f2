// Deadlines for very many connections: one coarse wheel instead of a timer each. Arming and disarming link and unlink a
// node, so a phase of a connection costs no allocation; the interval runs only while something is armed. Deadlines of
// connections that came together need no jitter: one turn of the loop ends them all, and a tick is no thundering herd.
import { TIMER_TICK_MS } from '../base/limits.ts'

const SLOTS = 1024
const SLOT_MASK = SLOTS - 1

/** Something that can be armed, once at a time. Extend it: the links live in the object itself. */
export abstract class Timed {
  /** Tick at which it expires; 0: not armed. */
  due = 0
  wheelSlot = 0
  next: Timed | null = null
  previous: Timed | null = null
  /** Called once for each arm(), never early, at most two ticks late. It may arm itself again. */
  abstract expired(): void
}

export class Timers {
  /** Milliseconds on a clock that only moves at ticks: cheap enough to be read for every chunk of data. */
  now = 0
  #origin = 0
  #tick = 0
  #armed = 0
  #interval: Timer | undefined
  readonly #slots: (Timed | null)[] = new Array(SLOTS).fill(null)

  /** @param clock milliseconds that are never set back; tests have one of their own, and call advance(). */
  constructor(private readonly clock: () => number = () => performance.now()) {}

  get armed() {
    return this.#armed
  }

  arm(timed: Timed, ms: number): void {
    if (timed.due > 0) this.#unlink(timed)
    else if (this.#armed++ === 0) this.#start()
    // From the real clock: after a blocked loop the last tick is older than it says, and a deadline would come early.
    timed.due = Math.floor((this.clock() - this.#origin + ms) / TIMER_TICK_MS) + 1
    this.#link(timed)
  }

  disarm(timed: Timed): void {
    if (timed.due === 0) return
    this.#unlink(timed)
    timed.due = 0
    if (--this.#armed === 0) this.#stop()
  }

  /** How long ago it should have expired; 0: it is not due yet, or not armed. */
  overdueMs(timed: Timed): number {
    return timed.due === 0 ? 0 : Math.max(0, this.clock() - this.#origin - timed.due * TIMER_TICK_MS)
  }

  #start() {
    this.#origin = this.clock() - this.now
    this.#tick = Math.floor(this.now / TIMER_TICK_MS)
    this.#interval ??= setInterval(() => this.advance(), TIMER_TICK_MS)
  }

  #stop() {
    clearInterval(this.#interval)
    this.#interval = undefined
  }

  /** Lets what is due expire. The interval calls it. */
  advance() {
    const target = Math.floor((this.clock() - this.#origin) / TIMER_TICK_MS)
    this.now = target * TIMER_TICK_MS
    while (this.#tick < target && this.#armed > 0) {
      this.#tick++
      let timed = this.#slots[this.#tick & SLOT_MASK]!
      this.#slots[this.#tick & SLOT_MASK] = null
      // The list is cut off first: what expires may arm or disarm anything, itself included.
      let batch: Timed[] | undefined
      for (; timed; timed = timed.next!) (batch ??= []).push(timed)
      if (!batch) continue
      for (const one of batch) {
        one.next = one.previous = null
        one.wheelSlot = -1
      }
      for (const one of batch) {
        if (one.wheelSlot !== -1 || one.due === 0) continue // armed again or disarmed by one before it
        if (one.due > this.#tick) {
          this.#link(one) // farther away than one turn of the wheel
          continue
        }
        one.due = 0
        this.#armed--
        one.expired()
      }
    }
    this.#tick = Math.max(this.#tick, target)
    if (this.#armed === 0) this.#stop()
  }

  #link(timed: Timed) {
    const slot = Math.max(this.#tick + 1, Math.min(timed.due, this.#tick + SLOT_MASK)) & SLOT_MASK
    timed.wheelSlot = slot
    timed.previous = null
    timed.next = this.#slots[slot]!
    if (timed.next) timed.next.previous = timed
    this.#slots[slot] = timed
  }

  #unlink(timed: Timed) {
    if (timed.wheelSlot === -1) return // in the batch that is expiring now
    if (timed.previous) timed.previous.next = timed.next
    else this.#slots[timed.wheelSlot] = timed.next
    if (timed.next) timed.next.previous = timed.previous
    timed.next = timed.previous = null
  }
}
