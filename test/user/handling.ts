// A handler that stands in the test itself, behind a real listener, and what its tests look at.
import { expect } from 'bun:test'
import { join } from 'node:path'
import type { Context, Socket } from '../../src/sockets.ts'
import type { UserRoute } from '../../src/plan/types.ts'
import { given } from './fixtures/given.ts'
import { client, open, route, type Bench } from './plane.ts'

type Reach = (UserRoute['action'] & { type: 'handler' })['reach']
type Timeouts = Partial<UserRoute['timeoutsMs']>

/** The servers of tests are on loopback. */
const EVERYWHERE: Reach = { private: true, ports: null }

export async function handling(
  options: { reach?: Reach; timeoutsMs?: Timeouts; plane?: Parameters<typeof open>[1] } = {},
): Promise<Bench> {
  given.gate = undefined
  const action: UserRoute['action'] = {
    type: 'handler',
    module: join(import.meta.dir, 'fixtures/given.ts'),
    inline: null,
    env: {},
    reach: options.reach ?? EVERYWHERE,
    tls: null,
  }
  return open([route('h', { action, timeoutsMs: options.timeoutsMs })], options.plane)
}

/** Connects a client, and answers what the handler does. */
export function handled<T>(bench: Bench, handler: (socket: Socket, ctx: Context) => T | Promise<T>): Promise<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>()
  given.connect = async (socket, _env, ctx) => {
    try {
      resolve(await handler(socket, ctx))
    } catch (error) {
      reject(error as Error)
    }
  }
  client(bench.port)
  return promise
}

export const bytes = (text: string) => new TextEncoder().encode(text)

/** Everything until EOF. */
export async function textOf(readable: ReadableStream<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = []
  for await (const chunk of readable) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

/** What a promise is rejected with. */
export const failureOf = (promise: Promise<unknown>): Promise<any> =>
  promise.then(
    () => undefined,
    (error) => error,
  )

/** Nothing that a handler opened is left. */
export async function nothingLeft(bench: Bench) {
  while (bench.plane.opened > 0) await Bun.sleep(1)
  expect(bench.plane.opened).toBe(0)
}
