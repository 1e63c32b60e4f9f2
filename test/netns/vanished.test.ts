// A peer that vanishes says nothing of it: no FIN, no RST, every packet is lost from some moment on. Whatever carries the
// connection, the other side is told and the record ends: where nothing is said, and where data waits for an acknowledgement.
import { expect, test } from 'bun:test'
import type { Socket } from 'bun'
import { release } from 'node:os'
import { hello, sni } from '../user/hellos.ts'
import { forward, Gateway, until, type Connection } from './gateway.ts'
import { Lab, type Namespace } from './lab.ts'

const KEEP_ALIVE = { idle: '2s', interval: '1s', count: 2 }
/** Keepalive begins with a connection of 5 s and finds out 4 s later; retransmission takes 15 s; others have their turn. */
const NOTICED_MS_MAX = 40_000
/** TCP_RTO_MAX_MS. Before, the kernel goes on for a quarter of an hour. */
const [major = 0, minor = 0] = release().split('.').map(Number)
const boundsRetransmission = major > 6 || (major === 6 && minor >= 15)

interface Peer {
  heard: string
  over: boolean
}

const handlers = {
  open(socket: Socket<Peer>) {
    socket.data ??= { heard: '', over: false }
  },
  data: (socket: Socket<Peer>, bytes: Buffer) => void (socket.data.heard += bytes.toString('latin1')),
  end: (socket: Socket<Peer>) => void socket.end(),
  close: (socket: Socket<Peer>) => void (socket.data.over = true),
  error: () => {},
}

/** Loses every packet of these TCP ports from now on, both ways. */
const lose = (where: Namespace, ports: number[]) =>
  where.nft(`table inet lost {
    set ports { type inet_service; elements = { ${ports.join(', ')} }; }
    chain in { type filter hook input priority 0; tcp dport @ports drop; }
    chain out { type filter hook output priority 0; tcp sport @ports drop; }
  }`)

for (const vanishing of ['client', 'target'] as const)
  test.concurrent(
    `G15: a ${vanishing} that vanishes ends its connection, idle or with data on the way`,
    async () => {
      await using lab = await Lab.create()
      const accepted: Socket<Peer>[] = []
      const target = lab.backend.listen<Peer>({
        ...handlers,
        open(socket) {
          socket.data = { heard: '', over: false }
          accepted.push(socket)
        },
      })
      const to = [{ host: lab.backend.address4, port: target.port }]
      const splice = { match: { domains: 'a.test' }, keepAlive: KEEP_ALIVE }
      await using gateway = await Gateway.start(lab, [
        forward('kernel', 8400, to, {}, { timeouts: { idle: '3s' } }),
        forward('splice', 8401, to, { tls: { mode: 'passthrough' } }, splice),
        forward('user', 8402, to, { forwardingEngine: 'user' }, { keepAlive: KEEP_ALIVE }),
      ])
      const prefix = Buffer.from(hello(sni('a.test'))).toString('latin1')
      const connect = async (port: number, name: string) => {
        const socket = await lab.client.connect<Peer>(lab.gateway.clientSide4, port, handlers, {
          data: { heard: '', over: false },
        })
        socket.write(Buffer.from((port === 8401 ? prefix : '') + name, 'latin1'))
        const other = await until(
          () => accepted.find((one) => one.data.heard.endsWith(name)),
          5000,
          `${name} is through`,
        )
        return { name, socket, other, peer: socket.data, otherPeer: other.data }
      }
      const idle = [await connect(8400, 'kernel'), await connect(8401, 'splice'), await connect(8402, 'user')]
      const busy = boundsRetransmission ? [await connect(8401, 'busy splice'), await connect(8402, 'busy user')] : []
      const all = [...idle, ...busy]
      const began = performance.now()
      if (vanishing === 'client')
        await lose(
          lab.client,
          all.map(({ socket }) => socket.localPort),
        )
      else await lose(lab.backend, [target.port])
      for (const { socket, other } of busy) (vanishing === 'client' ? other : socket).write('does this arrive?')

      // The side that is still there is told.
      for (const { name, peer, otherPeer } of all) {
        const there = vanishing === 'client' ? otherPeer : peer
        await until(() => there.over, NOTICED_MS_MAX, `the other side of ${name} is told`)
      }
      console.log(`all noticed after ${((performance.now() - began) / 1000).toFixed(1)} s`)
      const records = await gateway.recordsOf(all.length)
      const lasted = (one: Connection) => ((Date.parse(one.closedAt!) - Date.parse(one.openedAt)) / 1000).toFixed(1)
      for (const one of records)
        console.log(`${one.route}: ${one.reason} after ${lasted(one)} s, ${one.bytesOut} bytes out`)
      expect(records.map((one) => `${one.route} ${one.reason}`).toSorted()).toEqual(
        all
          .map(({ name }) => name.split(' ').at(-1)!)
          .map((route) => `${route} ${route === 'kernel' ? 'idle_timeout' : `${vanishing}_vanished`}`)
          .toSorted(),
      )
      expect(await gateway.connections()).toEqual([])
      expect((await gateway.status()).anomalies).toBe(0)
    },
    120_000,
  )

test.concurrent(
  'G11: a client that takes nothing for longer than keepalive waits is there, and stays',
  async () => {
    await using lab = await Lab.create()
    const block = new Uint8Array(1 << 20)
    // Without an end: more than all the buffers on the way.
    const fill = (socket: Socket<any>) => {
      while (socket.write(block) === block.length);
    }
    const target = lab.backend.listen({ open: fill, drain: fill, data() {}, error() {} })
    const to = [{ host: lab.backend.address4, port: target.port }]
    await using gateway = await Gateway.start(lab, [
      forward('user', 8402, to, { forwardingEngine: 'user' }, { keepAlive: { idle: '1s', interval: '1s', count: 1 } }),
    ])
    const socket = await lab.client.connect(lab.gateway.clientSide4, 8402, {
      open: (one) => void one.pause(),
      data() {},
    })
    const windowIsShut = async () => {
      const rows = await lab.gateway.must(['ss', '-Htno', 'state', 'established'])
      return rows.split('\n').some((row) => row.includes(':8402 ') && row.includes('persist'))
    }
    await until(windowIsShut, 10_000, 'the gateway probes the window of the client')
    const began = performance.now()
    // From 5 s on the limits hold: three times what they are.
    await until(() => performance.now() - began > 14_000, 20_000, 'time passes')
    expect(await gateway.connections()).toMatchObject([{ route: 'user', state: 'open' }])
    socket.terminate()
    expect((await gateway.recordsOf(1))[0]!.reason).toBe('client_reset')
  },
  60_000,
)
