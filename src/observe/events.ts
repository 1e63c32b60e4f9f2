// GET /v1/events: what happens in the gateway, as it happens, for whoever wants to hear it (server-sent events). Nothing is
// made while nobody listens; one that listens and does not keep up loses events, and is told how many.
import {
  EVENT_BYTES_QUEUED_MAX,
  EVENT_HEARTBEAT_MS,
  EVENT_LOOK_MS,
  EVENT_STALLED_BEATS_MAX,
  EVENT_SUBSCRIBERS_MAX,
} from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import type { CertificateEvent } from '../certificates/index.ts'
import type { HealthChange } from '../connections/health.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { RefusalReason } from '../connections/reasons.ts'
import type { ConnectionObserver } from '../connections/table.ts'
import { RefusalLog } from './refusals.ts'

/** About 5 ms. */
const ROUTES_PER_TURN = 500

export type EventName = 'opened' | 'changed' | 'closed' | 'refused' | 'route' | 'target' | 'certificate' | 'lost'

export interface RouteNow {
  name: string
  carrier: string
  state: string
  reason: string
}

export interface EventSources {
  /** As they are now. */
  routes(): Iterable<RouteNow>
}

export class Events implements ConnectionObserver {
  readonly #subscribers = new Set<Subscriber>()
  readonly #refusals = new RefusalLog((line) => this.#publish('refused', line.route, line), EVENT_LOOK_MS)
  #looks: ReturnType<typeof setInterval> | undefined
  #beats: ReturnType<typeof setInterval> | undefined
  /** As they were; null: nobody has looked yet, and what is, is no change. */
  #routes: Map<string, string> | null = null
  #looking = false

  constructor(private readonly sources: EventSources) {}

  /** Somebody listens. */
  get wanted(): boolean {
    return this.#subscribers.size > 0
  }

  // ---- what happens ----

  /** One that is over already is told by `closed` alone. */
  opened(record: ConnectionRecord) {
    if (this.wanted && record.state !== 'closed') this.#publish('opened', record.route, record)
  }

  changed(record: ConnectionRecord) {
    if (this.wanted) this.#publish('changed', record.route, record)
  }

  settled(record: ConnectionRecord) {
    if (this.wanted) this.#publish('closed', record.route, record)
  }

  /** Summed up: a flood of refusals is a line a second. */
  refused(route: string, reason: RefusalReason, count: number, observed: boolean) {
    if (this.wanted) this.#refusals.refused(route, reason, count, observed)
  }

  target({ route, endpoint, up, why }: HealthChange) {
    if (this.wanted) this.#publish('target', route, { route, target: endpoint, up, why })
  }

  /** Of every route: who listens to one route hears nothing of it. */
  certificate(event: CertificateEvent) {
    if (this.wanted) this.#publish('certificate', '', event)
  }

  /** Where a route is carried follows from much: it is looked at, as long as somebody listens. */
  async #look() {
    if (this.#looking) return
    this.#looking = true
    const before = this.#routes
    const routes = new Map<string, string>()
    await inTurns(this.sources.routes(), ROUTES_PER_TURN, ({ name, carrier, state, reason }) => {
      const now = { route: name, carrier, state, reason }
      const text = JSON.stringify(now)
      routes.set(name, text)
      if (before && before.get(name) !== text) this.#publish('route', name, now)
    }).finally(() => {
      this.#looking = false
    })
    for (const name of before?.keys() ?? [])
      if (!routes.has(name)) this.#publish('route', name, { route: name, state: 'removed' })
    this.#routes = routes
  }

  // ---- who listens ----

  /** @param route only what is about it; null: everything. */
  subscribe(route: string | null): Response {
    if (this.#subscribers.size >= EVENT_SUBSCRIBERS_MAX)
      return Response.json({ error: `${EVENT_SUBSCRIBERS_MAX} listen already` }, { status: 503 })
    const subscriber = new Subscriber(route, () => this.#unsubscribe(subscriber))
    if (!this.wanted) this.#begin()
    this.#subscribers.add(subscriber)
    return new Response(subscriber.stream, {
      headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-store' },
    })
  }

  #begin() {
    this.#routes = null
    void this.#look()
    this.#looks = setInterval(() => void this.#look(), EVENT_LOOK_MS)
    this.#beats = setInterval(() => {
      for (const subscriber of this.#subscribers) subscriber.beat()
    }, EVENT_HEARTBEAT_MS)
  }

  #unsubscribe(subscriber: Subscriber) {
    if (!this.#subscribers.delete(subscriber) || this.wanted) return
    clearInterval(this.#looks)
    clearInterval(this.#beats)
    this.#refusals.flush()
  }

  #publish(event: EventName, route: string, what: object) {
    let bytes: Uint8Array | undefined
    for (const subscriber of this.#subscribers)
      if (subscriber.route === null || subscriber.route === route) subscriber.send((bytes ??= encode(event, what)))
  }

  stop() {
    this.#refusals.flush()
    for (const subscriber of this.#subscribers) subscriber.end()
  }
}

/** The same object as a line of the access log has. */
const encode = (event: EventName, what: object): Uint8Array =>
  Buffer.from(`event: ${event}\ndata: ${JSON.stringify({ event, ...what })}\n\n`)

const HEARTBEAT = Buffer.from(': heartbeat\n\n')

class Subscriber {
  readonly stream: ReadableStream<Uint8Array>
  #controller!: ReadableStreamDefaultController<Uint8Array>
  #lost = 0
  /** Heartbeats since it took something. */
  #missed = 0
  #over = false

  constructor(
    readonly route: string | null,
    private readonly gone: () => void,
  ) {
    this.stream = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller
          // At once, so that whoever asked knows that from here on nothing is missed.
          controller.enqueue(HEARTBEAT)
        },
        pull: () => {
          this.#missed = 0
          this.#tellLost()
        },
        cancel: () => this.#leave(),
      },
      new ByteLengthQueuingStrategy({ highWaterMark: EVENT_BYTES_QUEUED_MAX }),
    )
  }

  get #isFull(): boolean {
    return (this.#controller.desiredSize ?? 0) <= 0
  }

  send(bytes: Uint8Array) {
    this.#tellLost()
    if (this.#isFull) this.#lost++
    else this.#controller.enqueue(bytes)
  }

  #tellLost() {
    if (this.#lost === 0 || this.#isFull) return
    this.#controller.enqueue(encode('lost', { count: this.#lost }))
    this.#lost = 0
  }

  /** Keeps what lies between from taking the connection for dead, and finds out who is. */
  beat() {
    if (!this.#isFull) this.#controller.enqueue(HEARTBEAT)
    else if (++this.#missed >= EVENT_STALLED_BEATS_MAX) this.end()
  }

  end() {
    if (this.#over) return
    this.#leave()
    this.#controller.close()
  }

  #leave() {
    this.#over = true
    this.gone()
  }
}
