// sluice top in a real terminal, over a real gateway: what it shows, what keys do, and that the terminal is as it was afterwards.
import { expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Lab } from './lab.ts'
import { forward, Gateway, until } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

const MAIN = resolve(import.meta.dir, '../../src/main.ts')
const FRAME = '\x1b[?2026h'
const LEAVE = '\x1b[?25h\x1b[?1049l'

/** A terminal with the program in it; what is written to it is kept as it came. */
class Terminal implements AsyncDisposable {
  #said = ''
  readonly process: Bun.Subprocess
  readonly terminal: Bun.Terminal
  /** Echo, line by line, signals of keys: as it was before. */
  readonly flags: number

  constructor(command: string[]) {
    const data = (_: unknown, chunk: Uint8Array) => void (this.#said += Buffer.from(chunk).toString())
    // Only a terminal that is made with its process is the one that controls it, and tells it of a new size.
    this.process = Bun.spawn(command, {
      terminal: { cols: 110, rows: 24, data },
      env: { ...process.env, TERM: 'xterm-256color', NO_COLOR: undefined },
    })
    this.terminal = this.process.terminal!
    this.flags = this.terminal.localFlags
  }

  get said() {
    return this.#said
  }

  /** The last picture that is whole, as one reads it. */
  get lines(): string[] {
    const frame = this.#said.split(FRAME).findLast((one) => one.includes('\x1b[?2026l')) ?? ''
    return Bun.stripANSI(frame).split('\r\n')
  }

  shows(what: RegExp): Promise<unknown> {
    return until(() => this.lines.some((line) => what.test(line)), 5000, `a line like ${what}`).catch(
      (error: Error) => {
        throw new Error(`${error.message}\n${this.lines.join('\n')}`)
      },
    )
  }

  async [Symbol.asyncDispose]() {
    this.process.kill('SIGKILL')
    await this.process.exited
    this.terminal.close()
  }
}

test('top shows routes and connections live, follows keys and the size of the terminal, and leaves it as it was', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('web', 8400, to),
    forward('slow', 8401, to, { forwardingEngine: 'user' }),
  ])
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say('x'.repeat(2000))
  const [one] = await gateway.connections()

  const command = gateway.command('top', '--admin', gateway.socket, '--interval', '100ms')
  await using top = new Terminal(command)
  await top.shows(/^web +kernel +active +1 +1 /)
  await top.shows(/^slow +user +active +0 +0 /)
  expect(top.said).toContain('\x1b[?1049h')
  expect(top.said).toContain('\x1b[32mactive')
  expect(top.terminal.localFlags).not.toBe(top.flags)

  top.terminal.write('2')
  await top.shows(new RegExp(`^${one!.id} .*${one!.client}`))
  top.terminal.write('/nothing\r')
  await top.shows(/^0 of 1 +only "nothing"/)
  top.terminal.write('\x1b1n')
  await top.shows(/^ROUTE▼/)
  top.terminal.write('\x1b[B\x1b[6~?')
  await top.shows(/PageUp/)
  top.terminal.write('x')

  top.terminal.resize(60, 9)
  await until(() => top.lines.length === 9 && top.lines.every((line) => Bun.stringWidth(line) <= 60), 5000, 'it fits')
  await top.shows(/^slow /)

  await talker.close()
  // It outlives the gateway.
  expect(await gateway.stop()).toBe(0)
  await top.shows(/Cannot reach the gateway/)
  await gateway.restart()
  await top.shows(/^2 of 2 /)
  top.terminal.write('q')
  expect(await top.process.exited).toBe(0)
  await until(() => top.said.endsWith(LEAVE), 2000, 'the terminal is left')
  expect(top.terminal.localFlags).toBe(top.flags)

  for (const [signal, code] of [
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ] as const) {
    await using other = new Terminal(command)
    await other.shows(/^web /)
    other.process.kill(signal)
    expect(await other.process.exited).toBe(code)
    await until(() => other.said.endsWith(LEAVE), 2000, 'the terminal is left')
    expect(other.terminal.localFlags).toBe(other.flags)
  }

  // Without a terminal: one picture, or JSON.
  const once = await gateway.cli('top', '--admin', gateway.socket)
  expect(once.exitCode).toBe(0)
  expect(once.stdout).toMatch(/^web +kernel +active/m)
  expect(once.stdout).not.toContain('\x1b')
  const json = JSON.parse((await gateway.cli('top', '--json', '--route', 'web', '--admin', gateway.socket)).stdout)
  expect(json.routes.map(({ name }: { name: string }) => name)).toEqual(['web'])
  expect(Object.keys(json)).toEqual(['status', 'routes', 'connections', 'clients', 'targets'])
  expect((await gateway.cli('top', '--interval', '1')).exitCode).toBe(2)
  expect((await gateway.cli('top', '--once')).exitCode).toBe(1) // nobody at the default socket
}, 60_000)

test('a crash of top leaves the terminal as it was, and says what happened', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-top-'))
  const socket = join(directory, 'admin.sock')
  // No gateway says that: what is drawn of it is not there.
  const wrong = Bun.serve({ unix: socket, fetch: () => Response.json({ routes: [{ name: null }] }) })
  try {
    await using top = new Terminal([process.execPath, MAIN, 'top', '--admin', socket])
    expect(await top.process.exited).toBe(1)
    await until(() => top.said.includes(LEAVE), 2000, 'the terminal is left')
    expect(top.terminal.localFlags).toBe(top.flags)
    const after = top.said.slice(top.said.indexOf(LEAVE) + LEAVE.length)
    expect(after).toMatch(/^sluice: .+\r\n$/)
  } finally {
    await wrong.stop(true)
    await rm(directory, { recursive: true })
  }
})

test('a listing fits the terminal that it is printed to, and its states have colours there', async () => {
  await using lab = await Lab.create()
  const to = [{ host: lab.backend.address4, port: 9000 }]
  await using gateway = await Gateway.start(lab, [
    forward('web', [8400, { from: 8500, to: 8509 }, 8600, 8700, 8800, 8900], to, { forwardingEngine: 'user' }),
  ])
  await using listing = new Terminal(gateway.command('routes', '--admin', gateway.socket))
  expect(await listing.process.exited).toBe(0)
  await until(() => listing.said.includes('web'), 2000, 'it is printed')
  expect(listing.said).toContain('\x1b[32mactive\x1b[0m')
  const lines = Bun.stripANSI(listing.said).trimEnd().split('\r\n')
  expect(lines).toHaveLength(2)
  for (const line of lines) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(110)
  expect(lines[1]).toContain('…')
  // Whoever reads it by program has all of it.
  expect((await gateway.cli('routes', '--admin', gateway.socket)).stdout).toContain("forwardingEngine is 'user'")
})
