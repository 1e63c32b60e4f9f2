// Nothing of a stopped plane is left: no timer, no socket, no thread keeps its process alive.
import { expect, test } from 'bun:test'
import { resolve } from 'node:path'

test('G17 G18 K3: a program that stops its plane ends by itself, with the descriptors it had before', async () => {
  const program = Bun.spawn([process.execPath, resolve(import.meta.dir, 'leak-fixture.ts')], { stdout: 'pipe' })
  const late = setTimeout(() => program.kill('SIGKILL'), 20_000)
  const said = await new Response(program.stdout).text()
  const told = performance.now()
  expect(await program.exited, said).toBe(0)
  clearTimeout(late)
  console.log(`ended ${(performance.now() - told).toFixed(0)} ms after its last word: ${said.trim()}`)
  expect(JSON.parse(said)).toMatchObject({ size: 0, armed: 0, settled: 25 })
}, 30_000)
