// The program as a service of a real systemd: installed, started, restarted and upgraded under load, killed, stopped, taken away, as
// an operator would. `make test-vm ONLY=systemd` boots a machine for it that is thrown away: what comes later here builds on what
// came before.
import { beforeAll, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { CONTROL_CAPABILITIES } from '../../src/provision/system-files.ts'
import {
  allActive,
  type Connection,
  forward,
  listening,
  type RouteState,
  type Status,
  tables,
  until,
} from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { crowd, echoBackend, Talker, visit, visitors } from '../netns/traffic.ts'
import { slowness } from '../support.ts'

if (process.env.SLUICE_TEST_MACHINE !== '1')
  throw new Error('This installs a service: run it with make test-vm ONLY=systemd')

const CONFIG = '/etc/sluice/sluice.config.ts'
const UNIT = '/usr/local/lib/systemd/system/sluice.service'
const SOCKET = '/run/sluice/admin.sock'
const ACCESS_LOG = '/var/log/sluice/access.jsonl'
const DROP_IN = '/etc/systemd/system/sluice.service.d'
/** Everything is slower at its first time: the program is not in the page cache. */
const MS_MAX = 60_000 * slowness
/** A machine that has just installed a program builds none. */
const MAKE = 'make --silent --no-print-directory -o build/sluice -o build/packages/run -o node_modules/.ready'

let lab: Lab
let host: string
let routes: ReturnType<typeof forward>[]
/** The kernel's settings as they were. */
let settings: Record<string, string>

beforeAll(async () => {
  lab = await Lab.create(true)
  host = lab.gateway.clientSide4
  const to = [{ host: lab.backend.address4, port: echoBackend(lab.backend).port }]
  routes = [
    forward('kernel', 8400, to),
    forward('user', 8401, to, { forwardingEngine: 'user' }),
    forward('udp', 8402, to, {}, { match: { protocol: 'udp' } }),
  ]
  // The module has to be there for its settings to be.
  await lab.gateway.nft(
    'add table inet probe\nadd chain inet probe c\nadd rule inet probe c ct state new\ndelete table inet probe',
  )
  settings = readSettings()
})

const readSettings = () =>
  Object.fromEntries(
    [
      ...['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding'],
      ...['acct', 'timestamp', 'events'].map((name) => `net.netfilter.nf_conntrack_${name}`),
    ].map((name) => [name, lab.gateway.sysctl(name)]),
  )

// ---- what the operator does and sees ----

async function run(command: string): Promise<string> {
  const { stdout, stderr, exitCode } = await lab.gateway.run(['sh', '-c', command])
  if (exitCode !== 0)
    throw new Error(`${command}: exit ${exitCode}\n${stdout}${stderr}\n${await journal().catch(String)}`)
  return stdout + stderr
}

const systemctl = (...words: string[]) => run(`systemctl ${words.join(' ')}`)
const show = async (property: string) => (await systemctl('show', 'sluice', '--value', '--property', property)).trim()
const mainPid = async () => Number(await show('MainPID'))
const kept = async () => Number(await show('NFileDescriptorStore'))
const journal = async () =>
  (await lab.gateway.run(['journalctl', '--unit', 'sluice', '--no-pager', '--output', 'cat', '--lines', '200'])).stdout

async function ask<T>(path: string): Promise<T> {
  return (await (await fetch(`http://sluice${path}`, { unix: SOCKET })).json()) as T
}
const settled = async () => allActive((await ask<{ routes: RouteState[] }>('/v1/routes')).routes)
const serves = (what: string) => until(settled, 60_000, what)
/** Another life than the one of `pid` is the service now, and every route is where it belongs. */
async function nextLife(pid: number) {
  await until(async () => (await show('ActiveState')) === 'active', 60_000, 'the service is active')
  await until(async () => (await ask<Status>('/v1/status')).pid !== pid, 60_000, 'the next life answers')
  await serves('the next life serves')
  expect((await ask<Status>('/v1/status')).pid).toBe(await mainPid())
}

function configure(wanted: unknown[]) {
  const config = { log: { access: ACCESS_LOG }, timeouts: { grace: '2s' }, routes: wanted }
  writeFileSync(
    CONFIG,
    `import { defineConfig } from 'sluice'\nexport default defineConfig(${JSON.stringify(config)})\n`,
  )
}

/** The listening sockets, each by the number that the kernel gives to no other: a copy has the same. */
async function sockets(): Promise<string[]> {
  const text = await lab.gateway.must(['ss', '-Hltune'])
  return text
    .split('\n')
    .flatMap((line) => {
      const [, port, inode] = /:(84\d\d) .* ino:(\d+)/.exec(line) ?? []
      return port ? [`${port} ${inode}`] : []
    })
    .toSorted()
}

const statusOf = (pid: number) =>
  Object.fromEntries(
    readFileSync(`/proc/${pid}/status`, 'utf8')
      .split('\n')
      .map((line) => line.split(/:\s*/) as [string, string]),
  )

/** Talkers in the kernel, and visitors of both planes, while `act` runs; everybody was served, and goes on to be. */
async function underLoad(act: (more: () => Promise<unknown>) => Promise<void>, ports = [8400, 8401]) {
  const standing = await crowd(lab.client, host, 8400, 5)
  const coming = ports.map((port) => visitors(lab.client, host, port))
  const more = () => {
    const served = coming.map((one) => one.served)
    const rounds = standing.talkers.map((talker) => talker.rounds)
    const go = () =>
      coming.every((one, i) => one.served > served[i]! + 3) &&
      standing.talkers.every((one, i) => one.rounds > rounds[i]! + 2)
    return until(go, 30_000, 'visitors are served, and those in the kernel talk on')
  }
  await more()
  await act(more)
  await more()
  for (const each of coming) expect((await each.stop()).map(String)).toEqual([])
  expect(await standing.stop()).toEqual([])
}

// ---- its life ----

test(
  'issue 7.4: make install, twice: the second one has nothing to do',
  async () => {
    expect(await run(`${MAKE} install`)).toContain('systemctl enable --now sluice')
    expect(await run(`${MAKE} install`)).toContain('Nothing to change')
    expect(existsSync(UNIT)).toBe(true)
    expect(await run('getent passwd sluice')).toContain('nologin')
    expect(await run('systemd-analyze verify --man=no sluice.service')).toBe('')
  },
  MS_MAX,
)

test(
  'G17 M1: systemctl enable --now: active when it serves, with a line for systemctl status, its sockets in the descriptor store',
  async () => {
    configure(routes)
    const began = performance.now()
    await systemctl('enable', '--now', 'sluice')
    console.log(`systemctl start took ${Math.round(performance.now() - began)} ms`)
    expect(await show('ActiveState')).toBe('active')
    for (const port of [8400, 8401]) await visit(lab.client, host, port)
    await serves('every route is where it belongs')
    expect(await systemctl('status', '--no-pager', 'sluice')).toMatch(/Status: "routes: 3, connections: \d+"/)
    await until(async () => (await kept()) === 3, 10_000, 'three sockets are kept')
  },
  MS_MAX,
)

test('issue 7.3: control has the capabilities that it needs and no other, the worker none; both with a filter and no way to more', async () => {
  const pid = await mainPid()
  const { worker } = await ask<Status>('/v1/status')
  const bits = (mask: string) => BigInt(`0x${mask}`).toString(2).replaceAll('0', '').length
  const [control, unprivileged] = [statusOf(pid), statusOf(worker.pid)]
  expect(bits(control.CapEff!)).toBe(CONTROL_CAPABILITIES.length)
  expect(bits(control.CapBnd!)).toBe(CONTROL_CAPABILITIES.length)
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) expect(bits(unprivileged[set]!)).toBe(0)
  for (const one of [control, unprivileged]) expect([one.NoNewPrivs, one.Seccomp]).toEqual(['1', '2'])
  // More filters than the manager's.
  expect(Number(unprivileged.Seccomp_filters)).toBeGreaterThan(Number(control.Seccomp_filters))
  expect(worker.uid).toBe(Number((await run('id -u sluice')).trim()))
})

test(
  'issue 7.2: systemctl restart under load, three times: nobody is refused, kernel flows go on, the sockets are the same',
  async () => {
    const before = await sockets()
    expect(before).toHaveLength(3)
    const took: number[] = []
    await underLoad(async (more) => {
      for (let i = 0; i < 3; i++) {
        const pid = await mainPid()
        const began = performance.now()
        await systemctl('restart', 'sluice')
        took.push(Math.round(performance.now() - began))
        await nextLife(pid)
        await more()
      }
    })
    console.log(`systemctl restart took ${took.join(', ')} ms`)
    expect(await sockets()).toEqual(before)
    expect(await kept()).toBe(3)
    expect(await show('NRestarts')).toBe('0')
  },
  MS_MAX,
)

test(
  'E9: systemctl reload takes another configuration, and keeps what is good of a bad one: all of the running one',
  async () => {
    await underLoad(async () => {
      configure([...routes, forward('new', 8403, [{ host: lab.backend.address4, port: 1 }])])
      await systemctl('reload', 'sluice')
      await until(async () => (await kept()) === 4, 30_000, 'the new socket is kept')
      await serves('four routes')
      await until(async () => /^routes: 4,/.test(await show('StatusText')), 30_000, 'the line says so')
      writeFileSync(CONFIG, 'export default { routes: 1 }')
      await expect(systemctl('reload', 'sluice')).rejects.toThrow('exit 1')
      expect(await journal()).toContain('expected array')
      expect(await show('ActiveState')).toBe('active')
      configure(routes)
      await systemctl('reload', 'sluice')
      await until(async () => (await kept()) === 3, 30_000, 'the socket is given back')
    })
  },
  MS_MAX,
)

test(
  'issue 7.4: logrotate moves the access log away, and what is closed after that is in the new one',
  async () => {
    const before = readFileSync(ACCESS_LOG, 'utf8')
    expect(before).not.toBe('')
    await run('logrotate --force --state /run/logrotate.state /etc/logrotate.d/sluice')
    expect(readFileSync(`${ACCESS_LOG}.1`, 'utf8')).toStartWith(before)
    await until(() => existsSync(ACCESS_LOG), 10_000, 'a new one is opened')
    await visit(lab.client, host, 8401)
    await until(() => readFileSync(ACCESS_LOG, 'utf8').includes('"route":"user"'), 10_000, 'its line is there')
    await until(async () => (await show('ActiveState')) === 'active', 10_000, 'it has reloaded')
  },
  MS_MAX,
)

test(
  'issue 7.2: sluice upgrade: systemd follows to the new process, which it can stop in order as it could the first',
  async () => {
    const pid = await mainPid()
    const stays = await Talker.connect(lab.client, host, 8401)
    await underLoad(async () => {
      await run('sluice upgrade')
      await nextLife(pid)
      await stays.say('still here')
      expect(await mainPid()).not.toBe(pid)
      expect(existsSync(`/proc/${pid}`)).toBe(true)
      await stays.close()
      await until(() => !existsSync(`/proc/${pid}`), 30_000, 'the old process ends with its last connection')
      expect(await show('ActiveState')).toBe('active')
    })
    const second = await mainPid()
    // Else systemd would hear neither of its end nor wait for it.
    expect(statusOf(second).PPid).toBe('1')
    expect(await journal()).not.toContain('not our child')
    await underLoad(async () => {
      await systemctl('restart', 'sluice')
      await nextLife(second)
    })
    const said = await run(`journalctl --unit sluice --output cat _PID=${second}`)
    expect(said).toContain('Stopped')
    expect(await kept()).toBe(3)
    expect(await show('NRestarts')).toBe('0')
  },
  MS_MAX,
)

test(
  'issue 7.2: a restart while an old program still has connections: they have the grace period, and nothing of it is left',
  async () => {
    const old = await mainPid()
    const stays = await Talker.connect(lab.client, host, 8401)
    await stays.say('still here')
    await run('sluice upgrade')
    await nextLife(old)
    const second = await mainPid()
    expect(existsSync(`/proc/${old}`)).toBe(true)
    const client = `${lab.client.address4}:${stays.localPort}`
    const { connections } = await ask<{ connections: Connection[] }>('/v1/connections')
    const [known] = connections.filter((one) => one.client === client && one.route === 'user')
    await underLoad(async () => {
      await systemctl('restart', 'sluice')
      await nextLife(second)
    })
    expect(stays.ended).not.toBeNull()
    for (const pid of [old, second]) expect(existsSync(`/proc/${pid}`)).toBe(false)
    // By its id: later ones may have its port.
    const record = await run(`grep -h '"id":"${known!.id}"' ${ACCESS_LOG}`)
    expect(record.match(/"reason":"\w+"/g)).toEqual(['"reason":"drained"'])
  },
  MS_MAX,
)

test(
  'M1: what is killed comes back, with its sockets, and takes over the flows that went on in the kernel',
  async () => {
    const pid = await mainPid()
    const before = await sockets()
    // What user space carried at that moment is lost.
    await underLoad(
      async (more) => {
        await systemctl('kill', '--signal=KILL', 'sluice')
        await until(async () => (await show('NRestarts')) === '1', 60_000, 'systemd starts it again')
        await nextLife(pid)
        await more()
        const { connections } = await ask<{ connections: { route: string }[] }>('/v1/connections')
        expect(connections.filter(({ route }) => route === 'kernel').length).toBeGreaterThanOrEqual(5)
      },
      [8400],
    )
    await visit(lab.client, host, 8401)
    expect(await sockets()).toEqual(before)
  },
  MS_MAX,
)

test(
  'issue 7.2: a worker that the kernel kills for its memory is replaced: the service is not stopped, nor what the kernel carries',
  async () => {
    const before = await ask<Status>('/v1/status')
    const restarts = await show('NRestarts')
    await underLoad(
      async (more) => {
        writeFileSync(`/proc/${before.worker.pid}/oom_score_adj`, '1000')
        // The kernel looks for whom to kill, as if memory had run out.
        writeFileSync('/proc/sysrq-trigger', 'f')
        const next = async () => (await ask<Status>('/v1/status')).worker.pid !== before.worker.pid
        await until(async () => (await next()) && settled(), 60_000, 'another worker serves')
        await more()
      },
      [8400],
    )
    await visit(lab.client, host, 8401)
    expect(await mainPid()).toBe(before.pid)
    expect(await show('NRestarts')).toBe(restarts)
    expect(await run('journalctl --dmesg --output cat')).toContain('Out of memory: Killed process')
  },
  MS_MAX,
)

test(
  'G17: a control process that hangs is ended by the watchdog and started again',
  async () => {
    mkdirSync(DROP_IN, { recursive: true })
    writeFileSync(`${DROP_IN}/test.conf`, `[Service]\nWatchdogSec=${2 * slowness}\n`)
    await systemctl('daemon-reload')
    await systemctl('restart', 'sluice')
    const pid = await mainPid()
    await serves('it serves')
    process.kill(pid, 'SIGSTOP')
    await until(async () => (await show('NRestarts')) === '1', 30_000, 'systemd starts it again')
    await nextLife(pid)
    expect(await journal()).toContain('Watchdog timeout')
    for (const port of [8400, 8401]) await visit(lab.client, host, port)
  },
  MS_MAX,
)

test(
  'G17: systemctl stop: no table, no socket, no process; the settings of the kernel are as they were',
  async () => {
    expect(await tables(lab.gateway)).not.toEqual([])
    await systemctl('stop', 'sluice')
    expect(await show('ActiveState')).toBe('inactive')
    expect(await show('Result')).toBe('success')
    expect(await tables(lab.gateway)).toEqual([])
    expect(await listening(lab.gateway)).toEqual([])
    expect(await kept()).toBe(0)
    expect(existsSync(SOCKET)).toBe(false)
    // The first two are the installation's.
    expect(readSettings()).toEqual({ ...settings, 'net.ipv4.ip_forward': '1', 'net.ipv6.conf.all.forwarding': '1' })
  },
  MS_MAX,
)

test(
  'issue 7.4: make uninstall stops it and takes everything away, but what the operator has written',
  async () => {
    await systemctl('start', 'sluice')
    const said = await run(`${MAKE} uninstall`)
    expect(said).toContain(CONFIG)
    for (const path of [UNIT, '/usr/local/bin/sluice', '/etc/sysctl.d/60-sluice.conf', '/etc/logrotate.d/sluice'])
      expect(existsSync(path)).toBe(false)
    expect((await lab.gateway.run(['getent', 'passwd', 'sluice'])).exitCode).not.toBe(0)
    expect((await lab.gateway.run(['systemctl', 'is-enabled', 'sluice'])).stdout.trim()).not.toBe('enabled')
    expect(await tables(lab.gateway)).toEqual([])
    expect(await listening(lab.gateway)).toEqual([])
    expect(readSettings()).toEqual(settings)
  },
  MS_MAX,
)
