// Who has a port: lines of /proc/net as they were seen, what overlaps with what, the words, and this very process.
import { expect, test } from 'bun:test'
import { createSocket } from 'node:dgram'
import {
  boundSockets,
  overlaps,
  overlapsInKernel,
  ownerText,
  parseSocketLine,
  readBoundSockets,
  socketOwners,
  takenText,
  withOwners,
  type BoundSocket,
  type Wanted,
} from '../../src/control/owners.ts'

const TCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1665 1 00000000498d575b 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22871 1 0000000000000000 100 0 0 10 0
   2: 0101630A:0050 0201630A:D431 01 00000000:00000000 00:00000000 00000000     0        0 99999 1 0000000000000000 20 4 30 10 -1
`
const TCP6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0000000000000000 100 0 0 10 0
   1: B80D0120000000000000000001000000:0035 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 778 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000500000A:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 779 1 0000000000000000 100 0 0 10 0
`
const UDP = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  123: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000000000000 0
  456: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 31 2 0000000000000000 0
  789: 0101630A:9C40 08080808:0035 01 00000000:00000000 00:00000000 00000000     0        0 32 2 0000000000000000 0
`

test('sockets that listen, in both families, as /proc/net prints them', () => {
  expect(boundSockets(TCP, 'tcp')).toEqual([
    { protocol: 'tcp', address: '0.0.0.0', port: 2024, inode: '1665' },
    { protocol: 'tcp', address: '127.0.0.1', port: 8080, inode: '22871' },
  ])
  expect(boundSockets(TCP6, 'tcp')).toEqual([
    { protocol: 'tcp', address: '::', port: 443, inode: '777' },
    { protocol: 'tcp', address: '2001:db8::1', port: 53, inode: '778' },
    { protocol: 'tcp', address: '10.0.0.5', port: 8080, inode: '779' },
  ])
  // A UDP socket with a peer hears that peer only.
  expect(boundSockets(UDP, 'udp')).toEqual([
    { protocol: 'udp', address: '0.0.0.0', port: 51820, inode: '0' },
    { protocol: 'udp', address: '127.0.0.53', port: 53, inode: '31' },
  ])
})

test('what is no line of a socket is none', () => {
  for (const line of [
    '',
    '  sl  local_address rem_address   st',
    '0: zz:0050',
    '0: 00000000:0050 x 0A',
    TCP.slice(0, 20),
  ])
    expect(parseSocketLine(line)).toBeUndefined()
  const line = TCP.split('\n')[1]!
  for (let length = 0; length < line.indexOf('1665'); length++)
    expect(parseSocketLine(line.slice(0, length))).toBeUndefined()
})

const socket = (address: string, port: number, protocol: 'tcp' | 'udp' = 'tcp', inode = '1'): BoundSocket => ({
  protocol,
  address,
  port,
  inode,
})
const wanted = (address: string | null, from: number, to = from): Wanted => ({ protocol: 'tcp', address, from, to })

test('overlaps: protocol, range, and the addresses that one socket covers', () => {
  expect(overlaps(socket('0.0.0.0', 80), wanted(null, 1, 1000))).toBe(true)
  expect(overlaps(socket('0.0.0.0', 80, 'udp'), wanted(null, 1, 1000))).toBe(false)
  expect([0, 1, 1000, 1001].map((port) => overlaps(socket('::', port), wanted(null, 1, 1000)))).toEqual([
    false,
    true,
    true,
    false,
  ])
  const pairs: [string, string | null, boolean][] = [
    ['10.0.0.1', '10.0.0.1', true],
    ['10.0.0.1', '10.0.0.2', false],
    ['0.0.0.0', '10.0.0.2', true],
    ['0.0.0.0', 'fd00::1', false],
    ['::', '10.0.0.2', true],
    ['::', 'fd00::1', true],
    ['fd00::1', '::', true],
    ['10.0.0.1', '::', true],
    ['10.0.0.1', '0.0.0.0', true],
    ['fd00::1', '0.0.0.0', false],
    ['127.0.0.1', null, true],
  ]
  for (const [has, wants, result] of pairs)
    expect([has, wants, overlaps(socket(has, 80), wanted(wants, 80))]).toEqual([has, wants, result])
})

test('H17: a range that only the kernel carries takes nothing from loopback addresses', () => {
  for (const [address, result] of [
    ['127.0.0.53', false],
    ['::1', false],
    ['::', true],
    ['10.0.0.1', true],
  ] as const)
    expect([address, overlapsInKernel(socket(address, 80), wanted(null, 1, 1000))]).toEqual([address, result])
})

test('the words: each program once, and no more than three of them', () => {
  expect(ownerText(null)).toBe('another program')
  expect(ownerText('kernel')).toContain('WireGuard')
  const nginx = { name: 'nginx', pid: 812 }
  expect(takenText([{ socket: socket('::', 8080), owner: nginx }])).toBe('nginx (pid 812) listens on [::]:8080')
  const many = [nginx, nginx, null, { name: 'a', pid: 1 }, { name: 'b', pid: 2 }, { name: 'c', pid: 3 }]
  expect(takenText(many.map((owner, i) => ({ socket: socket('10.0.0.1', 80 + i, 'udp'), owner })))).toBe(
    'nginx (pid 812) has 10.0.0.1:80 and 1 more, another program has 10.0.0.1:82, a (pid 1) has 10.0.0.1:83, and 2 more programs',
  )
})

test('H17: the owner of a socket is found by name and process; our own is nobody that takes it', async () => {
  const listener = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } })
  const datagram = createSocket('udp6')
  await new Promise<void>((bound) => datagram.bind(0, '::1', bound))
  try {
    const tcp = (await readBoundSockets('tcp')).filter(({ port }) => port === listener.port)
    const udp = (await readBoundSockets('udp')).filter(({ port }) => port === datagram.address().port)
    expect([tcp, udp].map((found) => found.map(({ address }) => address))).toEqual([['127.0.0.1'], ['::1']])
    const sockets = [...tcp, ...udp]
    const owners = await socketOwners(new Set(sockets.map(({ inode }) => inode)))
    for (const { inode } of sockets) expect(owners.get(inode)).toEqual({ name: expect.any(String), pid: process.pid })
    expect(await withOwners(sockets, process.pid)).toEqual([])
    // Seen from another program; a child of it is not another one.
    expect((await withOwners(sockets, 1_000_000_000)).map(({ owner }) => owner)).toEqual([
      owners.get(tcp[0]!.inode)!,
      owners.get(udp[0]!.inode)!,
    ])
    expect(await withOwners(sockets, process.ppid)).toEqual([])
    expect(await withOwners([socket('::', 1, 'udp', '0'), socket('::', 2, 'udp', '4294967295')], process.pid)).toEqual([
      { socket: socket('::', 1, 'udp', '0'), owner: 'kernel' },
      { socket: socket('::', 2, 'udp', '4294967295'), owner: null },
    ])
  } finally {
    listener.stop()
    datagram.close()
  }
})
