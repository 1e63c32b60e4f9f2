// sluice certificates: what there is, how long it lasts, and what went wrong; renew, and how to trust the local authority.
import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { DEFAULT_STATE_DIR } from '../base/about.ts'
import { authorityDirectory, authorityView, type AuthorityView, type CertificateView } from '../certificates/index.ts'
import { loadConfig } from '../config/load.ts'
import { fail } from './client.ts'
import { ask, type ClientOptions } from './gateway.ts'
import { table } from './shared.ts'
import { trustCommands } from './trust.ts'

export async function listCertificates(options: ClientOptions): Promise<number> {
  const answer = await ask('GET', '/v1/certificates', options)
  if (typeof answer === 'string' || !answer.ok) return fail(typeof answer === 'string' ? answer : await answer.text())
  const body = (await answer.json()) as { certificates: CertificateView[] }
  process.stdout.write(options.json ? `${JSON.stringify(body, null, 2)}\n` : certificateTable(body.certificates))
  return 0
}

export async function renewCertificate(name: string, options: ClientOptions): Promise<number> {
  const answer = await ask('POST', `/v1/certificates/${encodeURIComponent(name)}/renew`, options)
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as { certificates?: CertificateView[]; error?: string }
  if (options.json) process.stdout.write(`${JSON.stringify(body, null, 2)}\n`)
  if (!answer.ok) return fail(body.error ?? `status ${answer.status}`)
  if (!options.json) process.stdout.write(certificateTable(body.certificates ?? []))
  return 0
}

export function certificateTable(certificates: CertificateView[], now = Date.now()): string {
  const rows = certificates.map((one) => [
    one.name,
    one.source,
    one.state,
    one.notAfter === undefined ? '-' : inWords(one.notAfter, now),
    one.keys.join(', ') || '-',
    nextOf(one, now),
    problemOf(one),
  ])
  return table(['NAME', 'SOURCE', 'STATE', 'EXPIRES', 'KEYS', 'NEXT', 'ERROR'], rows)
}

function nextOf({ nextAttempt, renewAt }: CertificateView, now: number): string {
  const next = nextAttempt ?? renewAt
  return next === undefined ? '-' : inWords(next, now)
}

function problemOf({ lastError, uncovered, warnings }: CertificateView): string {
  const missing = uncovered?.length ? [`not for ${uncovered.join(', ')}`] : []
  return [...(lastError === undefined ? [] : [lastError]), ...missing, ...(warnings ?? [])].join('; ')
}

/** "in 61 days", "3 hours ago". */
export function inWords(time: string, now: number): string {
  const seconds = Math.round((Date.parse(time) - now) / 1000)
  const [count, unit] = largestUnit(Math.abs(seconds))
  const words = `${count} ${unit}${count === 1 ? '' : 's'}`
  return seconds < 0 ? `${words} ago` : `in ${words}`
}

/** Two days and more are told in days, and so on. */
function largestUnit(seconds: number): [count: number, unit: string] {
  for (const [unit, length] of [
    ['day', 86_400],
    ['hour', 3600],
    ['minute', 60],
  ] as const)
    if (seconds >= 2 * length) return [Math.floor(seconds / length), unit]
  return [seconds, 'second']
}

export async function trust(options: ClientOptions & { pem?: boolean }): Promise<number> {
  const authority = (await askAuthority(options)) ?? (await readAuthority(options))
  if (typeof authority === 'string') return fail(authority)
  const commands = trustCommands(authority)
  if (options.pem) process.stdout.write(authority.certificate)
  else if (options.json) process.stdout.write(`${JSON.stringify({ ...authority, commands }, null, 2)}\n`)
  else process.stdout.write(trustText(authority, commands))
  return 0
}

/** undefined: no gateway answers, or it has none. */
async function askAuthority(options: ClientOptions): Promise<AuthorityView | undefined> {
  const answer = await ask('GET', '/v1/certificates/authority', options)
  return typeof answer === 'string' || !answer.ok ? undefined : ((await answer.json()) as AuthorityView)
}

/** Made by a gateway that ran earlier. */
async function readAuthority(options: ClientOptions): Promise<AuthorityView | string> {
  const loaded = options.config ? await loadConfig(options.config) : undefined
  if (loaded && !loaded.ok) return `${options.config} has problems; "sluice run --check" names them`
  const directory = authorityDirectory(resolve(loaded?.config.stateDir ?? DEFAULT_STATE_DIR))
  const path = join(directory, 'ca.crt')
  try {
    return authorityView(directory, await readFile(path, 'utf8'))
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'EACCES') return `Cannot read ${path}: not permitted (run it as root)`
    if (code !== 'ENOENT') return `Cannot use ${path}: ${(error as Error).message}`
    return `There is no local authority in ${directory}: the first route with certificate 'self-signed' makes it (--config says which state directory)`
  }
}

function trustText({ name, path, fingerprint, notAfter }: AuthorityView, commands: Record<string, string[]>): string {
  const facts = [
    ['Name', name],
    ['File', path],
    ['SHA-256', fingerprint],
    ['Expires', notAfter],
  ].map(([what, value]) => `${what!.padEnd(8)} ${value}\n`)
  const steps = Object.entries(commands).map(
    ([what, lines]) => `\n${what}:\n${lines.map((line) => `  ${line}\n`).join('')}`,
  )
  return [...facts, ...steps].join('')
}
