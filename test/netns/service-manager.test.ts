// What a service manager hears of the gateway, by a stand-in that reads NOTIFY_SOCKET as systemd does: a datagram socket that
// writes down who said what.
import { expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { slowness, testIf } from '../support.ts'
import { forward, Gateway, halt, NftStub, until } from './gateway.ts'
import { Lab, type Namespace } from './lab.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

const python = Bun.which('python3')
const testManager = testIf(python !== null, 'needs python3')
const WATCHDOG_MS = 400 * slowness

const LISTENER = `
import json, socket, struct, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
path = sys.argv[1]
listener.bind("\\0" + path[1:] if path[0] == "@" else path)
print(json.dumps({"pid": 0, "text": "bound"}), flush=True)
while True:
    data, control, _, _ = listener.recvmsg(65536, 1024)
    pid = struct.unpack("3i", control[0][2][:12])[0]
    print(json.dumps({"pid": pid, "text": data.decode()}), flush=True)
`

class Manager implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'sluice-manager-'))
  readonly #out = join(this.directory, 'heard')

  readonly socket: string

  private constructor(socket?: string) {
    this.socket = socket ?? join(this.directory, 'notify')
  }

  static async start(where: Namespace, socket?: string): Promise<Manager> {
    const manager = new Manager(socket)
    where.spawn([python!, '-c', LISTENER, manager.socket], { stdout: Bun.file(manager.#out) })
    await until(() => manager.heard.length > 0, 5000, 'the stand-in listens')
    return manager
  }

  get heard(): { pid: number; text: string }[] {
    const text = existsSync(this.#out) ? readFileSync(this.#out, 'utf8') : ''
    return text
      .slice(0, text.lastIndexOf('\n') + 1)
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line))
  }

  said(word: string): number {
    return this.heard.filter(({ text }) => text.split('\n').includes(word)).length
  }

  /** Without beats, status lines, and sockets that are kept. */
  get words(): string[] {
    return this.heard
      .map(({ text }) => text.split('\n')[0]!)
      .filter((word) => !/^(?:WATCHDOG|STATUS|FDSTORE|bound)/.test(word))
  }

  [Symbol.dispose]() {
    rmSync(this.directory, { recursive: true, force: true })
  }
}

testManager(
  'G17: the service manager hears READY when every route is served, and not before',
  async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    using manager = await Manager.start(lab.gateway)
    using nft = new NftStub()
    const go = join(nft.directory, 'go')
    nft.mode(`while [ ! -e ${go} ]; do sleep 0.05; done`)
    await using gateway = await Gateway.start(
      lab,
      [
        forward('kernel', 8400, [{ host: lab.backend.address4, port: backend.port }], {
          forwardingEngine: 'nftables',
        }),
      ],
      { env: { ...nft.env, NOTIFY_SOCKET: manager.socket }, ready: false },
    )
    await until(() => nft.calls().length > 0, 10_000, 'nft is asked')
    expect(manager.words).toEqual([])
    writeFileSync(go, '')
    await until(() => manager.said('READY=1'), 10_000, 'READY')
    await visit(lab.client, lab.gateway.clientSide4, 8400)
    const [ready] = manager.heard.filter(({ text }) => text === 'READY=1')
    // NotifyAccess=main: from the process that was started, or it is not heard.
    expect(ready!.pid).toBe((await gateway.status()).pid)
    await until(() => manager.said('STATUS=routes: 1, connections: 0'), 5000, 'the line for those who look')
    // No watchdog was asked for.
    expect(manager.said('WATCHDOG=1')).toBe(0)
    expect(await gateway.stop()).toBe(0)
    expect(manager.words).toEqual(['READY=1', 'STOPPING=1'])
  },
  30_000,
)

testManager(
  'G17 E9: beats while control and worker live; SIGHUP reloads and reopens the access log between RELOADING and READY',
  async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    // Abstract names belong to a network namespace.
    using manager = await Manager.start(lab.gateway, `@sluice-test-${process.pid}`)
    const to = [{ host: lab.backend.address4, port: backend.port }]
    const user = (name: string, port: number) => forward(name, port, to, { forwardingEngine: 'user' })
    await using gateway = await Gateway.start(lab, [user('one', 8401)], {
      env: { NOTIFY_SOCKET: manager.socket, WATCHDOG_USEC: String(WATCHDOG_MS * 1000) },
    })
    const beats = () => manager.said('WATCHDOG=1')
    const more = async (what: string) => {
      const before = beats()
      await until(() => beats() >= before + 2, 10_000, what)
    }
    await more('beats')
    const { pid, worker } = await gateway.status()
    // Each of them alone: the other one is well. What was on its way may still come.
    for (const stopped of [pid, worker.pid]) {
      await halt(stopped)
      await Bun.sleep(WATCHDOG_MS / 2)
      const before = beats()
      await Bun.sleep(WATCHDOG_MS * 2)
      expect(beats()).toBe(before)
      process.kill(stopped, 'SIGCONT')
      await more('beats go on')
    }

    const host = lab.gateway.clientSide4
    const standing = await Talker.connect(lab.client, host, 8401)
    await visit(lab.client, host, 8401)
    await gateway.recordsOf(1)
    renameSync(gateway.accessLog, `${gateway.accessLog}.1`)
    gateway.write([user('one', 8401), user('two', 8402)])
    process.kill(pid, 'SIGHUP')
    await until(() => manager.said('READY=1') === 2, 5000, 'READY again')
    await visit(lab.client, host, 8402)
    const [line] = await gateway.recordsOf(1)
    expect(line!.route).toBe('two')
    expect(readFileSync(`${gateway.accessLog}.1`, 'utf8').split('\n').length).toBe(2)
    await standing.say()

    writeFileSync(gateway.file, '{"routes": 1}')
    process.kill(pid, 'SIGHUP')
    await until(() => manager.said('READY=1') === 3, 5000, 'READY after what was refused')
    expect(gateway.logText()).toContain('Not reloaded: ')
    await standing.say()
    await standing.close()
    expect(await gateway.stop()).toBe(0)
    expect(manager.words).toEqual(['READY=1', 'RELOADING=1', 'READY=1', 'RELOADING=1', 'READY=1', 'STOPPING=1'])
    const reloading = manager.heard.filter(({ text }) => text.startsWith('RELOADING=1'))
    for (const { text } of reloading) expect(text).toMatch(/^RELOADING=1\nMONOTONIC_USEC=\d{6,}$/)
    expect(new Set(manager.heard.slice(1).map((one) => one.pid))).toEqual(new Set([pid]))
  },
  30_000,
)

test('G17: a service manager that is not there is said once, and is no reason not to serve', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(
    lab,
    [forward('one', 8401, [{ host: lab.backend.address4, port: backend.port }], { forwardingEngine: 'user' })],
    { env: { NOTIFY_SOCKET: '/nowhere/notify', WATCHDOG_USEC: String(WATCHDOG_MS * 250) } },
  )
  await visit(lab.client, lab.gateway.clientSide4, 8401)
  expect(await gateway.stop()).toBe(0)
  expect(gateway.logText().match(/Cannot reach the service manager/g)).toHaveLength(1)
}, 20_000)
