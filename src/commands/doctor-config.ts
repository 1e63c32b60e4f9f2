// What sluice doctor makes of a configuration and what it names: certificates, other files, a CA's way to us, names of targets. Pure.
import { takenText, type Taken } from '../control/owners.ts'
import { fail, ok, warn, type Check } from './doctor-checks.ts'

/** A certificate from files, as a start would load it. */
export type CertificateReading = { route: string; cert: string; key: string } & (
  | { problem: string }
  | {
      /** The first of them to expire. */
      notAfterMs: number
      /** A sentence when it is too early or too late for one of them. */
      outOfTime?: string
      expiring: boolean
      /** Names of the route that none of them is for. */
      uncovered: string[]
      unused: string[]
      /** Of the key's file. */
      keyFile: { mode: number; uid: number; gid: number } | null
    }
)

const DAY_MS = 86_400_000

export function certificates(readings: readonly CertificateReading[], nowMs: number): Check[] {
  if (readings.length === 0) return []
  const checks = readings.flatMap((reading) => certificate(reading, nowMs))
  if (checks.length > 0) return checks
  const first = Math.min(...readings.map((one) => ('notAfterMs' in one ? one.notAfterMs : Infinity)))
  return [
    ok(
      CERTIFICATES,
      `${readings.length} from files, all good; the first expires in ${Math.floor((first - nowMs) / DAY_MS)} days`,
    ),
  ]
}

const CERTIFICATES = 'certificates'

function certificate(reading: CertificateReading, nowMs: number): Check[] {
  const { route, cert, key } = reading
  const show = `openssl x509 -noout -subject -ext subjectAltName -dates -in ${quoted(cert)}`
  const at = `route "${route}": `
  if ('problem' in reading)
    return [
      fail(
        CERTIFICATES,
        at + reading.problem,
        'TLS cannot be ended with it: a start does without the route, a reload is refused',
        [`ls -l ${quoted(cert)} ${quoted(key)}`, show],
      ),
    ]
  const { notAfterMs, outOfTime, expiring, uncovered, unused, keyFile } = reading
  const checks: Check[] = []
  if (outOfTime) checks.push(fail(CERTIFICATES, `${at}${cert} ${outOfTime}`, 'clients refuse it', [show]))
  else if (expiring)
    checks.push(
      warn(
        CERTIFICATES,
        `${at}${cert} expires in ${Math.floor((notAfterMs - nowMs) / DAY_MS)} days`,
        'whoever renews it should have done so by now; the gateway takes the new files as soon as they are there',
        [show],
      ),
    )
  if (uncovered.length > 0)
    checks.push(
      warn(
        CERTIFICATES,
        `${at}${cert} is not for ${uncovered.join(', ')}`,
        'clients that ask for that name refuse it',
        [show],
      ),
    )
  for (const sentence of unused)
    checks.push(warn(CERTIFICATES, at + sentence, 'it may be half of a pair that was meant to be used', [show]))
  if (keyFile !== null && (keyFile.mode & 0o007) !== 0)
    checks.push(
      warn(CERTIFICATES, `${at}everybody on this machine may read the key ${key}`, 'who has the key is the server', [
        `chmod o= ${quoted(key)}`,
      ]),
    )
  else if (keyFile !== null && !mayRoot(keyFile))
    checks.push(
      warn(
        CERTIFICATES,
        `${at}the key ${key} belongs to user ${keyFile.uid}`,
        'the service that "make install" makes is root without the right to read what is not its own (CAP_DAC_OVERRIDE)',
        [`chgrp root ${quoted(key)}`, `chmod g+r ${quoted(key)}`],
      ),
    )
  return checks
}

const mayRoot = ({ mode, uid, gid }: { mode: number; uid: number; gid: number }) =>
  (uid === 0 && (mode & 0o400) !== 0) || (gid === 0 && (mode & 0o040) !== 0)

export interface FileReading {
  /** What it is for: 'route "app", tls.clientCa'. */
  what: string
  path: string
  /** Why it cannot be read. */
  error: string
}

/** @param unreadable of those that the configuration names. */
export const files = (unreadable: readonly FileReading[]): Check[] =>
  unreadable.map(({ what, path, error }) =>
    fail('files', `${what}: ${path} cannot be read: ${error}`, 'the gateway refuses to start, or the route fails', [
      `ls -ld ${quoted(path)}`,
    ]),
  )

export interface Challenges {
  /** Routes that a CA is asked for. */
  routes: string[]
  /** Every name can be shown on port 443 alone. */
  byTls: boolean
  /** Where HTTP-01 is answered; null: nowhere. */
  port: number | null
  /** Programs of others that have it. */
  taken: Taken[]
  /** It answers there: of a gateway that runs. null: none does. */
  answers: boolean | null
  /** Names that a CA would not find. */
  unresolved: string[]
}

export function challenges({ routes, byTls, port, taken, answers, unresolved }: Challenges): Check[] {
  const name = 'acme'
  if (routes.length === 0) return []
  const checks: Check[] = []
  const why =
    'a CA connects there to see that the names are yours; without it there is no certificate, and none is renewed'
  const grade = byTls ? warn : fail
  if (port !== null && taken.length > 0)
    checks.push(
      grade(
        name,
        `port ${port} for HTTP-01: ${takenText(taken)}`,
        `${why}. Stop the program, or set acme.challengePort and forward port 80 to it`,
        [`ss -Hlntp 'sport = :${port}'`],
      ),
    )
  else if (port !== null && answers === false)
    checks.push(
      grade(name, `nothing answers on port ${port} of this machine`, why, [
        'sluice status',
        `ss -Hlntp 'sport = :${port}'`,
      ]),
    )
  for (const one of unresolved)
    checks.push(
      warn(name, `${one} has no address in the DNS`, 'a CA that is asked for its certificate would not find it', [
        `getent ahosts ${one}`,
      ]),
    )
  if (checks.length > 0) return checks
  const ways = [...(byTls ? ['TLS-ALPN-01 on port 443'] : []), ...(port === null ? [] : [`HTTP-01 on port ${port}`])]
  return [ok(name, `${routes.length === 1 ? `route "${routes[0]}"` : `${routes.length} routes`}: ${ways.join(' or ')}`)]
}

/** @param missing names of targets that do not resolve here. */
export function targetNames(all: readonly string[], missing: readonly string[]): Check[] {
  const name = 'target names'
  if (all.length === 0) return []
  if (missing.length === 0) return [ok(name, `${all.length === 1 ? all[0] : `all ${all.length}`} resolved`)]
  return missing.map((one) =>
    fail(name, `${one} does not resolve`, 'connections to it fail (target_unreachable) until it does', [
      `getent ahosts ${one}`,
      'cat /etc/resolv.conf',
    ]),
  )
}

/** For a shell. */
const quoted = (path: string) => (/^[\w./@%+=:,-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`)
