// What connections leave behind in the process that carried them: nothing. Counted by the engine after a full collection, so
// that one object a connection would show, where a look at the memory of the process could not tell it from noise.
import { expect, test } from 'bun:test'
import { heapStats } from 'bun:jsc'
import type { UserTls } from '../../src/plan/types.ts'
import { clientHello } from '../bench/client-hello.ts'
import { signed } from '../certificates/tools.ts'
import { echo, forward, open, route } from './plane.ts'

const COUNT = 2000
const AT_ONCE = 50
/** Of one kind: one object for each connection that leaves in one of the two ways would be more. Caches of the engine come and go. */
const GROWTH_MAX = COUNT / 3
const NAME = 'flat.test'
const TERMINATE: UserTls = {
  mode: 'terminate',
  alpn: [],
  minVersion: 'TLSv1.2',
  clientCa: null,
  upstream: { serverName: null, ca: null, insecure: false },
}

async function counts(): Promise<Record<string, number>> {
  // Sockets that were closed are given back in a turn of their own.
  for (let i = 0; i < 5; i++) {
    await Bun.sleep(20)
    Bun.gc(true)
  }
  return { ...heapStats().objectTypeCounts }
}

/** One connection: how it says what, and how it leaves. */
async function visit(port: number, hello: Uint8Array | undefined, tls: boolean, leave: 'end' | 'reset') {
  const { promise, resolve } = Promise.withResolvers<void>()
  let heard = 0
  const wanted = 5 + (hello?.length ?? 0)
  await Bun.connect({
    hostname: '127.0.0.1',
    port,
    ...(tls ? { tls: { serverName: NAME, rejectUnauthorized: false } } : {}),
    socket: {
      open(socket) {
        if (hello) socket.write(hello)
        if (!tls) socket.write('words')
      },
      handshake: (socket) => void (tls && socket.write('words')),
      data(socket, bytes) {
        heard += bytes.length
        if (heard < wanted) return
        if (leave === 'end') socket.end()
        else socket.terminate()
      },
      close: () => resolve(),
      error: () => {},
    },
  })
  await promise
}

for (const [name, carrier, tls] of [
  ['user', 'user', false],
  ['splice', 'splice', false],
  ['TLS', 'user', true],
] as const)
  test(`G18, K3: ${COUNT} connections by ${name}: no object, timer or listener is left`, async () => {
    const target = await echo()
    const bench = await open(
      [
        route('r', {
          carrier,
          domains: carrier === 'splice' ? [NAME] : [],
          action: forward(target, tls ? { tls: TERMINATE } : {}),
        }),
      ],
      { peek: carrier === 'splice', certificates: tls ? { r: await signed([NAME]) } : {} },
    )
    expect(bench.problems).toEqual([])
    const hello = carrier === 'splice' ? await clientHello(NAME) : undefined
    const run = async (count: number) => {
      let left = count
      const one = async () => {
        while (left-- > 0) await visit(bench.port, hello, tls, left % 2 ? 'end' : 'reset')
      }
      await Promise.all(Array.from({ length: AT_ONCE }, one))
    }
    await run(COUNT / 4)
    const settle = async (count: number) => {
      await bench.settle(count)
      // What the test itself has kept of each.
      bench.opened.length = bench.settled.length = 0
    }
    await settle(COUNT / 4)
    const before = await counts()
    await run(COUNT)
    await settle(COUNT)
    const after = await counts()
    expect([bench.plane.size, bench.plane.spliced, bench.plane.timers.armed]).toEqual([0, 0, 0])
    const grown = Object.fromEntries(
      Object.entries(after)
        .map(([kind, count]) => [kind, count - (before[kind] ?? 0)] as const)
        .filter(([, more]) => more > GROWTH_MAX),
    )
    expect(grown).toEqual({})
  }, 60_000)
