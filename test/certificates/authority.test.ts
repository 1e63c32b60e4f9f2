// The local authority, judged by openssl: as files, and as a client of a server that uses an issued certificate.
import { describe, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { chmod, mkdir, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { LocalAuthority } from '../../src/certificates/index.ts'
import { CERTIFICATE_NAMES_MAX, ISSUED_CERTIFICATE_DAYS, ISSUED_CERTIFICATES_MAX } from '../../src/base/limits.ts'
import { hasOpenssl, openssl, run, temporaryDirectory } from './tools.ts'

const DAY_MS = 86_400_000
const modeOf = async (path: string) => ((await stat(path)).mode & 0o777).toString(8)
const problemOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'no problem',
    (cause: Error) => cause.message,
  )

describe('the authority', () => {
  test('keeps its files to itself and leaves no others', async () => {
    await using parent = await temporaryDirectory()
    const directory = join(parent.path, 'state', 'authority')
    await LocalAuthority.open(directory)
    expect((await readdir(directory)).sort()).toEqual(['ca.crt', 'ca.key'])
    expect([
      await modeOf(directory),
      await modeOf(join(directory, 'ca.crt')),
      await modeOf(join(directory, 'ca.key')),
    ]).toEqual(['700', '600', '600'])
  })
  test('takes a directory that others could enter for itself', async () => {
    await using directory = await temporaryDirectory()
    await chmod(directory.path, 0o755)
    await LocalAuthority.open(directory.path)
    expect(await modeOf(directory.path)).toBe('700')
  })
  test('is the same after a restart', async () => {
    await using directory = await temporaryDirectory()
    const before = await LocalAuthority.open(directory.path)
    const after = await LocalAuthority.open(directory.path)
    expect(after.certificate).toBe(before.certificate)
    const leaf = new X509Certificate((await after.issue(['a.test'])).cert)
    expect(leaf.verify(new X509Certificate(before.certificate).publicKey)).toBeTrue()
  })
  test('is one, however many start at the same time', async () => {
    await using directory = await temporaryDirectory()
    const all = await Promise.all(Array.from({ length: 8 }, () => LocalAuthority.open(directory.path)))
    expect(new Set(all.map((authority) => authority.certificate)).size).toBe(1)
    expect((await readdir(directory.path)).length).toBe(2)
  })
  test('goes on with the key of a start that was cut off', async () => {
    await using directory = await temporaryDirectory()
    await LocalAuthority.open(directory.path)
    const key = await Bun.file(join(directory.path, 'ca.key')).text()
    await rm(join(directory.path, 'ca.crt'))
    await (await LocalAuthority.open(directory.path)).issue(['a.test'])
    expect(await Bun.file(join(directory.path, 'ca.key')).text()).toBe(key)
  })
  test('says which file is wrong, and replaces none', async () => {
    await using directory = await temporaryDirectory()
    const [cert, key] = [join(directory.path, 'ca.crt'), join(directory.path, 'ca.key')]
    await LocalAuthority.open(directory.path)
    const [certText, keyText] = [await Bun.file(cert).text(), await Bun.file(key).text()]
    const open = (now?: () => number) => problemOf(LocalAuthority.open(directory.path, now))

    await chmod(key, 0o640)
    expect(await open()).toStartWith(`Cannot use key ${key}: other users can read it (mode 640)`)
    await chmod(key, 0o600)
    await Bun.write(key, 'x')
    expect(await open()).toBe(`Cannot use key ${key}: not a P-256 private key in PEM`)
    await rm(key)
    expect(await open()).toStartWith(`Cannot use authority ${cert}: its key ${key} is missing`)
    await using other = await temporaryDirectory()
    await LocalAuthority.open(other.path)
    await Bun.write(key, Bun.file(join(other.path, 'ca.key')))
    await chmod(key, 0o600)
    expect(await open()).toBe(`Cannot use authority ${cert}: ${key} is the key of another certificate`)
    await Bun.write(key, keyText)
    await chmod(key, 0o600)
    await Bun.write(cert, 'x')
    expect(await open()).toBe(`Cannot use authority ${cert}: not a PEM certificate`)
    await Bun.write(cert, certText)
    expect(await open(() => Date.now() + 4000 * DAY_MS)).toStartWith(`Cannot use authority ${cert}: expired at 20`)
    expect(await open()).toBe('no problem')
    await rm(cert)
    await mkdir(cert)
    expect(await open()).toBe(`Cannot read certificate ${cert}: not a regular file`)
  })
})

describe('issued certificates', () => {
  test('carry exactly the names, in one spelling', async () => {
    await using directory = await temporaryDirectory()
    const authority = await LocalAuthority.open(directory.path)
    const { cert } = await authority.issue(['B.test', '*.a.test', '127.0.0.1', '2001:DB8::0:1', 'b.test'])
    expect(new X509Certificate(cert).subjectAltName).toBe(
      'DNS:*.a.test, IP Address:127.0.0.1, IP Address:2001:DB8:0:0:0:0:0:1, DNS:b.test',
    )
  })
  test('are valid from an hour ago and for as long as browsers allow', async () => {
    await using directory = await temporaryDirectory()
    const now = Date.now()
    const { cert, notAfter } = await (await LocalAuthority.open(directory.path, () => now)).issue(['a.test'])
    const leaf = new X509Certificate(cert)
    expect(Math.round((now - leaf.validFromDate.getTime()) / 60_000)).toBe(60)
    expect(leaf.validToDate.getTime() - leaf.validFromDate.getTime()).toBe(ISSUED_CERTIFICATE_DAYS * DAY_MS)
    expect(Math.abs(notAfter.getTime() - leaf.validToDate.getTime())).toBeLessThan(1000)
  })
  test('never outlive the authority', async () => {
    await using directory = await temporaryDirectory()
    await LocalAuthority.open(directory.path)
    const authority = await LocalAuthority.open(directory.path, () => Date.now() + 3500 * DAY_MS)
    expect((await authority.issue(['a.test'])).notAfter).toEqual(authority.notAfter)
  })
  test('are shared by equal sets of names, also while they are made, and made again when old', async () => {
    await using directory = await temporaryDirectory()
    let now = Date.now()
    const authority = await LocalAuthority.open(directory.path, () => now)
    const [first, ...others] = await Promise.all(
      [
        ['a.test', 'b.test'],
        ['B.TEST', 'a.test'],
        ['b.test', 'a.test', 'a.test'],
      ].map((names) => authority.issue(names)),
    )
    for (const other of others) expect(other).toBe(first!)
    expect(await authority.issue(['a.test'])).not.toBe(first)
    now += 200 * DAY_MS
    expect(await authority.issue(['a.test', 'b.test'])).toBe(first!)
    now += 100 * DAY_MS
    const again = await Promise.all(Array.from({ length: 3 }, () => authority.issue(['a.test', 'b.test'])))
    expect(again[0]).not.toBe(first)
    expect(new Set(again).size).toBe(1)
  })
  test('are forgotten, the least recently used first, above the limit', async () => {
    await using directory = await temporaryDirectory()
    const authority = await LocalAuthority.open(directory.path)
    const first = await authority.issue(['first.test'])
    const second = await authority.issue(['second.test'])
    for (let i = 0; i < ISSUED_CERTIFICATES_MAX - 2; i++) await authority.issue([`n${i}.test`])
    expect(await authority.issue(['first.test'])).toBe(first)
    await authority.issue(['one-more.test'])
    expect(await authority.issue(['first.test'])).toBe(first)
    expect(await authority.issue(['second.test'])).not.toBe(second)
  }, 30_000)
  test('are refused for names that none can carry', async () => {
    await using directory = await temporaryDirectory()
    const authority = await LocalAuthority.open(directory.path)
    for (const name of [
      '',
      '*',
      '*.',
      'a b',
      '*.*.test',
      'a.*.test',
      'b\u00fccher.test',
      'a.test/x',
      'a\n.test',
      '10.0.0.0/8',
    ]) {
      expect(await problemOf(authority.issue([name]))).toBe(
        `Cannot issue a certificate for ${JSON.stringify(name)}: not a host name or address`,
      )
    }
    expect(await problemOf(authority.issue([]))).toContain('no names')
    expect(
      await problemOf(authority.issue(Array.from({ length: CERTIFICATE_NAMES_MAX + 1 }, (_, i) => `n${i}.test`))),
    ).toContain('at most')
  })
})

describe.skipIf(!hasOpenssl)('openssl', () => {
  test('verifies chain, name, address and purpose', async () => {
    await using directory = await temporaryDirectory()
    const at = (name: string) => join(directory.path, name)
    const authority = await LocalAuthority.open(directory.path)
    const long = `${'a'.repeat(63)}.${'b'.repeat(63)}.${'c'.repeat(63)}.test`
    await Bun.write(at('leaf.pem'), (await authority.issue([long, '*.wild.test', '::1'])).cert)
    const verify = (...args: string[]) =>
      openssl('verify', '-x509_strict', '-purpose', 'sslserver', '-CAfile', at('ca.crt'), ...args, at('leaf.pem'))
    for (const name of [long, 'x.wild.test']) expect((await verify('-verify_hostname', name)).code).toBe(0)
    expect((await verify('-verify_ip', '::1')).code).toBe(0)
    for (const name of ['wild.test', 'x.y.wild.test', 'other.test'])
      expect((await verify('-verify_hostname', name)).code).not.toBe(0)
    expect(
      (await openssl('verify', '-x509_strict', '-purpose', 'sslclient', '-CAfile', at('ca.crt'), at('leaf.pem'))).code,
    ).not.toBe(0)
    await using other = await temporaryDirectory()
    await LocalAuthority.open(other.path)
    expect((await openssl('verify', '-CAfile', join(other.path, 'ca.crt'), at('leaf.pem'))).code).not.toBe(0)
    expect(await run('x509', '-noout', '-text', '-in', at('ca.crt'))).toContain('CA:TRUE, pathlen:0')
  })

  test('accepts a server that uses it, by TLS 1.2 and 1.3', async () => {
    await using directory = await temporaryDirectory()
    const authority = await LocalAuthority.open(directory.path)
    const { cert, key } = await authority.issue(['served.test'])
    using server = Bun.listen({ hostname: '127.0.0.1', port: 0, tls: { cert, key }, socket: { data() {} } })
    const client = (name: string, version: string) =>
      openssl(
        ...['s_client', '-connect', `127.0.0.1:${server.port}`, '-servername', name, '-verify_hostname', name, version],
        ...['-CAfile', join(directory.path, 'ca.crt'), '-verify_return_error'],
      )
    for (const version of ['-tls1_2', '-tls1_3']) {
      const good = await client('served.test', version)
      expect(good).toMatchObject({ code: 0, output: expect.stringContaining('Verify return code: 0 (ok)') })
    }
    expect(await client('other.test', '-tls1_3')).toMatchObject({
      code: 1,
      output: expect.stringContaining('hostname mismatch'),
    })
  })
})
