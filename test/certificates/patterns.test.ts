// E2, F2: which of a route's names a certificate made here is for: those that a certificate can carry.
import { expect, test } from 'bun:test'
import { frontDoor } from './front-door.ts'
import { temporaryDirectory } from './tools.ts'

test('F2: names and wildcards of one label are in it; patterns that no certificate knows are left out', async () => {
  await using directory = await temporaryDirectory()
  const { certificates } = frontDoor(directory.path)
  const names = async (domains: string[]) => {
    const spec = { route: 'r', names: domains, certificate: 'self-signed' as const }
    expect((await certificates.prepare([spec])).problems).toEqual([])
    return certificates.of(spec).list.flatMap((one) => one.names)
  }
  expect(await names(['a.test', '*.b.test', 'api-*.c.test', 'd.*', '*'])).toEqual(['*.b.test', 'a.test'])
  expect(await names(['d.*'])).toContain('localhost')
})
