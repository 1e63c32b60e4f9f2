// G7: a chain of three gateways, client → P1 → P2 → P3 → target. Whatever ends at one end of it is over at every one of them
// at once: no gateway waits for another that waits for it.
import { expect, test } from 'bun:test'
import { carriers, descriptors, echo, type Behaviour, type Carrier, type Peer } from './carriers.ts'
import { Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'

const COUNT = 20
const CLEARED_MS = 5000

const all = await carriers()
const of = (name: Carrier['name']) => all.find((one) => one.name === name)!

/** What carries the hops, and which carrier's client and target are at the ends. */
const CHAINS: { name: string; hops: Carrier['name'][]; client: Carrier; target: Carrier }[] = [
  { name: 'user', hops: ['user', 'user', 'user'], client: of('user'), target: of('user') },
  { name: 'splice', hops: ['splice', 'splice', 'splice'], client: of('splice'), target: of('splice') },
  { name: 'TLS', hops: ['re-encrypt', 'splice', 'terminate'], client: of('re-encrypt'), target: of('terminate') },
  // What the kernel forwards to this machine itself is accepted by a socket: the next hop.
  { name: 'kernel', hops: ['kernel', 'user', 'kernel'], client: of('kernel'), target: of('kernel') },
]

async function chainOf(chain: (typeof CHAINS)[number], behave: Behaviour) {
  const lab = await Lab.create()
  const target = chain.target.listen(lab.backend, behave)
  const gateways: Gateway[] = []
  const ends = [
    { host: lab.gateway.backendSide4, port: 8402 },
    { host: lab.gateway.backendSide4, port: 8403 },
    { host: lab.backend.address4, port: target.port },
  ]
  const dispose = async () => {
    for (const gateway of gateways) await gateway[Symbol.asyncDispose]()
    await lab[Symbol.asyncDispose]()
  }
  try {
    for (const [i, hop] of chain.hops.entries())
      gateways.push(
        await Gateway.start(
          lab,
          [of(hop).route(`p${i + 1}`, 8401 + i, ends[i]!, {}, { timeouts: { halfClosed: '1h' } })],
          {
            config: { kernel: { table: `chain${i + 1}`, markBase: (0x51 + i) << 24 } },
          },
        ),
      )
  } catch (error) {
    await dispose()
    throw error
  }
  const workers = await Promise.all(gateways.map(async (gateway) => (await gateway.status()).worker.pid))
  const connections = async () =>
    (await Promise.all(gateways.map((gateway) => gateway.connections()))).map((one) => one.length)
  return {
    target,
    gateways,
    connect: () => chain.client.connect(lab.client, lab.gateway.clientSide4, 8401),
    connections,
    sockets: () => Promise.all(workers.map(async (pid) => (await descriptors(pid)).socket!)),
    /** How long until no gateway has a connection. */
    async cleared(since: number) {
      await until(
        async () => (await connections()).every((count) => count === 0),
        CLEARED_MS,
        'no gateway has one',
      ).catch(async (error: Error) => {
        throw new Error(`${error.message}: ${await connections()}`)
      })
      return performance.now() - since
    },
    [Symbol.asyncDispose]: dispose,
  }
}

for (const chain of CHAINS)
  test(`G7, N: a chain of three (${chain.hops.join(', ')}): whatever ends is over at each of them at once`, async () => {
    let behave: Behaviour = echo
    await using place = await chainOf(chain, (peer) => behave(peer))
    const open = async () => {
      const peers = await Promise.all(Array.from({ length: COUNT }, () => place.connect()))
      for (const peer of peers) peer.write('x'.repeat(1000))
      await until(() => peers.every((peer) => peer.received === 1000), CLEARED_MS, 'all are served')
      // Each gateway hears of its own in its own time, the kernel's a little later.
      const listed = async () => (await place.connections()).every((count) => count === COUNT)
      await until(listed, CLEARED_MS, 'every gateway has all of them')
      return peers
    }
    const warm = await open()
    for (const peer of warm) peer.reset()
    await place.cleared(0)
    const before = await place.sockets()

    const told = async (what: string, since: number, peers: Peer[]) => {
      await until(() => peers.every((peer) => peer.over), CLEARED_MS, 'the clients have been told')
      const clients = performance.now() - since
      const everywhere = await place.cleared(since)
      await until(() => place.target.live().length === 0, CLEARED_MS, 'the targets have been told')
      await until(
        async () => Bun.deepEquals(await place.sockets(), before),
        CLEARED_MS,
        'no worker has more sockets than before',
      ).catch(async () => expect(await place.sockets()).toEqual(before))
      console.log(
        `${chain.name}: ${what}: clients told ${clients.toFixed(0)} ms, counts 0 at every gateway ${everywhere.toFixed(0)} ms after it`,
      )
    }

    // The target dies with all it has, in the middle of transfers that do not end.
    let peers = await open()
    for (const peer of peers) peer.stream('up', 1e12)
    await until(() => peers.every((peer) => peer.received > 50_000), CLEARED_MS, 'all are in the middle of it')
    let since = performance.now()
    for (const peer of place.target.live()) peer.reset()
    await told('the target dies', since, peers)

    // The client goes without a word, and by its FIN.
    peers = await open()
    since = performance.now()
    for (const peer of peers) peer.reset()
    await told('the clients reset', since, peers)
    peers = await open()
    since = performance.now()
    for (const peer of peers) peer.finish()
    await told('the clients finish', since, peers)

    // The target closes as soon as it is asked, in order or not, and the client closes when it has seen that.
    for (const [what, how] of [
      ['closes at once', (peer: Peer) => peer.finish()],
      ['resets at once', (peer: Peer) => peer.reset()],
    ] as const) {
      behave = how
      const attempts = await Promise.all(Array.from({ length: COUNT }, () => place.connect().catch(() => null)))
      const stood = attempts.filter((peer) => peer !== null)
      for (const peer of stood) peer.write('anybody?')
      await until(() => stood.every((peer) => peer.over), CLEARED_MS, 'the clients have been told')
      await told(`the target ${what}`, performance.now(), stood)
    }

    // Nobody listens any more.
    place.target.stop()
    const attempts = await Promise.all(Array.from({ length: COUNT }, () => place.connect().catch(() => null)))
    const stood = attempts.filter((peer) => peer !== null)
    await until(() => stood.every((peer) => peer.over), CLEARED_MS, 'the clients have been told')
    await told('the target refuses', performance.now(), stood)

    for (const gateway of place.gateways) {
      const records = await gateway.recordsOf(7 * COUNT)
      expect(new Set(records.map((one) => one.id)).size).toBe(records.length)
      expect(records.filter((one) => one.reason === 'internal_error' || one.reason === undefined)).toEqual([])
      expect((await gateway.status()).anomalies).toBe(0)
    }
    const last = place.gateways[2]!.records().slice(-COUNT)
    expect(last.map((one) => one.reason)).toEqual(last.map(() => 'target_refused'))
  }, 60_000)
