// The end of the access log, read back after a crash: which connections have their line already, although the totals that
// were stored last do not count them.
import { open } from 'node:fs/promises'
import { WRITTEN_BYTES_MAX } from '../base/limits.ts'
import { keyOfId } from '../connections/native-flow.ts'
import type { ConnectionRecord } from '../connections/record.ts'

const PIECE_BYTES = 1024 * 1024
/** Lines are in the order of their ends but for those that were told late: so much before, and nothing of interest comes. */
const DISORDER_MS = 10_000

/** Keys of the kernel flows that closed at `sinceMs` or later (and some that closed before), with when; none when there is
 *  nothing to read. */
export async function writtenSince(path: string, sinceMs: number): Promise<Map<number, number>> {
  const found = new Map<number, number>()
  const file = await open(path, 'r').catch(() => null)
  if (!file) return found
  try {
    const { size } = await file.stat()
    // What stands before the first line end of a piece belongs to the piece before it.
    let rest = Buffer.alloc(0)
    let oldestMs = Infinity
    for (let end = size; end > Math.max(0, size - WRITTEN_BYTES_MAX) && oldestMs > sinceMs - DISORDER_MS;) {
      const from = Math.max(0, end - PIECE_BYTES)
      const piece = Buffer.alloc(end - from)
      const { bytesRead } = await file.read(piece, 0, piece.length, from)
      if (bytesRead < piece.length) break // it was cut off meanwhile
      const text = Buffer.concat([piece, rest])
      const start = from === 0 ? 0 : text.indexOf(10) + 1
      rest = text.subarray(0, start)
      for (const line of text.subarray(start).toString().split('\n')) {
        const record = parse(line)
        if (!record?.closedAt) continue
        const closedMs = Date.parse(record.closedAt)
        oldestMs = Math.min(oldestMs, closedMs)
        const key = record.carrier === 'kernel' ? keyOfId(record.id) : undefined
        if (key !== undefined) found.set(key, Math.max(closedMs, found.get(key) ?? 0))
      }
      end = from
    }
  } finally {
    await file.close()
  }
  return found
}

/** A line that a kill has cut off is no JSON. */
function parse(line: string): ConnectionRecord | undefined {
  try {
    return line === '' ? undefined : (JSON.parse(line) as ConnectionRecord)
  } catch {
    return undefined
  }
}
