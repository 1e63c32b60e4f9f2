// What doctor makes of a configuration and of what it names: each check with readings of every kind.
import { expect, test } from 'bun:test'
import {
  certificates,
  challenges,
  files,
  targetNames,
  type CertificateReading,
  type Challenges,
} from '../../src/commands/doctor-config.ts'

const NOW = Date.parse('2026-05-01T00:00:00Z')
const DAY = 86_400_000
const good: CertificateReading = {
  route: 'app',
  cert: '/etc/ssl/app.crt',
  key: "/etc/ssl/the app's.key",
  notAfterMs: NOW + 60 * DAY,
  expiring: false,
  uncovered: [],
  unused: [],
  keyFile: { mode: 0o100640, uid: 0, gid: 0 },
}
const graded = (more: object) =>
  certificates([{ ...good, ...more } as CertificateReading], NOW).map(({ status, saw }) => [status, saw])

test('certificates: what a start would refuse, what clients would, and what they soon will', () => {
  expect(certificates([], NOW)).toEqual([])
  expect(certificates([good, { ...good, notAfterMs: NOW + 30.5 * DAY }], NOW)).toMatchObject([
    { status: 'ok', saw: '2 from files, all good; the first expires in 30 days' },
  ])
  const [broken] = certificates([{ route: 'app', cert: 'a.crt', key: "the app's.key", problem: 'Cannot read it' }], NOW)
  expect(broken).toMatchObject({ status: 'fail', saw: 'route "app": Cannot read it' })
  expect(broken!.mend).toEqual([
    "ls -l a.crt 'the app'\\''s.key'",
    'openssl x509 -noout -subject -ext subjectAltName -dates -in a.crt',
  ])
  expect(graded({ outOfTime: 'expired at 2026-04-30', expiring: true })).toEqual([
    ['fail', 'route "app": /etc/ssl/app.crt expired at 2026-04-30'],
  ])
  expect(graded({ expiring: true, notAfterMs: NOW + 13.5 * DAY })).toEqual([
    ['warn', 'route "app": /etc/ssl/app.crt expires in 13 days'],
  ])
  expect(graded({ uncovered: ['b.test', 'c.test'] })).toEqual([
    ['warn', 'route "app": /etc/ssl/app.crt is not for b.test, c.test'],
  ])
  expect(graded({ unused: ['key 2 has no certificate'] })).toEqual([['warn', 'route "app": key 2 has no certificate']])
  const keyFile = (mode: number, uid = 0, gid = 0) => graded({ keyFile: { mode, uid, gid } })
  expect(keyFile(0o100644)).toEqual([
    ['warn', 'route "app": everybody on this machine may read the key /etc/ssl/the app\'s.key'],
  ])
  // Root of the service has no way round the mode.
  expect(keyFile(0o100600, 107, 107)).toEqual([
    ['warn', 'route "app": the key /etc/ssl/the app\'s.key belongs to user 107'],
  ])
  expect(keyFile(0o100640, 107, 0)).toMatchObject([['ok', expect.any(String)]])
  expect(graded({ keyFile: null })).toMatchObject([['ok', expect.any(String)]])
})

test('files that cannot be read are named with what needs them', () => {
  expect(files([])).toEqual([])
  expect(files([{ what: 'route "app", handler', path: '/a b.ts', error: 'ENOENT' }])).toMatchObject([
    { status: 'fail', saw: 'route "app", handler: /a b.ts cannot be read: ENOENT', mend: ["ls -ld '/a b.ts'"] },
  ])
})

const asked: Challenges = {
  routes: ['app'],
  byTls: false,
  port: 80,
  taken: [],
  answers: null,
  unresolved: [],
}
const nginx = {
  socket: { protocol: 'tcp' as const, address: '0.0.0.0', port: 80, inode: '1' },
  owner: { name: 'nginx', pid: 7 },
}

test('acme: the way by which a CA reaches us', () => {
  expect(challenges({ ...asked, routes: [] })).toEqual([])
  expect(challenges(asked)).toMatchObject([{ status: 'ok', saw: 'route "app": HTTP-01 on port 80' }])
  expect(challenges({ ...asked, byTls: true, answers: true, routes: ['a', 'b'] })).toMatchObject([
    { status: 'ok', saw: '2 routes: TLS-ALPN-01 on port 443 or HTTP-01 on port 80' },
  ])
  const [taken] = challenges({ ...asked, taken: [nginx] })
  expect(taken).toMatchObject({ status: 'fail', mend: ["ss -Hlntp 'sport = :80'"] })
  expect(taken!.saw).toContain('nginx (pid 7)')
  // There is another way.
  expect(challenges({ ...asked, byTls: true, taken: [nginx] })).toMatchObject([{ status: 'warn' }])
  expect(challenges({ ...asked, answers: false })).toMatchObject([
    { status: 'fail', saw: 'nothing answers on port 80 of this machine' },
  ])
  expect(challenges({ ...asked, unresolved: ['a.test'] })).toMatchObject([
    { status: 'warn', saw: 'a.test has no address in the DNS', mend: ['getent ahosts a.test'] },
  ])
})

test('target names: those that do not resolve', () => {
  expect(targetNames([], [])).toEqual([])
  expect(targetNames(['a.internal'], [])).toMatchObject([{ status: 'ok', saw: 'a.internal resolved' }])
  expect(targetNames(['a.internal', 'b.internal'], ['b.internal'])).toMatchObject([
    { status: 'fail', saw: 'b.internal does not resolve' },
  ])
})
