// What the processes may do: the worker, where handlers run, next to nothing; control what a list of capabilities says and
// no more. The unit that is installed has the same list.
import { expect, test } from 'bun:test'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CONTROL_CAPABILITIES } from '../../src/provision/system-files.ts'
import { testIf } from '../support.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

/** In a user namespace with one user the worker stays who it is, and owns what that one owns. */
const alone = readFileSync('/proc/self/uid_map', 'utf8').trim().split(/\s+/)[2] === '1'

/** Tries what the client names, and answers with the error's code or with "done". */
const HANDLER = `import { dlopen, read } from 'bun:ffi'
import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'

const libc = dlopen('libc.so.6', {
  syscall: { args: ['i64', 'i64', 'i64', 'i64'], returns: 'i64' },
  __errno_location: { args: [], returns: 'ptr' },
}).symbols
const tries = {
  spawn: async () => void (await Bun.spawn(['/bin/true']).exited),
  spawnSync: () => void Bun.spawnSync(['/bin/true']),
  execFile: () => new Promise((resolve, reject) => execFile('/bin/true', (error) => (error ? reject(error) : resolve()))),
  readFile: (path) => void readFileSync(path),
  readdir: (path) => void readdirSync(path),
  kill: (pid) => void process.kill(Number(pid), 0),
  setuid: () => void process.setuid(0),
  call: (number, ...values) => {
    if (libc.syscall(Number(number), ...[...values, 0, 0, 0].slice(0, 3).map(Number)) >= 0n) return
    throw { code: read.i32(libc.__errno_location(), 0) }
  },
}

export default {
  async connect(client) {
    const { value } = await client.readable.getReader().read()
    const [name, ...rest] = new TextDecoder().decode(value).trim().split(' ')
    let outcome = 'done'
    try {
      await tries[name](...rest)
    } catch (error) {
      outcome = String(error.code ?? error)
    }
    const writer = client.writable.getWriter()
    await writer.write(new TextEncoder().encode(outcome))
    await client.close()
  },
}
`

test('the worker has no capability, gains none, and its handlers start no program, enter nothing, read nothing secret', async () => {
  await using lab = await Lab.create()
  await using gateway = await Gateway.start(lab, [])
  writeFileSync(join(gateway.directory, 'trying.ts'), HANDLER)
  gateway.write([
    {
      name: 'trying',
      match: { ports: 8400 },
      action: { type: 'socket-handler', handler: './trying.ts', reach: { private: true } },
    },
  ])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()

  const { pid: control, worker } = await gateway.status()
  for (const task of readdirSync(`/proc/${worker.pid}/task`)) {
    const fields = statusOf(worker.pid, task)
    const capabilities = ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'].map((name) => BigInt(`0x${fields[name]}`))
    expect(capabilities, task).toEqual([0n, 0n, 0n, 0n, 0n])
    expect(fields, task).toMatchObject({ NoNewPrivs: '1', Seccomp: '2' })
  }
  expect(gateway.logText()).not.toContain('seccomp')
  const state = join(gateway.directory, 'state')
  expect(statSync(state).mode & 0o777).toBe(0o700)

  const EPERM = '1'
  const x64 = process.arch === 'x64'
  const calls: [string, number, number, string, string?][] = [
    ['ptrace', 101, 117, EPERM],
    ['fork', 57, -1, EPERM],
    ['clone of a process', 56, 220, EPERM, '17'],
    ['clone3', 435, 435, '38'],
    ['execve', 59, 221, EPERM],
    ['execveat', 322, 281, EPERM],
    ['unshare', 272, 97, EPERM, '0x10000000'],
    ['setns', 308, 268, EPERM],
    ['mount', 165, 40, EPERM],
    ['chroot', 161, 51, EPERM],
    ['pivot_root', 155, 41, EPERM],
    ['bpf', 321, 280, EPERM],
    ['perf_event_open', 298, 241, EPERM],
    ['io_uring_setup', 425, 425, EPERM],
    ['keyctl', 250, 219, EPERM],
    ['process_vm_readv', 310, 270, EPERM],
    ['init_module', 175, 105, EPERM],
    ['reboot', 169, 142, EPERM],
    ['settimeofday', 164, 170, EPERM],
    ['a packet socket', 41, 198, '97', '17 3 0'],
    ['a netfilter socket', 41, 198, '97', '16 3 12'],
    ['typing into a terminal', 16, 29, EPERM, '2 0x5412 0'],
    ['a call that is newer than we are', 500, 500, '38'],
  ]
  const tries: [string, string][] = [
    ['spawn', 'EPERM'],
    ['spawnSync', 'EPERM'],
    ['execFile', 'EPERM'],
    ['setuid', 'EPERM'],
    [`kill ${control}`, 'EPERM'],
    ...calls
      .map(([, onX64, onArm, error, rest = '']) => [`call ${x64 ? onX64 : onArm} ${rest}`, error] as [string, string])
      .filter(([what]) => !what.startsWith('call -1')),
    ...(alone
      ? []
      : ([
          [`readdir ${state}`, 'EACCES'],
          ['readFile /etc/shadow', 'EACCES'],
          [`readFile /proc/${control}/environ`, 'EACCES'],
        ] as [string, string][])),
    // Its own process: what it needs goes on working.
    [`kill ${worker.pid}`, 'done'],
    ['readFile /etc/passwd', 'done'],
  ]
  const seen = await Promise.all(tries.map(async ([what]) => [what, await answer(lab, 8400, what)] as [string, string]))
  expect(seen).toEqual(tries)
  // None of it cost the worker its life.
  expect((await gateway.status()).worker).toMatchObject({ pid: worker.pid, restarts: 0 })

  process.kill(worker.pid, 'SIGKILL')
  const next = await until(
    async () => {
      const now = (await gateway.status()).worker
      return now.pid !== null && now.pid !== worker.pid && now
    },
    5000,
    'the next worker',
  )
  expect(await answer(lab, 8400, 'spawn')).toBe('EPERM')
  expect(statusOf(next.pid, String(next.pid))).toMatchObject({ CapBnd: '0000000000000000', Seccomp: '2' })
}, 30_000)

/** Each is needed: what is missing without it is what the comment at CONTROL_CAPABILITIES says. */
const NAMES = CONTROL_CAPABILITIES.map((name) => name.replace('CAP_', '').toLowerCase())
const only = (names: string[]) => {
  const set = `-all${names.map((name) => `,+${name}`).join('')}`
  return ['setpriv', `--bounding-set=${set}`, '--inh-caps=-all', '--no-new-privs']
}

test('control works with nothing but its list: kernel, splice and TLS, the end of a kernel flow, a new worker, a stop', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(
    lab,
    [
      forward('kernel', 84, to),
      forward('user', 85, to, { forwardingEngine: 'user' }),
      forward('tls', 86, to, { tls: { mode: 'terminate', certificate: 'self-signed' } }),
    ],
    { through: only(NAMES) },
  )
  const { worker, pid } = await gateway.status()
  expect(statusOf(pid, String(pid)).CapBnd).toBe(statusOf(pid, String(pid)).CapEff!)
  if (!alone) expect(worker.uid).not.toBe(0)
  expect(statusOf(worker.pid, String(worker.pid)).CapBnd).toBe('0000000000000000')
  const host = lab.gateway.clientSide4
  const talker = await Talker.connect(lab.client, host, 84)
  await talker.say()
  await visit(lab.client, host, 85)
  const tls = await lab.client.run(['openssl', 's_client', '-connect', `${host}:86`, '-servername', 'localhost'], {
    stdin: '',
  })
  expect(tls.stdout).toContain('BEGIN CERTIFICATE')
  const [flow] = await until(
    async () => {
      const found = (await gateway.connections()).filter((one) => one.carrier === 'kernel')
      return found.length > 0 && found
    },
    5000,
    'the kernel flow',
  )
  expect(await gateway.close(flow!.id)).toMatchObject({ status: 200 })
  await talker.gone.promise
  process.kill(worker.pid, 'SIGKILL')
  await until(async () => (await gateway.status()).worker.restarts === 1, 5000, 'the next worker')
  await visit(lab.client, host, 85)
  const lines = gateway.logText().split('\n')
  expect(lines.filter((line) => /EPERM|EACCES/.test(line) && !(alone && line.includes('no second user')))).toEqual([])
  expect(await gateway.stop()).toBe(0)
}, 30_000)

testIf(!alone, 'one user only: nothing has to be changed or killed across users')(
  'without one of those that workers need, the worker says what it keeps',
  async () => {
    await using lab = await Lab.create()
    await using gateway = await Gateway.start(lab, [], { through: only(NAMES.filter((name) => name !== 'setuid')) })
    await until(() => gateway.logText().includes('The worker runs as root'), 5000, 'it says so')
  },
  20_000,
)

function statusOf(pid: number, task: string): Record<string, string> {
  const text = readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8')
  return Object.fromEntries([...text.matchAll(/^(\w+):\t(.*)$/gm)].map(([, name, value]) => [name!, value!.trim()]))
}

function answer(lab: Lab, port: number, text: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const pieces: Uint8Array[] = []
  lab.client
    .connect(lab.gateway.clientSide4, port, {
      open: (socket) => void socket.write(text),
      data: (_socket, bytes) => void pieces.push(bytes),
      close: () => resolve(Buffer.concat(pieces).toString()),
    })
    .catch(reject)
  return promise
}
