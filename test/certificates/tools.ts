// What the certificate tests share: a directory of their own, and openssl, which decides whether a certificate is good.
import { mkdtemp, rm } from 'node:fs/promises'
import { isIP } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const hasOpenssl = Bun.which('openssl') !== null

/** `await using`: gone with the end of the test. */
export async function temporaryDirectory() {
  const path = await mkdtemp(join(tmpdir(), 'sluice-certificates-'))
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) }
}

export async function openssl(...args: string[]): Promise<{ code: number; output: string }> {
  await using process = Bun.spawn(['openssl', ...args], { stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' })
  const [out, err, code] = await Promise.all([process.stdout.text(), process.stderr.text(), process.exited])
  return { code, output: out + err }
}

/** openssl that must succeed. */
export async function run(...args: string[]): Promise<string> {
  const { code, output } = await openssl(...args)
  if (code !== 0) throw new Error(`openssl ${args.join(' ')}: ${output}`)
  return output
}

/** A certificate for these names and addresses that signs itself, as PEM. */
export async function signed(names: string[]): Promise<{ cert: string; key: string }> {
  await using directory = await temporaryDirectory()
  const [key, cert] = ['key', 'cert'].map((name) => join(directory.path, name)) as [string, string]
  const subjects = names.map((name) => (isIP(name) ? `IP:${name}` : `DNS:${name}`))
  await run(
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'],
    ...['-subj', `/CN=${names[0]}`, '-addext', `subjectAltName=${subjects.join()}`, '-keyout', key, '-out', cert],
  )
  return { cert: await Bun.file(cert).text(), key: await Bun.file(key).text() }
}
