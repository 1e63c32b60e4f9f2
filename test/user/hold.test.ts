// Connections that wait for their line in the durable access log: nothing of them goes anywhere before control has answered.
import { expect, test } from 'bun:test'
import net from 'node:net'
import { Hold } from '../../src/user/hold.ts'
import { forward, later, open, reasons, route, server } from './plane.ts'

for (const relay of [true, false]) {
  const how = relay ? 'the relay thread' : 'TypeScript'

  async function held(says = '') {
    let accepted = 0
    const port = await server((socket) => {
      accepted++
      socket.pipe(socket)
    })
    const bench = await open([route('a', { action: forward(port) })], { relay })
    bench.plane.reporter.durable = true
    const client = net.connect(bench.port, '127.0.0.1')
    later(() => client.destroy())
    client.on('error', () => {})
    if (says) client.write(says)
    while (bench.opened.length === 0) await new Promise((resolve) => setImmediate(resolve))
    const { id } = bench.opened[0]!
    const connection = bench.plane.table.get(id)!
    expect(connection.attachment).toBeInstanceOf(Hold)
    expect(connection.target).toBeNull()
    return { bench, client, id, accepted: () => accepted }
  }

  test(`C1: with ${how}: it goes on when its line is written, with all that was said`, async () => {
    const { bench, client, id, accepted } = await held('hello')
    expect(bench.opened[0]).toMatchObject({ state: 'opening', target: null, route: 'a' })
    expect(accepted()).toBe(0)
    bench.plane.written([id, 'unknown'], true)
    const [answer] = (await once(client, 'data')) as [Buffer]
    expect(answer.toString()).toBe('hello')
    expect(accepted()).toBe(1)
    client.end()
    expect(reasons(await bench.settle(1))).toEqual(['finished'])
  })

  test(`C3: with ${how}: its line cannot be written: it ends, and nobody saw anything`, async () => {
    const { bench, client, id, accepted } = await held('hello')
    bench.plane.written([id], false)
    await once(client, 'close')
    expect(reasons(await bench.settle(1))).toEqual(['not_logged'])
    expect(accepted()).toBe(0)
  })

  test(`C5: with ${how}: a client that leaves meanwhile is dialled for by nobody`, async () => {
    const { bench, client, id, accepted } = await held()
    client.destroy()
    expect(reasons(await bench.settle(1))).toEqual(['closed_before_data'])
    bench.plane.written([id], true)
    expect(bench.plane.size).toBe(0)
    expect(accepted()).toBe(0)
  })

  test(`C5: with ${how}: an operator closes one that waits`, async () => {
    const { bench, id, accepted } = await held('hello')
    bench.plane.close(id, 'killed')
    expect(reasons(await bench.settle(1))).toEqual(['killed'])
    bench.plane.written([id], true)
    expect(accepted()).toBe(0)
  })
}

function once(from: net.Socket, event: string): Promise<unknown[]> {
  return new Promise((resolve) => from.once(event, (...what) => resolve(what)))
}
