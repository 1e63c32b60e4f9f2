// What live connections carry, told again and again: of those only that carried something since, so that ten thousand idle
// ones cost a look at each and no word.
import { COUNTS_PER_TURN } from '../base/limits.ts'
import { turn } from '../base/turns.ts'
import type { ConnectionCounts } from '../channel/messages.ts'
import type { Connection } from './connection.ts'

/** @returns a function that tells what is new since it was called last, piece by piece; the last piece may be empty. */
export function countsOf(table: ReadonlyMap<string, Connection>) {
  /** Bytes in both directions, as they were told last. */
  const told = new WeakMap<Connection, number>()
  return async (tell: (counts: ConnectionCounts[], isLast: boolean) => void): Promise<void> => {
    let counts: ConnectionCounts[] = []
    let looked = 0
    for (const connection of table.values()) {
      const { bytesIn, bytesOut } = connection.counts()
      if (bytesIn + bytesOut !== (told.get(connection) ?? 0)) {
        told.set(connection, bytesIn + bytesOut)
        counts.push({ id: connection.id, bytesIn, bytesOut })
      }
      if (++looked % COUNTS_PER_TURN !== 0) continue
      // What waited while others have their turn could come after its connection has settled.
      if (counts.length > 0) tell(counts, false)
      counts = []
      await turn()
    }
    tell(counts, true)
  }
}
