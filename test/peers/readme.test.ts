// The worked example of the README as it stands there: a handler that asks a real database and hands the connection over.
import { expect } from 'bun:test'
import { echoBackend } from '../netns/traffic.ts'
import { Gateway } from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { testIf } from '../support.ts'
import { Place, startRedis } from './peers.ts'

testIf(Bun.which('redis-server') !== null && Bun.which('redis-cli') !== null, 'needs Redis')(
  'B7, D1: the example of the README lets through whom Redis knows, and the relay carries it on',
  async () => {
    const readme = await Bun.file('README.md').text()
    const example = /```ts\n(\/\/ token\.ts\n[^]*?)```/.exec(readme)![1]!
    await using lab = await Lab.create()
    using place = new Place()
    const host = lab.backend.address4
    await using server = await startRedis(lab, place, ['--port', '6379'], 6379)
    await lab.backend.must(['redis-cli', '-h', host, 'set', 'token:alice%20secret', '1'])
    const target = echoBackend(lab.backend)
    await using gateway = await Gateway.start(lab, [
      {
        name: 'guarded',
        match: { ports: 8400 },
        action: {
          type: 'socket-handler',
          handler: place.file('token.ts', example),
          env: { redis: `${host}:6379`, target: `${host}:${target.port}` },
          reach: { private: true },
        },
      },
    ])
    const visit = async (words: string, wanted: string) => {
      const [over, enough] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
      let heard = ''
      const socket = await lab.client.connect(lab.gateway.clientSide4, 8400, {
        data(_, bytes) {
          heard += bytes.toString()
          if (heard.length >= wanted.length) enough.resolve()
        },
        close: () => over.resolve(),
        error: () => {},
      })
      socket.write(words)
      if (wanted !== '') {
        await Promise.race([enough.promise, over.promise])
        socket.end()
      }
      await over.promise
      return heard
    }
    expect(await visit('alice secret\nand more', 'and more'), gateway.logText() + server.output()).toBe('and more')
    await gateway.recordsOf(1)
    expect(await visit('mallory guess\n', '')).toBe('')
    const records = await gateway.recordsOf(2)
    expect(records).toMatchObject([
      { carrier: 'splice', reason: 'finished', bytesIn: 21, bytesOut: 8 },
      { carrier: 'user', reason: 'handler_closed' },
    ])
    expect(target.clients.length).toBe(1)
  },
  30_000,
)
