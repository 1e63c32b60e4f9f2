// What tests of every room share.
import { test } from 'bun:test'

/** How much slower than usual the machine is: `make test-vm` sets it, for its machine is emulated. Limits grow by it. */
export const slowness = Number(process.env.SLUICE_TEST_SLOW ?? 1)

export const emulated = slowness > 1

/** `testIf(haproxy, 'needs haproxy')('name', () => …)`: a test that says in its name why it is left out. */
export const testIf =
  (condition: boolean, reason: string, run: (typeof test)['concurrent'] = test) =>
  (name: string, body: () => void | Promise<void>, timeoutMs?: number): void =>
    condition ? run(name, body, timeoutMs) : test.skip(`${name} (skipped: ${reason})`, body)
