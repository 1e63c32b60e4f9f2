// A stop that comes while the gateway starts the program that is to replace it: both end, and nothing stays behind.
import { expect, test } from 'bun:test'
import { forward, Gateway, listening, tables, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend } from './traffic.ts'

test('issue 7.2 G17: a stop in the middle of an upgrade stops the gateway: no new program goes on without the service manager', async () => {
  // What is left in it when it is disposed of is a failure.
  await using lab = await Lab.create()
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(
    lab,
    [forward('kernel', 8400, to), forward('user', 8401, to, { forwardingEngine: 'user' })],
    { config: { timeouts: { grace: '200ms' } } },
  )
  const answer = gateway.ask<{ status: number; error?: string }>('/v1/upgrade', 'POST')
  await until(() => gateway.logText().includes('Starting the program anew'), 5000, 'the new program is started')
  const exited = gateway.stop()
  expect(await answer).toMatchObject({ status: 409, error: expect.stringContaining('is stopping') })
  expect(await exited).toBe(0)
  expect(await tables(lab.gateway)).toEqual([])
  // The new one ends as soon as it sees that nobody hands over.
  await until(async () => (await listening(lab.gateway)).length === 0, 5000, 'nobody listens any more')
}, 30_000)
