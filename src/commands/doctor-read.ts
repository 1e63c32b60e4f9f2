// What sluice doctor reads: of this machine, and of the files and names that a configuration mentions. Reads only; each wait has its end.
import { lookup } from 'node:dns/promises'
import { access, constants, readdir, readFile, stat } from 'node:fs/promises'
import { connect } from 'node:net'
import { parseTarget } from '../base/addresses.ts'
import { loadCertificates } from '../certificates/index.ts'
import { endOf, isExpiring, outOfTime, uncovered } from '../certificates/pair.ts'
import { mayAskCa, terminates } from '../config/needs.ts'
import type { Config, Route, Tls } from '../config/schema.ts'
import { readBoundSockets, overlaps, withOwners } from '../control/owners.ts'
import { resolveNames } from '../control/names.ts'
import { challengeRoute, challengesFor } from '../plan/challenge.ts'
import type { CertificateReading, Challenges, FileReading } from './doctor-config.ts'
import type { Clock, Descriptors, Modules } from './doctor-machine.ts'

/** Of one question to the DNS or to a port of this machine. */
const ASK_MS_MAX = 2000
/** Names that a CA is asked for are looked up; of more than these the first. */
const NAMES_MAX = 100

/** null: it is not there, or may not be read. */
export const lookUp = (path: string): Promise<string | null> =>
  readFile(path, 'utf8').then(
    (text) => text.trim(),
    () => null,
  )

const pathOf = (name: string) => `/proc/sys/${name.replaceAll('.', '/')}`
const can = (path: string, mode: number) =>
  access(path, mode).then(
    () => true,
    () => false,
  )

export async function setting(name: string) {
  const [value, writable] = await Promise.all([lookUp(pathOf(name)), can(pathOf(name), constants.W_OK)])
  return { setting: name, value, writable }
}

export async function number(name: string): Promise<number | null> {
  const text = await lookUp(pathOf(name))
  return text === null || !/^-?\d+/.test(text) ? null : Number.parseInt(text, 10)
}

// ---- the machine ----

/** What is known of a gateway that runs. */
export interface Running {
  pid: number
  descriptorsMax: number | null
}

export async function readDescriptors(gateway: Running | null, raisable: boolean): Promise<Descriptors> {
  const [limits, open, max] = await Promise.all([
    lookUp('/proc/self/limits'),
    number('fs.file-nr'),
    number('fs.file-max'),
  ])
  // The hard one: it is what a program may set for itself.
  const own = /^Max open files\s+\S+\s+(\d+)/m.exec(limits ?? '')?.[1]
  const limit = gateway?.descriptorsMax ?? (own === undefined ? null : Number(own))
  return { limit, raisable, gateway: gateway?.pid ?? null, open, max }
}

const KEEPERS: [path: string, name: string][] = [
  ['/run/systemd/timesync', 'systemd-timesyncd'],
  ['/run/chrony', 'chronyd'],
  ['/run/ntpsec', 'ntpd'],
  ['/run/ntpd.pid', 'ntpd'],
  ['/run/openntpd', 'openntpd'],
  // A guest whose host keeps the time.
  ['/dev/ptp0', "the host's clock (/dev/ptp0)"],
]

export async function readClock(): Promise<Clock> {
  const there = await Promise.all(KEEPERS.map(([path]) => can(path, constants.F_OK)))
  const keeper = KEEPERS.find((_, i) => there[i])?.[1] ?? null
  const synchronised = there[0] ? await can('/run/systemd/timesync/synchronized', constants.F_OK) : null
  return { nowMs: Date.now(), keeper, synchronised }
}

export const readUsers = async (): Promise<string[]> =>
  ((await lookUp('/etc/passwd')) ?? '').split('\n').map((line) => line.split(':')[0]!)

export async function readReversePath(): Promise<Record<string, number>> {
  const names = await readdir('/proc/sys/net/ipv4/conf').catch(() => [])
  // Not by number(): the name of an interface may have a dot.
  const values = await Promise.all(names.map((name) => lookUp(`/proc/sys/net/ipv4/conf/${name}/rp_filter`)))
  return Object.fromEntries(names.map((name, i) => [name, Number(values[i] ?? 0)]))
}

export const readModules = async (): Promise<Modules> => ({
  release: (await lookUp('/proc/sys/kernel/osrelease')) ?? 'unknown',
  installed: await readdir('/lib/modules').catch(() => null),
})

// ---- what the configuration names ----

const enabledOf = ({ routes }: Config) => routes.filter(({ enabled }) => enabled !== false)
const tlsOf = ({ action }: Route): Tls | undefined => ('tls' in action ? action.tls : undefined)
const domainsOf = ({ match }: Route) => [match.domains ?? []].flat()

export const readCertificates = (config: Config, nowMs: number): Promise<CertificateReading[]> =>
  Promise.all(
    enabledOf(config).flatMap((route) => {
      const certificate = terminates(route) ? tlsOf(route)?.certificate : undefined
      return typeof certificate === 'object' && 'cert' in certificate ? readPair(route, certificate, nowMs) : []
    }),
  )

async function readPair(
  route: Route,
  files: { cert: string; key: string },
  nowMs: number,
): Promise<CertificateReading> {
  const reading = { route: route.name, ...files }
  try {
    const { pairs, unused } = await loadCertificates(files)
    return {
      ...reading,
      notAfterMs: endOf(pairs),
      outOfTime: outOfTime(pairs, nowMs),
      expiring: isExpiring(pairs, nowMs),
      uncovered: uncovered(domainsOf(route), pairs),
      unused,
      keyFile: await stat(files.key).catch(() => null),
    }
  } catch (error) {
    return { ...reading, problem: (error as Error).message }
  }
}

/** Those that cannot be read. */
export async function readFiles(config: Config): Promise<FileReading[]> {
  const named = enabledOf(config).flatMap((route) => {
    const at = `route "${route.name}", `
    const tls = tlsOf(route)
    const certificate = tls?.certificate
    return [
      [`${at}tls.clientCa`, tls?.clientCa],
      [`${at}tls.upstream.ca`, tls?.upstream?.ca],
      [
        `${at}tls.certificate.module`,
        typeof certificate === 'object' && 'module' in certificate ? certificate.module : undefined,
      ],
      [
        `${at}handler`,
        route.action.type === 'socket-handler' && typeof route.action.handler === 'string'
          ? route.action.handler
          : undefined,
      ],
    ]
  })
  const all = [...named, ['acme.ca', config.acme?.ca]]
  const found = await Promise.all(
    all.map(async ([what, path]) => {
      if (path === undefined) return []
      const error = await readFile(path).then(
        () => null,
        ({ code, message }: NodeJS.ErrnoException) => code ?? message,
      )
      return error === null ? [] : [{ what: what!, path, error }]
    }),
  )
  return found.flat()
}

export async function readChallenges(config: Config, gateway: Running | null): Promise<Challenges> {
  const asking = enabledOf(config).filter(mayAskCa)
  const names = [...new Set(asking.flatMap(domainsOf))].filter((name) => !name.includes('*')).slice(0, NAMES_MAX)
  const port = challengeRoute(config)?.match.ports
  const wanted = typeof port === 'number' ? ({ protocol: 'tcp', address: null, from: port, to: port } as const) : null
  const sockets = wanted ? (await readBoundSockets('tcp')).filter((socket) => overlaps(socket, wanted)) : []
  const [taken, answers, resolved] = await Promise.all([
    withOwners(sockets, gateway?.pid ?? process.pid),
    wanted && gateway ? connects(wanted.from) : null,
    Promise.all(names.map(resolves)),
  ])
  return {
    routes: asking.map(({ name }) => name),
    byTls: names.length > 0 && names.every((name) => challengesFor(config, name).includes('tls-alpn-01')),
    port: wanted?.from ?? null,
    taken,
    answers,
    unresolved: names.filter((_, i) => !resolved[i]),
  }
}

export async function readTargetNames(config: Config): Promise<{ all: string[]; missing: string[] }> {
  const hosts = enabledOf(config).flatMap(({ action }) => (action.type === 'forward' ? action.targets : []))
  const names = hosts.flatMap(({ host }) => {
    const parsed = parseTarget(host)
    return parsed?.kind === 'name' ? [parsed.name] : []
  })
  const resolved = names.length > 0 ? await resolveNames(config, {}) : {}
  const all = [...new Set(names)]
  return { all, missing: all.filter((name) => !Object.hasOwn(resolved, name)) }
}

const resolves = (name: string) =>
  within(
    lookup(name).then(
      () => true,
      () => false,
    ),
    false,
  )

function connects(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const socket = connect(port, '127.0.0.1')
  socket.once('connect', () => resolve(true))
  socket.once('error', () => resolve(false))
  return within(promise, false).finally(() => socket.destroy())
}

async function within<T>(promise: Promise<T>, otherwise: T): Promise<T> {
  const late = Promise.withResolvers<T>()
  const timer = setTimeout(() => late.resolve(otherwise), ASK_MS_MAX)
  return Promise.race([promise, late.promise]).finally(() => clearTimeout(timer))
}
