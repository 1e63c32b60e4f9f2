// Imports are read from text, so every way to write one is tried here.
import { expect, test } from 'bun:test'
import { importsOf, reachable } from '../../src/provision/imports.ts'

test('every way to write an import is read', () => {
  const text = `#!/usr/bin/env bun
// import './comment.ts'
import './bare.ts'
import a, { b } from "../base/a.ts"
import type { C } from './c.ts'
import {
  d, // from here
  e,
} from './d.ts'
import * as f from 'node:fs'
import nft from '../../nft/sluice.nft' with { type: 'text' }
export { g } from './g.ts'
export * from './h.ts'
export const i = 1
export type J = import('./j.ts').J
const k = await import('./k.ts')
/** See import('./doc.ts'). */
`
  const found = importsOf('src/plan/x.ts', text)
  expect(found.filter(({ dynamic }) => !dynamic).map(({ to }) => to)).toEqual([
    'src/plan/bare.ts',
    'src/base/a.ts',
    'src/plan/c.ts',
    'src/plan/d.ts',
    'node:fs',
    'nft/sluice.nft',
    'src/plan/g.ts',
    'src/plan/h.ts',
  ])
  expect(found.filter(({ dynamic }) => dynamic).map(({ to }) => to)).toEqual(['src/plan/j.ts', 'src/plan/k.ts'])
})

test('what can be reached is found through others and in circles', async () => {
  const files: Record<string, string> = {
    'test/a.test.ts': "import '../src/b.ts'\n",
    'src/b.ts': "import './c.ts'\nimport 'zod'\n",
    'src/c.ts': "import './b.ts'\nimport './gone.ts'\nimport '../build/x.so'\n",
  }
  const seen = await reachable('test/a.test.ts', async (path) => files[path])
  expect([...seen].sort()).toEqual(['build/x.so', 'src/b.ts', 'src/c.ts', 'src/gone.ts', 'test/a.test.ts', 'zod'])
})
