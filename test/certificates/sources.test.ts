// Certificates while the gateway runs: files that change, well or badly, and in every way that programs change files;
// certificates of the local authority that grow old.
import { describe, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { mkdir, rename, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { CertificateSpec } from '../../src/certificates/index.ts'
import { authority } from '../user/authority.ts'
import { frontDoor, until } from './front-door.ts'
import { temporaryDirectory } from './tools.ts'

const DAY_MS = 86_400_000
const ca = await authority('files')

/** cert.pem and key.pem of a directory, and a gateway that follows them. */
async function files(first: { cert: string; key: string }, more: Parameters<typeof frontDoor>[1] = {}) {
  const directory = await temporaryDirectory()
  const at = (name: string) => join(directory.path, name)
  const write = async ({ cert, key }: { cert: string; key: string }) => {
    await Bun.write(at('key.pem'), key)
    await Bun.write(at('cert.pem'), cert)
  }
  await write(first)
  const spec: CertificateSpec = {
    route: 'web',
    names: ['a.test', 'b.test'],
    certificate: { cert: at('cert.pem'), key: at('key.pem') },
  }
  const front = frontDoor(at('state'), more)
  const { problems } = await front.certificates.prepare([spec])
  front.certificates.follow([spec])
  const shown = () => front.certificates.of(spec).list[0]!.cert[0]!
  const view = () => front.certificates.views()[0]!
  const dispose = async () => {
    await front.certificates.stop()
    await directory[Symbol.asyncDispose]()
  }
  return { ...front, at, write, spec, problems, shown, view, [Symbol.asyncDispose]: dispose }
}

describe('files', () => {
  test('F2: written anew they are taken, and what is odd about them is told', async () => {
    const [first, second] = [await ca.issue(['a.test']), await ca.issue(['b.test', 'c.test'])]
    await using found = await files(first)
    expect(found.problems).toEqual([])
    expect(found.view()).toMatchObject({
      ...{ name: 'a.test', names: ['a.test'], routes: ['web'], source: 'file', state: 'valid', keys: ['ECDSA P-256'] },
      ...{ issuer: 'files', uncovered: ['b.test'], files: found.spec.certificate },
    })
    await found.write(second)
    await until(() => found.events.length > 0, 'the change is told')
    expect(found.shown()).toBe(second.cert)
    await until(() => found.changed.length > 0, 'the route is told')
    expect(found.changed).toEqual([['web']])
    expect(found.events).toEqual([
      {
        name: 'b.test',
        source: 'file',
        what: 'replaced',
        notAfter: new X509Certificate(second.cert).validToDate.toISOString(),
      },
    ])
    expect(found.view()).toMatchObject({ name: 'b.test', uncovered: ['a.test'] })
    expect(found.certificates.counts).toMatchObject({ replaced: 1, failed: 0 })
  })

  test('F2: renamed over, key first and certificate late, they are taken without a complaint', async () => {
    const [first, second] = [await ca.issue(['a.test']), await ca.issue(['a.test'])]
    await using found = await files(first)
    await Bun.write(found.at('key.new'), second.key)
    await rename(found.at('key.new'), found.at('key.pem'))
    // Long enough for a look at what does not fit.
    await Bun.sleep(300)
    expect(found.shown()).toBe(first.cert)
    await Bun.write(found.at('cert.new'), second.cert)
    await rename(found.at('cert.new'), found.at('cert.pem'))
    await until(() => found.shown() === second.cert, 'the change is taken')
    expect(found.events.map(({ what }) => what)).toEqual(['replaced'])
  })

  test('F2: behind links, of files and of directories, as certbot and Kubernetes make them', async () => {
    const [first, second, third] = [await ca.issue(['a.test']), await ca.issue(['a.test']), await ca.issue(['a.test'])]
    await using directory = await temporaryDirectory()
    const at = (name: string) => join(directory.path, name)
    for (const [name, { cert, key }] of Object.entries({ one: first, two: second, three: third })) {
      await mkdir(at(name))
      await Bun.write(at(`${name}/cert.pem`), cert)
      await Bun.write(at(`${name}/key.pem`), key)
    }
    const point = async (link: string, to: string) => {
      await symlink(to, at('link.new'))
      await rename(at('link.new'), at(link))
    }
    await mkdir(at('live'))
    await point('now', 'one')
    await point('live/cert.pem', '../now/cert.pem')
    await point('live/key.pem', '../now/key.pem')
    await using front = frontDoor(at('state'))
    const certificate = { cert: at('live/cert.pem'), key: at('live/key.pem') }
    const spec = { route: 'web', names: ['a.test'], certificate }
    expect((await front.certificates.prepare([spec])).problems).toEqual([])
    front.certificates.follow([spec])
    const shown = () => front.certificates.of(spec).list[0]!.cert[0]!
    expect(shown()).toBe(first.cert)
    // A directory on the way is another one: it is neither that of the link nor that of the file.
    await point('now', 'two')
    await until(() => shown() === second.cert, 'the directory is another')
    await point('live/key.pem', '../three/key.pem')
    await point('live/cert.pem', '../three/cert.pem')
    await until(() => shown() === third.cert, 'the files are others')
    expect(front.events.map(({ what }) => what)).toEqual(['replaced', 'replaced'])
  })

  test('F2: bad ones are told once and change nothing; once good they are taken', async () => {
    const [first, expired, good] = [
      await ca.issue(['a.test']),
      await ca.issue(['a.test'], { from: -9, to: -1 }),
      await ca.issue(['a.test']),
    ]
    await using found = await files(first, { settleMs: 300 })
    await found.write(expired)
    await found.certificates.renew('a.test')
    expect(await found.certificates.renew('A.test')).toEqual({
      ...{ ok: false, status: 502 },
      error: expect.stringMatching(/cert\.pem: expired at /),
    })
    // Who reloads is told so.
    expect((await found.certificates.readAgain([found.spec])).problems).toEqual([
      { route: 'web', message: expect.stringContaining('expired at') },
    ])
    expect(found.shown()).toBe(first.cert)
    await until(() => found.view().lastError !== undefined, 'it is reported')
    expect(found.view()).toMatchObject({ state: 'valid', lastError: expect.stringContaining('expired at') })
    for (let i = 0; i < 3; i++) await found.certificates.renew('a.test')
    await rm(found.at('cert.pem'))
    await until(() => found.events.length === 2, 'the missing file is told')
    expect(found.events.map(({ what, error }) => [what, error!.split(': ').at(-1)])).toEqual([
      ['failed', expect.stringMatching(/^expired at/)],
      ['failed', 'no such file'],
    ])
    await found.write(good)
    await until(() => found.shown() === good.cert, 'the good one is taken')
    expect(found.view()).not.toHaveProperty('lastError')
    expect((await found.certificates.readAgain([found.spec])).problems).toEqual([])
  }, 20_000)

  test('F2: at the start one that is over is served, and told as an error', async () => {
    await using found = await files(await ca.issue(['a.test'], { from: -9, to: -1 }))
    expect(found.problems).toEqual([])
    expect(found.shown()).toContain('BEGIN CERTIFICATE')
    expect(found.view()).toMatchObject({ state: 'expired', expiresInSeconds: expect.any(Number) })
    expect(found.view().expiresInSeconds).toBeLessThan(0)
    expect(found.log).toEqual([
      expect.stringMatching(/^error Certificate a\.test \(file\): clients refuse it: expired at /),
    ])
    expect(found.events).toEqual([expect.objectContaining({ what: 'expiring', name: 'a.test' })])
    found.certificates.look()
    expect(found.events).toHaveLength(1)
  })

  test('M3: one that runs out is told, and once more when it is over', async () => {
    let now = Date.now()
    await using found = await files(await ca.issue(['a.test'], { from: -60, to: 30 }), { now: () => now })
    expect(found.view().state).toBe('valid')
    now += 17 * DAY_MS
    found.certificates.look()
    found.certificates.look()
    expect(found.view().state).toBe('expiring')
    expect(found.log).toEqual([expect.stringMatching(/^warn .*has not been renewed$/)])
    now += 14 * DAY_MS
    found.certificates.look()
    expect(found.view().state).toBe('expired')
    expect(found.log).toHaveLength(2)
  })

  test('which domains of the routes it is not for', async () => {
    await using found = await files(await ca.issue(['*.a.test', 'b.test']))
    const { certificate } = found.spec
    const names = ['a.test', 'x.a.test', '*.a.test', 'y.x.a.test', '*.b.test', 'b.test', 'api-*.b.test']
    const spec = { route: 'web', names, certificate }
    await found.certificates.prepare([spec])
    found.certificates.follow([spec])
    expect(found.view().uncovered).toEqual(['a.test', 'y.x.a.test', '*.b.test'])
  })

  test('a key without certificate is told, and the others are served', async () => {
    const [good, other] = [await ca.issue(['a.test']), await ca.issue(['b.test'])]
    await using found = await files({ cert: good.cert, key: other.key + good.key })
    expect(found.shown()).toBe(good.cert)
    const words = `key 1 of ${found.at('key.pem')} does not belong to any certificate in ${found.at('cert.pem')}`
    expect(found.view()).toMatchObject({ state: 'valid', warnings: [words] })
    found.certificates.look()
    expect(found.log).toEqual([`warn Certificate a.test (file): ${words}`])
  })

  test('a directory that is removed and made again is watched again', async () => {
    const [first, second, third] = [await ca.issue(['a.test']), await ca.issue(['a.test']), await ca.issue(['a.test'])]
    await using directory = await temporaryDirectory()
    const at = (name: string) => join(directory.path, name)
    const put = async ({ cert, key }: typeof first) => {
      await Bun.write(at('certs/key.pem'), key)
      await Bun.write(at('certs/cert.pem'), cert)
    }
    await put(first)
    await using front = frontDoor(at('state'), { settleMs: 300 })
    const spec = { route: 'web', names: [], certificate: { cert: at('certs/cert.pem'), key: at('certs/key.pem') } }
    await front.certificates.prepare([spec])
    front.certificates.follow([spec])
    const shown = () => front.certificates.of(spec).list[0]!.cert[0]!
    await put(second)
    await until(() => shown() === second.cert, 'they are watched')
    await rm(at('certs'), { recursive: true })
    // It is seen that it is gone before it is there again.
    await until(() => front.certificates.views()[0]!.lastError !== undefined, 'they are gone')
    expect(shown()).toBe(second.cert)
    await put(third)
    front.certificates.look()
    await until(() => shown() === third.cert, 'they are there again')
    // No reading is on its way any more that could find the next ones by chance.
    for (let i = 0; i < 2; i++) await front.certificates.renew('a.test')
    await put(first)
    await until(() => shown() === first.cert, 'and are watched')
  }, 20_000)
})

describe('routes', () => {
  test('F7: one wrong file takes nothing from the others', async () => {
    await using found = await files(await ca.issue(['a.test']))
    const specs: CertificateSpec[] = [
      found.spec,
      { route: 'wrong', names: ['a.test'], certificate: { cert: found.at('none.crt'), key: found.at('key.pem') } },
      { route: 'own', names: ['own.test', '*.own.test', '*'], certificate: 'self-signed' },
      { route: 'odd', names: ['a_*.test'], certificate: 'self-signed' },
      { route: 'auto', names: ['auto.test'], certificate: 'auto' },
    ]
    const { problems } = await found.certificates.prepare(specs)
    expect(problems).toEqual([
      { route: 'wrong', message: `Cannot read certificate ${found.at('none.crt')}: no such file` },
      { route: 'auto', message: 'Cannot issue a certificate for auto.test: acme is not configured' },
    ])
    const [own, odd] = [found.certificates.of(specs[2]!), found.certificates.of(specs[3]!)]
    expect(own.list[0]!.names).toEqual(['*.own.test', 'own.test'])
    // No certificate can carry its pattern: it gets the names of the machine.
    expect(new X509Certificate(odd.list[0]!.cert[0]!).checkHost('localhost')).toBe('localhost')
    expect(own.list[0]!.cert[0]).toEndWith((await found.certificates.authority()).certificate)
  })

  test('files alone make no authority', async () => {
    await using found = await files(await ca.issue(['a.test']))
    expect(await found.certificates.authorityView()).toBeNull()
    expect(await Bun.file(found.at('state/authority/ca.key')).exists()).toBeFalse()
  })

  test('an authority that could not be opened is tried again', async () => {
    await using directory = await temporaryDirectory()
    const blocked = join(directory.path, 'blocked')
    await Bun.write(blocked, 'a file where the directory should be')
    await using front = frontDoor(blocked)
    const spec = [{ route: 'own', names: ['own.test'], certificate: 'self-signed' as const }]
    expect((await front.certificates.prepare(spec)).problems).toEqual([
      { route: 'own', message: expect.stringContaining(`Cannot make directory ${join(blocked, 'authority')}: `) },
    ])
    await rm(blocked)
    expect((await front.certificates.prepare(spec)).problems).toEqual([])
  })

  test('a configuration that is refused leaves what runs alone', async () => {
    await using found = await files(await ca.issue(['a.test']))
    const other: CertificateSpec = { route: 'new', names: ['new.test'], certificate: 'self-signed' }
    await found.certificates.prepare([found.spec, other])
    expect(found.certificates.views().map(({ routes }) => routes)).toEqual([['web']])
    const next = await ca.issue(['a.test'])
    await found.write(next)
    await until(() => found.shown() === next.cert, 'the files are watched still')
  })
})

test('F2: one of the local authority is made again before it is over, and on request (F9)', async () => {
  await using directory = await temporaryDirectory()
  let now = Date.now()
  await using front = frontDoor(directory.path, { now: () => now })
  const spec: CertificateSpec = { route: 'own', names: ['own.test'], certificate: 'self-signed' }
  await front.certificates.prepare([spec])
  front.certificates.follow([spec])
  const shown = () => front.certificates.of(spec).list[0]!.cert[0]!
  const first = shown()
  front.certificates.look()
  expect(await front.certificates.renew('own.test')).toMatchObject({ ok: true, certificates: [{ name: 'own.test' }] })
  const second = shown()
  expect(second).not.toBe(first)
  now += 270 * DAY_MS
  front.certificates.look()
  await until(() => shown() !== second, 'it is made again')
  expect(front.events.map(({ what }) => what)).toEqual(['renewed', 'renewed'])
  await until(() => front.changed.length > 0, 'the route is told')
  expect(await front.certificates.renew('other.test')).toMatchObject({ ok: false, status: 404 })
  expect(await front.certificates.authorityView()).toMatchObject({
    path: join(directory.path, 'authority/ca.crt'),
    fingerprint: expect.stringMatching(/^([0-9A-F]{2}:){31}[0-9A-F]{2}$/),
  })
})
