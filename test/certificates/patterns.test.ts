// E2, F2: which of a route's names a certificate made here is for: those that a certificate can carry.
import { expect, test } from 'bun:test'
import { Certificates } from '../../src/certificates/index.ts'
import { temporaryDirectory } from './tools.ts'

test('F2: names and wildcards of one label are in it; patterns that no certificate knows are left out', async () => {
  await using directory = await temporaryDirectory()
  const certificates = new Certificates(directory.path)
  const names = async (domains: string[]) => {
    const prepared = await certificates.prepare([{ route: 'r', names: domains, certificate: 'self-signed' }])
    expect(prepared.problems).toEqual([])
    return prepared.certificates.get('r')!.names
  }
  expect(await names(['a.test', '*.b.test', 'api-*.c.test', 'd.*', '*'])).toEqual(['a.test', '*.b.test'])
  expect(await names(['d.*'])).toContain('localhost')
})
