// What doctor makes of the machine around the gateway: each check at its limits, with the command that mends it.
import { expect, test } from 'bun:test'
import {
  clock,
  conntrackTimeouts,
  descriptors,
  modules,
  reversePath,
  seccomp,
  serviceUser,
} from '../../src/commands/doctor-machine.ts'

test('descriptors: of the gateway that runs, of one that may raise its own, and of the machine', () => {
  const one = { limit: 16_384, raisable: false, gateway: null, open: 1000, max: 100_000 }
  expect(descriptors(one)).toMatchObject({ status: 'ok', saw: '16384 for a program that is started here' })
  expect(descriptors({ ...one, limit: 1024 })).toMatchObject({ status: 'warn' })
  expect(descriptors({ ...one, limit: 1024 }).mend.join('\n')).toContain('LimitNOFILE=1048576')
  expect(descriptors({ ...one, limit: 1024, raisable: true }).status).toBe('ok')
  // It has raised it as far as it could.
  expect(descriptors({ ...one, limit: 1024, raisable: true, gateway: 7 })).toMatchObject({
    status: 'warn',
    saw: '1024 for the gateway that runs (pid 7)',
  })
  expect(descriptors({ ...one, limit: null }).status).toBe('warn')
  expect(descriptors({ ...one, open: 90_000 }).status).toBe('ok')
  expect(descriptors({ ...one, open: 90_001 })).toMatchObject({
    status: 'fail',
    mend: ['sysctl -w fs.file-max=200000'],
  })
})

test('clock: wrong, kept by nobody, not synchronised yet', () => {
  const nowMs = Date.parse('2026-05-01T12:00:00Z')
  const good = { nowMs, keeper: 'chronyd', synchronised: null }
  expect(clock(good)).toMatchObject({ status: 'ok', saw: '2026-05-01T12:00:00.000Z, kept by chronyd' })
  expect(clock({ ...good, synchronised: true }).status).toBe('ok')
  expect(clock({ ...good, synchronised: false }).status).toBe('warn')
  expect(clock({ ...good, keeper: null })).toMatchObject({
    status: 'warn',
    mend: [expect.any(String), expect.any(String)],
  })
  // A machine without a battery wakes up in 1970.
  expect(clock({ ...good, nowMs: 5000 })).toMatchObject({ status: 'fail', mend: ['timedatectl set-ntp true'] })
})

test('worker user: its own, that of everybody, none', () => {
  expect(serviceUser(['root', 'sluice', 'nobody']).status).toBe('ok')
  expect(serviceUser(['root', 'nobody'])).toMatchObject({
    status: 'warn',
    mend: [expect.stringMatching(/^useradd .* sluice$/)],
  })
  expect(serviceUser(['root']).status).toBe('fail')
})

test('seccomp: a kernel that has it, and one that has not', () => {
  expect(seccomp('kill_process kill_thread trap errno log allow').status).toBe('ok')
  expect(seccomp(null).status).toBe('warn')
  expect(seccomp('').status).toBe('warn')
})

test('reverse path: strict matters where there is more than one way', () => {
  expect(reversePath({ all: 0, default: 1, lo: 1, eth0: 0, eth1: 2 }).status).toBe('ok')
  expect(reversePath({ all: 1, default: 0, lo: 0, eth0: 0 })).toMatchObject({ status: 'ok', saw: 'strict on eth0' })
  expect(reversePath({ all: 0, lo: 0, eth0: 1, eth1: 0 })).toMatchObject({ status: 'warn', saw: 'strict on eth0' })
  // The larger of the two counts: loose wins over strict.
  expect(reversePath({ all: 1, eth0: 0, eth1: 2 }).saw).toBe('strict on eth0')
  expect(reversePath({ all: 2, eth0: 1, eth1: 1 }).status).toBe('ok')
  expect(reversePath({})).toMatchObject({ status: 'ok', saw: 'strict on no interface' })
})

test('kernel modules: those of another kernel than the one that runs', () => {
  expect(modules({ release: '6.1.0-1', installed: ['6.1.0-1', '6.1.0-2'] }).status).toBe('ok')
  expect(modules({ release: '6.1.0-1', installed: null }).status).toBe('ok')
  expect(modules({ release: '6.1.0-1', installed: [] }).status).toBe('ok')
  expect(modules({ release: '6.1.0-1', installed: ['6.1.0-2'] })).toMatchObject({
    status: 'warn',
    mend: ['systemctl reboot'],
  })
})

test('conntrack timeouts: how long what has ended fills the table', () => {
  expect(conntrackTimeouts(432_000, 120)).toMatchObject({
    status: 'ok',
    saw: 'a closed connection is remembered for 2m00s, a silent one of others for 5d00h',
  })
  expect(conntrackTimeouts(432_000, 300).status).toBe('ok')
  expect(conntrackTimeouts(432_000, 301).status).toBe('warn')
  expect(conntrackTimeouts(null, null).status).toBe('ok')
})
