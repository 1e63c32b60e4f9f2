// What tests of every room share.
import { test } from 'bun:test'

/** `testIf(haproxy, 'needs haproxy')('name', () => …)`: a test that says in its name why it is left out. */
export const testIf =
  (condition: boolean, reason: string) =>
  (name: string, body: () => void | Promise<void>, timeoutMs?: number): void =>
    condition ? test(name, body, timeoutMs) : test.skip(`${name} (skipped: ${reason})`, body)
