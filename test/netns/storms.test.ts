// Storms: clients that come and go by the thousand, at any moment of a connection. Afterwards everything is as it was before:
// connections, sockets, descriptors and listeners; and each connection has one record with a reason of its own.
import { expect, test } from 'bun:test'
import { randomOf } from '../plan/lists.ts'
import { slowness } from '../support.ts'
import { carriers, descriptors, echo, isWithin, type Carrier, type Peer } from './carriers.ts'
import { Gateway, listening, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { MIB } from './traffic.ts'

const STORM = Math.ceil(5000 / slowness)
const AT_ONCE = 100
/** The client of all handshakes is this very process: the engine serves five in a turn, the newest first, and old ones wait. */
const AT_ONCE_TLS = 25
const HOLE = 7000
/** What the relay may keep open while nobody needs it: 64 pipes of two descriptors each. */
const POOLED_MAX = 128

const all = await carriers()
const of = (name: Carrier['name']) => all.find((one) => one.name === name)!

async function memory(pid: number): Promise<number> {
  const status = await Bun.file(`/proc/${pid}/status`).text()
  return (Number(/VmRSS:\s+(\d+)/.exec(status)![1]) * 1024) / MIB
}

/** Everything of the gateway that a connection may leave behind. */
async function footprint(gateway: Gateway) {
  const { pid, worker } = await gateway.status()
  const files = await descriptors(worker.pid)
  const control = await descriptors(pid)
  return {
    sockets: files.socket,
    files: Object.fromEntries(Object.entries(files).filter(([kind]) => kind !== 'socket' && kind !== 'pipe')),
    pipes: files.pipe ?? 0,
    control,
    listeners: (await listening(gateway.namespace)).length,
  }
}
type Footprint = Awaited<ReturnType<typeof footprint>>

/** Waits until everything is as it was; says how long that took after `since`. */
async function asBefore(gateway: Gateway, before: Footprint, since: number, what: string) {
  await until(async () => (await gateway.connections()).length === 0, 10_000, 'no connection is left').catch(
    async (error: Error) => {
      const left = (await gateway.connections()).slice(0, 5)
      const sockets = (await gateway.namespace.must(['ss', '-Htno'])).split('\n').slice(0, 20)
      throw new Error(`${error.message}: ${Bun.inspect([left, sockets])}\n${gateway.logText().slice(-2000)}`)
    },
  )
  const counts = performance.now() - since
  const same = async () => {
    const { pipes, control, ...now } = await footprint(gateway)
    const { pipes: lent, control: asked, ...then } = before
    return pipes <= POOLED_MAX + lent && isWithin(control, asked) && Bun.deepEquals(now, then)
  }
  await until(same, 5000, 'descriptors are as before').catch(async (error: Error) => {
    throw new Error(`${error.message}: ${Bun.inspect([before, await footprint(gateway)])}`)
  })
  console.log(
    `${what}: no connection ${counts.toFixed(0)} ms, descriptors as before ${(performance.now() - since).toFixed(0)} ms after the last close`,
  )
}

function sound(records: { id: string; reason?: string }[]) {
  const known = new Map<string, object>()
  const twice = records.flatMap((one) => {
    const before = known.get(one.id)
    known.set(one.id, one)
    return before ? [[before, one]] : []
  })
  expect(twice).toEqual([])
  const counts: Record<string, number> = {}
  for (const { reason } of records) counts[reason ?? 'none'] = (counts[reason ?? 'none'] ?? 0) + 1
  expect([counts.none, counts.internal_error]).toEqual([undefined, undefined])
  return counts
}

const closed = (gateway: Gateway) => gateway.records().filter((one) => one.event === 'closed')

test('G4, N: 20 retries of 50 ms against a target that refuses, on every carrier', async () => {
  await using lab = await Lab.create()
  const to = { host: lab.backend.address4, port: 9 }
  await using gateway = await Gateway.start(
    lab,
    all.map((carrier, i) => carrier.route(carrier.name, 8400 + i, to)),
  )
  const retry = async (carrier: Carrier, i: number) => {
    const peer = await carrier.connect(lab.client, lab.gateway.clientSide4, 8400 + i).catch(() => null)
    await peer?.gone
  }
  await Promise.all(all.map(retry))
  await gateway.recordsOf(all.length)
  const before = await footprint(gateway)
  for (let round = 0; round < 20; round++) {
    await Promise.all(all.map(retry))
    if (round < 19) await Bun.sleep(50)
  }
  const last = performance.now()
  await asBefore(gateway, before, last, '20 retries')
  const records = await gateway.recordsOf(21 * all.length)
  expect(sound(records)).toEqual({ target_refused: 21 * all.length })
}, 60_000)

/** Bytes of a hello as the splice carrier's client says it. */
async function helloBytes(lab: Lab): Promise<Buffer> {
  const heard = Promise.withResolvers<Buffer>()
  const { port, stop } = lab.backend.listen({ data: (_, bytes) => heard.resolve(Buffer.from(bytes)), error: () => {} })
  const peer = await of('splice').connect(lab.backend, lab.backend.address4, port)
  const bytes = await heard.promise
  peer.reset()
  stop()
  return bytes
}

type Leave = 'finish' | 'reset'
/** What one client of a storm does until it leaves. */
type Moment = (storm: Storm, leave: Leave) => Promise<void>
interface Storm {
  carrier: Carrier
  hello: Buffer
  wait(): Promise<void>
  below(limit: number): number
  connect(dialling?: boolean, mute?: boolean): Promise<Peer>
}

const leaves = (peer: Peer, leave: Leave) => peer[leave]()

const MOMENTS: Record<string, Moment> = {
  async 'before the hello'(storm, leave) {
    const peer = await storm.connect(false, true)
    if (storm.below(2)) await storm.wait()
    leaves(peer, leave)
  },
  async 'within the hello'(storm, leave) {
    const peer = await storm.connect(false, true)
    peer.write(storm.hello.subarray(0, 1 + storm.below(storm.hello.length - 1)))
    if (storm.below(2)) await storm.wait()
    leaves(peer, leave)
  },
  async 'during the handshake'(storm, leave) {
    // Whole, and never answered: with TLS the gateway waits for the client's part. Without it the target is asked.
    const peer = await storm.connect(false, true)
    peer.write(storm.hello)
    await storm.wait()
    leaves(peer, leave)
  },
  async 'while dialling'(storm, leave) {
    const peer = await storm.connect(true)
    await storm.wait()
    // What was read of a hello may be a whole request: its FIN waits for the answer, as carriers.test.ts shows.
    leaves(peer, storm.carrier.name === 'splice' ? 'reset' : leave)
  },
  async 'in the middle of a transfer'(storm, leave) {
    const peer = await storm.connect()
    peer.stream('up', 1 + storm.below(MIB))
    await storm.wait()
    leaves(peer, leave)
  },
  async 'in order'(storm) {
    const peer = await storm.connect()
    peer.write('a few words')
    peer.finish()
    await peer.gone
  },
}

for (const carrier of all)
  test(`G4, G5, G6, I8: ${carrier.name}: ${STORM} clients that leave at random moments`, async () => {
    await using lab = await Lab.create()
    const target = carrier.listen(lab.backend, echo)
    await lab.backend.nft(
      `table inet hole { chain in { type filter hook input priority 0; tcp dport ${HOLE} drop; }; }`,
    )
    const to = (port: number) => ({ host: lab.backend.address4, port })
    // A hole for clients that leave while it is dialled. In the kernel nobody would end those before the deadline.
    const rest = { timeouts: { connect: '10s', halfClosed: '2s', grace: '1s', handshake: '30s', firstByte: '30s' } }
    await using gateway = await Gateway.start(lab, [
      carrier.route('storm', 8400, to(target.port), {}, rest),
      carrier.route('hole', 8401, to(HOLE), {}, rest),
    ])
    const seed = Math.floor(Math.random() * 2 ** 32)
    const { below } = randomOf(seed)
    const storm: Storm = {
      carrier,
      hello: await helloBytes(lab),
      below,
      wait: () => Bun.sleep(below(25)),
      connect: (dialling = false, mute = false) =>
        carrier.connect(lab.client, lab.gateway.clientSide4, dialling ? 8401 : 8400, { mute }),
    }
    const names = Object.keys(MOMENTS).filter((name) => carrier.name !== 'kernel' || name !== 'while dialling')
    const failures: unknown[] = []
    const run = async (count: number) => {
      let left = count
      const one = async () => {
        while (left-- > 0)
          await MOMENTS[names[below(names.length)]!]!(storm, below(2) ? 'finish' : 'reset').catch((error) =>
            failures.push(error),
          )
      }
      await Promise.all(Array.from({ length: carrier.tls ? AT_ONCE_TLS : AT_ONCE }, one))
      return performance.now()
    }
    await run(AT_ONCE)
    await until(async () => (await gateway.connections()).length === 0, 10_000, 'the warm-up is over')
    const before = await footprint(gateway)
    const { worker } = await gateway.status()
    const rss = await memory(worker.pid)
    const started = performance.now()
    const last = await run(STORM)
    console.log(
      `${carrier.name}, seed ${seed}: ${STORM} clients in ${(last - started).toFixed(0)} ms, worker ${rss.toFixed(0)} → ${(await memory(worker.pid)).toFixed(0)} MiB`,
    )
    await asBefore(gateway, before, last, carrier.name)
    // One that was reset before it was accepted never was a connection of the gateway.
    const records = closed(gateway)
    console.log(`${carrier.name}, seed ${seed}: ${records.length} records, ${Bun.inspect(sound(records))}`)
    expect(failures).toEqual([])
    expect(records.length).toBeLessThanOrEqual(STORM + AT_ONCE)
    expect(records.length).toBeGreaterThan((STORM + AT_ONCE) * 0.9)
    await until(() => target.live().length === 0, 5000, 'no target waits')
    const status = await gateway.status()
    expect([status.anomalies, status.worker.restarts, status.worker.pid]).toEqual([0, 0, worker.pid])
    // And it serves.
    const peer = await carrier.connect(lab.client, lab.gateway.clientSide4, 8400)
    peer.write('well?')
    await until(() => peer.heard === 'well?', 5000, 'it serves')
  }, 120_000)

test('G4, I8: the worker is killed in the middle of a storm, twice: every connection has its one record, and the next one serves', async () => {
  await using lab = await Lab.create()
  const here = [of('splice'), of('user'), of('terminate')]
  const targets = here.map((carrier) => carrier.listen(lab.backend, echo))
  await using gateway = await Gateway.start(
    lab,
    here.map((carrier, i) =>
      carrier.route(carrier.name, 8400 + i, { host: lab.backend.address4, port: targets[i]!.port }),
    ),
  )
  const connect = (i: number) => here[i]!.connect(lab.client, lab.gateway.clientSide4, 8400 + i)
  const serves = async () => {
    for (const i of here.keys()) {
      const peer = await connect(i)
      peer.write('well?')
      await until(() => peer.heard === 'well?', 5000, `${here[i]!.name} serves`)
      peer.finish()
      await peer.gone
    }
  }
  await serves()
  const before = await footprint(gateway)
  const seed = Math.floor(Math.random() * 2 ** 32)
  const { below } = randomOf(seed)
  let [going, stood] = [true, 0]
  const one = async () => {
    while (going) {
      const peer = await connect(below(here.length)).catch(() => null)
      if (!peer) continue
      stood++
      peer.stream('up', 1 + below(MIB))
      await Bun.sleep(below(40))
      if (below(2)) peer.reset()
      else peer.finish()
      // The one that dies takes its connections with it: none may wait for ever.
      await peer.gone
    }
  }
  const storm = Array.from({ length: 30 }, one)
  for (let life = 1; life <= 2; life++) {
    const { worker, connections } = await until(
      async () => {
        const status = await gateway.status()
        return status.worker.restarts === life - 1 && status.connections.proxied > 5 && status
      },
      10_000,
      'the storm is on',
    )
    process.kill(worker.pid, 'SIGKILL')
    console.log(`seed ${seed}: killed with ${connections.proxied} connections`)
    await until(async () => (await gateway.status()).worker.restarts === life, 10_000, 'the next one is there')
  }
  await serves()
  going = false
  await Promise.all(storm)
  await asBefore(gateway, before, performance.now(), 'after two deaths')
  const records = closed(gateway)
  const counts = sound(records)
  console.log(`seed ${seed}: ${stood} clients, ${records.length} records, ${Bun.inspect(counts)}`)
  expect(counts.worker_died).toBeGreaterThan(0)
  await until(() => targets.every((target) => target.live().length === 0), 5000, 'no target waits')
  expect((await gateway.status()).anomalies).toBe(0)
}, 60_000)

const LORIS = Math.ceil(5000 / slowness)
/** What one of them may cost: what is held of a hello; for TLS a handshake that has begun. */
const LORIS_KIB_MAX = { splice: 8, terminate: 32 }

/** Clients that do what clients do, one after the other; stop() says how long each took. */
function customers(serve: () => Promise<void>) {
  const tookMs: number[] = []
  const failures: unknown[] = []
  let stopping = false
  const loop = (async () => {
    while (!stopping) {
      const began = performance.now()
      await serve().then(
        () => tookMs.push(performance.now() - began),
        (error) => failures.push(error),
      )
      await Bun.sleep(5)
    }
  })()
  return {
    async stop() {
      stopping = true
      await loop
      const sorted = tookMs.toSorted((a, b) => a - b)
      const at = (share: number) => (sorted[Math.floor(sorted.length * share)] ?? NaN).toFixed(1)
      return { failures, served: tookMs.length, text: `${tookMs.length} served, p50 ${at(0.5)} ms, p99 ${at(0.99)} ms` }
    },
  }
}

for (const [name, reason] of [
  ['splice', 'first_byte_timeout'],
  ['terminate', 'handshake_timeout'],
] as const)
  test(`I8, E4: slow-loris: ${LORIS} clients that say a byte a second: ${name}`, async () => {
    const carrier = of(name)
    await using lab = await Lab.create()
    const target = carrier.listen(lab.backend, echo)
    const rest = { timeouts: { firstByte: '4s', handshake: '4s' } }
    const to = { host: lab.backend.address4, port: target.port }
    await using gateway = await Gateway.start(lab, [carrier.route('slow', 8400, to, {}, rest)])
    const hello = await helloBytes(lab)
    const host = lab.gateway.clientSide4
    const buy = async () => {
      const peer = await carrier.connect(lab.client, host, 8400)
      const answered = Promise.withResolvers<void>()
      peer.onData = () => answered.resolve()
      peer.write('hello')
      await Promise.race([answered.promise, peer.gone])
      if (peer.received !== 5) throw new Error('not served')
      peer.finish()
      await peer.gone
    }
    await buy()
    const before = await footprint(gateway)
    const alone = customers(buy)
    await Bun.sleep(1000)
    const usual = await alone.stop()
    const { worker } = await gateway.status()
    const rss = await memory(worker.pid)

    const slow: Peer[] = []
    let left = LORIS
    const come = async () => {
      while (left-- > 0) {
        const peer = await carrier.connect(lab.client, host, 8400, { mute: true })
        slow.push(peer)
        peer.write(hello.subarray(0, 1))
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, come))
    const crowd = customers(buy)
    let said = 1
    const dripping = setInterval(() => {
      for (const peer of slow) if (!peer.over) peer.write(hello.subarray(said, said + 1))
      said++
    }, 1000)
    let most = 0
    try {
      await until(
        async () => {
          most = Math.max(most, await memory(worker.pid))
          return slow.every((peer) => peer.over)
        },
        30_000,
        'each of them is ended',
      )
    } finally {
      clearInterval(dripping)
    }
    const last = performance.now()
    const served = await crowd.stop()
    console.log(
      `${name}: alone ${usual.text}; among ${LORIS}: ${served.text}; worker ${rss.toFixed(0)}, at most ${most.toFixed(0)} MiB`,
    )
    expect([usual.failures, served.failures]).toEqual([[], []])
    expect(served.served).toBeGreaterThan(20)
    expect(most - rss).toBeLessThan((LORIS * LORIS_KIB_MAX[name]) / 1024)
    await asBefore(gateway, before, last, name)
    const finished = 1 + usual.served + served.served
    await gateway.recordsOf(LORIS + finished)
    expect(sound(closed(gateway))).toEqual({ [reason]: LORIS, finished })
    expect((await gateway.status()).worker.pid).toBe(worker.pid)
  }, 120_000)
