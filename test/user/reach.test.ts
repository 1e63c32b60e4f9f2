// What the handlers of a route may reach: pure decisions, and connect() that keeps to them.
import { describe, expect, test } from 'bun:test'
import { connect } from '../../src/sockets.ts'
import { addressRefusal, OwnAddresses, portRefusal, type Own, type Reach } from '../../src/user/reach.ts'
import { OWN_ADDRESSES_MS } from '../../src/base/limits.ts'
import { failureOf, handled, handling } from './handling.ts'
import { echo } from './plane.ts'

const DEFAULT = { private: false, ports: null }
const EVERYWHERE = { private: true, ports: null }

describe('A18 Q12: ports', () => {
  const cases: [number, Reach['ports'], string | undefined][] = [
    [25, null, 'port_25_blocked'],
    [25, [587], 'port_25_blocked'],
    [25, [25], undefined],
    [24, null, undefined],
    [80, null, undefined],
    [80, [443, 80], undefined],
    [81, [443, 80], 'port_blocked'],
    [80, [], 'port_blocked'],
  ]
  for (const [port, ports, code] of cases)
    test(`${port} of ${JSON.stringify(ports)}: ${code ?? 'allowed'}`, () =>
      expect(portRefusal(port, { private: false, ports })?.code).toBe(code as never))
  test('the text of Workers', () =>
    expect(portRefusal(25, DEFAULT)?.message).toBe('SocketError: Connections to port 25 are prohibited'))
})

describe('A18 A19: addresses', () => {
  const own: Own = {
    addresses: new Set(['203.0.113.7', '10.0.0.1', '2001:db8::7']),
    listens: [
      { address: null, from: 8000, to: 8010 },
      { address: '10.0.0.1', from: 9000, to: 9000 },
      { address: '127.0.0.1', from: 9100, to: 9100 },
      { address: '::', from: 9200, to: 9200 },
    ],
  }
  const blocked = 'address_blocked'
  const loop = 'loop_detected'
  const cases: [string, number, string | undefined, string | undefined][] = [
    // address, port, with the defaults, with private
    ['198.51.100.1', 443, undefined, undefined],
    ['2001:4860:4860::8888', 443, undefined, undefined],
    ['10.1.2.3', 443, blocked, undefined],
    ['172.16.0.1', 443, blocked, undefined],
    ['172.32.0.1', 443, undefined, undefined],
    ['192.168.1.1', 443, blocked, undefined],
    ['100.64.0.1', 443, blocked, undefined],
    ['169.254.169.254', 80, blocked, undefined],
    ['127.0.0.1', 443, blocked, undefined],
    ['127.9.9.9', 443, blocked, undefined],
    ['0.0.0.0', 443, blocked, undefined],
    ['0.1.2.3', 443, blocked, undefined],
    ['224.0.0.1', 443, blocked, undefined],
    ['255.255.255.255', 443, blocked, undefined],
    ['::1', 443, blocked, undefined],
    ['::', 443, blocked, undefined],
    ['fd00::1', 443, blocked, undefined],
    ['fe80::1', 443, blocked, undefined],
    ['ff02::1', 443, blocked, undefined],
    ['203.0.113.7', 443, blocked, undefined],
    ['2001:db8::7', 443, blocked, undefined],
    // An IPv4 address in another guise.
    ['64:ff9b::a00:1', 443, blocked, undefined],
    ['64:ff9b::808:808', 443, undefined, undefined],
    ['2002:7f00:1::', 443, blocked, undefined],
    ['::a00:1', 443, blocked, undefined],
    // Where the gateway itself listens, by whichever of its addresses.
    ['203.0.113.7', 8000, loop, loop],
    ['10.0.0.1', 8010, loop, loop],
    ['127.0.0.1', 8005, loop, loop],
    ['127.0.0.9', 8005, loop, loop],
    ['::1', 8005, loop, loop],
    ['0.0.0.0', 8005, loop, loop],
    ['2001:db8::7', 8005, loop, loop],
    ['64:ff9b::cb00:7107', 8005, loop, loop],
    ['198.51.100.1', 8005, undefined, undefined],
    ['203.0.113.7', 8011, blocked, undefined],
    ['10.0.0.1', 9000, loop, loop],
    ['203.0.113.7', 9000, blocked, undefined],
    ['127.0.0.1', 9100, loop, loop],
    ['0.0.0.0', 9100, loop, loop],
    ['127.0.0.2', 9100, blocked, undefined],
    ['10.0.0.1', 9200, loop, loop],
  ]
  for (const [address, port, byDefault, withPrivate] of cases)
    test(`${address} ${port}: ${byDefault ?? 'allowed'}, ${withPrivate ?? 'allowed'}`, () => {
      expect(addressRefusal(address, port, DEFAULT, own)?.code).toBe(byDefault as never)
      expect(addressRefusal(address, port, EVERYWHERE, own)?.code).toBe(withPrivate as never)
    })
})

test('own addresses are read again after a while, and spelled in one way', () => {
  let now = 0
  let list = ['FE80::1', '10.0.0.1']
  const own = new OwnAddresses(
    () => now,
    () => list,
  )
  expect([...own.get()]).toEqual(['fe80::1', '10.0.0.1'])
  list = ['10.0.0.2']
  now = OWN_ADDRESSES_MS - 1
  expect([...own.get()]).toEqual(['fe80::1', '10.0.0.1'])
  now = OWN_ADDRESSES_MS
  expect([...own.get()]).toEqual(['10.0.0.2'])
})

test('the addresses of this machine', () => expect(new OwnAddresses().get()).toContain('127.0.0.1'))

const codeFor = async (reach: { private: boolean; ports: number[] | null }, address: string) => {
  const bench = await handling({ reach })
  return (await handled(bench, () => failureOf(connect(address).opened)))?.code
}

test('A18: connect() keeps to it, also where a name leads there; what was refused reached nobody', async () => {
  let accepted = 0
  const port = await echo(() => accepted++)
  expect(await codeFor(DEFAULT, `127.0.0.1:${port}`)).toBe('address_blocked')
  expect(await codeFor(DEFAULT, `[::ffff:127.0.0.1]:${port}`)).toBe('address_blocked')
  expect(await codeFor(DEFAULT, `localhost:${port}`)).toBe('address_blocked')
  expect(await codeFor(DEFAULT, 'localhost:25')).toBe('port_25_blocked')
  expect(await codeFor({ private: true, ports: [1] }, `127.0.0.1:${port}`)).toBe('port_blocked')
  expect(accepted).toBe(0)
  expect(await codeFor(EVERYWHERE, `localhost:${port}`)).toBeUndefined()
  while (accepted === 0) await Bun.sleep(1)
})

test('A19: a handler cannot connect to where its gateway listens, whatever it may reach', async () => {
  let accepted = 0
  const port = await echo(() => accepted++)
  const bench = await handling({ plane: { listens: [{ address: null, from: port, to: port }] } })
  const codes = await handled(bench, () =>
    Promise.all(
      ['127.0.0.1', 'localhost', '127.0.0.2', '0.0.0.0'].map(
        async (host) => (await failureOf(connect(`${host}:${port}`).opened))?.code,
      ),
    ),
  )
  expect(codes).toEqual(Array(4).fill('loop_detected'))
  expect(accepted).toBe(0)
  expect(bench.plane.opened).toBe(0)
})
