// Forwarding in TypeScript: bytes, ends, errors, and what is left afterwards (nothing).
import { expect, test } from 'bun:test'
import { createHash, randomBytes } from 'node:crypto'
import net from 'node:net'
import {
  blackHole,
  client,
  connected,
  descriptors,
  echo,
  forward,
  gone,
  open,
  readAll,
  reasons,
  route,
  server,
  synSent,
  target,
} from './plane.ts'

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const MIB = 1024 * 1024

test('G19 B10: 64 MiB each way arrive whole, and are counted exactly', async () => {
  const bench = await open([route('r', { action: forward(await echo()) })])
  const sent = createHash('sha256')
  const got = createHash('sha256')
  const socket = client(bench.port)
  let received = 0
  socket.on('data', (bytes) => {
    received += bytes.length
    got.update(bytes)
  })
  const block = randomBytes(MIB)
  for (let i = 0; i < 64; i++) {
    block.writeUInt32LE(i)
    sent.update(block)
    if (!socket.write(Buffer.from(block))) await new Promise((resolve) => socket.once('drain', resolve))
  }
  socket.end()
  await gone(socket)
  expect(received).toBe(64 * MIB)
  expect(got.digest('hex')).toBe(sent.digest('hex'))
  const [record] = await bench.settle(1)
  expect(record).toMatchObject({
    bytesIn: 64 * MIB,
    bytesOut: 64 * MIB,
    reason: 'finished',
    state: 'closed',
    route: 'r',
  })
  expect(bench.plane.size).toBe(0)
}, 30_000)
