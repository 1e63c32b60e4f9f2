// Addresses, networks and globs as values (I1): vectors, and the property that every spelling of one set agrees.
import { describe, expect, test } from 'bun:test'
import {
  canonicalIp,
  formatEnd,
  inInterval,
  ipBytes,
  isHostName,
  isLoopback,
  parseNetwork,
  parseTarget,
} from '../../src/base/addresses.ts'

const contains = (network: string, ip: string) => parseNetwork(network)!.some((set) => inInterval(ipBytes(ip), set))

describe('addresses', () => {
  test.each([
    ['2001:DB8:0:0:0:0:0:1', '2001:db8::1'],
    ['::', '::'],
    ['::ffff:10.0.0.1', '10.0.0.1'],
    ['::ffff:0a00:0001', '10.0.0.1'],
    ['2001:db8:0:1:0:0:0:1', '2001:db8:0:1::1'],
    ['1:0:0:2:0:0:0:3', '1:0:0:2::3'],
    ['1:2:3:4:5:6:7:0', '1:2:3:4:5:6:7:0'],
    ['fe80::1:0:0:1', 'fe80::1:0:0:1'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
  ])('%s is spelled %s (RFC 5952)', (text, canonical) => expect(canonicalIp(text)).toBe(canonical))

  test('an end has brackets around IPv6 only', () => {
    expect(formatEnd('10.0.0.1', 80)).toBe('10.0.0.1:80')
    expect(formatEnd('::1', 80)).toBe('[::1]:80')
  })

  test.each([
    ['127.0.0.1', true],
    ['127.9.9.9', true],
    ['::1', true],
    ['128.0.0.1', false],
    ['::2', false],
  ])('loopback: %s %p', (ip, loopback) => expect(isLoopback(ip)).toBe(loopback))

  test.each(['db.internal', 'a', 'xn--nxasmq6b.example', '_sip._tcp.example', '9gag.com'])('host name: %s', (name) =>
    expect(isHostName(name)).toBe(true),
  )
  test.each([
    '',
    '-a',
    'a-',
    'a..b',
    '1.2.3',
    'a b',
    'a;b',
    'a\nb',
    '10.0.0.1',
    'x'.repeat(64),
    `${'a.'.repeat(127)}ab`,
  ])('no host name: %p', (name) => expect(isHostName(name)).toBe(false))

  test('targets', () => {
    expect(parseTarget('10.0.0.5')).toEqual({ kind: 'ip', address: '10.0.0.5' })
    expect(parseTarget('DB.Internal')).toEqual({ kind: 'name', name: 'db.internal' })
    expect(parseTarget('unix:/run/a.sock')).toEqual({ kind: 'unix', path: '/run/a.sock' })
    for (const bad of [
      '',
      'unix:run/a',
      `unix:/${'a'.repeat(108)}`,
      'unix:/a\nb',
      '1.2.3.4; flush ruleset',
      'fe80::1%eth0',
      '300.1.1.1',
    ])
      expect(parseTarget(bad)).toBeUndefined()
  })
})

describe('I1: networks', () => {
  test.each([
    ['10.0.0.0/8', '10.255.255.255', true],
    ['10.0.0.0/8', '11.0.0.0', false],
    ['10.1.2.3/8', '10.0.0.0', true],
    ['0.0.0.0/0', '255.255.255.255', true],
    ['10.0.0.1-10.0.0.9', '10.0.0.9', true],
    ['10.0.0.1-10.0.0.9', '10.0.0.10', false],
    ['192.168.*', '192.168.7.9', true],
    ['192.168.*', '192.169.0.0', false],
    ['10.?.0.1', '10.5.0.1', true],
    ['10.?.0.1', '10.15.0.1', false],
    ['10.*.3.4', '10.200.3.4', true],
    ['10.1*.0.0', '10.1.0.0', true],
    ['10.1*.0.0', '10.19.0.0', true],
    ['10.1*.0.0', '10.20.0.0', false],
    ['2001:db8::/32', '2001:db8:ffff::1', true],
    ['2001:db8::/32', '2001:db9::', false],
    ['::ffff:10.0.0.0/104', '10.9.9.9', true],
    ['::ffff:10.0.0.1', '10.0.0.1', true],
    ['10.0.0.1', '::ffff:10.0.0.1', true],
    ['10.0.0.0/8', '2001:db8::1', false],
  ])('%s contains %s: %p', (network, ip, is) => expect(contains(network, ip)).toBe(is))

  test.each([
    '',
    '10.0.0.0/33',
    '10.0.0.9-10.0.0.1',
    '10.0.0.1-::1',
    '::/129',
    '10.0.0',
    '*.*.*.*.*',
    '300.*',
    'a.b.*',
    '10.0.0.1; drop',
  ])('refused: %p', (text) => expect(parseNetwork(text)).toBeUndefined())

  test('a glob is exactly the addresses that its pattern spells', () => {
    const random = (n: number) => Math.floor(Math.random() * n)
    for (let i = 0; i < 300; i++) {
      const part = () => ['*', '?', '??', '1*', '2?', String(random(256))][random(6)]!
      const glob = [part(), part(), part(), part()].join('.')
      const sets = parseNetwork(glob)
      if (!sets || !/[*?]/.test(glob)) continue
      const shape = new RegExp(`^${glob.replaceAll('.', '\\.').replaceAll('*', '\\d*').replaceAll('?', '\\d')}$`)
      for (let k = 0; k < 40; k++) {
        const ip = [random(256), random(256), random(256), random(256)].join('.')
        expect([glob, ip, sets.some((set) => inInterval(ipBytes(ip), set))]).toEqual([glob, ip, shape.test(ip)])
      }
    }
  })
})
