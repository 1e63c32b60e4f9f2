// What doctor makes of what it saw: each check at its limits, with the command that mends it.
import { expect, test } from 'bun:test'
import {
  conntrack,
  forwardChains,
  forwarding,
  kernelRules,
  nftVersion,
  ports,
  privileges,
} from '../../src/commands/doctor-checks.ts'

test('privileges: what is missing is named with what needs it', () => {
  expect(privileges(0, '000001ffffffffff')).toMatchObject({ status: 'ok', mend: [] })
  const nobody = privileges(65534, '0')
  expect(nobody).toMatchObject({ status: 'fail', mend: ['sudo sluice doctor'] })
  expect(nobody.saw).toContain('user 65534, without CAP_NET_ADMIN')
  // All but CAP_SYS_RESOURCE: it works.
  expect(privileges(0, (0x1ffffffffffn & ~(1n << 24n)).toString(16)).status).toBe('warn')
  expect(privileges(0, (0x1ffffffffffn & ~(1n << 13n)).toString(16)).status).toBe('fail')
})

test('nft: 1.0.6 is the oldest that will do', () => {
  const status = (version: string) => nftVersion(version).status
  expect(['1.0.6', '1.0.7', '1.0.10', '1.1.0', '2.0.0'].map(status)).toEqual(Array(5).fill('ok'))
  expect(['1.0.5', '0.9.8', 'unknown'].map(status)).toEqual(Array(3).fill('fail'))
  expect(nftVersion({ error: 'nft is not installed' })).toMatchObject({
    status: 'fail',
    saw: 'nft is not installed',
    mend: ['apt-get install -y --no-install-recommends nftables'],
  })
})

test('kernel: rules that are not taken, and rules that may not be asked for', () => {
  expect(kernelRules(null, true).status).toBe('ok')
  expect(kernelRules('Error: Could not process rule', true)).toMatchObject({
    status: 'fail',
    saw: 'does not take rules like ours: Error: Could not process rule',
  })
  expect(kernelRules('Operation not permitted', false).mend).toEqual(['sudo sluice doctor'])
})

test('forwarding: off is a failure once our rules are in, or when it cannot be set', () => {
  const setting = 'net.ipv4.ip_forward'
  expect(forwarding({ setting, value: '1', writable: true }, false).status).toBe('ok')
  expect(forwarding({ setting, value: null, writable: false }, true).status).toBe('ok')
  expect(forwarding({ setting, value: '0', writable: true }, false)).toMatchObject({
    status: 'warn',
    mend: ['sysctl -w net.ipv4.ip_forward=1'],
  })
  expect(forwarding({ setting, value: '0', writable: true }, true).status).toBe('fail')
  expect(forwarding({ setting, value: '0', writable: false }, false).status).toBe('fail')
})

test('conntrack: how full, how large', () => {
  const status = (count: number | null, max: number | null) => conntrack(count, max).status
  expect(status(80_000, 100_000)).toBe('ok')
  expect(status(80_001, 100_000)).toBe('warn')
  expect(status(95_001, 100_000)).toBe('fail')
  expect(status(0, 65_535)).toBe('warn')
  expect(status(null, null)).toBe('warn')
  expect(conntrack(90_000, 100_000)).toMatchObject({
    saw: '90000 of 100000 entries (90 %)',
    mend: ['sysctl -w net.netfilter.nf_conntrack_max=262144'],
  })
})

test('forward chains: one failure each; what could not be read is said', () => {
  expect(forwardChains([], [], []).map(({ status }) => status)).toEqual(['ok'])
  const finding = { family: 'ip', table: 'filter', chain: 'FORWARD', drops: 'policy drop', note: 'it lasts' }
  const checks = forwardChains([{ ...finding, madeBy: 'docker', commands: ['a', 'b'] }], ['nft crashed'], ['ip'])
  expect(checks.map(({ status }) => status)).toEqual(['fail', 'warn', 'warn'])
  expect(checks[0]).toMatchObject({ saw: 'table ip filter, chain FORWARD (docker): policy drop', mend: ['a', 'b'] })
  expect(checks[2]!.mend).toEqual(['iptables-legacy -S FORWARD'])
})

test('H17: ports: the route, and the program in its way', () => {
  const wanted = { protocol: 'udp', address: null, from: 53, to: 53 } as const
  const taken = [
    { socket: { protocol: 'udp', address: '127.0.0.53', port: 53, inode: '1' }, owner: { name: 'resolved', pid: 9 } },
  ] as const
  expect(ports([{ route: 'dns', wanted, taken: [] }], null)).toMatchObject([{ status: 'ok' }])
  const [check] = ports([{ route: 'dns', wanted, taken: [...taken] }], 4)
  expect(check).toMatchObject({
    status: 'fail',
    saw: 'route "dns", UDP 53: resolved (pid 9) has 127.0.0.53:53',
    mend: ["ss -Hlnup 'sport = :53'"],
  })
})
