// GET /metrics: everything that is counted, in Prometheus' words. Values are read from the tables when somebody asks; only
// the setup histogram is fed as connections come. Labels are routes and targets of the configuration, never clients: the
// number of series is bounded by what an operator wrote.
import { readdir, readFile } from 'node:fs/promises'
import { Histogram, Registry } from 'prom-client'
import type { CertificateEvent, CertificateView } from '../certificates/index.ts'
import { refusals, type CloseReason, type RefusalReason } from '../connections/reasons.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import type { RouteTotals } from '../connections/table.ts'
import type { Exposition, TargetView } from './admin.ts'

/** What is read at a scrape. */
export interface MetricSources {
  version: string
  /** Those of the configuration. */
  routes(): Iterable<string>
  states(): Iterable<RouteState>
  totals(route: string): RouteTotals
  /** Live kernel flows by route. */
  flows(): ReadonlyMap<string, number>
  /** Live proxied connections. */
  proxied(): Iterable<Pick<ConnectionRecord, 'route' | 'carrier'>>
  targets(): Iterable<TargetView>
  kernel(): { elements: number; transactions: number; drifts: number; eventsLost: number } | null
  conntrack(): { entries: number; limit: number } | null
  anomalies(): number
  worker(): WorkerView
  accessLogDropped(): number
  certificates: CertificateSource
}

/** What carries a route at this moment, and whether that is as planned. */
export interface RouteState {
  name: string
  carrier: string
  state: string
}

/** Of these only what has a certificate to show has a series. */
export interface CertificateSource {
  views(): Iterable<Pick<CertificateView, 'name' | 'source' | 'expiresInSeconds'>>
  /** Events so far. */
  counts: Readonly<Record<CertificateEvent['what'], number>>
}

export interface WorkerView {
  restarts: number
  accepting: boolean
  acceptPauses: number
  swept: number
}

type Labels = Record<string, string>
const NONE: Labels = {}
const sample = (labels: Labels, value: number): Value => ({ labels, sharedLabels: NONE, value })
/** prom-client remembers the text of each object of shared labels: with none of their own, each value would be remembered. */
interface Value {
  labels: Labels
  sharedLabels: Labels
  value: number
}
type Values = Iterable<Value>

const SETUP = 'sluice_setup_seconds'
/** From a LAN's round trip to a client that gives up. */
const SETUP_BUCKETS_S = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]

/** Samples written in one turn of the event loop: a scrape of ten thousand routes is a hundred thousand of them. */
const CHUNK = 500

/** Read from a table when it is asked for. prom-client's own counters keep every value of every label in a hash of theirs, which
 *  would be a second copy of our tables, with the series of routes that are gone. */
interface Family {
  name: string
  help: string
  type: 'counter' | 'gauge'
  values(): Values | Promise<Values>
}

export class Metrics {
  readonly #families: Family[]
  /** One for each route, so that one that is gone is forgotten, and each is written in a turn of its own. */
  readonly #setups = new Map<string, { histogram: Histogram; kernel?: Observer; receipt?: Observer }>()
  #exposing: Promise<Exposition> | null = null

  constructor(private readonly sources: MetricSources) {
    this.#families = familiesOf(sources)
  }

  /** One connection in eight: callers sample. */
  setup(route: string, clock: 'kernel' | 'receipt', seconds: number) {
    let setup = this.#setups.get(route)
    if (!setup) this.#setups.set(route, (setup = { histogram: setupHistogram() }))
    const observer = (setup[clock] ??= setup.histogram.labels(route, clock))
    observer.observe(seconds)
  }

  /** Scrapes at the same time are one. */
  expose(): Promise<Exposition> {
    return (this.#exposing ??= this.#expose().finally(() => {
      this.#exposing = null
    }))
  }

  async #expose(): Promise<Exposition> {
    const parts: string[] = []
    for (const family of this.#families) await this.#write(family, parts)
    await this.#writeSetups(parts)
    return { contentType: Registry.PROMETHEUS_CONTENT_TYPE, text: `${parts.join('\n')}\n` }
  }

  async #write({ values, ...family }: Family, parts: string[]) {
    const write = async (chunk: Value[], isFirst: boolean) => {
      const text = await textOf({ ...family, get: async () => ({ ...family, values: chunk }) }, family.name)
      parts.push(isFirst ? text : withoutHead(text))
    }
    let chunk: Value[] = []
    let isFirst = true
    for (const value of await values()) {
      chunk.push(value)
      if (chunk.length < CHUNK) continue
      await write(chunk, isFirst)
      await turn()
      chunk = []
      isFirst = false
    }
    if (isFirst || chunk.length > 0) await write(chunk, isFirst)
  }

  async #writeSetups(parts: string[]) {
    const routes = new Set(this.sources.routes())
    parts.push(await textOf(setupHistogram(), SETUP))
    for (const [route, { histogram }] of this.#setups) {
      if (!routes.has(route)) {
        this.#setups.delete(route)
        continue
      }
      parts.push(withoutHead(await textOf(histogram, SETUP)))
      await turn()
    }
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve))

/** What a registry asks of a metric is less than what its types say. */
async function textOf(metric: object, name: string): Promise<string> {
  const registry = new Registry()
  registry.registerMetric(metric as never)
  return registry.getSingleMetricAsString(name)
}

/** Without the lines of HELP and TYPE. */
const withoutHead = (text: string) => text.slice(text.indexOf('\n', text.indexOf('\n') + 1) + 1)

const setupHistogram = () =>
  new Histogram({
    name: SETUP,
    help:
      'Seconds from the SYN of a kernel flow to its establishment; sampled: one flow in eight. clock says whose times they ' +
      'are: kernel (of the events themselves, Linux 6.14 and later) or receipt (when the events were heard)',
    labelNames: ['route', 'clock'],
    buckets: SETUP_BUCKETS_S,
    registers: [],
  })

function familiesOf(sources: MetricSources): Family[] {
  const families: Family[] = []
  const gauge = (name: string, help: string, values: Family['values']) =>
    void families.push({ name, help, type: 'gauge', values })
  const counter = (name: string, help: string, values: Family['values']) =>
    void families.push({ name, help, type: 'counter', values })

  /** Route '': over before a route could be told. Named once there is one. */
  const perRoute = (of: (totals: RouteTotals) => number) =>
    function* () {
      for (const route of sources.routes()) yield sample({ route }, of(sources.totals(route)))
      const unrouted = of(sources.totals(''))
      if (unrouted > 0) yield sample({ route: '' }, unrouted)
    }
  gauge('sluice_connections', 'Live connections, by what carries them', () => connectionsNow(sources))
  gauge(
    'sluice_route_active',
    '1: the route is carried as planned; 0: it is on its way there, in user space instead of the kernel, or not served',
    function* () {
      for (const { name, carrier, state } of sources.states())
        yield sample({ route: name, carrier }, state === 'active' ? 1 : 0)
    },
  )
  counter(
    'sluice_connections_opened_total',
    'Connections that were opened',
    perRoute(({ total }) => total),
  )
  counter('sluice_connections_closed_total', 'Connections that ended, by close reason', function* () {
    for (const route of [...sources.routes(), ''])
      for (const [reason, value] of countsOf<CloseReason>(sources.totals(route).reasons))
        yield sample({ route, reason }, value)
  })
  counter(
    'sluice_connections_refused_total',
    'Connections that were refused by a list, a limit, a drain or block; mode observe: that would have been',
    () => refused(sources),
  )
  counter(
    'sluice_receive_bytes_total',
    'Payload bytes from clients. Exact of proxied connections; of kernel flows from conntrack, less estimated headers',
    perRoute(({ bytesIn }) => bytesIn),
  )
  counter(
    'sluice_transmit_bytes_total',
    'Payload bytes to clients. Exact of proxied connections; of kernel flows from conntrack, less estimated headers',
    perRoute(({ bytesOut }) => bytesOut),
  )
  counter(
    'sluice_receive_packets_total',
    'Packets from clients, of kernel flows only, from conntrack',
    perRoute(({ packetsIn }) => packetsIn),
  )
  counter(
    'sluice_transmit_packets_total',
    'Packets to clients, of kernel flows only, from conntrack',
    perRoute(({ packetsOut }) => packetsOut),
  )

  const perTarget = (of: (target: TargetView) => number) =>
    function* () {
      for (const view of sources.targets()) yield sample({ route: view.route, target: view.target }, of(view))
    }
  gauge(
    'sluice_target_up',
    '1: the target is taken to work; 0: health checks or failing connections say that it does not',
    perTarget(({ up }) => (up ? 1 : 0)),
  )
  gauge(
    'sluice_target_share',
    "The target's weight for new connections now; 0: it takes none (down, drained, or configured so)",
    perTarget(({ share }) => share),
  )
  gauge(
    'sluice_target_connections',
    'Live connections to the target',
    perTarget(({ connections }) => connections),
  )
  counter(
    'sluice_target_connections_total',
    'Connections to the target that were opened',
    perTarget(({ total }) => total),
  )
  counter(
    'sluice_target_receive_bytes_total',
    'Payload bytes from clients to the target',
    perTarget(({ bytesIn }) => bytesIn),
  )
  counter(
    'sluice_target_transmit_bytes_total',
    'Payload bytes from the target to clients',
    perTarget(({ bytesOut }) => bytesOut),
  )

  const one = (value: number | undefined, labels: Labels = {}): Values =>
    value === undefined ? [] : [sample(labels, value)]
  gauge('sluice_kernel_elements', 'Elements of the table in the kernel', () => one(sources.kernel()?.elements))
  counter('sluice_kernel_transactions_total', 'Transactions of nft that were applied', () =>
    one(sources.kernel()?.transactions),
  )
  counter('sluice_kernel_drifts_total', "Times that somebody else's change of our table was found and repaired", () =>
    one(sources.kernel()?.drifts),
  )
  counter(
    'sluice_kernel_events_lost_total',
    'Times that the kernel dropped conntrack events because they were not read in time; each is made up for by a dump',
    () => one(sources.kernel()?.eventsLost),
  )
  gauge('sluice_conntrack_entries', "Entries of the machine's conntrack table, ours and others'", () =>
    one(sources.conntrack()?.entries),
  )
  gauge(
    'sluice_conntrack_limit',
    'net.netfilter.nf_conntrack_max: above, new connections of the machine are dropped',
    () => one(sources.conntrack()?.limit),
  )
  counter('sluice_anomalies_total', 'Connections that were opened twice: a bug of sluice, should stay 0', () =>
    one(sources.anomalies()),
  )
  counter('sluice_worker_restarts_total', 'Workers that ended without being asked to and were replaced', () =>
    one(sources.worker().restarts),
  )
  gauge('sluice_accepting', '0: accepting pauses, because the descriptors of the worker are almost all in use', () =>
    one(sources.worker().accepting ? 1 : 0),
  )
  counter('sluice_accept_pauses_total', 'Times that accepting paused for want of descriptors', () =>
    one(sources.worker().acceptPauses),
  )
  counter(
    'sluice_swept_total',
    'Connections that nothing would have ended any more, found and ended by the sweep: a bug of sluice, should stay 0',
    () => one(sources.worker().swept),
  )
  counter('sluice_access_log_dropped_total', 'Lines that the destination of the access log did not take in time', () =>
    one(sources.accessLogDropped()),
  )
  gauge(
    'sluice_certificate_expiry_seconds',
    'Seconds until the certificate expires; negative when it has expired',
    () => expiries(sources.certificates),
  )
  counter(
    'sluice_certificate_events_total',
    'Certificates issued, renewed, replaced, expiring, and attempts failed',
    () => Object.entries(sources.certificates.counts).map(([what, value]) => sample({ what }, value)),
  )
  gauge('sluice_build_info', 'Always 1; the label has the version', () => one(1, { version: sources.version }))

  // Of this process, in the names that every client library has. Not the library's own: those read files synchronously.
  counter('process_cpu_seconds_total', 'Seconds of CPU time of the control process, user and system', () => {
    const { user, system } = process.cpuUsage()
    return one((user + system) / 1e6)
  })
  gauge('process_resident_memory_bytes', 'Resident memory of the control process', () => one(process.memoryUsage.rss()))
  const startedAt = Date.now() / 1000 - process.uptime()
  gauge('process_start_time_seconds', 'When the control process started, in seconds since 1970', () => one(startedAt))
  gauge('process_open_fds', 'Open descriptors of the control process', async () =>
    one(
      await readdir('/proc/self/fd').then(
        ({ length }) => length,
        () => undefined,
      ),
    ),
  )
  gauge('process_max_fds', 'Descriptors that the control process may have open', async () =>
    one(await descriptorsMax()),
  )
  return families
}

interface Observer {
  observe(value: number): void
}

function* connectionsNow(sources: MetricSources): Generator<Value> {
  const flows = sources.flows()
  const proxied = { splice: new Map<string, number>(), user: new Map<string, number>() }
  for (const { route, carrier } of sources.proxied()) {
    const counts = proxied[carrier === 'splice' ? 'splice' : 'user']
    counts.set(route, (counts.get(route) ?? 0) + 1)
  }
  for (const route of sources.routes()) {
    yield sample({ route, carrier: 'kernel' }, flows.get(route) ?? 0)
    yield sample({ route, carrier: 'splice' }, proxied.splice.get(route) ?? 0)
    yield sample({ route, carrier: 'user' }, proxied.user.get(route) ?? 0)
  }
}

/** Route '': refused before a route could be told. */
function* refused(sources: MetricSources): Generator<Value> {
  for (const route of [...sources.routes(), '']) {
    const totals = sources.totals(route)
    for (const mode of ['enforce', 'observe'] as const)
      for (const [reason, value] of countsOf<RefusalReason>(mode === 'enforce' ? totals.refused : totals.observed))
        if (reason in refusals) yield sample({ route, reason, mode }, value)
  }
}

/** Two certificates may share their first name: the one that expires first is the one to hear of. */
function* expiries(certificates: CertificateSource): Generator<Value> {
  const first = new Map<string, { labels: Labels; seconds: number }>()
  for (const { name, source, expiresInSeconds: seconds } of certificates.views()) {
    if (seconds === undefined) continue
    const known = first.get(`${source} ${name}`)
    if (!known || seconds < known.seconds) first.set(`${source} ${name}`, { labels: { name, source }, seconds })
  }
  for (const { labels, seconds } of first.values()) yield sample(labels, seconds)
}

const countsOf = <Key extends string>(counts: Partial<Record<Key, number>>) => Object.entries(counts) as [Key, number][]

async function descriptorsMax(): Promise<number | undefined> {
  const limits = await readFile('/proc/self/limits', 'utf8').catch(() => '')
  const found = /^Max open files\s+(\d+)/m.exec(limits)
  return found ? Number(found[1]) : undefined
}
