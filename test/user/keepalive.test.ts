// TCP keepalive on both ends of a connection that lasts (G15), as the kernel shows it.
import { dlopen, ptr } from 'bun:ffi'
import { expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { native } from '../../src/base/native.ts'
import { client, connected, echo, forward, gone, open, route, server } from './plane.ts'

/** The timers that ss shows for sockets with this local or peer port. */
const timers = async (port: number) =>
  (await Bun.$`ss -Htno state established`.quiet().text())
    .split('\n')
    .filter((line) => line.includes(`:${port} `))
    .map((line) => /timer:\((\w+)/.exec(line)?.[1] ?? 'none')

async function until(what: () => Promise<boolean>) {
  for (const end = performance.now() + 15_000; !(await what()); await Bun.sleep(100))
    if (performance.now() > end) throw new Error('not in time')
}

test('G15: a connection that lasts has keepalive at both ends; a route without it has none', async () => {
  const target = await echo()
  const on = await open([route('on', { action: forward(target) })])
  const socket = client(on.port)
  await connected(socket)
  // The client's own socket has no timer; ours towards it and towards the target have.
  await until(async () => (await timers(on.port)).includes('keepalive') && (await timers(target)).includes('keepalive'))
  socket.destroy()
  const other = await echo()
  const off = await open([route('off', { action: forward(other), keepAlive: null })])
  const quiet = client(off.port)
  await connected(quiet)
  // As long as the first one took at most.
  await Bun.sleep(6000)
  expect([...(await timers(off.port)), ...(await timers(other))]).not.toContain('keepalive')
  quiet.destroy()
}, 30_000)

const libc = dlopen('libc.so.6', {
  getsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'ptr'], returns: 'i32' },
}).symbols
const [IPPROTO_TCP, TCP_NODELAY] = [6, 1]

/** Sockets of this process with that local port, as they answer to TCP_NODELAY. */
function delays(port: number): boolean[] {
  return readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => native().sluice_port(fd) === port)
    .flatMap((fd) => {
      const value = new Int32Array(1)
      return libc.getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, ptr(value), ptr(Int32Array.of(4))) < 0
        ? []
        : [value[0] === 0]
    })
}

for (const carrier of ['user', 'splice'] as const)
  test(`G15: small segments go out at once towards both ends: ${carrier}`, async () => {
    let theirs = 0
    const target = await server((socket) => {
      theirs = socket.remotePort!
      socket.pipe(socket)
    })
    const bench = await open([route('f', { carrier, action: forward(target) })], { peek: carrier === 'splice' })
    const socket = client(bench.port)
    const heard = new Promise((resolve) => socket.once('data', resolve))
    socket.write('no TLS')
    await heard
    // Towards the client: the listener itself has the port too, and says whatever it says.
    const towardsClient = delays(bench.port)
    expect(towardsClient.filter((delays) => !delays).length).toBeGreaterThanOrEqual(1)
    expect(delays(theirs)).toEqual([false])
    socket.destroy()
    await gone(socket)
  })
