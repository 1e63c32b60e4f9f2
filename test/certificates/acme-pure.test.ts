// When certificates are renewed, when a failure is tried again, and what a CA may make us print.
import { describe, expect, test } from 'bun:test'
import { parseRetryAfter, retryDelay } from '../../src/certificates/acme/backoff.ts'
import { presentable, problemOf } from '../../src/certificates/acme/problem.ts'
import { expiringTime, nextLook, renewalId, renewalTime, renewalWindow } from '../../src/certificates/acme/renewal.ts'
import { isDue, nextStep, type Known } from '../../src/certificates/acme/schedule.ts'
import * as x509 from '../../src/certificates/x509.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

describe('F9: a certificate is renewed', () => {
  const long = { notBefore: 0, notAfter: 90 * DAY, issuedAt: 0 }

  test('so many days before its end, when it lives for more than three times that', () => {
    expect(renewalTime(long, 20, 0)).toBe(70 * DAY)
  })
  test('else after two thirds of its life', () => {
    expect(renewalTime(long, 30, 0)).toBe(60 * DAY)
    expect(renewalTime({ notBefore: 0, notAfter: 12 * HOUR, issuedAt: 0 }, 30, 0)).toBe(8 * HOUR)
  })
  test('earlier by chance, never later', () => {
    expect(renewalTime(long, 20, 0.5)).toBe(70 * DAY - 0.9 * DAY)
    expect(renewalTime(long, 20, 1)).toBe(70 * DAY - 1.8 * DAY)
  })
  test('within the window the CA names, at a moment of its own', () => {
    const window = { start: 10 * DAY, end: 12 * DAY }
    expect(renewalTime(long, 30, 0, window)).toBe(10 * DAY)
    expect(renewalTime(long, 30, 0.5, window)).toBe(11 * DAY)
  })
  test('before its end, whatever window the CA names', () => {
    expect(renewalTime(long, 30, 0, { start: 89 * DAY, end: 400 * DAY })).toBe(81 * DAY)
    expect(expiringTime(long)).toBe(81 * DAY)
  })
  test('not as soon as it is there, where a clock is wrong', () => {
    // By this machine's clock it was issued when most of its life was over, or the CA's window was.
    expect(renewalTime({ ...long, issuedAt: 70 * DAY }, 30, 0)).toBe(90 * DAY)
    expect(renewalTime({ ...long, issuedAt: 65 * DAY }, 30, 0)).toBe(90 * DAY)
    expect(renewalTime({ ...long, issuedAt: 50 * DAY }, 30, 0)).toBe(80 * DAY)
    expect(renewalTime(long, 30, 0, { start: -5 * DAY, end: -4 * DAY })).toBe(DAY)
    expect(renewalTime({ ...long, notAfter: DAY }, 30, 0, { start: -5 * DAY, end: -4 * DAY })).toBe(DAY / 10)
  })
  test('by a name that the CA can make from it (the example of RFC 9773)', async () => {
    const keys = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify'])
    const make = (extensions: x509.AuthorityKeyIdentifierExtension[]) =>
      x509.X509CertificateGenerator.create({
        serialNumber: '0087654321',
        subject: 'CN=a',
        issuer: 'CN=b',
        notBefore: new Date(0),
        notAfter: new Date(DAY),
        publicKey: keys.publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
        extensions,
      })
    const authority = new x509.AuthorityKeyIdentifierExtension('69885b6b87464041e1b37b847ba0ae2cde01c8d4')
    expect(renewalId((await make([authority])).toString('pem'))).toBe('aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE')
    expect(renewalId((await make([])).toString('pem'))).toBeUndefined()
  })
  test('by its lifetime where the CA talks nonsense', () => {
    const window = { start: '2026-01-01T00:00:00Z', end: '2026-01-02T00:00:00Z' }
    expect(renewalWindow({ suggestedWindow: window })).toEqual({
      start: Date.UTC(2026, 0, 1),
      end: Date.UTC(2026, 0, 2),
    })
    for (const answer of [
      ...[null, undefined, '', 'text', 7, [], {}, { suggestedWindow: null }, { suggestedWindow: {} }],
      { suggestedWindow: { start: window.end, end: window.start } },
      { suggestedWindow: { start: 'soon', end: 'later' } },
      { suggestedWindow: { start: 1, end: 2 } },
    ])
      expect(renewalWindow(answer)).toBeUndefined()
  })
  test('and the CA is asked again within bounds', () => {
    expect(nextLook(undefined)).toBe(6 * HOUR)
    expect(nextLook(0)).toBe(MINUTE)
    expect(nextLook(2 * HOUR)).toBe(2 * HOUR)
    expect(nextLook(30 * DAY)).toBe(DAY)
  })
})

describe('F7: a failed order is tried again', () => {
  test('after a minute, then after twice as long each time, up to six hours', () => {
    const delays = [1, 2, 3, 4, 9, 10, 1000].map((failures) => retryDelay(failures, 0) / MINUTE)
    expect(delays).toEqual([1, 2, 4, 8, 256, 360, 360])
  })
  test('a little later by chance, and never at once', () => {
    expect(retryDelay(1, 1)).toBe(75_000)
    expect(retryDelay(0, 0)).toBe(MINUTE)
    expect(retryDelay(20, 1)).toBe(6 * HOUR)
  })
  test('when the CA says, up to a week', () => {
    expect(retryDelay(1, 0, 2 * HOUR)).toBe(2 * HOUR)
    expect(retryDelay(5, 0, 10_000)).toBe(16 * MINUTE)
    expect(retryDelay(1, 0, 1000 * DAY)).toBe(7 * DAY)
  })
  test('as Retry-After has it, in seconds or as a date', () => {
    const now = Date.UTC(2026, 0, 1)
    expect(parseRetryAfter(null, now)).toBeUndefined()
    expect(parseRetryAfter('120', now)).toBe(120_000)
    expect(parseRetryAfter('Thu, 01 Jan 2026 00:01:00 GMT', now)).toBe(MINUTE)
    expect(parseRetryAfter('Wed, 31 Dec 2025 00:00:00 GMT', now)).toBe(0)
    for (const nonsense of ['soon', '', '-5x', '9'.repeat(40)]) expect(parseRetryAfter(nonsense, now)).toBeUndefined()
  })
})

describe('what a CA says of an error', () => {
  test('is shown as one line of limited length that no terminal obeys', () => {
    expect(presentable('a\r\n\tb\u001b[31mc\u0000\u202ed\u2028e')).toBe('a b [31mc d e')
    const long = presentable('x'.repeat(100_000))
    expect(long.length).toBe(300)
    expect(long.endsWith('x…')).toBe(true)
  })
  test('with its kind, and with what it says of single names', () => {
    expect(problemOf({ type: 'urn:ietf:params:acme:error:caa', detail: 'forbidden' })).toEqual({
      type: 'caa',
      sentence: 'forbidden (caa)',
    })
    expect(
      problemOf({ type: 'urn:x', detail: 'a', subproblems: [{ detail: 'b' }, null, { detail: 7 }] })?.sentence,
    ).toBe('a; b (urn:x)')
    expect(problemOf({ type: 'urn:ietf:params:acme:error:malformed' })?.sentence).toBe('malformed')
  })
  test('or nothing, when it is no problem document', () => {
    for (const data of [undefined, null, 'text', 5, [], {}, { detail: 7, type: {} }])
      expect(problemOf(data)).toBeUndefined()
  })
})

test('F7, F9: a clock that is set is noticed within the hour, and nobody waits for what a clock that was ahead has written', () => {
  const now = Date.UTC(2026, 0, 1)
  const iso = (time: number) => new Date(time).toISOString()
  const known = (more: Partial<Known>): Known => ({
    ...{ held: undefined, attempts: { failures: 0 }, window: undefined, lookAt: Infinity },
    ...{ told: false, storeError: undefined, unsaved: false, renewBeforeDays: 30 },
    ...more,
  })
  const held = {
    ...{ cert: '', key: '', jitter: 0 },
    ...{ issuedAt: iso(now), notBefore: iso(now), notAfter: iso(now + 90 * DAY) },
  }
  // As one without a battery begins.
  expect(isDue(known({ held }), 0)).toBe(false)
  expect(nextStep(known({ held }), 0)).toBe(HOUR)
  const waits = (ms: number) => known({ attempts: { failures: 3, nextAttemptAt: iso(now + ms) } })
  expect([DAY, 7 * DAY, 8 * DAY, 4 * 365 * DAY].map((ms) => isDue(waits(ms), now))).toEqual([false, false, true, true])
})
