// Certificates of a running gateway: files that are replaced, good and bad, while clients come; modules; the local authority;
// and the commands that show them. openssl decides what is a good certificate.
import { expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { existsSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CertificateView } from '../../src/certificates/index.ts'
import { authority, type Pair } from '../user/authority.ts'
import { parseMetrics, series } from '../observe/exposition.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend } from './traffic.ts'

const PORT = 8443

/** As careful programs do it: whole files, each renamed over the old one. */
function replace(files: { cert: string; key: string }, { cert, key }: Pair) {
  for (const [path, text] of [
    [files.key, key],
    [files.cert, cert],
  ] as const) {
    writeFileSync(`${path}.new`, text)
    renameSync(`${path}.new`, path)
  }
}

const serialOf = (pem: string) => new X509Certificate(pem).serialNumber

test('F2, F9: files, modules and the local authority, and what the commands show of them', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const ca = await authority('lab')
  const [first, second, other] = [
    await ca.issue(['files.test']),
    await ca.issue(['files.test']),
    await ca.issue(['x.test']),
  ]
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(lab, [])
  const at = (name: string) => join(gateway.directory, name)
  const files = { cert: at('web.crt'), key: at('web.key') }
  replace(files, first)
  writeFileSync(at('ca.crt'), ca.ca)
  const own = await ca.issue(['module.test'])
  writeFileSync(
    at('vault.ts'),
    `export default (name) => {
       if (name === 'module.test') return ${JSON.stringify(own)}
       throw new Error('the vault is sealed')
     }`,
  )
  const route = (name: string, domains: string | string[], certificate: unknown) =>
    forward(name, PORT, to, { tls: { mode: 'terminate', certificate } }, { match: { domains } })
  gateway.write([
    route('files', 'files.test', files),
    route('vault', ['module.test', 'sealed.test'], { module: 'vault.ts' }),
    route('own', 'own.test', 'self-signed'),
  ])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  await gateway.settled()

  const view = async (name: string) => {
    const { certificates } = await gateway.ask<{ certificates: CertificateView[] }>('/v1/certificates')
    return certificates.find((one) => one.name === name)!
  }
  await until(async () => (await view('sealed.test')).state === 'failed', 5000, 'the module has answered')
  /** The serial number of what is shown and trusted; null: there was no handshake, or openssl does not trust it. */
  const shown = async (name: string, authority = at('ca.crt')) => {
    const words = ['-connect', `${host}:${PORT}`, '-servername', name, '-verify_hostname', name]
    const { stdout, exitCode } = await lab.client.run([
      ...['openssl', 's_client', ...words, '-CAfile', authority, '-verify_return_error', '-no_ign_eof'],
    ])
    const pem = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(stdout)?.[0]
    return exitCode === 0 && pem !== undefined ? serialOf(pem) : null
  }
  expect(await shown('files.test')).toBe(serialOf(first.cert))
  expect(await until(() => shown('module.test'), 5000, 'the worker has what the module gave')).toBe(serialOf(own.cert))
  expect(await shown('sealed.test')).toBeNull()

  // Replaced while clients come: each sees the old one or the new one, and none fails.
  const seen: (string | null)[] = []
  let coming = true
  const clients = [1, 2, 3].map(async () => {
    while (coming) seen.push(await shown('files.test'))
  })
  await until(() => seen.length > 10, 5000, 'clients come')
  replace(files, second)
  await until(() => seen.at(-1) === serialOf(second.cert), 5000, 'clients see the new one')
  // One that nobody could use changes nothing.
  writeFileSync(files.cert, other.cert)
  expect((await gateway.cli('certificates', 'renew', 'files.test', '--admin', gateway.socket)).stderr).toContain(
    'does not belong to any certificate',
  )
  coming = false
  await Promise.all(clients)
  expect([...new Set(seen)].sort()).toEqual([first, second].map(({ cert }) => serialOf(cert)).sort())
  expect(await shown('files.test')).toBe(serialOf(second.cert))
  console.log(`${seen.length} handshakes while a certificate was replaced, none failed`)

  // The local authority is trusted by whoever does what the command says.
  const trust = await gateway.cli('certificates', 'trust', '--pem', '--admin', gateway.socket)
  writeFileSync(at('own.crt'), trust.stdout)
  expect(await shown('own.test', at('own.crt'))).not.toBeNull()
  const words = await gateway.cli('certificates', 'trust', '--admin', gateway.socket)
  expect(words.stdout).toContain(new X509Certificate(trust.stdout).fingerprint256)
  expect(words.stdout).toContain('update-ca-certificates')

  const listed = await gateway.cli('certificates', '--admin', gateway.socket)
  expect(listed.stdout).toMatch(/^files\.test +file +valid +in 4 days +ECDSA P-256 /m)
  expect(listed.stdout).toMatch(/^module\.test +module +valid /m)
  expect(listed.stdout).toMatch(/^sealed\.test +module +failed +- +- +in \d+ \w+ +.*the vault is sealed/m)
  expect(listed.stdout).toMatch(/^own\.test +self-signed +valid +in 39\d days /m)
  const text = await (await fetch('http://sluice/metrics', { unix: gateway.socket })).text()
  const seconds = series(parseMetrics(text), 'sluice_certificate_expiry_seconds')
  expect(Object.keys(seconds).sort()).toEqual([
    'name=files.test,source=file',
    'name=module.test,source=module',
    'name=own.test,source=self-signed',
  ])
  expect((await gateway.cli('certificates', 'renew', 'none.test', '--admin', gateway.socket)).exitCode).toBe(1)

  // After the end of the gateway it is read from the state directory.
  expect(await gateway.stop()).toBe(0)
  expect((await gateway.cli('certificates', 'trust', '--pem', '--config', gateway.file)).stdout).toBe(trust.stdout)
})

test('F2, issue 6: a bad file takes nothing but its own route away at a start, and nothing at all from a gateway that hands over', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const ca = await authority('lab')
  const echo = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: echo.port }]
  await using gateway = await Gateway.start(lab, [])
  const at = (name: string) => join(gateway.directory, name)
  const files = { cert: at('web.crt'), key: at('web.key') }
  const pair = await ca.issue(['web.test'])
  writeFileSync(at('ca.crt'), ca.ca)
  const secure = (certificate: unknown) => ({ tls: { mode: 'terminate', certificate } })
  gateway.write([forward('web', PORT, to, secure(files)), forward('own', PORT + 1, to, secure('self-signed'))])
  expect((await gateway.reload()).problems?.map(({ path }) => path)).toEqual(['routes.web.action.tls.certificate'])
  await gateway.kill9()
  await gateway.restart({ ready: (routes) => routes.some(({ name, state }) => name === 'own' && state === 'active') })
  expect(await gateway.route('web')).toMatchObject({
    state: 'failed',
    reason: expect.stringContaining('it has no certificate'),
  })
  const checked = await gateway.cli('run', '--check', '--config', gateway.file)
  expect([checked.exitCode, checked.stderr]).toEqual([0, expect.stringContaining('route "web" could not end TLS')])
  const shown = async (port: number) => {
    const words = ['-connect', `${host}:${port}`, '-servername', 'web.test', '-CAfile', at('ca.crt')]
    const { stdout } = await lab.client.run(['openssl', 's_client', ...words, '-no_ign_eof'])
    const pem = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(stdout)?.[0]
    return pem === undefined ? null : serialOf(pem)
  }
  expect([await shown(PORT), (await shown(PORT + 1)) === null]).toEqual([null, false])
  replace(files, pair)
  await until(async () => (await gateway.route('web')).state === 'active', 5000, 'the files are taken')
  await until(async () => (await shown(PORT)) === serialOf(pair.cert), 5000, 'and shown')

  // What it shows is nowhere else any more: a new program would have less to show.
  writeFileSync(files.cert, 'half of a ')
  const { pid } = (await gateway.status()) as unknown as { pid: number }
  expect((await gateway.cli('upgrade', '--admin', gateway.socket)).exitCode).toBe(1)
  expect(gateway.logText()).toContain('it holds no PEM certificate')
  expect((await gateway.status()) as unknown).toMatchObject({ pid })
  expect(await shown(PORT)).toBe(serialOf(pair.cert))
}, 30_000)

test('F9: who takes over has asked the modules before: no handshake fails, however long they take', async () => {
  await using lab = await Lab.create()
  const host = lab.gateway.clientSide4
  const ca = await authority('lab')
  const to = [{ host: lab.backend.address4, port: echoBackend(lab.backend).port }]
  await using gateway = await Gateway.start(lab, [])
  const at = (name: string) => join(gateway.directory, name)
  const own = await ca.issue(['slow.test'])
  writeFileSync(at('slow.ts'), `export default async () => (await Bun.sleep(1000), ${JSON.stringify(own)})`)
  writeFileSync(at('ca.crt'), ca.ca)
  const tls = { mode: 'terminate', certificate: { module: at('slow.ts') } }
  gateway.write([forward('slow', PORT, to, { tls }, { match: { domains: 'slow.test' } })])
  expect(await gateway.reload()).toMatchObject({ status: 200 })
  const shake = async () => {
    const words = ['-connect', `${host}:${PORT}`, '-servername', 'slow.test', '-CAfile', at('ca.crt')]
    return (await lab.client.run(['openssl', 's_client', ...words, '-no_ign_eof'])).stdout.includes('Verification: OK')
  }
  await until(shake, 10_000, 'the module has answered')
  const seen: boolean[] = []
  let coming = true
  const clients = (async () => {
    while (coming) seen.push(await shake())
  })()
  const { pid } = await gateway.ask<{ pid: number }>('/v1/upgrade', 'POST')
  try {
    await until(
      async () => ((await gateway.status()) as unknown as { pid: number }).pid === pid,
      20_000,
      'it took over',
    )
    const before = seen.length
    await until(() => seen.length > before + 5, 10_000, 'handshakes go on')
  } finally {
    coming = false
    await clients
    // It is no child of the test.
    await gateway.ask('/v1/stop', 'POST')
  }
  await until(() => !existsSync(`/proc/${pid}/exe`), 20_000, 'it has stopped')
  expect(seen.every((good) => good)).toBe(true)
}, 60_000)
