// One suite over every carrier: a table of what has to hold, whichever carries the bytes. Each case has a route of its own on
// each carrier, all of them in one gateway that runs from the first case to the last; then its log, its metrics and what
// it leaves behind have to agree with all that was done.
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { parseMetrics, series, type Sample } from '../observe/exposition.ts'
import { testIf } from '../support.ts'
import {
  carriers,
  echo,
  type Behaviour,
  type Carrier,
  type ConnectOptions,
  type Peer,
  type Target,
} from './carriers.ts'
import { Gateway, listening, tables, until, type Connection } from './gateway.ts'
import { Lab } from './lab.ts'
import { digestOf, MIB } from './traffic.ts'

const SETTLE_MS = 5000
/** A port of the target where nobody listens, and a range that answers nothing. */
const CLOSED_PORT = 9
const HOLES = 7000
/** Deadlines of kernel flows are looked at every 5 s. */
const LATE_MS = 20_000

type Name = Carrier['name']

interface Case {
  rows: string
  name: string
  /** What the target does; 'nobody' refuses, 'hole' is silent. */
  target?: Behaviour | 'nobody' | 'hole'
  action?: object
  /** Where the one target of the case is not enough. */
  targets?(to: { host: string; port: number }): object[]
  rest?: object
  /** Where it cannot hold, and why. */
  not?: Partial<Record<Name, string>>
  /** It waits for deadlines, about so many seconds: all such cases wait at the same time, the longest begin first. */
  slow?: number
  run(place: Place): Promise<void>
}

/** One route, and what belongs to it. */
class Place {
  /** Refusals by reason that the metrics must have in the end. */
  readonly refused: Record<string, number> = {}

  constructor(
    readonly carrier: Carrier,
    readonly route: string,
    readonly port: number,
    readonly target: Target,
    readonly targetPort: number,
  ) {}

  connect({ family = 4, ...options }: ConnectOptions & { family?: 4 | 6 } = {}): Promise<Peer> {
    const host = family === 4 ? lab.gateway.clientSide4 : lab.gateway.clientSide6
    return this.carrier.connect(lab.client, host, this.port, options)
  }

  /** Connects without minding whether that works. */
  async attempt(options: ConnectOptions = {}): Promise<Peer | null> {
    return this.connect(options).catch(() => null)
  }

  /** One that is served: it has said something and heard it back. null: refused, in whatever way the carrier has. */
  async admitted(): Promise<Peer | null> {
    const peer = await this.attempt()
    if (!peer) return null
    peer.write('hi')
    await until(() => peer.received === 2 || peer.over, SETTLE_MS, `${this.route}: served or refused`)
    return peer.received === 2 ? peer : null
  }

  count(reason: string, times = 1) {
    this.refused[reason] = (this.refused[reason] ?? 0) + times
  }

  #here = (one: Connection) => one.listener.endsWith(`:${this.port}`)

  async listed(): Promise<Connection[]> {
    return (await gateway.connections()).filter(this.#here)
  }

  records() {
    return gateway.records().filter((one) => one.event === 'closed' && this.#here(one))
  }

  /** The records of this port, all of them: so many have to come, and no connection may be left. */
  async over(count: number, ms = SETTLE_MS) {
    const started = performance.now()
    const records = await until(
      () => {
        const found = this.records()
        return found.length >= count && found
      },
      ms,
      `${this.route}: ${count} records`,
    ).catch((error: Error) => {
      throw new Error(`${error.message}; there are ${Bun.inspect(this.records())}`)
    })
    expect(records.length).toBe(count)
    await until(async () => (await this.listed()).length === 0, SETTLE_MS, `${this.route}: no connection is left`)
    return { records, ms: performance.now() - started, reasons: records.map((one) => one.reason) }
  }

  /** Sockets of the gateway in this state that go to the target. */
  async sockets(filter: string): Promise<string[]> {
    const text = await lab.gateway.must(['ss', '-Htano', ...filter.split(' '), 'dport', '=', `:${this.targetPort}`])
    return text.split('\n').filter(Boolean)
  }
}

/** What the kernel may keep of one direction at each of four sockets; newer ones take up to 32 MiB by default. */
const SOCKET_BYTES_MAX = 2 * MIB
/** More than these four, and what is between them. */
const STALLED_BYTES = 16 * MIB

/** Waits until numbers stop to change: three looks, a tenth of a second apart. */
async function settledAt(look: () => number[]) {
  let [before, same] = [look(), 0]
  while (same < 3) {
    await Bun.sleep(100)
    const now = look()
    same = Bun.deepEquals(now, before) ? same + 1 : 0
    before = now
  }
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`

/** Says what comes after a line. */
const answering =
  (answer: (peer: Peer) => void): Behaviour =>
  (peer) => {
    peer.onEnd = () => {}
    peer.onData = () => answer(peer)
  }

const within1Percent = (found: number, wanted: number) => Math.abs(found / wanted - 1) < 0.01

const CASES: Case[] = [
  {
    rows: 'G1, G19, Q7',
    name: 'one record, once, with the right fields and the exact bytes; the target may speak first',
    target: (peer) => {
      echo(peer)
      peer.write('welcome')
    },
    async run(place) {
      const { carrier } = place
      const bytes = 3 * MIB + 17
      const peer = await place.connect()
      await until(() => peer.heard === 'welcome', SETTLE_MS, 'the target speaks first')
      const [listed] = await until(
        async () => {
          const all = await place.listed()
          return all.length === 1 && all[0]!.state === 'open' && all
        },
        SETTLE_MS,
        'it is listed as open',
      )
      const client = `${lab.client.address4}:${peer.socket!.localPort}`
      const same = {
        id: listed!.id,
        route: place.route,
        carrier: carrier.carrier,
        client,
        listener: `${lab.gateway.clientSide4}:${place.port}`,
        target: `${lab.backend.address4}:${place.targetPort}`,
        ...(carrier.tls || carrier.name === 'splice' ? { serverName: 'carrier.test' } : {}),
        ...(carrier.tls ? { tls: { version: 'TLSv1.3', cipher: expect.stringMatching(/^TLS_/) } } : {}),
      }
      expect(listed).toMatchObject(same)
      peer.stream('up', bytes)
      await until(() => peer.received === bytes + 7, 10_000, 'everything has come back')
      const counted = async () => {
        const [one] = await place.listed()
        return one!.bytesIn >= bytes && one!.bytesOut >= bytes
      }
      await until(counted, SETTLE_MS, 'it is listed with its bytes while it lives')
      peer.finish()
      await peer.gone
      const { records } = await place.over(1)
      expect(records[0]).toMatchObject({ ...same, state: 'closed', reason: 'finished' })
      const { bytesIn, bytesOut, openedAt, closedAt } = records[0]!
      expect(Date.parse(closedAt!)).toBeGreaterThanOrEqual(Date.parse(openedAt))
      if (carrier.name === 'kernel')
        expect([within1Percent(bytesIn, bytes), within1Percent(bytesOut, bytes + 7)]).toEqual([true, true])
      else expect([bytesIn, bytesOut]).toEqual([bytes + carrier.prefix, bytes + 7])
    },
  },
  {
    rows: 'G19',
    name: 'what comes in one piece with the first bytes is neither lost nor doubled',
    target: echo,
    async run(place) {
      const peer = await place.connect()
      peer.stream('up', 200_003)
      peer.finish()
      await peer.gone
      expect(peer.digest()).toBe(digestOf('up', 200_003))
      expect(place.target.peers.map((one) => one.digest())).toEqual([digestOf('up', 200_003)])
      expect((await place.over(1)).reasons).toEqual(['finished'])
    },
  },
  {
    rows: 'G2, G3, G4',
    name: 'a target that refuses: the client is ended at once, and nothing stays',
    target: 'nobody',
    async run(place) {
      for (let round = 1; round <= 3; round++) {
        const started = performance.now()
        const peer = await place.attempt()
        await peer?.gone
        console.log(`${place.route}: ended ${(performance.now() - started).toFixed(0)} ms after it began`)
        const { reasons } = await place.over(round)
        expect(reasons).toEqual(reasons.map(() => 'target_refused'))
      }
      expect((await gateway.route(place.route)).connections).toBe(0)
    },
  },
  {
    rows: 'G5',
    name: 'a client that leaves before its first byte, by FIN and by RST',
    target: echo,
    async run(place) {
      const { carrier } = place
      for (const leave of ['finish', 'reset'] as const) {
        const peer = await place.connect({ mute: true })
        // The target of an immediate one stands by then.
        if (carrier.immediate) await until(() => place.target.live().length === 1, SETTLE_MS, 'the target is there')
        peer[leave]()
        if (leave === 'finish') await peer.gone
        await until(() => place.records().length === (leave === 'finish' ? 1 : 2), SETTLE_MS, 'the record')
        await until(() => place.target.live().length === 0, SETTLE_MS, 'the target has been told')
      }
      const { reasons } = await place.over(2)
      // Where nothing has to be read the target was there at once: the client has left it in order, or not.
      expect(reasons).toEqual(
        carrier.immediate ? ['finished', 'client_reset'] : ['closed_before_data', 'closed_before_data'],
      )
      if (!carrier.immediate) expect(place.target.peers).toEqual([])
    },
  },
  {
    rows: 'G6',
    name: 'a client that leaves while the target is dialled takes the SYN with it',
    target: 'hole',
    rest: { timeouts: { connect: '2s' } },
    slow: 3,
    async run(place) {
      const { carrier } = place
      if (carrier.name === 'kernel') {
        // Its SYN is forwarded, and the gateway has no socket of its own; the client gives up without a packet.
        await expect(place.connect({ timeoutMs: 300 })).rejects.toThrow('timed out')
        const { reasons } = await place.over(1, LATE_MS)
        expect(reasons).toEqual(['connect_timeout'])
        expect(await place.sockets('state syn-sent')).toEqual([])
        return
      }
      for (const leave of ['reset', 'finish'] as const) {
        const peer = await place.connect()
        await until(
          async () => (await place.sockets('state syn-sent')).length === 1,
          SETTLE_MS,
          'the target is dialled',
        )
        const left = performance.now()
        peer[leave]()
        await until(async () => (await place.sockets('state syn-sent')).length === 0, SETTLE_MS, 'no SYN is left')
        console.log(`${place.route}: no SYN left ${(performance.now() - left).toFixed(0)} ms after the ${leave}`)
      }
      const { reasons } = await place.over(2)
      expect(reasons).toEqual(
        {
          // A hello was read, and may be a whole request: its FIN waits for the answer until the deadline of the dial.
          splice: ['client_reset', 'connect_timeout'],
          user: ['closed_before_data', 'closed_before_data'],
          terminate: ['client_reset', 'finished'],
          're-encrypt': ['client_reset', 'finished'],
        }[carrier.name],
      )
    },
  },
  {
    rows: 'G8, L7, Q1',
    name: 'an answer that streams on after the request side has closed arrives whole',
    target: answering((peer) => {
      peer.onData = undefined
      void (async () => {
        for (let i = 0; i < 8; i++) {
          await Bun.sleep(100)
          peer.write(`part ${i};`)
        }
        peer.finish()
      })()
    }),
    slow: 1,
    async run(place) {
      const peer = await place.connect()
      peer.write('request')
      peer.finish()
      await peer.gone
      expect(peer.heard).toBe(Array.from({ length: 8 }, (_, i) => `part ${i};`).join(''))
      expect((await place.over(1)).reasons).toEqual(['finished'])
    },
  },
  {
    rows: 'G8, Q1',
    name: 'half open without the opt-in is bounded, and nobody waits for the other',
    target: answering(() => {}),
    rest: { timeouts: { halfClosed: '1s', grace: '1s' } },
    slow: 3,
    async run(place) {
      const peer = await place.connect()
      peer.write('request')
      peer.finish()
      await until(() => place.target.peers[0]?.ended, SETTLE_MS, 'the target has got the FIN')
      const started = performance.now()
      await until(() => peer.over, LATE_MS, 'the client has been told')
      console.log(`${place.route}: ended ${seconds(performance.now() - started)} after the FIN`)
      // An orderly end has nothing more to say to one that has its FIN already: it hears of it when it speaks.
      const saysMore = () => {
        for (const target of place.target.live()) target.write('too late')
        return place.target.live().length === 0
      }
      await until(saysMore, SETTLE_MS, 'the target has been told')
      expect((await place.over(1, LATE_MS)).reasons).toEqual(['half_closed_timeout'])
    },
  },
  {
    rows: 'G8, G11, Q1',
    name: 'half open with the opt-in lasts beyond halfClosed, and the answer comes in full',
    target: answering((peer) => {
      peer.onData = undefined
      void (async () => {
        // In the kernel a limit of a second may be noticed up to six seconds late.
        for (let i = 0; i < 9; i++) {
          await Bun.sleep(900)
          peer.write(`part ${i};`)
        }
        peer.finish()
      })()
    }),
    action: { allowHalfOpen: true },
    rest: { timeouts: { halfClosed: '1s', parity: '4s', idle: '4s' } },
    slow: 8,
    async run(place) {
      const peer = await place.connect()
      peer.write('request')
      peer.finish()
      await until(() => peer.over, LATE_MS, 'it has ended')
      expect(peer.heard).toBe(Array.from({ length: 9 }, (_, i) => `part ${i};`).join(''))
      expect((await place.over(1)).reasons).toEqual(['finished'])
    },
  },
  {
    rows: 'G13',
    name: 'half open with the opt-in ends when nothing has moved for parity',
    target: answering(() => {}),
    action: { allowHalfOpen: true },
    rest: { timeouts: { halfClosed: '1h', parity: '2s' } },
    slow: 4,
    async run(place) {
      const peer = await place.connect()
      peer.write('request')
      peer.finish()
      await until(() => peer.over && place.target.live().length === 0, LATE_MS, 'both ends have been told')
      expect((await place.over(1, LATE_MS)).reasons).toEqual(['half_closed_timeout'])
    },
  },
  {
    rows: 'G12, G14',
    name: 'idle is counted over both directions: one that only sends lives, one that is silent ends',
    target: (peer) => void (peer.onData = () => {}),
    rest: { timeouts: { idle: '2s' } },
    slow: 7,
    async run(place) {
      const [talker, silent] = [await place.connect(), await place.connect()]
      silent.write('once')
      const talking = setInterval(() => talker.write('more'), 500)
      try {
        await until(() => silent.over, LATE_MS, 'the silent one ends')
        expect(talker.over).toBeNull()
      } finally {
        clearInterval(talking)
      }
      await until(() => talker.over && place.target.live().length === 0, LATE_MS, 'and the other when it falls silent')
      expect((await place.over(2, LATE_MS)).reasons).toEqual(['idle_timeout', 'idle_timeout'])
    },
  },
  {
    rows: 'Q2, M4',
    name: 'a reset of one side reaches the other, and the reason says whose it was',
    target: (peer) => {
      peer.onData = (_, bytes) => (bytes.toString() === 'die' ? peer.reset() : peer.write(bytes))
    },
    async run(place) {
      for (const who of ['client', 'target'] as const) {
        const peer = await place.admitted()
        const other = place.target.live()[0]!
        if (who === 'client') peer!.reset()
        else peer!.write('die')
        await until(() => (who === 'client' ? other : peer!).over, SETTLE_MS, `the reset of the ${who} goes through`)
        expect((who === 'client' ? other : peer!).errorCode).toBe('ECONNRESET')
        await until(() => place.records().length === (who === 'client' ? 1 : 2), SETTLE_MS, 'the record')
      }
      expect((await place.over(2)).reasons).toEqual(['client_reset', 'target_reset'])
    },
  },
  {
    rows: 'G10',
    name: '5 MiB that are still on their way when the target has closed arrive whole',
    target: (peer) => {
      peer.stream('down', 5 * MIB)
      peer.finish()
    },
    async run(place) {
      const peer = await place.connect()
      peer.socket!.pause()
      await until(() => (place.target.peers[0]?.sent ?? 0) > MIB / 4, SETTLE_MS, 'it is on its way')
      await Bun.sleep(300)
      peer.socket!.resume()
      await peer.gone
      expect([peer.received, peer.digest()]).toEqual([5 * MIB, digestOf('down', 5 * MIB)])
      const { records } = await place.over(1)
      expect(records[0]!.reason).toBe('finished')
    },
  },
  {
    rows: 'G10',
    name: 'a peer that takes nothing more after a half close is forced in the end',
    target: answering((peer) => peer.stream('down', 64 * MIB)),
    rest: { timeouts: { halfClosed: '1s', grace: '1s' } },
    slow: 4,
    async run(place) {
      const peer = await place.connect()
      peer.write('request')
      peer.finish()
      peer.socket!.pause()
      const { reasons } = await place.over(1, LATE_MS)
      expect(reasons).toEqual(['half_closed_timeout'])
      await until(() => place.target.live().length === 0, SETTLE_MS, 'the target has been told')
      peer.reset()
    },
  },
  {
    rows: 'G1, E2',
    name: 'first bytes that come one by one, over IPv6',
    target: echo,
    async run(place) {
      const peer = await place.connect({ mute: true, family: 6 })
      const text = place.carrier.tls ? Buffer.alloc(0) : Buffer.from('words')
      for (const byte of Buffer.concat([place.carrier.hello, text])) {
        peer.write(Buffer.of(byte))
        // A segment each: what is written within a turn of the loop may go as one.
        await Bun.sleep(0)
      }
      // The handshake that would follow is not this client's business: its hello was understood when it is answered.
      await until(() => peer.received >= 5, SETTLE_MS, 'it is answered')
      if (place.carrier.tls) peer.reset()
      else {
        expect(peer.heard).toBe('words')
        peer.finish()
        await peer.gone
      }
      const { records } = await place.over(1)
      expect(records[0]).toMatchObject({
        client: expect.stringMatching(/^\[fd00:99:1::2\]:\d+$/),
        listener: `[${lab.gateway.clientSide6}]:${place.port}`,
        reason: place.carrier.tls ? 'handshake_failed' : 'finished',
      })
    },
  },
  {
    rows: 'G3, E7',
    name: 'a target that refuses costs no client its connection where there is another: its first bytes are kept',
    target: echo,
    targets: (to) => [{ host: to.host, port: CLOSED_PORT }, to],
    not: { kernel: 'a SYN is forwarded to one target, and its answer is the client’s' },
    async run(place) {
      for (let i = 0; i < 4; i++) {
        const peer = await place.connect()
        peer.stream('up', 50_000)
        peer.finish()
        await peer.gone
        expect(peer.digest()).toBe(digestOf('up', 50_000))
      }
      const { records } = await place.over(4)
      for (const record of records)
        expect(record).toMatchObject({ reason: 'finished', target: `${lab.backend.address4}:${place.targetPort}` })
    },
  },
  {
    rows: 'M4',
    name: 'close ID ends it at both ends, also in the middle of a transfer; the others stay',
    target: (peer) => {
      echo(peer)
      peer.stream('down', 1e12)
    },
    async run(place) {
      const peers = [await place.connect(), await place.connect()]
      await until(() => peers.every((peer) => peer.received > MIB), SETTLE_MS, 'both are in the middle of it')
      const [victim, other] = peers as [Peer, Peer]
      const listed = await until(
        async () => {
          const found = await place.listed()
          return found.length === 2 && found
        },
        SETTLE_MS,
        'both are listed',
      )
      const { id } = listed.find((one) => one.client.endsWith(`:${victim.socket!.localPort}`))!
      expect((await gateway.close(id)).status).toBe(200)
      await until(() => victim.over && place.target.live().length === 1, SETTLE_MS, 'both ends have been told')
      expect(victim.errorCode).toBe('ECONNRESET')
      const before = other.received
      await until(() => other.received > before + MIB, SETTLE_MS, 'the other goes on')
      other.reset()
      const { records, reasons } = await place.over(2)
      expect([records[0]!.id, ...reasons]).toEqual([id, 'killed', 'client_reset'])
    },
  },
  {
    rows: 'G10, H9',
    name: 'a drained route: nobody new, who is there may finish, who does not is cut',
    target: echo,
    slow: 3,
    async run(place) {
      const [quick, slow] = [(await place.admitted())!, (await place.admitted())!]
      const drained = await gateway.ask('/v1/drain', 'POST', { route: place.route, for: '2s' })
      expect(drained).toMatchObject({ status: 200 })
      // Also for those of a target, the kernel is told within the call.
      expect(await place.admitted()).toBeNull()
      place.count('draining')
      quick.write(' and bye')
      await until(() => quick.heard === 'hi and bye', SETTLE_MS, 'it is served still')
      quick.finish()
      await quick.gone
      await until(() => slow.over && place.target.live().length === 0, LATE_MS, 'what is left is cut')
      expect((await place.over(2)).reasons).toEqual(['finished', 'drained'])
      expect(await gateway.ask('/v1/drain', 'POST', { route: place.route, undo: true })).toMatchObject({ status: 200 })
      const again = await until(() => place.admitted(), SETTLE_MS, 'it takes connections again')
      again.finish()
      await place.over(3)
    },
  },
  {
    rows: 'G9',
    name: 'a reader that stops: its writer waits, nothing is kept in between, and all of it comes in the end',
    target: (peer) => {
      peer.onData = (_, bytes) => {
        if (bytes.toString().startsWith('stop')) return peer.socket!.pause()
        peer.stream('down', STALLED_BYTES)
        peer.onData = undefined
      }
    },
    async run(place) {
      const before = await workerRss()
      const readers = await Promise.all(Array.from({ length: 4 }, () => place.connect()))
      for (const peer of readers) {
        peer.write('send')
        peer.socket!.pause()
      }
      const senders = await Promise.all(Array.from({ length: 2 }, () => place.connect()))
      for (const peer of senders) peer.write('stop')
      await until(() => place.target.peers.length === 6, SETTLE_MS, 'all are there')
      await until(
        () => place.target.peers.filter((peer) => peer.sent > MIB / 4).length === 4,
        SETTLE_MS,
        'the target has begun',
      )
      for (const peer of senders) peer.stream('up', STALLED_BYTES)
      await settledAt(() => [...place.target.peers, ...senders].map((peer) => peer.sent))
      const sent = [...place.target.peers, ...senders].map((peer) => peer.sent)
      const grown = (await workerRss()) - before
      console.log(
        `${place.route}: ${mib(Math.max(...sent))} of ${mib(STALLED_BYTES)} left a sender at most, RSS grew by ${mib(grown)}`,
      )
      expect(Math.max(...sent)).toBeLessThan(STALLED_BYTES)
      expect(grown).toBeLessThan(24 * MIB)
      for (const peer of readers) peer.socket!.resume()
      await until(() => readers.every((peer) => peer.received === STALLED_BYTES), 30_000, 'all of it has come')
      expect(readers.map((peer) => peer.digest())).toEqual(readers.map(() => digestOf('down', STALLED_BYTES)))
      for (const peer of [...readers, ...senders]) peer.reset()
      const { reasons } = await place.over(6)
      expect(reasons).toEqual(reasons.map(() => 'client_reset'))
    },
  },
  {
    rows: 'G15, G16',
    name: 'a client that vanishes without a word is noticed, and its target is told',
    target: echo,
    rest: { keepAlive: { idle: '1s', interval: '1s', count: 2 } },
    not: { kernel: 'the gateway has no socket that could ask; the route’s idle ends it' },
    slow: 8,
    async run(place) {
      const peer = (await place.admitted())!
      const port = peer.socket!.localPort
      // What is on its way without an answer is another timer's: its last ACK may take 40 ms.
      await Bun.sleep(100)
      await lab.gateway.nft(
        `table inet vanish-${port} { chain in { type filter hook input priority 0; tcp sport ${port} drop; };
         chain out { type filter hook output priority 0; tcp dport ${port} drop; }; }`,
      )
      try {
        await until(() => place.target.live().length === 0, LATE_MS, 'the target is told')
        expect((await place.over(1)).reasons).toEqual(['client_vanished'])
      } finally {
        await lab.gateway.nft(`delete table inet vanish-${port}`)
      }
      peer.reset()
    },
  },
  {
    rows: 'G15',
    name: 'keepalive at both ends',
    target: echo,
    rest: { keepAlive: { idle: '40s' } },
    not: { kernel: 'the gateway has no socket that could ask; conntrack times out instead' },
    slow: 6,
    async run(place) {
      const peer = await place.admitted()
      await until(
        async () => {
          const ours = [...(await place.sockets('state established')), ...(await clientSide(place))]
          return ours.length === 2 && ours.every((line) => /timer:\(keepalive,/.test(line))
        },
        LATE_MS,
        'both have the timer',
      )
      peer!.finish()
      await peer!.gone
      await place.over(1)
    },
  },
  {
    rows: 'G15',
    name: 'no keepalive where the route wants none',
    target: echo,
    rest: { keepAlive: false },
    not: { kernel: 'the gateway has no socket that could ask' },
    slow: 6,
    async run(place) {
      const peer = await place.admitted()
      // Others get theirs after five seconds at most.
      await Bun.sleep(6000)
      const ours = [...(await place.sockets('state established')), ...(await clientSide(place))]
      expect([ours.length, ours.filter((line) => line.includes('keepalive'))]).toEqual([2, []])
      peer!.finish()
      await peer!.gone
      await place.over(1)
    },
  },
  {
    rows: 'G20',
    name: 'a flood before the target answers is not taken: the client waits, the memory stays',
    target: 'hole',
    rest: { timeouts: { connect: '1s' } },
    not: { kernel: 'before the target has answered there is no connection that could flood' },
    async run(place) {
      const before = await workerRss()
      const flooders = await Promise.all(Array.from({ length: 8 }, () => place.connect()))
      for (const peer of flooders) peer.stream('up', 64 * MIB)
      await until(async () => (await place.sockets('state syn-sent')).length === 8, SETTLE_MS, 'the target is dialled')
      await until(() => flooders.every((peer) => peer.over), LATE_MS, 'the dial is given up')
      const grown = (await workerRss()) - before
      const taken = Math.max(...flooders.map((peer) => peer.sent))
      console.log(`${place.route}: ${(taken / MIB).toFixed(1)} MiB of 64 left the client, RSS grew by ${mib(grown)}`)
      expect(taken).toBeLessThan(32 * MIB)
      expect(grown).toBeLessThan(32 * MIB)
      const { records, reasons } = await place.over(8)
      expect(reasons).toEqual(reasons.map(() => 'connect_timeout'))
      // 64 KiB and what one read brings on top of them.
      for (const { bytesIn } of records) expect(bytesIn).toBeLessThan(MIB)
    },
  },
  {
    rows: 'I2, I3',
    name: 'a client of the block list is refused: no record, no contact with the target, counted',
    target: echo,
    rest: { security: { ipBlockList: ['10.99.1.2'] } },
    async run(place) {
      for (let i = 0; i < 3; i++) expect(await place.admitted()).toBeNull()
      place.count('route_ip_blocked', 3)
      expect(await place.listed()).toEqual([])
      expect([place.records(), place.target.peers]).toEqual([[], []])
    },
  },
  {
    rows: 'I5, I7',
    name: 'maxConnectionsPerIp: one more is refused, a close makes room',
    target: echo,
    rest: { security: { maxConnectionsPerIp: 3 } },
    run: (place) => oneTooMany(place, 'route_ip_limit'),
  },
  {
    rows: 'I5, I8',
    name: 'maxConnections: one more is refused, a close makes room',
    target: echo,
    rest: { security: { maxConnections: 3 } },
    run: (place) => oneTooMany(place, 'route_limit'),
  },
  {
    rows: 'I6',
    name: 'a burst never exceeds the maximum',
    target: echo,
    rest: { security: { maxConnections: 5 } },
    async run(place) {
      const held = (await Promise.all(Array.from({ length: 30 }, () => place.admitted()))).filter((one) => one !== null)
      place.count('route_limit', 30 - held.length)
      // The kernel counts those that stand, and those it has just refused for a moment too.
      expect(held.length).toBeLessThanOrEqual(5)
      expect(held.length).toBeGreaterThan(0)
      expect(place.target.peers.length).toBe(held.length)
      for (const peer of held) peer.finish()
      const { reasons } = await place.over(held.length)
      expect(reasons).toEqual(held.map(() => 'finished'))
    },
  },
  {
    rows: 'I10',
    name: 'a flood of refused clients is a number, not a line each',
    target: echo,
    rest: { security: { ipBlockList: ['10.99.1.0/24'] } },
    async run(place) {
      const lines = () => gateway.logText().split('\n').length
      const before = lines()
      let left = 200
      const one = async () => {
        while (left-- > 0) expect(await place.admitted()).toBeNull()
      }
      await Promise.all(Array.from({ length: 20 }, one))
      place.count('route_ip_blocked', 200)
      expect(lines() - before).toBeLessThan(10)
      expect(place.records()).toEqual([])
    },
  },
  {
    rows: 'E3, G1',
    name: 'first bytes that are no hello',
    target: echo,
    rest: { timeouts: { handshake: '5s' } },
    async run(place) {
      const { carrier } = place
      const peer = await place.connect({ mute: true })
      peer.write('this is no hello at all')
      if (carrier.immediate) {
        // Nobody reads them: they are the target's business.
        await until(() => peer.heard === 'this is no hello at all', SETTLE_MS, 'they are carried')
        peer.finish()
      }
      await peer.gone
      const { reasons } = await place.over(1)
      expect(reasons).toEqual([carrier.immediate ? 'finished' : carrier.tls ? 'handshake_failed' : 'malformed_hello'])
      if (!carrier.immediate) expect(place.target.peers).toEqual([])
    },
  },
  {
    rows: 'G1, E4',
    name: 'a client that says nothing where its first bytes decide',
    target: echo,
    rest: { timeouts: { firstByte: '1s', handshake: '1s' } },
    slow: 2,
    async run(place) {
      const { carrier } = place
      const peer = await place.connect({ mute: true })
      if (carrier.immediate) {
        await Bun.sleep(1500)
        peer.write('late')
        await until(() => peer.heard === 'late', SETTLE_MS, 'it is served: nothing was waited for')
        peer.finish()
      }
      await peer.gone
      const { reasons } = await place.over(1)
      expect(reasons).toEqual([
        carrier.immediate ? 'finished' : carrier.tls ? 'handshake_timeout' : 'first_byte_timeout',
      ])
    },
  },
]

/** Three are served and the fourth is not, until one of the three has gone. */
async function oneTooMany(place: Place, reason: string) {
  const held: Peer[] = []
  for (let i = 0; i < 3; i++) held.push((await place.admitted())!)
  expect(held).not.toContain(null)
  for (let i = 0; i < 3; i++) expect(await place.admitted()).toBeNull()
  place.count(reason, 3)
  expect(place.target.peers.length).toBe(3)
  held[0]!.finish()
  await held[0]!.gone
  held[0] = await until(
    async () => {
      const one = await place.admitted()
      if (!one) place.count(reason)
      return one
    },
    SETTLE_MS,
    'a close has made room',
  )
  expect(await place.admitted()).toBeNull()
  place.count(reason)
  for (const peer of held) peer.finish()
  const { reasons } = await place.over(4)
  expect(reasons).toEqual(['finished', 'finished', 'finished', 'finished'])
  expect(place.target.peers.length).toBe(4)
}

const clientSide = async (place: Place) =>
  (await lab.gateway.must(['ss', '-Htano', 'state', 'established', 'sport', '=', `:${place.port}`]))
    .split('\n')
    .filter(Boolean)

const mib = (bytes: number) => `${(bytes / MIB).toFixed(1)} MiB`

async function workerRss(): Promise<number> {
  const { worker } = await gateway.status()
  const status = await Bun.file(`/proc/${worker.pid}/status`).text()
  return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) * 1024
}

// ---- the one gateway ----

let lab: Lab
let gateway: Gateway
const places = new Map<string, Place>()
/** One quiet connection for each carrier, from the beginning to the end. */
const lasting: Peer[] = []
const LASTING: Case = { rows: 'G11', name: 'lasting', target: echo, run: async () => {} }

const all = await carriers()
const key = (one: Case, carrier: Carrier) => `${[LASTING, ...CASES].indexOf(one)}-${carrier.name}`

beforeAll(async () => {
  lab = await Lab.create()
  for (const namespace of lab.namespaces)
    namespace.setSysctl({
      'net.ipv4.tcp_rmem': `4096 131072 ${SOCKET_BYTES_MAX}`,
      'net.ipv4.tcp_wmem': `4096 16384 ${SOCKET_BYTES_MAX}`,
    })
  await lab.backend.nft(
    `table inet hole { chain in { type filter hook input priority 0; tcp dport ${HOLES}-${HOLES + 999} drop; }; }`,
  )
  const nobody = { port: CLOSED_PORT, peers: [], live: () => [], stop() {} }
  const routes = [LASTING, ...CASES].flatMap((one, row) =>
    all
      .filter((carrier) => !one.not?.[carrier.name])
      .map((carrier, column) => {
        const number = row * 10 + column
        const { target: behave = echo } = one
        const target = typeof behave === 'string' ? nobody : carrier.listen(lab.backend, behave)
        const targetPort = behave === 'hole' ? HOLES + number : target.port
        const place = new Place(carrier, key(one, carrier), 8000 + number, target, targetPort)
        places.set(place.route, place)
        const to = { host: lab.backend.address4, port: targetPort }
        const action = { ...one.action, ...(one.targets ? { targets: one.targets(to) } : {}) }
        return carrier.route(place.route, place.port, to, action, one.rest)
      }),
  )
  gateway = await Gateway.start(lab, routes)
  for (const carrier of all) {
    const place = places.get(key(LASTING, carrier))!
    expect((await gateway.route(place.route)).carrier).toBe(carrier.carrier)
    lasting.push((await place.admitted())!)
  }
}, 60_000)

afterAll(async () => {
  await gateway?.[Symbol.asyncDispose]()
  await lab?.[Symbol.asyncDispose]()
}, 60_000)

const declare = (one: Case) => {
  for (const carrier of all) {
    const why = one.not?.[carrier.name]
    testIf(!why, why ?? '')(
      `${one.rows}: ${carrier.name}: ${one.name}`,
      () => one.run(places.get(key(one, carrier))!),
      60_000,
    )
  }
}

for (const one of CASES) if (!one.slow) declare(one)
describe.concurrent('waiting for deadlines', () => {
  const waiting = CASES.filter((one) => one.slow).toSorted((a, b) => b.slow! - a.slow!)
  for (const one of waiting) declare(one)
})

async function scrape(): Promise<Sample[]> {
  const answer = await fetch('http://sluice/metrics', { unix: gateway.socket } as RequestInit)
  return parseMetrics(await answer.text())
}

/** How often each key comes. */
function tally(keys: string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const key of keys) counts[key] = (counts[key] ?? 0) + 1
  return counts
}

/** Sockets in the gateway's namespace that are more than a memory of one. */
const socketsLeft = async (where: Lab['gateway']) =>
  (await where.must(['ss', '-Htan', 'state', 'connected', 'exclude', 'time-wait'])).split('\n').filter(Boolean)

test('G11, M2, M4, I8, I10, G17: log and metrics agree with all that was done; a stop leaves nothing', async () => {
  const ages = (await gateway.connections()).map((one) => seconds(Date.now() - Date.parse(one.openedAt)))
  expect(ages.length).toBe(lasting.length)
  console.log(`quiet, and served still after ${ages[0]}`)
  for (const peer of lasting) {
    peer.write('still here')
    await until(() => peer.heard === 'histill here', SETTLE_MS, 'it is served')
    peer.finish()
    await peer.gone
  }
  await until(async () => (await gateway.connections()).length === 0, SETTLE_MS, 'no connection is left')
  const closed = () => gateway.records().filter((one) => one.event === 'closed')
  const reasons = () => tally(closed().map((one) => `reason=${one.reason},route=${one.route}`))
  await until(
    async () => Bun.deepEquals(series(await scrape(), 'sluice_connections_closed_total'), reasons()),
    SETTLE_MS,
    'the reasons are counted',
  ).catch(async () => expect(series(await scrape(), 'sluice_connections_closed_total')).toEqual(reasons()))
  const records = closed()
  console.log(`${records.length} connections: ${Bun.inspect(tally(records.map((one) => one.reason!)))}`)
  expect(new Set(records.map((one) => one.id)).size).toBe(records.length)
  expect(records.filter((one) => one.reason === 'internal_error')).toEqual([])

  // Each of them is counted once by its route, with its bytes; what never came to a route has none.
  const found = await scrape()
  const opened = tally(records.map((one) => `route=${one.route}`))
  const counted = (name: string) =>
    Object.fromEntries(Object.entries(series(found, name)).filter(([, value]) => value > 0))
  expect(counted('sluice_connections_opened_total')).toEqual(opened)
  for (const [name, bytes] of [
    ['sluice_receive_bytes_total', (one: Connection) => one.bytesIn],
    ['sluice_transmit_bytes_total', (one: Connection) => one.bytesOut],
  ] as const) {
    const sums: Record<string, number> = {}
    for (const one of records)
      if (bytes(one) > 0) sums[`route=${one.route}`] = (sums[`route=${one.route}`] ?? 0) + bytes(one)
    expect(counted(name)).toEqual(sums)
  }
  expect(Object.values(series(found, 'sluice_connections')).filter((value) => value !== 0)).toEqual([])
  expect(series(found, 'sluice_anomalies_total')).toEqual({ '': 0 })
  expect(series(found, 'sluice_worker_restarts_total')).toEqual({ '': 0 })

  // Refusals: exactly those that were counted here, in the metrics and in the lines of the log.
  const wanted = Object.fromEntries(
    [...places.values()].flatMap((place) =>
      Object.entries(place.refused).map(([reason, count]) => [`${reason} ${place.route}`, count]),
    ),
  )
  const ofMetrics = async () =>
    Object.fromEntries(
      Object.entries(series(await scrape(), 'sluice_connections_refused_total'))
        .filter(([, count]) => count > 0)
        .map(([key, count]) => [/reason=(\w+),route=(.*)$/.exec(key)!.slice(1).join(' '), count]),
    )
  await until(async () => Bun.deepEquals(await ofMetrics(), wanted), 10_000, 'every refusal is counted').catch(
    async () => expect(await ofMetrics()).toEqual(wanted),
  )
  const { worker } = await gateway.status()
  expect(await gateway.stop()).toBe(0)
  const lines = gateway.records().filter((one) => one.event === 'refused') as unknown as Refused[]
  const sums: Record<string, number> = {}
  for (const { route, reason, count } of lines) sums[`${reason} ${route}`] = (sums[`${reason} ${route}`] ?? 0) + count
  expect(sums).toEqual(wanted)
  // A line for each route and reason in ten seconds at most: none of these cases takes longer.
  for (const times of Object.values(tally(lines.map((line) => `${line.reason} ${line.route}`))))
    expect(times).toBeLessThanOrEqual(2)

  expect(existsSync(`/proc/${worker.pid}`)).toBe(false)
  expect([await listening(lab.gateway), await tables(lab.gateway), await socketsLeft(lab.gateway)]).toEqual([
    [],
    [],
    [],
  ])
  await until(
    () => [...places.values()].every((place) => place.target.live().length === 0),
    SETTLE_MS,
    'no target waits',
  )
}, 60_000)

interface Refused {
  route: string
  reason: string
  count: number
}

test('G10, G17: a stop: what is pending is delivered on every carrier, what is stalled is cut, nothing is left', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const flood: Behaviour = (peer) => peer.stream('down', 1024 * MIB)
  const pending: Behaviour = (peer) => {
    peer.stream('down', 5 * MIB)
    peer.finish()
  }
  const kinds = { pending, flood, echo }
  const targets: Target[] = []
  const routes = Object.entries(kinds).flatMap(([kind, behave], row) =>
    all.map((carrier, column) => {
      const target = carrier.listen(lab.backend, behave)
      targets.push(target)
      const to = { host: lab.backend.address4, port: target.port }
      return carrier.route(`${kind}-${carrier.name}`, 8000 + 10 * row + column, to)
    }),
  )
  await using gateway = await Gateway.start(lab, routes, { config: { timeouts: { grace: '2s' } } })
  const open = (row: number) =>
    Promise.all(all.map((carrier, column) => carrier.connect(lab.client, host, 8000 + 10 * row + column)))
  const [waiting, stalled, idle] = [await open(0), await open(1), await open(2)]
  for (const peer of [...waiting, ...stalled]) peer.socket!.pause()
  await until(
    () => targets.slice(0, 10).every(({ peers }) => (peers[0]?.sent ?? 0) > MIB / 4),
    5000,
    'all are on their way',
  )
  const { worker } = await gateway.status()
  gateway.process.kill('SIGTERM')
  await until(async () => (await listening(lab.gateway)).length === 0, 5000, 'nobody listens')
  for (const peer of waiting) peer.socket!.resume()
  await Promise.all(waiting.map((peer) => peer.gone))
  expect(waiting.map((peer) => peer.digest())).toEqual(waiting.map(() => digestOf('down', 5 * MIB)))
  const stopped = performance.now()
  expect(await gateway.exited()).toBe(0)
  console.log(`stopped ${seconds(performance.now() - stopped)} after the last byte that was pending`)
  const reasons = Object.fromEntries(gateway.records().map((one) => [one.route, one.reason]))
  const each = (kind: string, reason: string) => all.map((carrier) => [`${kind}-${carrier.name}`, reason])
  expect(reasons).toEqual(
    Object.fromEntries([...each('pending', 'finished'), ...each('flood', 'drained'), ...each('echo', 'drained')]),
  )
  expect(gateway.records().length).toBe(3 * all.length)
  await until(() => idle.every((peer) => peer.over), 5000, 'the idle clients have been told')
  await until(() => targets.every((target) => target.live().length === 0), 5000, 'the targets have been told')
  expect(existsSync(`/proc/${worker.pid}`)).toBe(false)
  expect([await listening(lab.gateway), await tables(lab.gateway), await socketsLeft(lab.gateway)]).toEqual([
    [],
    [],
    [],
  ])
}, 60_000)
