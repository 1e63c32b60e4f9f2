// TCP keepalive on both ends of a connection that lasts (G15), as the kernel shows it.
import { expect, test } from 'bun:test'
import { client, connected, echo, forward, open, route } from './plane.ts'

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
