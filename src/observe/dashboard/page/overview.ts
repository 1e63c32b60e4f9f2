// What the gateway does now, what needs somebody, and its routes.
import type { Carrier, Route, Status, Target } from './api.ts'
import { byId, element, setText } from './dom.ts'
import { byteRate, bytes, count, duration, listens, percent, perSecond } from './format.ts'
import { Plot, type Series } from './plots.ts'
import { Table } from './table.ts'

const CARRIERS: Carrier[] = ['kernel', 'splice', 'user']
const KINDS: Series['kind'][] = ['first', 'second', 'third']
const BY_CARRIER: Series[] = CARRIERS.map((name, i) => ({ name, kind: KINDS[i]! }))
/** Ten minutes, a look every two seconds. */
const POINTS_MAX = 300
const [RATE_LEAST, CONNECTIONS_LEAST] = [1000, 4]
const SOON = 'Drawn in a moment.'
/** More would hide the rest of the page. */
const ATTENTION_MAX = 8

export class Overview {
  readonly #throughput = new Plot(byId('throughput'), {
    title: 'Throughput',
    series: BY_CARRIER,
    format: byteRate,
    pointsMax: POINTS_MAX,
    least: RATE_LEAST,
    empty: SOON,
  })
  readonly #carried = new Plot(byId('carried'), {
    title: 'Connections',
    series: BY_CARRIER,
    format: (value) => count(Math.round(value)),
    pointsMax: POINTS_MAX,
    least: CONNECTIONS_LEAST,
    empty: SOON,
  })
  readonly #hour = new Plot(byId('hour'), {
    title: 'Last hour',
    series: [
      { name: 'from clients', kind: 'second' },
      { name: 'to clients', kind: 'first' },
    ],
    format: byteRate,
    pointsMax: POINTS_MAX,
    least: RATE_LEAST,
    empty: 'Drawn by the minute, from the second minute on.',
  })
  readonly #routes = new Table<Route>(byId('routes'), {
    title: 'Routes',
    empty: 'The configuration has no routes.',
    sortedBy: 'Route',
    key: (route) => route.name,
    columns: [
      { title: 'Route', text: (route) => route.name },
      { title: 'Listens', text: (route) => listens(route.listens) },
      {
        title: 'Carrier',
        text: (route) =>
          route.carrier === route.planned ? route.carrier : `${route.carrier} (${route.planned} planned)`,
        tone: (route) => route.carrier,
      },
      {
        title: 'State',
        text: (route) => (route.draining ? `${route.state}, draining` : route.state),
        tone: (route) => (route.state === 'active' ? (route.draining ? 'warn' : 'good') : STATES[route.state]),
      },
      { title: 'Why', text: (route) => route.reason, hint: (route) => route.reason },
      { title: 'Open', text: (route) => count(route.connections), order: (route) => route.connections, numeric: true },
      { title: 'Total', text: (route) => count(route.total), order: (route) => route.total, numeric: true },
      { title: 'In', text: (route) => bytes(route.bytesIn), order: (route) => route.bytesIn, numeric: true },
      { title: 'Out', text: (route) => bytes(route.bytesOut), order: (route) => route.bytesOut, numeric: true },
      { title: 'Rate', text: rateText, order: rateOf, numeric: true },
    ],
  })
  #down: string[] = []

  show(status: Status, routes: Route[]) {
    this.#showNumbers(status)
    this.#showAttention([...problemsOf(status, routes), ...this.#down])
    this.#showPlots(status, routes)
    // Sorting ten thousand of them is nothing to do for nobody.
    if (!byId('overview').hidden) this.#routes.show(routes)
  }

  /** What is down is told with the next look. */
  showTargets(targets: Target[]) {
    this.#down = targets
      .filter(({ state }) => state === 'down')
      .map(
        ({ route, target, lastError }) =>
          `Target ${target} of route ${route} is down${lastError ? `: ${lastError}` : ''}`,
      )
  }

  redraw() {
    for (const plot of [this.#throughput, this.#carried, this.#hour]) plot.redraw()
  }

  #showPlots({ history }: Status, routes: Route[]) {
    const seconds = Date.now() / 1000
    const [rates, open] = [sums(), sums()]
    for (const route of routes) {
      open[route.carrier] += route.connections
      rates[route.carrier] += Math.max(0, rateOf(route))
    }
    this.#throughput.add(
      seconds,
      CARRIERS.map((carrier) => rates[carrier]),
    )
    this.#carried.add(
      seconds,
      CARRIERS.map((carrier) => open[carrier]),
    )
    // The last minute is under way, and would look like a fall.
    const minutes = history.slice(0, -1)
    this.#hour.set([
      minutes.map(({ at }) => Date.parse(at) / 1000),
      minutes.map(({ bytesIn }) => bytesIn / 60),
      minutes.map(({ bytesOut }) => bytesOut / 60),
    ])
  }

  #showNumbers({ connections, rates, routes, conntrack, startedAt, worker }: Status) {
    const lately = rates?.['10s']
    const numbers: [string, string, string][] = [
      [
        'Connections',
        count(connections.kernel + connections.proxied),
        `${count(connections.kernel)} kernel, ${count(connections.proxied)} proxied`,
      ],
      ['Opening', lately ? perSecond(lately.opened) : '–', `${lately ? perSecond(lately.closed) : '–'} close`],
      ['From clients', lately ? byteRate(lately.bytesIn) : '–', 'over 10 s'],
      ['To clients', lately ? byteRate(lately.bytesOut) : '–', 'over 10 s'],
      ['Routes', `${count(routes.active)} of ${count(routes.total)}`, 'active'],
      [
        'Conntrack',
        conntrack ? percent(conntrack.entries / conntrack.limit) : '–',
        conntrack ? `${count(conntrack.entries)} of ${count(conntrack.limit)}` : 'not in use',
      ],
      ['Up', duration((Date.now() - Date.parse(startedAt)) / 1000), `${count(worker.restarts)} restarts of the worker`],
    ]
    const list = byId('numbers')
    if (list.children.length === 0)
      for (const [name] of numbers)
        list.append(element('div', {}, element('dt', {}, name), element('dd', {}), element('dd', { class: 'quiet' })))
    numbers.forEach(([, value, more], i) => {
      const [, main, small] = list.children[i]!.children
      setText(main as HTMLElement, value)
      setText(small as HTMLElement, more)
    })
  }

  #showAttention(wrong: string[]) {
    const lines = wrong.slice(0, ATTENTION_MAX)
    if (wrong.length > lines.length)
      lines.push(`${wrong.length - lines.length} more: sort the routes and the targets by their state`)
    const list = byId('attention')
    list.hidden = lines.length === 0
    while (list.children.length > lines.length) list.lastElementChild!.remove()
    lines.forEach((line, i) => setText((list.children[i] as HTMLElement) ?? list.appendChild(element('li')), line))
  }
}

const STATES = { applying: 'warn', fallback: 'warn', failed: 'bad' } as const
const sums = (): Record<Carrier, number> => ({ kernel: 0, splice: 0, user: 0 })
const rateOf = ({ rates }: Route) => (rates ? rates['10s'].bytesIn + rates['10s'].bytesOut : -1)
/** null: so many routes are busy that it is not known. */
const rateText = (route: Route) => (route.rates ? byteRate(rateOf(route)) : '–')

/** In words, worst first. */
function problemsOf({ worker, kernel, anomalies, conntrack }: Status, routes: Route[]): string[] {
  const problems = routes
    .filter(({ state }) => state !== 'active')
    .sort((a, b) => Number(b.state === 'failed') - Number(a.state === 'failed'))
    .map(({ name, state, reason }) => `Route ${name}: ${state}, ${reason}`)
  if (!worker.accepting) problems.unshift('The worker accepts no connections: its descriptors are used up')
  if (conntrack && conntrack.fullInSeconds !== null && conntrack.entries / conntrack.limit > 0.75)
    problems.unshift(`The conntrack table is full in ${duration(conntrack.fullInSeconds)} at the present rate`)
  if (kernel.phase === 'unusable' && kernel.reason) problems.push(`Kernel: ${kernel.reason}`)
  if (anomalies > 0) problems.push(`${count(anomalies)} connections were counted wrongly: please report it`)
  return problems
}
