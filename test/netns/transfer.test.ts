// 256 MiB each way through each carrier: every byte arrives, and the record says how many there were.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { captureHello } from '../user/hellos.ts'
import { bulk, digestOf, MIB, move, moverBackend, moveTls } from './traffic.ts'

const BYTES = bulk(256)

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

test('G1: 256 MiB each way through splice: TLS passed through by its server name, equal hashes', async () => {
  await using lab = await Lab.create()
  const certificate = selfSigned('a.test')
  const backend = moverBackend(lab.backend, BYTES, { tls: certificate })
  const elsewhere = moverBackend(lab.backend, BYTES, { tls: certificate })
  const passthrough = (name: string, port: number) =>
    forward(
      name,
      8443,
      [{ host: lab.backend.address4, port }],
      { tls: { mode: 'passthrough' } },
      {
        match: { domains: `${name}.test` },
      },
    )
  await using gateway = await Gateway.start(lab, [passthrough('a', backend.port), passthrough('b', elsewhere.port)])
  expect((await gateway.route('a')).carrier).toBe('splice')
  const started = performance.now()
  const mover = await moveTls(lab.client, lab.gateway.clientSide4, 8443, BYTES, 'a.test')
  await mover.done
  const other = backend.movers[0]!
  await other.done
  console.log(`splice: ${((2 * BYTES) / MIB / ((performance.now() - started) / 1000)).toFixed(0)} MiB/s`)
  expect(other.digest).toBe(digestOf('up', BYTES))
  expect(mover.digest).toBe(digestOf('down', BYTES))
  expect(elsewhere.movers.length).toBe(0)
  const [record] = await gateway.recordsOf(1)
  expect(record).toMatchObject({ route: 'a', carrier: 'splice', serverName: 'a.test', reason: 'finished' })
  // What was carried is TLS: each record of 16 KiB has 22 bytes more, and there was a handshake.
  for (const count of [record!.bytesIn, record!.bytesOut]) {
    expect(count).toBeGreaterThan(BYTES)
    expect(count / BYTES - 1).toBeLessThan(0.01)
  }
}, 120_000)

test('G1: splice counts are exact: a ClientHello and 64 MiB behind it, 64 MiB back', async () => {
  await using lab = await Lab.create()
  const bytes = bulk(64)
  const hello = await captureHello((port) => [
    'openssl',
    's_client',
    '-connect',
    `127.0.0.1:${port}`,
    '-servername',
    'a.test',
  ])
  // The stream behind the gateway begins with the hello; it is neither lost nor doubled.
  const heard = { bytes: 0, hash: new Bun.CryptoHasher('sha256') }
  const expected = new Bun.CryptoHasher('sha256').update(hello)
  const block = Buffer.alloc(MIB, 'splice')
  for (let i = 0; i < bytes / MIB; i++) expected.update(block)
  const backend = lab.backend.listen({
    data(socket, data) {
      heard.bytes += data.length
      heard.hash.update(data)
      // Back comes as much as has gone: what does not fit is sent later.
      pump(socket)
    },
    drain: (socket) => pump(socket),
    end: (socket) => void socket.end(),
    error: () => {},
  })
  let back = 0
  const pump = (socket: Bun.Socket<any>) => {
    while (back < bytes) {
      const piece = block.subarray(0, Math.min(MIB, bytes - back))
      const written = socket.write(piece)
      if (written > 0) back += written
      if (written < piece.length) return
    }
  }
  await using gateway = await Gateway.start(lab, [
    forward(
      'a',
      8443,
      [{ host: lab.backend.address4, port: backend.port }],
      { tls: { mode: 'passthrough' } },
      {
        match: { domains: 'a.test' },
      },
    ),
  ])
  let sent = 0
  let received = 0
  const send = (socket: Bun.Socket<any>) => {
    while (sent < bytes) {
      const from = sent % MIB
      const written = socket.write(block.subarray(from, Math.min(MIB, from + bytes - sent)))
      if (written <= 0) return
      sent += written
    }
    if (received >= bytes && heard.bytes >= bytes + hello.length) socket.end()
  }
  const socket = await lab.client.connect(lab.gateway.clientSide4, 8443, {
    open(socket) {
      if (socket.write(hello) !== hello.length) throw new Error('the hello did not fit')
      send(socket)
    },
    data: (_, data) => void (received += data.length),
    drain: send,
    error: () => {},
  })
  await until(() => received === bytes && heard.bytes === bytes + hello.length, 30_000, 'everything has arrived')
  socket.end()
  const [record] = await gateway.recordsOf(1)
  expect(record).toMatchObject({
    carrier: 'splice',
    bytesIn: bytes + hello.length,
    bytesOut: bytes,
    reason: 'finished',
  })
  expect(heard.hash.digest('hex')).toBe(expected.digest('hex'))
}, 60_000)

function selfSigned(name: string): { cert: string; key: string } {
  const made = Bun.spawnSync(
    [
      'openssl',
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-days',
      '2',
    ].concat([...['-subj', `/CN=${name}`, '-keyout', '-', '-out', '-']]),
    { stderr: 'ignore' },
  )
  const text = made.stdout.toString()
  if (made.exitCode !== 0 || !text.includes('BEGIN CERTIFICATE')) throw new Error('openssl made no certificate')
  const pem = (label: string) => new RegExp(`-----BEGIN ${label}-----[^]*?-----END ${label}-----`).exec(text)![0]
  return { cert: pem('CERTIFICATE'), key: pem('PRIVATE KEY') }
}
