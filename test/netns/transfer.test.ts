// 256 MiB each way through each carrier: every byte arrives, and the record says how many there were.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { digestOf, MIB, move, moverBackend } from './traffic.ts'

const BYTES = 256 * MIB

for (const carrier of ['kernel', 'user'] as const)
  test(`G1, H8: 256 MiB each way through ${carrier}: equal hashes, and a record that agrees`, async () => {
    await using lab = await Lab.create()
    const backend = moverBackend(lab.backend, BYTES)
    const engine = carrier === 'user' ? 'user' : 'auto'
    await using gateway = await Gateway.start(lab, [
      forward('bulk', 8400, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: engine }),
    ])
    expect((await gateway.route('bulk')).carrier).toBe(carrier)
    const started = performance.now()
    const mover = await move(lab.client, lab.gateway.clientSide4, 8400, BYTES)
    await mover.done
    const other = backend.movers[0]!
    await other.done
    console.log(`${carrier}: ${((2 * BYTES) / MIB / ((performance.now() - started) / 1000)).toFixed(0)} MiB/s`)
    expect(other.digest).toBe(digestOf('up', BYTES))
    expect(mover.digest).toBe(digestOf('down', BYTES))

    const [record] = await gateway.recordsOf(1)
    expect(record).toMatchObject({ event: 'closed', route: 'bulk', carrier, state: 'closed', reason: 'finished' })
    if (carrier === 'user') expect([record!.bytesIn, record!.bytesOut]).toEqual([BYTES, BYTES])
    for (const count of [record!.bytesIn, record!.bytesOut]) expect(Math.abs(count / BYTES - 1)).toBeLessThan(0.01)
    expect(backend.movers.length).toBe(1)
    await until(async () => (await gateway.connections()).length === 0, 2000, 'no connection is left')
    expect((await gateway.status()).anomalies).toBe(0)
  }, 120_000)
