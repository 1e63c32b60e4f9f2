// The status line of an answer, whole, in pieces, behind interim answers, and what is no answer.
import { expect, test } from 'bun:test'
import { HEALTH_HEAD_BYTES_MAX } from '../../src/base/limits.ts'
import { peekHttpStatus } from '../../src/user/peek/http-status.ts'

const peek = (text: string) => peekHttpStatus(Buffer.from(text, 'latin1'))

test('E7: the status of an answer, at the first byte that says it', () => {
  for (const [text, status] of [
    ['HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', 200],
    ['HTTP/1.0 301 \r\n', 301],
    ['HTTP/1.1 503\r\n', 503],
    ['HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n', 204],
    ['HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 404 Not Found\r\n', 404],
  ] as const) {
    expect(peek(text)).toEqual({ verdict: 'yes', status })
    let told = 0
    for (let end = 0; end < text.length; end++) {
      const answer = peek(text.slice(0, end))
      if (answer.verdict === 'more') expect([text, end, told]).toEqual([text, end, 0])
      else expect(answer).toEqual({ verdict: 'yes', status })
      if (answer.verdict === 'yes') told++
    }
  }
})

test('E7: what is no answer is said so at once, and one without an end is given up', () => {
  for (const text of ['S', 'SSH-2.0-OpenSSH', 'HTTP/2', 'HTTP/1.1 2', 'HTTP/1.1 999 Odd', 'HTTP/1.1 abc def', '\r\n'])
    expect([text, peek(text).verdict]).toEqual([text, text === 'HTTP/1.1 2' ? 'more' : 'no'])
  const endless = 'HTTP/1.1 103 Early Hints\r\nLink: '
  expect(peek(endless.padEnd(HEALTH_HEAD_BYTES_MAX - 1, 'a'))).toEqual({ verdict: 'more' })
  expect(peek(endless.padEnd(HEALTH_HEAD_BYTES_MAX, 'a'))).toEqual({ verdict: 'no' })
  expect(peek(endless.padEnd(HEALTH_HEAD_BYTES_MAX + 1, 'a'))).toEqual({ verdict: 'no' })
})
