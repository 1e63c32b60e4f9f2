// When automatic certificates are opened, and what a gateway that starts again has at once.
import { expect, test } from 'bun:test'
import { join } from 'node:path'
import type { CertificateEvent } from '../../src/certificates/types.ts'
import type { PlacedChallenges } from '../../src/channel/messages.ts'
import type { Config } from '../../src/config/schema.ts'
import { AcmeService } from '../../src/control/acme.ts'
import { AcmeServer } from '../certificates/acme-server.ts'
import { temporaryDirectory } from '../certificates/tools.ts'
import { until } from '../netns/gateway.ts'

test('F4, F7: settings that a reload brings are used when they count; the next start has what was issued at once', async () => {
  const answered: PlacedChallenges[] = []
  using ca = new AcmeServer({
    sees: (name) => answered.at(-1)!.tls[name] !== undefined || { type: 'x', detail: 'not there' },
  })
  await using directory = await temporaryDirectory()
  const without: Config = { routes: [] }
  const withAcme: Config = {
    routes: [],
    acme: { email: 'ops@example.com', termsAgreed: true, directory: ca.directory },
  }
  const service = (config: () => Config) => {
    const events: CertificateEvent[] = []
    const needs = {
      ...{ config, stateDir: directory.path, log: () => {}, offers: () => ['tls-alpn-01' as const] },
      read: async () => {},
      answer: async (challenges: PlacedChallenges) => answered.push(challenges) > 0,
    }
    const hooks = { changed: () => {}, event: (event: CertificateEvent) => void events.push(event) }
    return Object.assign(new AcmeService(needs, hooks), { events })
  }

  let config = without
  const first = service(() => config)
  // The new configuration is looked at while the one before still counts.
  await first.load('a.test')
  config = withAcme
  first.follow(['a.test'])
  await until(() => first.get('a.test'), 10_000, 'a.test has a certificate')
  await until(() => answered.at(-1)!.tls['a.test'] === undefined, 10_000, 'the challenge is taken away')
  expect(first.events.map(({ what }) => what)).toEqual(['issued'])
  await first.stop()

  const asked = ca.requests.length
  const second = service(() => withAcme)
  await second.load('a.test')
  expect(second.get('a.test')?.cert).toStartWith('-----BEGIN CERTIFICATE-----')
  expect(ca.requests).toHaveLength(asked)
  await second.stop()

  const never = service(() => without)
  await never.stop()
})

test('F7: what keeps automatic certificates from being had is told once, and they come when it is gone', async () => {
  const placed: PlacedChallenges[] = []
  using ca = new AcmeServer({ sees: (name) => placed.at(-1)!.tls[name] !== undefined || { type: 'x', detail: 'no' } })
  await using directory = await temporaryDirectory()
  const root = join(directory.path, 'root.pem')
  const config = { routes: [], acme: { email: 'o@example.com', termsAgreed: true, directory: ca.directory, ca: root } }
  const said: string[] = []
  const service = new AcmeService(
    {
      ...{ config: () => config, stateDir: directory.path, offers: () => ['tls-alpn-01' as const], retryMs: 20 },
      log: (_level, message) => void said.push(message),
      read: async () => {},
      answer: async (challenges) => placed.push(challenges) > 0,
    },
    { changed: () => {}, event: () => {} },
  )
  await service.load('a.test')
  service.follow(['a.test'])
  expect(service.status('a.test')).toMatchObject({ state: 'failed', lastError: expect.stringContaining(root) })
  expect(await service.renew('a.test').catch((error: Error) => error.message)).toContain(root)
  await Bun.write(root, await ca.root())
  await until(() => service.get('a.test'), 10_000, 'a.test has a certificate')
  expect(service.status('a.test')).toMatchObject({ state: 'valid' })
  expect(said.filter((message) => message.includes('cannot be had'))).toHaveLength(1)
  await service.stop()
})
