// sluice doctor on a real machine with something wrong: it names it, changes nothing, and the command it prints mends it.
import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Lab, type Namespace, type Result } from './lab.ts'
import { foreignRules, forward, Gateway, NftStub, tables } from './gateway.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

interface Check {
  name: string
  status: 'ok' | 'warn' | 'fail'
  saw: string
  mend: string[]
}

async function doctor(gateway: Gateway, ...words: string[]) {
  return answer(await gateway.cli('doctor', '--json', ...words))
}

function answer({ stdout, stderr, exitCode }: Result) {
  if (!stdout) throw new Error(stderr)
  const { checks } = JSON.parse(stdout) as { checks: Check[] }
  return { exitCode, checks, failed: checks.filter(({ status }) => status === 'fail') }
}

/** A command as an operator types it. */
const type = (where: Namespace, command: string) => where.must(['sh', '-c', command])

test('H17: a foreign forward chain stops a kernel route; doctor names it, and the printed command lets our flows through', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [forward('web', 8400, to)])
  expect(await doctor(gateway)).toMatchObject({ exitCode: 0, failed: [] })
  await visit(lab.client, lab.gateway.clientSide4, 8400)

  await lab.gateway.nft(`
    table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established accept
      }
    }
    table ip other { chain strict { type filter hook forward priority 5; policy accept; jump last
      }
      chain last { counter reject
      }
    }`)
  await expect(Talker.connect(lab.client, lab.gateway.clientSide4, 8400, { timeoutMs: 500 })).rejects.toThrow(
    'timed out',
  )
  const before = await foreignRules(lab.gateway)
  const sick = await doctor(gateway)
  expect(sick.exitCode).toBe(1)
  expect(sick.failed.map(({ name, saw }) => `${name}: ${saw}`).toSorted()).toEqual([
    'forward chains: table inet filter, chain forward: policy drop',
    'forward chains: table ip other, chain strict: the rule "reject" of chain last',
  ])
  expect(await foreignRules(lab.gateway)).toBe(before)
  const text = await gateway.cli('doctor')
  expect(text.exitCode).toBe(1)
  expect(text.stdout).not.toContain('\x1b')
  for (const command of sick.failed.flatMap(({ mend }) => mend)) {
    expect(text.stdout).toContain(`# ${command}\n`)
    await type(lab.gateway, command)
  }
  await visit(lab.client, lab.gateway.clientSide4, 8400)
  expect(await doctor(gateway)).toMatchObject({ exitCode: 0, failed: [] })
  // It lets nothing else through: the backend itself cannot be reached across the gateway.
  await expect(Talker.connect(lab.client, lab.backend.address4, backend.port, { timeoutMs: 500 })).rejects.toThrow(
    'timed out',
  )
}, 60_000)

test('doctor without a gateway: the machine as it is, ports of the configuration that others have, and nothing changed', async () => {
  await using lab = await Lab.create()
  const to = [{ host: lab.backend.address4, port: 9000 }]
  const routes = [
    forward('web', 8400, to),
    forward('dns', 8500, to, {}, { match: { protocol: 'udp' } }),
    forward('range', [{ from: 9000, to: 9999 }], to),
  ]
  await using gateway = await Gateway.start(lab, routes)
  // Its own ports are not in its way.
  const running = await doctor(gateway, '--config', gateway.file)
  expect(running.failed).toEqual([])
  expect(running.checks.find(({ name }) => name === 'ports')!.saw).toContain(`pid ${gateway.process.pid}`)
  lab.gateway.setSysctl({ 'net.ipv4.ip_forward': 0 })
  const off = (await doctor(gateway)).failed
  expect(off.map(({ name }) => name)).toEqual(['forwarding IPv4'])
  await type(lab.gateway, off[0]!.mend[0]!)
  expect((await doctor(gateway)).failed).toEqual([])
  expect(await gateway.stop()).toBe(0)

  lab.gateway.setSysctl({ 'net.ipv4.ip_forward': 0 })
  const alone = await doctor(gateway, '--config', gateway.file)
  expect([alone.exitCode, alone.failed]).toEqual([0, []])
  expect(alone.checks.find(({ name }) => name === 'forwarding IPv4')!.status).toBe('warn')
  expect(alone.checks.map(({ name }) => name)).toEqual([
    'privileges',
    'worker user',
    'seccomp',
    'descriptors',
    'clock',
    'kernel modules',
    'nft',
    'kernel',
    'forwarding IPv4',
    'forwarding IPv6',
    'conntrack',
    'conntrack timeouts',
    'forward chains',
    'reverse path',
    'ports',
  ])
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe('0')
  expect(await tables(lab.gateway)).toEqual([])

  lab.gateway.listen({ data() {} }, { port: 8400, hostname: lab.gateway.clientSide4 })
  lab.gateway.listen({ data() {} }, { port: 9500 })
  const taken = await doctor(gateway, '--config', gateway.file)
  expect(taken.exitCode).toBe(1)
  const self = `${readFileSync('/proc/self/comm', 'utf8').trim()} (pid ${process.pid})`
  expect(taken.failed.map(({ saw }) => saw)).toEqual([
    `route "web", TCP 8400: ${self} listens on ${lab.gateway.clientSide4}:8400`,
    `route "range", TCP 9000-9999: ${self} listens on [::]:9500`,
  ])
  expect(await type(lab.gateway, taken.failed[0]!.mend[0]!)).toContain(':8400')

  gateway.write([forward('web', 0, to)])
  const wrong = await gateway.cli('doctor', '--config', gateway.file)
  expect([wrong.exitCode, wrong.stdout]).toEqual([2, ''])
}, 60_000)

test('doctor looks at what a configuration names: certificates, handlers, names, the port on which a CA is answered', async () => {
  await using lab = await Lab.create()
  await using gateway = await Gateway.start(lab, [])
  const at = (name: string) => join(gateway.directory, name)
  for (const [name, days] of [
    ['good', 100],
    ['old', 3],
  ] as const)
    await lab.gateway.must(
      ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
        .concat(['-subj', '/CN=a.test', '-addext', 'subjectAltName=DNS:a.test', '-days', String(days)])
        .concat(['-keyout', at(`${name}.key`), '-out', at(`${name}.crt`)]),
    )
  const ends = (name: string, port: number, certificate: unknown, host = '127.0.0.1') =>
    forward(
      name,
      port,
      [{ host, port: 9 }],
      { tls: { mode: 'terminate', certificate } },
      { match: { domains: 'a.test' } },
    )
  const pair = (name: string) => ({ cert: at(`${name}.crt`), key: at(`${name}.key`) })
  const handler = { type: 'socket-handler', handler: at('none.ts') }
  const acme = { email: 'a@example.com', termsAgreed: true, challengePort: 8480 }
  gateway.write(
    [
      ends('good', 8443, pair('good')),
      ends('crossed', 8444, { cert: at('good.crt'), key: at('old.key') }),
      ends('auto', 8445, 'auto', 'nowhere.invalid'),
      { name: 'code', match: { ports: 8446 }, action: handler },
    ],
    { acme },
  )
  lab.gateway.listen({ data() {} }, { port: 8480 })
  const { failed, exitCode } = await doctor(gateway, '--config', gateway.file)
  expect(exitCode).toBe(1)
  expect(failed.map(({ name, saw }) => `${name}: ${saw.replaceAll(gateway.directory, '')}`)).toEqual([
    expect.stringMatching(/^certificates: route "crossed": Cannot use key \/old.key: it does not belong/),
    'files: route "code", handler: /none.ts cannot be read: ENOENT',
    expect.stringMatching(/^acme: port 8480 for HTTP-01: /),
    'target names: nowhere.invalid does not resolve',
  ])
  for (const { mend } of failed) expect(mend).not.toEqual([])

  gateway.write([ends('good', 8443, pair('good'))])
  const well = await doctor(gateway, '--config', gateway.file)
  expect([well.exitCode, well.failed]).toEqual([0, []])
  expect(well.checks.findLast(({ name }) => name === 'certificates')!.saw).toMatch(
    /^1 from files, all good; .* in 99 days$/,
  )
}, 30_000)

test('doctor with an nft that crashes, and without one: each is a finding, and the rest is looked at', async () => {
  await using lab = await Lab.create()
  await using gateway = await Gateway.start(lab, [])
  using stub = new NftStub('case "$*" in *"list chain "*) kill -SEGV $$;; esac')
  await lab.gateway.nft(
    'table ip filter { chain x { type filter hook forward priority 0; policy accept; accept\n }\n }',
  )
  const look = async (path: string) =>
    answer(await lab.gateway.run([Bun.which('env')!, `PATH=${path}`, ...gateway.command('doctor', '--json')]))
  const crashed = await look(stub.env.PATH)
  expect(crashed).toMatchObject({ exitCode: 0, failed: [] })
  expect(
    crashed.checks.filter(({ name }) => name === 'forward chains').map(({ status, saw }) => `${status} ${saw}`),
  ).toEqual(['warn chain x of table ip filter cannot be read: nft crashed (SIGSEGV)'])
  const without = await look('/nowhere')
  expect(without.exitCode).toBe(1)
  expect(without.failed.map(({ name, mend }) => [name, ...mend])).toEqual([
    ['nft', 'apt-get install -y --no-install-recommends nftables'],
  ])
  expect(without.checks.map(({ name }) => name)).toContain('conntrack')
}, 30_000)
