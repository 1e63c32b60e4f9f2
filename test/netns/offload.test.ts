// A route's way into the kernel: late, not at all, not on this machine. Its connections are served in user space meanwhile,
// and survive the switch.
import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Lab } from './lab.ts'
import { forward, Gateway, listening, NftStub, tables, until } from './gateway.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

const served = (routes: { state: string }[]) => routes.length > 0

test('H2, H6: nft is 5 s late: served in user space meanwhile, in the kernel afterwards, none dropped', async () => {
  await using lab = await Lab.create()
  using stub = new NftStub('sleep 5')
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('late', 8400, [{ host: lab.backend.address4, port: backend.port }])],
    { env: stub.env, ready: served },
  )
  expect(await gateway.route('late')).toMatchObject({ planned: 'kernel', carrier: 'user', state: 'applying' })
  const early = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await early.say()
  expect((await gateway.connections()).map((one) => one.carrier)).toEqual(['user'])

  // It goes on talking through the switch.
  await until(
    async () => {
      await early.say()
      return (await gateway.route('late')).carrier === 'kernel'
    },
    60_000,
    'the route is in the kernel',
  )
  await early.say()
  const late = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await late.say()
  await early.say()
  const both = await gateway.connections()
  expect(both.map((one) => one.carrier).toSorted()).toEqual(['kernel', 'user'])
  await early.close()
  await late.close()
  const records = await gateway.recordsOf(2)
  expect(records.map((record) => record.reason)).toEqual(['finished', 'finished'])
  stub.mode('')
  expect(await gateway.stop()).toBe(0) // waits for the nft that sleeps
}, 90_000)

test('H3: nft fails: auto stays in user space and says why, others do not notice; when nft recovers it moves by itself', async () => {
  await using lab = await Lab.create()
  using stub = new NftStub()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('first', 8400, to)], { env: stub.env })
  const standing = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await standing.say()

  stub.mode('echo "Error: the moon is in the wrong house" >&2; exit 1')
  gateway.write([forward('first', 8400, to), forward('second', 8401, to)])
  expect((await gateway.reload()).status).toBe(200)
  const second = await until(
    async () => {
      const route = await gateway.route('second')
      return route.state === 'fallback' && route
    },
    5000,
    'the new route says that it fell back',
  )
  expect(second.carrier).toBe('user')
  expect(second.reason).toContain('the moon is in the wrong house')
  expect((await gateway.route('first')).carrier).toBe('kernel')
  await visit(lab.client, lab.gateway.clientSide4, 8401)
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  await standing.say()
  expect((await gateway.status()).kernel.reason).toContain('the moon is in the wrong house')

  stub.mode('')
  await until(
    async () => (await gateway.route('second')).carrier === 'kernel',
    10_000,
    'it moves to the kernel by itself',
  )
  expect((await gateway.status()).kernel.reason).toBeNull()
  await visit(lab.client, lab.gateway.clientSide4, 8401)
  await standing.say()
  const records = await gateway.recordsOf(3)
  expect(records.map((record) => `${record.route} ${record.carrier}`).toSorted()).toEqual([
    'first kernel',
    'second kernel',
    'second user',
  ])
}, 60_000)

test('H18: nft fails from the start: auto serves in user space, says why, and moves when nft recovers', async () => {
  await using lab = await Lab.create()
  using stub = new NftStub('echo "Error: out of order" >&2; exit 1')
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('auto', 8400, [{ host: lab.backend.address4, port: backend.port }])],
    { env: stub.env, ready: (routes) => routes.some((route) => route.reason.includes('out of order')) },
  )
  expect(await gateway.route('auto')).toMatchObject({ carrier: 'user', state: 'fallback' })
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  expect(await tables(lab.gateway)).toEqual([])
  stub.mode('')
  await until(
    async () => (await gateway.route('auto')).carrier === 'kernel',
    20_000,
    'it moves to the kernel by itself',
  )
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  expect((await gateway.recordsOf(2)).map((record) => record.carrier).toSorted()).toEqual(['kernel', 'user'])
}, 60_000)

test("H18: 'nftables' demands the kernel: without it the start fails with the reason, and nothing is left", async () => {
  await using lab = await Lab.create()
  using stub = new NftStub('echo "Error: out of order" >&2; exit 1')
  const backend = echoBackend(lab.backend)
  const before = lab.gateway.sysctl('net.ipv4.ip_forward')
  const routes = [
    forward('must', 8400, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: 'nftables' }),
    forward('may', 8401, [{ host: lab.backend.address4, port: backend.port }]),
  ]
  await using gateway = await Gateway.start(lab, routes, { env: stub.env, ready: false })
  expect(await gateway.exited()).toBe(1)
  expect(gateway.logText()).toContain(`sluice: Route "must" demands forwardingEngine 'nftables'`)
  expect(gateway.logText()).toContain('out of order')
  expect(await listening(lab.gateway)).toEqual([])
  expect(await tables(lab.gateway)).toEqual([])
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe(before)

  // Refused by the transaction itself, after the probe was happy.
  stub.mode('case "$1" in -f) echo "Error: not this one" >&2; exit 1;; esac')
  await gateway.restart({ env: stub.env, ready: false })
  expect(await gateway.exited()).toBe(1)
  expect(gateway.logText()).toContain('not this one')
  expect(await listening(lab.gateway)).toEqual([])
  expect(await tables(lab.gateway)).toEqual([])
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe(before)

  stub.mode('')
  await gateway.restart({ env: stub.env })
  expect(await gateway.route('must')).toMatchObject({ carrier: 'kernel', state: 'active' })
})

test('H18: no nft on this machine: auto serves and names the package, nftables refuses to start', async () => {
  await using lab = await Lab.create()
  const path = mkdtempSync(join(tmpdir(), 'sluice-path-'))
  try {
    for (const name of ['bash', 'sh']) symlinkSync(Bun.which(name)!, join(path, name))
    const backend = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: backend.port }]
    // nsenter itself is found through the surrounding PATH.
    const env = { PATH: path }
    await using gateway = await Gateway.start(lab, [forward('auto', 8400, to)], {
      env,
      ready: (routes) => routes.some((route) => route.reason.includes('not installed')),
    })
    expect(await gateway.route('auto')).toMatchObject({ carrier: 'user', state: 'fallback' })
    await visit(lab.client, lab.gateway.clientSide4, 8400)
    expect(await gateway.stop()).toBe(0)
    gateway.write([forward('must', 8400, to, { forwardingEngine: 'nftables' })])
    await gateway.restart({ env, ready: false })
    expect(await gateway.exited()).toBe(1)
    expect(gateway.logText()).toContain('not installed')
    expect(await listening(lab.gateway)).toEqual([])
  } finally {
    rmSync(path, { recursive: true })
  }
})

test('H6: a reload that demands the kernel and does not get it is refused; what runs goes on', async () => {
  await using lab = await Lab.create()
  using stub = new NftStub()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('stays', 8400, to)], { env: stub.env })
  stub.mode('echo "Error: no" >&2; exit 1')
  gateway.write([forward('stays', 8400, to), forward('must', 8401, to, { forwardingEngine: 'nftables' })])
  const refused = await gateway.reload()
  expect(refused.status).toBe(422)
  expect(refused.problems![0]!.message).toContain('"must"')
  expect((await gateway.routes()).map((route) => route.name)).toEqual(['stays'])
  expect((await listening(lab.gateway)).filter((one) => one.endsWith(':8401'))).toEqual([])
  stub.mode('')
  await gateway.settled()
  await visit(lab.client, lab.gateway.clientSide4, 8400)
})

test('H6: moved from user space to the kernel while untracked connections go on: none is reset', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('mover', 8400, to, { forwardingEngine: 'user' })])
  // Nothing tracks connections yet: no table, no entry.
  expect(await tables(lab.gateway)).toEqual([])
  const talkers = await Promise.all(
    Array.from({ length: 20 }, () => Talker.connect(lab.client, lab.gateway.clientSide4, 8400)),
  )
  for (const talker of talkers) await talker.say()
  expect(lab.gateway.conntrackCount()).toBe(0)

  gateway.write([forward('mover', 8400, to)])
  expect((await gateway.reload()).changes).toMatchObject({ changed: ['mover'] })
  await until(async () => (await gateway.route('mover')).carrier === 'kernel', 5000, 'the route is in the kernel')
  for (const talker of talkers) await talker.say('still here')
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  for (const talker of talkers) await talker.say('and here')
  // And back again.
  const inKernel = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await inKernel.say()
  gateway.write([forward('mover', 8400, to, { forwardingEngine: 'user' })])
  await gateway.reload()
  await gateway.settled()
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  for (const talker of [...talkers, inKernel]) await talker.say('to the end')
  for (const talker of [...talkers, inKernel]) await talker.close()
  const records = await gateway.recordsOf(23)
  expect(records.filter((record) => record.reason !== 'finished')).toEqual([])
  expect(records.map((record) => record.carrier).filter((carrier) => carrier === 'kernel').length).toBe(2)
  expect(backend.failures).toEqual([])
  expect(backend.clients.length).toBe(23)
})
