// Where the gateway itself has the last word: how a connection ends that was answered here and goes nowhere else.
import { adopt } from './connect.ts'
import { of, type Connection, type OnDeadline } from './connection.ts'
import type { Consumer } from './end.ts'

export type Answered = 'responded' | 'challenge_answered'

/** TypeScript has the client's socket, and no more the relay thread. false: the client has gone. */
export function takeSocket({ client }: Connection): boolean {
  if (!client.keeper) return true
  const fd = client.keeper.take()
  return fd >= 0 && adopt(client, fd)
}

/** Sends it, then waits for the client to close: closing over unread bytes would take the answer back. */
export function conclude(connection: Connection, answer: Uint8Array, reason: Answered, ms: number) {
  const { client } = connection
  const { consumer, done } = endings[reason]
  client.takeHeld()
  client.consumer = consumer
  if (answer.length > 0) client.send(answer)
  client.finish()
  connection.setState('closing')
  connection.arm(ms, done)
  if (client.ended) consumer.ended(client)
}

function ending(reason: Answered): { consumer: Consumer; done: OnDeadline } {
  const done = (connection: Connection) => connection.settle(reason, true)
  const consumer: Consumer = {
    received() {},
    ended(end) {
      if (end.finished) done(of(end))
    },
    drained(end) {
      if (end.ended) done(of(end))
    },
    closed(end, error) {
      // Who checks a challenge has all that it wants with the answer, and may leave as it likes.
      of(end).settle(error && reason === 'responded' ? 'client_reset' : reason, true)
    },
  }
  return { consumer, done }
}

/** Shared by all connections. */
const endings = { responded: ending('responded'), challenge_answered: ending('challenge_answered') }
