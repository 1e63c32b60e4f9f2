// Certificates from files, made by openssl as an operator would have them, and everything that is commonly wrong with them.
import { beforeAll, afterAll, describe, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { loadCertificates } from '../../src/certificates/index.ts'
import type { CertificateFiles } from '../../src/certificates/files.ts'
import { routeCertificates, type Pair } from '../../src/certificates/pair.ts'
import { CERTIFICATE_FILE_BYTES_MAX } from '../../src/base/limits.ts'
import { hasOpenssl, openssl, run, temporaryDirectory } from './tools.ts'

const DAY_MS = 86_400_000
let directory: Awaited<ReturnType<typeof temporaryDirectory>>
const at = (name: string) => join(directory.path, name)
const text = (name: string) => Bun.file(at(name)).text()
const write = async (name: string, ...files: string[]) => {
  await Bun.write(at(name), (await Promise.all(files.map(text))).join(''))
  return at(name)
}
const problem = (cert: string, key: string) =>
  loadCertificates({ cert: at(cert), key: at(key) }).then(
    () => 'no problem',
    (cause: Error) => cause.message.replaceAll(directory.path + '/', ''),
  )
const first = async (files: CertificateFiles) => (await loadCertificates(files)).pairs[0]!
const subjects = (chain: string) =>
  [...chain.matchAll(/-----BEGIN[^]+?END CERTIFICATE-----/g)].map(([pem]) => new X509Certificate(pem).subject)

const EC = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']

/** name.crt and name.key, signed by `issuer` or by itself. */
async function make(name: string, issuer: string | undefined, ...more: string[]) {
  const signer = issuer ? ['-CA', at(`${issuer}.crt`), '-CAkey', at(`${issuer}.key`)] : []
  const files = ['-keyout', at(`${name}.key`), '-out', at(`${name}.crt`)]
  await run('req', '-x509', ...EC, ...files, '-subj', `/CN=${name}`, '-days', '10', ...signer, ...more)
}

// root ── middle ── leaf          stranger (self-signed)
//    └─── cross: middle's name and key, signed by another root
beforeAll(async () => {
  if (!hasOpenssl) return
  directory = await temporaryDirectory()
  const ca = ['-addext', 'basicConstraints=critical,CA:TRUE']
  await Promise.all([make('root', undefined, ...ca), make('root2', undefined, ...ca), make('stranger', undefined)])
  await make('middle', 'root', ...ca)
  const same = ['-key', at('middle.key'), '-subj', '/CN=middle', '-CA', at('root2.crt'), '-CAkey', at('root2.key')]
  await run('req', '-x509', '-new', ...same, '-out', at('cross.crt'), '-days', '10', ...ca)
  const names = 'subjectAltName=DNS:a.test,DNS:*.B.test,IP:192.0.2.1,IP:2001:db8::1,email:x@a.test'
  await make('leaf', 'middle', '-addext', names, '-addext', 'basicConstraints=critical,CA:FALSE')
})
afterAll(() => directory?.[Symbol.asyncDispose]())

describe.skipIf(!hasOpenssl)('good files', () => {
  test('give the chain, the key, the names and the end', async () => {
    const cert = await write('good.crt', 'leaf.crt', 'middle.crt')
    const { pairs, unused } = await loadCertificates({ cert, key: at('leaf.key') })
    const [loaded] = pairs as [Pair]
    expect(pairs).toHaveLength(1)
    expect(unused).toEqual([])
    expect(subjects(loaded.cert)).toEqual(['CN=leaf', 'CN=middle'])
    expect(loaded.key).toBe(await text('leaf.key'))
    expect([loaded.kind, loaded.issuer]).toEqual(['ECDSA P-256', 'middle'])
    expect(loaded.names).toEqual(['a.test', '*.b.test', '192.0.2.1', '2001:db8::1'])
    expect(Math.round((loaded.notAfter.getTime() - Date.now()) / DAY_MS)).toBe(10)
  })
  test('in any order, with doubles, strangers, comments and Windows line ends', async () => {
    await Bun.write(at('comment'), '# subject=/CN=leaf\n-- bag attributes --\n')
    const cert = await write(
      'mixed.crt',
      'root.crt',
      'comment',
      'stranger.crt',
      'middle.crt',
      'middle.crt',
      'comment',
      'leaf.crt',
    )
    await Bun.write(cert, (await text('mixed.crt')).replaceAll('\n', '\r\n'))
    const loaded = await first({ cert, key: at('leaf.key') })
    expect(subjects(loaded.cert)).toEqual(['CN=leaf', 'CN=middle', 'CN=root'])
    await Bun.write(at('repaired.crt'), loaded.cert)
    await run('verify', '-CAfile', at('root.crt'), '-untrusted', at('repaired.crt'), at('repaired.crt'))
  })
  test('with a cross-signed issuer keep both ways up', async () => {
    const loaded = await first({
      cert: await write('crossed.crt', 'cross.crt', 'leaf.crt', 'middle.crt', 'root.crt'),
      key: at('leaf.key'),
    })
    expect(subjects(loaded.cert)).toEqual(['CN=leaf', 'CN=middle', 'CN=middle', 'CN=root'])
  })
  test('as one file for both', async () => {
    const both = await write('both.pem', 'leaf.key', 'leaf.crt', 'middle.crt')
    expect(subjects((await first({ cert: both, key: both })).cert)).toEqual(['CN=leaf', 'CN=middle'])
  })
  test('with keys of every usual kind and form', async () => {
    await run('ec', '-in', at('leaf.key'), '-out', at('sec1.key'))
    expect(await text('sec1.key')).toStartWith('-----BEGIN EC PRIVATE KEY')
    expect(await problem('leaf.crt', 'sec1.key')).toBe('no problem')
    for (const [name, ...algorithm] of [
      ['rsa', 'rsa:2048'],
      ['p384', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-384'],
      ['ed', 'ed25519'],
    ]) {
      await run(
        'req',
        '-x509',
        '-newkey',
        ...algorithm,
        '-nodes',
        '-keyout',
        at(`${name}.key`),
        '-out',
        at(`${name}.crt`),
        '-subj',
        '/CN=x',
      )
      expect(await problem(`${name}.crt`, `${name}.key`)).toBe('no problem')
    }
    await run('rsa', '-traditional', '-in', at('rsa.key'), '-out', at('pkcs1.key'))
    expect(await text('pkcs1.key')).toStartWith('-----BEGIN RSA PRIVATE KEY')
    expect(await problem('rsa.crt', 'pkcs1.key')).toBe('no problem')
  }, 20_000)
})

describe.skipIf(!hasOpenssl)('what is wrong is said with the name of the file', () => {
  test('missing, unreadable, no file, too large', async () => {
    expect(await problem('none.crt', 'leaf.key')).toBe('Cannot read certificate none.crt: no such file')
    expect(await problem('leaf.crt', 'none.key')).toBe('Cannot read key none.key: no such file')
    expect(await problem('leaf.crt/x', 'leaf.key')).toBe('Cannot read certificate leaf.crt/x: no such file')
    await mkdir(at('folder'))
    expect(await problem('folder', 'leaf.key')).toBe('Cannot read certificate folder: not a regular file')
    await Bun.spawn(['mkfifo', at('pipe')]).exited
    expect(await problem('pipe', 'leaf.key')).toBe('Cannot read certificate pipe: not a regular file')
    await Bun.write(at('large'), 'x'.repeat(CERTIFICATE_FILE_BYTES_MAX + 1))
    expect(await problem('large', 'leaf.key')).toBe('Cannot read certificate large: larger than 256 KiB')
  })
  test('swapped, empty, damaged', async () => {
    await Bun.write(at('empty'), '')
    expect(await problem('leaf.key', 'leaf.crt')).toBe(
      'Cannot use certificate leaf.key: it holds a private key and no certificate',
    )
    expect(await problem('leaf.crt', 'leaf.crt')).toBe(
      'Cannot use key leaf.crt: it holds a certificate and no private key',
    )
    expect(await problem('empty', 'leaf.key')).toBe('Cannot use certificate empty: it holds no PEM certificate')
    expect(await problem('leaf.crt', 'empty')).toBe('Cannot use key empty: it holds no PEM private key')
    const damage = (pem: string) => pem.replace(/\n[^]{40}/, '\n' + 'A'.repeat(40))
    await Bun.write(at('damaged.crt'), (await text('leaf.crt')) + damage(await text('middle.crt')))
    await Bun.write(at('damaged.key'), damage(await text('leaf.key')))
    expect(await problem('damaged.crt', 'leaf.key')).toBe('Cannot use certificate damaged.crt: PEM block 2 is damaged')
    expect(await problem('leaf.crt', 'damaged.key')).toBe(
      'Cannot use key damaged.key: it is damaged, or of a kind that is not supported',
    )
  })
  test('DER instead of PEM', async () => {
    await run('x509', '-in', at('leaf.crt'), '-outform', 'DER', '-out', at('leaf.der'))
    expect(await problem('leaf.der', 'leaf.key')).toBe('Cannot use certificate leaf.der: it holds no PEM certificate')
  })
  test("another certificate's key", async () => {
    expect(await problem('leaf.crt', 'stranger.key')).toBe(
      'Cannot use key stranger.key: it does not belong to any certificate in leaf.crt',
    )
  })
  test('a passphrase, in both forms', async () => {
    await run('pkcs8', '-topk8', '-in', at('leaf.key'), '-out', at('pkcs8.locked'), '-passout', 'pass:x')
    await run('ec', '-in', at('leaf.key'), '-out', at('sec1.locked'), '-aes128', '-passout', 'pass:x')
    for (const key of ['pkcs8.locked', 'sec1.locked']) {
      expect(await problem('leaf.crt', key)).toBe(
        `Cannot use key ${key}: it is protected by a passphrase; store it without one`,
      )
    }
  })
  test('a trust store', async () => {
    await write('store.pem', ...Array<string>(17).fill('root.crt'))
    expect(await problem('store.pem', 'root.key')).toBe(
      'Cannot use certificate store.pem: it holds 17 certificates, a chain has at most 16',
    )
  })
  test('a curve that the TLS engine does not know', async () => {
    const { code } = await openssl(
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1', '-nodes', '-subj', '/CN=x'],
      ...['-keyout', at('k1.key'), '-out', at('k1.crt')],
    )
    if (code === 0) expect(await problem('k1.crt', 'k1.key')).toMatch(/^Cannot use .*k1\.key/)
  })
})

describe.skipIf(!hasOpenssl)('several kinds of key', () => {
  beforeAll(async () => {
    const rsa = ['-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=rsa', '-days', '10']
    const names = ['-addext', 'subjectAltName=DNS:a.test,DNS:*.b.test,IP:192.0.2.1,IP:2001:db8::1']
    await run(
      ...['req', '-x509', ...rsa, '-keyout', at('side.key'), '-out', at('side.crt'), ...names],
      ...['-CA', at('root.crt'), '-CAkey', at('root.key'), '-addext', 'basicConstraints=critical,CA:FALSE'],
    )
  })
  test('F2: of one pair of files, ECDSA first, each with its own chain', async () => {
    const cert = await write('two.crt', 'side.crt', 'root.crt', 'middle.crt', 'leaf.crt')
    const key = await write('two.key', 'side.key', 'leaf.key')
    const { pairs, unused } = await loadCertificates({ cert, key })
    expect(pairs.map(({ kind }) => kind)).toEqual(['ECDSA P-256', 'RSA 2048'])
    expect(pairs.map((pair) => subjects(pair.cert))).toEqual([
      ['CN=leaf', 'CN=middle', 'CN=root'],
      ['CN=rsa', 'CN=root'],
    ])
    expect(pairs.map((pair) => pair.key)).toEqual([await text('leaf.key'), await text('side.key')])
    expect(unused).toEqual([])
    expect(routeCertificates(pairs)).toEqual([
      { names: pairs[0]!.names, cert: pairs.map((pair) => pair.cert), key: pairs.map((pair) => pair.key) },
    ])
  })
  test('keys without certificate and certificates without key are told', async () => {
    const cert = await write('left.crt', 'leaf.crt', 'middle.crt', 'side.crt')
    const key = await write('left.key', 'stranger.key', 'leaf.key')
    const { pairs, unused } = await loadCertificates({ cert, key })
    expect(pairs).toHaveLength(1)
    expect(unused.map((words) => words.replaceAll(directory.path + '/', ''))).toEqual([
      'key 1 of left.key does not belong to any certificate in left.crt',
      'certificate 3 of left.crt has no key in left.key',
    ])
  })
  test('of a certificate and the next one for the same key, the one that lasts longer', async () => {
    const next = [
      '-key',
      at('side.key'),
      '-subj',
      '/CN=next',
      '-days',
      '20',
      '-CA',
      at('root.crt'),
      '-CAkey',
      at('root.key'),
    ]
    const names = ['-addext', 'subjectAltName=DNS:*.b.test,DNS:a.test,IP:192.0.2.1,IP:2001:db8::1']
    await run('req', '-x509', '-new', ...next, ...names, '-out', at('next.crt'))
    const loaded = await loadCertificates({
      cert: await write('both.crt', 'side.crt', 'next.crt'),
      key: at('side.key'),
    })
    expect(loaded.pairs.map((pair) => subjects(pair.cert))).toEqual([['CN=next']])
  })
})
