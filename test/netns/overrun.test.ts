// The event socket overruns: with a buffer for a handful of events and thousands of connections most events are dropped.
// What is known in the end is what there was: one record for each connection, and none that there was not.
import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { emulated } from '../support.ts'
import { Lab } from './lab.ts'
import { until, type Connection } from './gateway.ts'
import { echoBackend, Talker, visit } from './traffic.ts'

const COUNT = emulated ? 500 : 3000
/** As many stay, begun in the middle of it. */
const LIVE = 50
const AT_ONCE = 50

interface State {
  live: Connection[]
  settled: Connection[]
  lost: number
  setup: { ms: number; clock: string; target: string }[]
  total: number
  now: number
  reasons: Record<string, number>
  bytesIn: number
}

/** Runs the kernel plane alone in the gateway, with an event socket of that buffer. */
async function withPlane(
  receiveBuffer: number,
  work: (plane: { lab: Lab; host: string; ask: () => Promise<State> }) => Promise<void>,
) {
  await using lab = await Lab.create()
  const directory = mkdtempSync(join(tmpdir(), 'sluice-overrun-'))
  try {
    const backend = echoBackend(lab.backend)
    const options = { directory, target: lab.backend.address4, port: backend.port, receiveBuffer }
    const fixture = resolve(import.meta.dir, 'overrun-fixture.ts')
    lab.gateway.spawn([process.execPath, fixture, JSON.stringify(options)], { stdout: 'inherit', stderr: 'inherit' })
    const ask = async () =>
      (await (await fetch('http://fixture/', { unix: join(directory, 'fixture.sock') } as RequestInit)).json()) as State
    await until(ask, 20_000, 'the kernel plane is ready')
    await work({ lab, host: lab.gateway.clientSide4, ask })
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

test(
  `H8: ${COUNT} connections while the event socket overruns: no record is lost and none invented`,
  () =>
    withPlane(1, async ({ lab, host, ask }) => {
      const talkers: Talker[] = []
      const ports: number[] = []
      let left = COUNT
      const one = async () => {
        for (let mine = left--; mine > 0; mine = left--) {
          const talker = await Talker.connect(lab.client, host, 8400)
          ports.push(talker.localPort)
          await talker.say('hello')
          await talker.close()
          if (mine % (COUNT / LIVE) === 0) talkers.push(await Talker.connect(lab.client, host, 8400))
        }
      }
      const started = performance.now()
      await Promise.all(Array.from({ length: AT_ONCE }, one))
      console.log(`${COUNT} connections in ${(performance.now() - started).toFixed(0)} ms`)
      const portOf = (one: Connection) => Number(one.client.split(':')[1])
      const state = await until(
        async () => {
          const now = await ask()
          return now.settled.length >= COUNT && now.live.length >= talkers.length && now
        },
        20_000,
        `every connection is known (${COUNT} ended, ${talkers.length} live)`,
      ).catch(async (error: Error) => {
        const { settled, live, lost, total } = await ask()
        throw new Error(
          `${error.message}: ${settled.length} ended, ${live.length} live, ${total} in all, ${lost} overruns`,
        )
      })
      console.log(`${state.lost} overruns`)
      expect(state.lost).toBeGreaterThan(0)
      expect(state.settled.map(portOf).toSorted()).toEqual(ports.toSorted())
      expect(state.live.map(portOf).toSorted()).toEqual(talkers.map((talker) => talker.localPort).toSorted())
      expect(state.settled.filter((record) => record.bytesIn !== 5 || record.bytesOut !== 5)).toEqual([])
      expect(state).toMatchObject({ total: COUNT + talkers.length, now: talkers.length, reasons: { finished: COUNT } })
      expect(state.bytesIn).toBe(5 * COUNT)

      for (const talker of talkers) await talker.close()
      const end = await until(
        async () => {
          const now = await ask()
          return now.live.length === 0 && now
        },
        20_000,
        'the live ones have ended',
      )
      expect(end.settled.length).toBe(COUNT + talkers.length)
      expect(new Set(end.settled.map((record) => record.id)).size).toBe(end.settled.length)
    }),
  90_000,
)

test(
  'H8: a flush whose events are dropped: what is missing is found out, both peers are told, each record closes once',
  () =>
    withPlane(1, async ({ lab, host, ask }) => {
      const talkers = await Promise.all(Array.from({ length: 300 }, () => Talker.connect(lab.client, host, 8400)))
      for (const talker of talkers) await talker.say('x')
      await until(async () => (await ask()).live.length === 300, 20_000, 'all are known')
      const { lost } = await ask()
      const started = performance.now()
      await lab.gateway.must(['conntrack', '-F'])
      for (const talker of talkers) await until(() => talker.ended, 10_000, 'the client hears of it')
      console.log(`every client told within ${(performance.now() - started).toFixed(0)} ms`)
      const state = await until(
        async () => {
          const now = await ask()
          return now.live.length === 0 && now
        },
        10_000,
        'no flow is left',
      )
      expect(state.lost).toBeGreaterThan(lost)
      expect(state).toMatchObject({ total: 300, now: 0, reasons: { conntrack_flushed: 300 } })
      expect(new Set(state.settled.map((record) => record.id)).size).toBe(300)
      await visit(lab.client, host, 8400)
    }),
  60_000,
)

test(
  'H8: how long a target took to answer is told of one connection in eight',
  () =>
    withPlane(0, async ({ lab, host, ask }) => {
      for (let i = 0; i < 16; i++) await visit(lab.client, host, 8400)
      // One that lives: its events do not come in one piece.
      const talkers = await Promise.all(Array.from({ length: 16 }, () => Talker.connect(lab.client, host, 8400)))
      const { setup, lost } = await until(
        async () => {
          const state = await ask()
          return state.settled.length === 16 && state.live.length === 16 && state.setup.length >= 4 && state
        },
        5000,
        'all are known',
      )
      expect([setup.length, lost]).toEqual([4, 0])
      const { address4 } = lab.backend
      expect(setup.every(({ ms, target }) => ms >= 0 && ms < 5000 && target.startsWith(`${address4}:`))).toBe(true)
      expect(new Set(setup.map(({ clock }) => clock)).size).toBe(1)
      console.log(
        `from SYN to established, by ${setup[0]!.clock}: ${setup.map(({ ms }) => ms.toFixed(3)).join(' ')} ms`,
      )
      for (const talker of talkers) await talker.close()
    }),
  30_000,
)
