// The CA files of routes: what a file held when it was good is used on.
import { expect, test } from 'bun:test'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Authorities } from '../../src/control/authorities.ts'
import type { UserRoute } from '../../src/plan/types.ts'
import { signed, temporaryDirectory } from '../certificates/tools.ts'

const route = (name: string, clientCa: string | null, ca: string | null = null) =>
  ({ name, action: { type: 'forward', tls: { clientCa, upstream: { ca } } } }) as unknown as UserRoute
const found = (routes: UserRoute[]) =>
  routes.map(({ action }) => 'tls' in action && action.tls && [action.tls.clientCa, action.tls.upstream.ca])

test('F2, F8: a CA file that is no good any more keeps what it held; one that was never good is refused', async () => {
  await using directory = await temporaryDirectory()
  const [one, two] = [join(directory.path, 'one.pem'), join(directory.path, 'two.pem')]
  const { cert } = await signed(['ca'])
  await Bun.write(one, cert)
  const said: string[] = []
  const authorities = new Authorities((_level, message) => void said.push(message))
  expect(found(await authorities.read([route('a', one), route('b', null, one)], true))).toEqual([[cert, null], [null, cert]]) // prettier-ignore
  await Bun.write(one, 'half')
  expect(found(await authorities.read([route('a', one)], true))).toEqual([[cert, null]])
  expect(said).toEqual([
    `routes.a.action.tls.clientCa: ${one} holds no PEM certificate; what it held before is used on`,
  ])
  await expect(authorities.read([route('a', one), route('b', two)])).rejects.toThrow(`${two} does not exist`)
  const next = await signed(['ca'])
  await Bun.write(one, next.cert)
  expect(found(await authorities.read([route('a', one)]))).toEqual([[next.cert, null]])
  // Nobody uses it: forgotten.
  await authorities.read([], true)
  await rm(one)
  await expect(authorities.read([route('a', one)])).rejects.toThrow(`${one} does not exist`)
})
