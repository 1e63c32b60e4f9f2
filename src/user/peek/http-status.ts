// Reads the status of an HTTP/1 answer, as far as a health check needs it: bytes so far in, a verdict out, no socket.
import { HEALTH_HEAD_BYTES_MAX } from '../../base/limits.ts'

export type HttpStatusPeek = { verdict: 'more' } | { verdict: 'no' } | { verdict: 'yes'; status: number }

const START = 'HTTP/1.'
const STATUS = /^HTTP\/1\.\d ([1-5]\d\d)[ \r\n]/
const STATUS_CHARACTERS = 'HTTP/1.1 200\r'.length

/** Call it with all bytes received so far, as often as bytes arrive; only 'more' may change later. */
export function peekHttpStatus(bytes: Uint8Array): HttpStatusPeek {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, HEALTH_HEAD_BYTES_MAX)).toString(
    'latin1',
  )
  const more: HttpStatusPeek = { verdict: bytes.length < HEALTH_HEAD_BYTES_MAX ? 'more' : 'no' }
  for (let at = 0; ;) {
    const start = text.slice(at, at + STATUS_CHARACTERS)
    if (!start.startsWith(START.slice(0, start.length))) return { verdict: 'no' }
    if (start.length < STATUS_CHARACTERS) return more
    const found = STATUS.exec(start)
    if (!found) return { verdict: 'no' }
    const status = Number(found[1])
    if (status >= 200) return { verdict: 'yes', status }
    // An interim answer (103 Early Hints); the one that counts comes behind it.
    const end = text.indexOf('\r\n\r\n', at)
    if (end < 0) return more
    at = end + 4
  }
}
