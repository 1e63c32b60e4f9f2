// The one forwarding primitive in TypeScript: two ends, plain or TLS, bytes both ways. A source is read only while its
// sink takes; EOF goes through after every byte before it; an error on one side ends the other at once.
import { of, type Connection } from './connection.ts'
import type { Consumer, End } from './end.ts'
import { armHalfClosed, armIdle } from './idle.ts'
import { brokenBy, codeOf } from './opening.ts'

/** Joins the connection's client and target; what either held goes through first. */
export function pair(connection: Connection) {
  const { client } = connection
  const target = connection.target!
  client.other = target
  target.other = client
  client.consumer = target.consumer = pairing
  connection.setState('open')
  armIdle(connection)
  for (const end of [client, target]) {
    const other = end.other!
    if (end.held) for (const bytes of end.takeHeld()) other.send(bytes)
    if (other.queuedBytes > 0) end.pause()
    else end.resume()
  }
  for (const end of [client, target]) if (end.ended && !connection.settled) pairing.ended(end)
}

const pairing: Consumer = {
  received(end, bytes) {
    if (!end.other!.send(bytes)) end.pause()
  },

  ended(end) {
    const sink = end.other!
    // The last FIN of a plain connection goes out with close(2): one call less. TLS says goodbye first.
    if (end.finished && sink.ended && sink.queuedBytes === 0 && !encrypted(of(end)))
      return of(end).settle('finished', true)
    sink.finish()
    after(end)
  },

  drained(end) {
    const connection = of(end)
    const back = end.other!
    if (end.finished) after(back)
    if (connection.settled || connection.attachment?.drained?.()) return
    back.resume()
  },

  closed(end, error) {
    const connection = of(end)
    // A socket that is gone after both FINs is the normal end of one; its peer may still be owed bytes.
    if (!error && end.ended && end.finished) return after(end)
    connection.settle(brokenBy(end === connection.client ? 'client' : 'target', codeOf(error)))
  },
}

/** One direction (from `end`) may just have been completed: is it the first or the last? */
function after(end: End) {
  const connection = of(end)
  if (connection.settled || !end.ended || !end.other!.finished) return
  const back = end.other!
  if (back.ended && end.finished) return connection.settle('finished', true)
  if (connection.state !== 'half-closed') armHalfClosed(connection, connection.allowHalfOpen)
}

const encrypted = ({ tls, attachment }: Connection) => tls !== undefined || attachment?.encrypted === true
