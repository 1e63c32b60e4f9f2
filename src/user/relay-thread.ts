// The native relay's thread as TypeScript sees it: it runs while a plane uses it, and what it tells goes to whom it is about,
// a part of a connection or a listener. What those do with it is in relay.ts and accept.ts.
import { native, ptr } from '../base/native.ts'

/** native/sluice.h, enum sluice_relay_kind. */
export const KIND = {
  halfClosed: 1,
  closed: 2,
  accepted: 3,
  bytes: 4,
  connected: 5,
  refused: 6,
  unlistened: 7,
} as const

export interface RelayEvent {
  id: number
  kind: number
  side: number
  error: number
  idleMs: number
  bytesIn: number
  bytesOut: number
  tag: number
  descriptor: number
  /** What follows the event: on loan, in a message of many. */
  message: Buffer
  from: number
  to: number
}

/** What of a connection hears from the thread. */
export interface RelayPart {
  event(event: RelayEvent): void
  crashed(error: unknown): void
  /** The thread has gone although nobody stopped it: its connections went with it. */
  lost(): void
}

/** The other half of a listening socket that the thread accepts on. */
export interface RelayListener {
  accepted(event: RelayEvent): void
  unlistened(): void
}

export const CLIENT_SIDE = 0
const EVENT_BYTES = 48
const SEQPACKET = 5

export const parts = new Map<number, RelayPart>()
export const relayListeners = new Map<number, RelayListener>()
let state: 'stopped' | 'running' | 'failed' = 'stopped'
let users = 0
let events: Bun.Socket<any> | undefined

/** A plane may use the thread from now on. */
export function useRelay() {
  users++
}

export function leaveRelay() {
  if (--users > 0 || state !== 'running') return
  native().sluice_relay_stop()
  state = 'stopped'
  relayListeners.clear()
  const socket = events
  events = undefined // or its close would look like an accident
  socket?.terminate()
}

/** Starts the thread with its first use. false: there is none, and there will be none. */
export function relayRuns(failed: (message: string) => void): boolean {
  if (state !== 'stopped') return state === 'running'
  const pair = new Int32Array(2)
  let error = native().sluice_socketpair(SEQPACKET, ptr(pair))
  if (error === 0) error = native().sluice_relay_start(pair[1]!)
  state = error < 0 ? 'failed' : 'running'
  if (error < 0) {
    failed(`The relay thread did not start (errno ${-error}): bytes are carried in TypeScript instead`)
    return false
  }
  Bun.connect({ fd: pair[0]!, allowHalfOpen: true, data: undefined, socket: eventHandlers }).catch(() => {})
  return true
}

const scratch = Buffer.alloc(EVENT_BYTES)

/** Counts of a live pair. */
export function relayStats(id: number): RelayEvent | undefined {
  return native().sluice_relay_stats(id, ptr(scratch)) < 0 ? undefined : readEvent(scratch, 0)
}

const uint64 = (from: Buffer, at: number) => from.readUInt32LE(at) + from.readUInt32LE(at + 4) * 2 ** 32

function readEvent(from: Buffer, at: number): RelayEvent {
  return {
    id: uint64(from, at),
    kind: from[at + 8]!,
    side: from[at + 9]!,
    error: from.readUInt16LE(at + 10),
    idleMs: from.readUInt32LE(at + 12),
    bytesIn: uint64(from, at + 16),
    bytesOut: uint64(from, at + 24),
    tag: from.readUInt32LE(at + 32),
    descriptor: from.readUInt32LE(at + 40),
    message: from,
    from: at + EVENT_BYTES,
    to: at + EVENT_BYTES + from.readUInt32LE(at + 36),
  }
}

const eventHandlers = {
  open(socket: Bun.Socket<any>) {
    events = socket
  },
  data(_: Bun.Socket<any>, message: Buffer) {
    for (let at = 0; at + EVENT_BYTES <= message.length;) {
      const event = readEvent(message, at)
      at = event.from + ((event.to - event.from + 7) & ~7)
      dispatch(event)
    }
  },
  close(socket: Bun.Socket<any>) {
    if (socket !== events) return
    events = undefined
    state = 'failed'
    for (const part of [...parts.values()]) part.lost()
    for (const listener of [...relayListeners.values()]) listener.unlistened()
  },
}

function dispatch(event: RelayEvent) {
  if (event.kind === KIND.unlistened) {
    const listener = relayListeners.get(event.tag)
    relayListeners.delete(event.tag)
    return listener?.unlistened()
  }
  if (event.kind === KIND.accepted) {
    const listener = relayListeners.get(event.tag)
    if (listener) listener.accepted(event)
    else native().sluice_relay_close(event.id, 1, 0)
    return
  }
  const part = parts.get(event.id)
  try {
    part?.event(event)
  } catch (error) {
    part!.crashed(error)
  }
}
