// Front door of the certificates: from what the routes ask for to the PEM texts their workers get, kept good while the gateway
// runs, wherever they come from.
import {
  CERTIFICATE_CHANGES_MS,
  CERTIFICATE_LOOK_MS,
  FILES_SETTLE_MS_MAX,
  PROVIDERS_AT_ONCE_MAX,
} from '../base/limits.ts'
import { inTurns } from '../base/turns.ts'
import type { RouteCertificates } from '../channel/messages.ts'
import { LocalAuthority } from './authority.ts'
import type { Automatic } from './auto-source.ts'
import type { Provide } from './module-source.ts'
import { routeCertificates } from './pair.ts'
import { atOnce } from './queue.ts'
import { wordsOf, type Source } from './source.ts'
import { isAutomatic, isPerName, sourcesOf, type CertificateSpec, type SourceTools } from './specs.ts'
import { certificateView, type CertificateView } from './status.ts'
import { Teller, type EventCounts, type Listener } from './tell.ts'
import { authorityDirectory, authorityView, type AuthorityView } from './trust.ts'
import type { CertificateEvent } from './types.ts'
import { Directories } from './watch.ts'

export { LocalAuthority, type Issued } from './authority.ts'
export type { Automatic } from './auto-source.ts'
export { loadCertificates, type CertificateFiles, type LoadedCertificates } from './files.ts'
export type { Provide, ProviderAnswer } from './module-source.ts'
export type { CertificateSpec } from './specs.ts'
export type { CertificateView } from './status.ts'
export { authorityDirectory, authorityView, type AuthorityView } from './trust.ts'
export type * from './types.ts'

export interface CertificateProblem {
  route: string
  message: string
  /** The configuration is wrong, not what it names: no other file mends it. */
  wrong?: true
}

export interface Preparation {
  /** Empty: everything can be carried out. */
  problems: CertificateProblem[]
}

/** What ACME tells of a name: it has another certificate, or something happened to it. */
export interface AcmeHooks {
  changed(name: string): void
  event(event: CertificateEvent): void
}

export type RenewAnswer =
  { ok: true; certificates: CertificateView[] } | { ok: false; status: 404 | 409 | 502; error: string }

export interface CertificatesOptions extends Listener {
  /** Everything kept on disk by the local authority is below `stateDir`/authority, made when the first route needs it. */
  stateDir: string
  /** null: there are no automatic certificates. Called at most once, when the first name needs it. */
  openAcme: ((hooks: AcmeHooks) => Automatic) | null
  /** Asks a certificate module. */
  provide: Provide
  /** These routes can show something else now. */
  changed(routes: string[]): void
  // For tests.
  now?: () => number
  settleMs?: number
}

class WrongSpec extends Error {}

/** About 5 ms. */
const SOURCES_PER_TURN = 100

/** One that several routes ask for is one source. */
interface Entry {
  source: Source
  /** Domain names that its routes ask it for, by route. */
  wanted: Map<string, string[]>
}

export class Certificates {
  readonly #options: CertificatesOptions
  readonly #now: () => number
  #authority: Promise<LocalAuthority> | undefined
  #acme: Automatic | undefined
  #acmeNames = ''
  /** By what they are of; all of them followed. */
  #entries = new Map<string, Entry>()
  /** Loaded for a configuration that is not followed yet, and may never be. */
  #prepared = new Map<string, Source>()
  #bySource = new Map<Source, Entry>()
  #byName = new Map<string, Entry[]>()
  /** Routes that had nothing to show when they were followed: a start does without what cannot be read. */
  #without = new Map<string, Source>()
  /** Routes that can show something else than their workers know. */
  readonly #changedRoutes = new Set<string>()
  #telling: ReturnType<typeof setTimeout> | undefined
  #timer: ReturnType<typeof setInterval> | undefined
  readonly #teller: Teller
  readonly #tools: SourceTools

  constructor(options: CertificatesOptions) {
    this.#options = options
    this.#now = options.now ?? Date.now
    this.#teller = new Teller(options, this.#now)
    this.#tools = {
      now: this.#now,
      settleMs: options.settleMs ?? FILES_SETTLE_MS_MAX,
      changed: (source) => this.#changed(source),
      event: (event) => this.#teller.event(event),
      directories: new Directories(),
      authority: () => this.authority(),
      provide: atOnce(PROVIDERS_AT_ONCE_MAX, options.provide),
      acme: () => this.#automatic(),
    }
  }

  /** Events so far, by what they tell. */
  get counts(): EventCounts {
    return this.#teller.counts
  }

  get #authorityDirectory(): string {
    return authorityDirectory(this.#options.stateDir)
  }

  /** The local authority, made on first use. A failure is not remembered: the next call tries again. */
  authority(): Promise<LocalAuthority> {
    return (this.#authority ??= LocalAuthority.open(this.#authorityDirectory, this.#now).catch((cause) => {
      this.#authority = undefined
      throw cause
    }))
  }

  /** null: no route asks for one of its certificates, and none is made to answer this. */
  async authorityView(): Promise<AuthorityView | null> {
    if (!this.#authority) return null
    return authorityView(this.#authorityDirectory, (await this.#authority).certificate)
  }

  // ---- a configuration: first prepared, then followed ----

  /** Loads what the routes need before they are carried out. Never throws for a route: one wrong file must not hide the next. */
  async prepare(specs: CertificateSpec[]): Promise<Preparation> {
    const before = this.#prepared
    this.#prepared = new Map()
    const problems: Preparation['problems'] = []
    for (const spec of specs) {
      try {
        for (const [key, make] of this.#sourcesOf(spec)) {
          if (this.#entries.has(key) || this.#prepared.has(key)) continue
          const source = before.get(key) ?? make()
          await source.load()
          before.delete(key)
          this.#prepared.set(key, source)
        }
      } catch (cause) {
        const wrong = cause instanceof WrongSpec
        problems.push({ route: spec.route, message: wordsOf(cause), ...(wrong && { wrong }) })
      }
    }
    for (const source of before.values()) source.stop()
    return { problems }
  }

  /** Asks the modules of a configuration that is not followed yet, so that their names can be shown from the first connection on. Resolves
   *  when all have answered, or their time is over; what is wrong is told when it is followed. */
  async askAhead(specs: CertificateSpec[], msMax: number): Promise<void> {
    const asked: Promise<void>[] = []
    for (const spec of specs.filter(({ certificate }) => typeof certificate === 'object' && 'module' in certificate))
      for (const [key, make] of sourcesOf(spec, this.#tools)) {
        if (this.#entries.has(key) || this.#prepared.has(key)) continue
        const source = make()
        this.#prepared.set(key, source)
        asked.push(source.look())
      }
    let late: ReturnType<typeof setTimeout> | undefined
    const over = new Promise<void>((resolve) => (late = setTimeout(resolve, msMax)))
    await Promise.race([Promise.allSettled(asked), over]).finally(() => clearTimeout(late))
  }

  #sourcesOf(spec: CertificateSpec) {
    try {
      return sourcesOf(spec, this.#tools)
    } catch (cause) {
      throw new WrongSpec(wordsOf(cause))
    }
  }

  /** Reads the files of these routes again, as who reloads expects. What was shown is shown on where they are no good. */
  async readAgain(specs: CertificateSpec[]): Promise<Preparation> {
    const files = specs.filter(({ certificate }) => typeof certificate === 'object' && 'cert' in certificate)
    const problems = files.map(async (spec) => {
      const [key] = sourcesOf(spec, this.#tools)[0]!
      const error = await this.#entries.get(key)?.source.renew().catch(wordsOf)
      return error === undefined ? [] : [{ route: spec.route, message: error }]
    })
    return { problems: (await Promise.all(problems)).flat() }
  }

  /** From now on these and no others; they have been prepared, and what could not be loaded is tried again. Watches, timers and orders begin: call it when ports listen. */
  follow(specs: CertificateSpec[]): void {
    const before = this.#entries
    this.#entries = new Map()
    for (const spec of specs) {
      for (const [key, make] of sourcesOf(spec, this.#tools)) {
        let entry = this.#entries.get(key)
        if (!entry) {
          const source = before.get(key)?.source ?? this.#prepared.get(key) ?? make()
          this.#entries.set(key, (entry = { source, wanted: new Map() }))
        }
        const own = entry.source.kind === 'auto' || entry.source.kind === 'module' ? [entry.source.name] : spec.names
        entry.wanted.set(spec.route, [...(entry.wanted.get(spec.route) ?? []), ...own])
      }
    }
    this.#without = new Map()
    for (const { source, wanted } of this.#entries.values())
      if (source.pairs.length === 0 && (source.kind === 'file' || source.kind === 'self-signed'))
        for (const route of wanted.keys()) this.#without.set(route, source)
    this.#bySource = new Map([...this.#entries.values()].map((entry) => [entry.source, entry]))
    this.#byName = Map.groupBy(this.#entries.values(), ({ source }) => source.name)
    for (const [key, { source }] of before) if (!this.#entries.has(key)) source.stop()
    for (const [key, { source }] of this.#entries) if (!before.has(key)) source.follow()
    for (const [key, source] of this.#prepared) if (!this.#entries.has(key)) source.stop()
    this.#prepared = new Map()
    this.#followAcme()
    for (const { source } of this.#entries.values()) this.#teller.concern(source)
    this.#timer ??= setInterval(() => this.look(), CERTIFICATE_LOOK_MS)
  }

  /** Every source looks whether there is something to do. */
  look() {
    const failed = (error: unknown) => this.#options.log('error', wordsOf(error))
    void inTurns([...this.#entries.values()], SOURCES_PER_TURN, ({ source }) => {
      source.look().catch(failed)
      this.#teller.concern(source)
    }).catch(failed)
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer)
    clearTimeout(this.#telling)
    for (const { source } of this.#entries.values()) source.stop()
    for (const source of this.#prepared.values()) source.stop()
    this.#entries = new Map()
    this.#bySource = new Map()
    this.#byName = new Map()
    this.#prepared = new Map()
    await this.#acme?.stop()
  }

  // ---- what there is ----

  /** Also of what is prepared and not followed yet: a plan carries it. */
  of(spec: CertificateSpec): RouteCertificates {
    const perName = isPerName(spec)
    const list = sourcesOf(spec, this.#tools).flatMap(([key]) => {
      const source = this.#entries.get(key)?.source ?? this.#prepared.get(key)
      const pairs = source?.pairs ?? []
      if (!perName) return routeCertificates(pairs)
      if (pairs.length === 0) return []
      return [{ names: [source!.name], cert: pairs.map((pair) => pair.cert), key: pairs.map((pair) => pair.key) }]
    })
    return { perName, list }
  }

  /** Why a route has nothing to show to anybody; undefined where it has, or where each name is by itself. */
  missing(route: string): string | undefined {
    const source = this.#without.get(route)
    if (!source || source.pairs.length > 0) return undefined
    return `it has no certificate: ${source.lastError ?? 'it could not be read'}`
  }

  views(): CertificateView[] {
    return [...this.#entries.values()].map((entry) => this.#view(entry))
  }

  /** Now, whatever the schedule: files are read again, others are made or asked for. */
  async renew(name: string): Promise<RenewAnswer> {
    const entries = this.#named(name.toLowerCase().replace(/\.$/, ''))
    if (entries.length === 0) return { ok: false, status: 404, error: `there is no certificate ${name}` }
    const results = await Promise.allSettled(entries.map(({ source }) => source.renew()))
    const errors = results.flatMap((result) => (result.status === 'rejected' ? [wordsOf(result.reason)] : []))
    if (errors.length > 0) return { ok: false, status: 502, error: errors.join('; ') }
    return { ok: true, certificates: entries.map((entry) => this.#view(entry)) }
  }

  /** Those of that name, or else those that are for it among others. */
  #named(name: string): Entry[] {
    const entries = [...this.#entries.values()]
    const named = entries.filter(({ source }) => source.name.toLowerCase() === name)
    if (named.length > 0) return named
    return entries.filter(({ source }) => source.pairs.some((pair) => pair.names.includes(name)))
  }

  #view({ source, wanted }: Entry): CertificateView {
    return certificateView(source, [...wanted.keys()], [...new Set([...wanted.values()].flat())], this.#now())
  }

  // ---- ACME ----

  /** Opened when the first name needs it. */
  #automatic(): Automatic | undefined {
    const hooks = {
      changed: (name: string) => this.#issued(name),
      event: (event: CertificateEvent) => this.#teller.event(event),
    }
    return (this.#acme ??= this.#options.openAcme?.(hooks))
  }

  /** Told only when they are others: it looks at each. */
  #followAcme() {
    const names = [...this.#entries.values()].flatMap(({ source }) => (isAutomatic(source) ? [source.name] : []))
    const wanted = [...new Set(names)].sort()
    if (wanted.join() === this.#acmeNames) return
    this.#acmeNames = wanted.join()
    this.#acme?.follow(wanted)
  }

  #issued(name: string) {
    for (const { source } of this.#byName.get(name) ?? []) if (isAutomatic(source)) this.#changed(source)
  }

  /** Told together: a start finds many of them within a moment, and each telling of a route has all it can show. */
  #changed(source: Source) {
    const entry = this.#bySource.get(source)
    if (!entry) return
    if (source.kind === 'module') this.#followAcme()
    this.#teller.concern(source)
    for (const route of entry.wanted.keys()) this.#changedRoutes.add(route)
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined
      const routes = [...this.#changedRoutes]
      this.#changedRoutes.clear()
      this.#options.changed(routes)
    }, CERTIFICATE_CHANGES_MS)
  }
}
