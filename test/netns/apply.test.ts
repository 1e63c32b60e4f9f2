// K1, H2: the event loop of control turns while a thousand routes are applied to the kernel. The figure is printed, and
// compared with a bound that says "it never stood still", not with the machine's best.
import { expect } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { emulated, testIf } from '../support.ts'
import { Lab } from './lab.ts'
import { tables } from './gateway.ts'

interface Measured {
  ms: number
  turns: number
  maxMs: number
  p99Ms: number
}

const timed = testIf(!emulated, 'an emulated machine is too slow for it')

timed(
  'K1, H2: the event loop goes on turning while 1,000 kernel routes are applied, and removed',
  async () => {
    await using lab = await Lab.create()
    const directory = mkdtempSync(join(tmpdir(), 'sluice-apply-'))
    try {
      const fixture = resolve(import.meta.dir, 'apply-fixture.ts')
      const options = JSON.stringify({ directory, target: lab.backend.address4, count: 1000 })
      const printed = await lab.gateway.must([process.execPath, fixture, options])
      const result = JSON.parse(printed.trim().split('\n').at(-1)!) as Record<'applied' | 'removed', Measured>
      for (const [what, { ms, turns, maxMs, p99Ms }] of Object.entries(result).filter(
        ([, value]) => typeof value === 'object',
      )) {
        console.log(
          `${what} in ${ms.toFixed(0)} ms; delay of the event loop: ${maxMs.toFixed(1)} ms at most, p99 ${p99Ms.toFixed(1)} ms, ${turns} turns`,
        )
        expect(turns).toBeGreaterThan(10)
        expect(maxMs).toBeLessThan(100)
      }
      expect(await tables(lab.gateway)).toEqual([])
    } finally {
      rmSync(directory, { recursive: true })
    }
  },
  60_000,
)
