// The command line against a real gateway: what it prints, its exit codes, and that looking changes nothing.
import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Lab } from './lab.ts'
import { forward, Gateway, tables, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

test('plan prints carrier, reason and the exact elements, and changes nothing', async () => {
  await using lab = await Lab.create()
  const to = [{ host: lab.backend.address4, port: 9000 }]
  const routes = [
    forward('web', 8400, to),
    forward('slow', 8401, to, { forwardingEngine: 'user' }),
    forward('name', 8402, to, { tls: { mode: 'passthrough' } }, { match: { domains: 'a.test' } }),
  ]
  const settings = lab.gateway.sysctl('net.ipv4.ip_forward')
  await using gateway = await Gateway.start(lab, [])
  expect(await gateway.stop()).toBe(0)
  gateway.write(routes)
  const text = await gateway.cli('plan', '--config', gateway.file)
  expect(text.exitCode).toBe(0)
  expect(text.stdout).toMatch(/web +\*:8400 +kernel +nothing has to be read/)
  expect(text.stdout).toMatch(/slow +\*:8401 +user +forwardingEngine is 'user'/)
  expect(text.stdout).toMatch(/name +\*:8402 +splice +the server name has to be read/)
  const json = JSON.parse((await gateway.cli('plan', '--json', '--config', gateway.file)).stdout)
  expect(json.routes.map((route: { carrier: string }) => route.carrier)).toEqual(['kernel', 'user', 'splice'])
  expect(await tables(lab.gateway)).toEqual([])
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe(settings)

  // What it printed is what nft gets.
  await gateway.restart()
  const listed = await lab.gateway.must(['nft', 'list', 'map', 'inet', 'sluice', 'target4'])
  expect(listed).toContain(`0x51000001 : ${lab.backend.address4} . 9000`)
  expect(json.nft.join('\n')).toContain(`0x51000001 : ${lab.backend.address4} . 9000`)
  expect(await gateway.stop()).toBe(0)

  gateway.write([forward('must', 8400, [{ host: '127.0.0.1', port: 9 }], { forwardingEngine: 'nftables' })])
  const refused = await gateway.cli('plan', '--config', gateway.file)
  expect(refused.exitCode).toBe(1)
  expect(refused.stderr).toContain('"must"')
  expect(refused.stderr).toContain('loopback')
})

test('H15, E14: what the kernel cannot carry is refused by name when the kernel is demanded, and explained when it is not', async () => {
  await using lab = await Lab.create()
  const to = [{ host: lab.backend.address4, port: 9000 }]
  const must = { forwardingEngine: 'nftables' }
  const wrong: [object, string][] = [
    [forward('r', 1, to, { ...must, tls: { mode: 'passthrough' } }, { match: { domains: 'a.test' } }), 'server name'],
    [forward('r', 1, to, { ...must, tls: { mode: 'terminate', certificate: 'self-signed' } }), 'TLS ends here'],
    [forward('r', 1, to, { ...must }, { match: { clientIps: ['10.0.0.0/8'] } }), 'clients are told apart'],
    [forward('r', 1, to, { ...must, sendProxyProtocol: 'v1' }), 'PROXY protocol'],
    [
      { name: 'r', match: { ports: 1 }, action: { type: 'socket-handler', handler: './x.ts', ...must } },
      'unknown field',
    ],
  ]
  await using gateway = await Gateway.start(lab, [])
  for (const [route, words] of wrong) {
    gateway.write([route])
    const { exitCode, stderr, stdout } = await gateway.cli('run', '--check', '--config', gateway.file)
    expect([exitCode, stdout]).toEqual([2, ''])
    expect(stderr).toContain('routes[0].action.')
    expect(stderr).toContain(words)
    const reloaded = await gateway.reload()
    expect([reloaded.status, reloaded.problems!.some((problem) => problem.message.includes(words))]).toEqual([
      422,
      true,
    ])
  }
}, 30_000)

test('status, routes, connections, close, reload, stop: text and JSON, exit codes 0, 1 and 2', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
  ])
  const admin = ['--admin', gateway.socket]
  const json = async (...words: string[]) => {
    const { stdout, exitCode } = await gateway.cli(...words, '--json', ...admin)
    expect([words, exitCode]).toEqual([words, 0])
    return JSON.parse(stdout)
  }
  const talkers = [
    await Talker.connect(lab.client, lab.gateway.clientSide4, 8400),
    await Talker.connect(lab.client, lab.gateway.clientSide4, 8401),
  ]
  for (const talker of talkers) await talker.say('x'.repeat(2000))
  expect(await json('status')).toMatchObject({ pid: gateway.process.pid, routes: { total: 2, active: 2 } })
  expect((await gateway.cli('status', ...admin)).stdout).toContain(`pid: ${gateway.process.pid}`)
  expect((await json('routes')).routes.map((route: { name: string }) => route.name)).toEqual(['kernel', 'user'])
  expect((await gateway.cli('routes', ...admin)).stdout).toMatch(/kernel +\*:8400 +kernel +active +1 +1/)
  // By the configuration's admin.socket instead of its name.
  await until(
    async () => (await gateway.connections()).every((one) => one.bytesIn === 2000),
    2000,
    'the bytes are counted: a listing of kernel flows may be half a second old',
  )
  const text = (await gateway.cli('connections', '--config', gateway.file)).stdout
  expect(text.split('\n')[0]).toMatch(/^ID +ROUTE +CARRIER +CLIENT/)
  const { connections } = await json('connections')
  expect(connections.map((one: { carrier: string }) => one.carrier).toSorted()).toEqual(['kernel', 'user'])
  for (const one of connections) {
    expect(text).toContain(one.id)
    expect([one.bytesIn, one.bytesOut]).toEqual([2000, 2000])
  }
  const [first, second] = connections as { id: string }[]
  expect(await json('close', first!.id)).toEqual({ closed: first!.id })
  expect((await gateway.cli('close', second!.id, ...admin)).exitCode).toBe(0)
  await Promise.all(talkers.map((talker) => talker.gone.promise))
  expect((await gateway.recordsOf(2)).map((record) => record.reason)).toEqual(['killed', 'killed'])
  const unknown = await gateway.cli('close', first!.id, ...admin)
  expect([unknown.exitCode, unknown.stderr]).toEqual([1, `sluice: no connection ${first!.id}\n`])

  gateway.write([forward('kernel', 8400, to), forward('new', 8402, to)])
  const reloaded = (await gateway.cli('reload', ...admin)).stdout
  expect(reloaded).toMatch(/^new +added /m)
  expect(reloaded).toMatch(/^user +removed /m)
  expect(reloaded).toEndWith('\n0 changed, 1 added, 1 removed, 1 untouched\n')
  gateway.write([forward('kernel', 0, to)])
  const bad = await gateway.cli('reload', ...admin)
  expect([bad.exitCode, bad.stdout]).toEqual([2, ''])
  expect(bad.stderr).toContain('routes[0].match.ports')
  expect((await gateway.cli('reload')).exitCode).toBe(1) // nobody at the default socket
  expect((await gateway.cli('nonsense')).exitCode).toBe(2)
  expect((await gateway.cli('run', '--config', join(gateway.directory, 'none.json'))).exitCode).toBe(2)
  const broken = join(gateway.directory, 'broken.json')
  writeFileSync(broken, '{ "routes": [')
  expect((await gateway.cli('run', '--check', '--config', broken)).exitCode).toBe(2)
  gateway.write([forward('kernel', 8400, to)])
  expect((await gateway.cli('run', '--check', '--config', gateway.file)).exitCode).toBe(0)

  // An empty variable in a script is no reload that is never taken back.
  expect((await gateway.cli('reload', '--confirm', '', ...admin)).exitCode).toBe(2)
  // Nobody can tell which gateway is meant: it must not be another one.
  const whose = await gateway.cli('stop', '--config', broken)
  expect([whose.exitCode, whose.stderr]).toEqual([2, expect.stringContaining('--admin')])
  const stopped = await gateway.cli('stop', ...admin)
  expect([stopped.exitCode, stopped.stdout]).toEqual([0, 'Stopping; no connection is open.\nStopped.\n'])
  expect(await gateway.exited()).toBe(0)
  const nobody = await gateway.cli('status', ...admin)
  expect(nobody.exitCode).toBe(1)
  expect(nobody.stderr).toContain('no gateway answers there')
}, 30_000)

test('a port that another program has: the start fails, names it, and leaves nothing', async () => {
  await using lab = await Lab.create()
  lab.gateway.listen({ data() {} }, { port: 8401 })
  const to = [{ host: lab.backend.address4, port: 9000 }]
  await using gateway = await Gateway.start(lab, [forward('free', 8400, to), forward('taken', 8401, to)], {
    ready: false,
  })
  expect(await gateway.exited()).toBe(1)
  expect(gateway.logText()).toContain('Cannot listen on [::]:8401: bun (pid ')
  expect(await tables(lab.gateway)).toEqual([])
  await until(() => lab.gateway.conntrackCount() === 0, 2000, 'nothing is tracked')
})

test('issue 7.7: an access log that cannot be written: the start fails, names it, and leaves nothing', async () => {
  await using lab = await Lab.create()
  const routes = [forward('web', 8400, [{ host: lab.backend.address4, port: 9000 }])]
  await using gateway = await Gateway.start(lab, routes, {
    ready: false,
    config: { log: { access: '/proc/nowhere/access.log' } },
  })
  expect(await gateway.exited()).toBe(1)
  expect(gateway.logText()).toContain('sluice: Cannot write the access log /proc/nowhere/access.log: ENOENT')
  expect(await tables(lab.gateway)).toEqual([])
})
