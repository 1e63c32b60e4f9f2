// One look at a running gateway, and what changed since the look before: rows of every tab with their rates. Pure.
import type { ClientView } from '../../connections/clients.ts'
import type { ConnectionRecord } from '../../connections/record.ts'
import type { Rates } from '../../connections/throughput.ts'
import type { TargetView } from '../../observe/admin.ts'
import { age, listens, size } from '../format.ts'

export const TABS = ['routes', 'connections', 'clients', 'targets'] as const
export type Tab = (typeof TABS)[number]

export interface RouteSeen {
  name: string
  carrier: string
  state: string
  draining: boolean
  reason: string
  connections: number
  total: number
  rates: Rates | null
  listens: { address: string | null; from: number; to: number }[]
}

export interface StatusSeen {
  version: string
  startedAt: string
  routes: { total: number; active: number }
  connections: { kernel: number; proxied: number }
  conntrack: { entries: number; limit: number } | null
  rates: Rates | null
}

/** What the admin API answered; only the listings that were asked for. */
export interface Look {
  /** By a clock that is never set. */
  atMs: number
  /** By the wall's. */
  nowMs: number
  status: StatusSeen
  routes: RouteSeen[]
  connections?: ConnectionRecord[]
  clients?: ClientView[]
  targets?: TargetView[]
}

/** A letter for each: the key that sorts by it. */
export interface Row {
  /** What the admin API said of it. */
  item: object
  /** Made when they are shown: of a hundred thousand rows a few dozen are. */
  cells: () => string[]
  /** In which order rows stand that are equal otherwise. */
  name: string
  sort: Record<string, string | number>
  /** What --route, --client and --target look at. */
  route: string[]
  client: string
  target: string
}

export interface Column {
  title: string
  /** The key that sorts by it. */
  key?: string
}

/** In a table as wide as it has to be; the last one takes what is left. */
export const COLUMNS: Record<Tab, Column[]> = {
  routes: [
    { title: 'ROUTE', key: 'n' },
    { title: 'CARRIER', key: 'k' },
    { title: 'STATE', key: 's' },
    { title: 'NOW', key: 'c' },
    { title: 'TOTAL', key: 't' },
    { title: 'IN/S', key: 'i' },
    { title: 'OUT/S', key: 'o' },
    { title: 'NEW/S', key: 'w' },
    { title: 'LISTENS' },
    { title: 'WHY' },
  ],
  connections: [
    { title: 'ID' },
    { title: 'ROUTE', key: 'n' },
    { title: 'CARRIER', key: 'k' },
    { title: 'STATE', key: 's' },
    { title: 'AGE', key: 'c' },
    { title: 'IN', key: 't' },
    { title: 'OUT', key: 'u' },
    { title: 'IN/S', key: 'i' },
    { title: 'OUT/S', key: 'o' },
    { title: 'CLIENT', key: 'a' },
    { title: 'TARGET' },
    { title: 'NAME' },
  ],
  clients: [
    { title: 'CLIENT', key: 'n' },
    { title: 'NOW', key: 'c' },
    { title: 'IN', key: 't' },
    { title: 'OUT', key: 'u' },
    { title: 'IN/S', key: 'i' },
    { title: 'OUT/S', key: 'o' },
    { title: 'ROUTES' },
  ],
  targets: [
    { title: 'TARGET', key: 'n' },
    { title: 'ROUTE', key: 'a' },
    { title: 'STATE', key: 's' },
    { title: 'NOW', key: 'c' },
    { title: 'TOTAL', key: 't' },
    { title: 'IN/S', key: 'i' },
    { title: 'OUT/S', key: 'o' },
    { title: 'WHY' },
  ],
}

/** Rates of routes are the gateway's own; the others are what was carried since the look before. */
export function rowsOf(tab: Tab, look: Look, before: Look | null): Row[] {
  const seconds = before ? (look.atMs - before.atMs) / 1000 : 0
  const perSecond = rates(seconds)
  switch (tab) {
    case 'routes':
      return look.routes.map(routeRow)
    case 'connections': {
      const known = new Map(before?.connections?.map((one) => [one.id, one]))
      return (look.connections ?? []).map((one) => connectionRow(one, look.nowMs, perSecond(one, known.get(one.id))))
    }
    case 'clients': {
      const known = new Map(before?.clients?.map((one) => [one.client, one]))
      return (look.clients ?? []).map((one) => clientRow(one, perSecond(one, known.get(one.client))))
    }
    case 'targets': {
      const key = ({ route, target }: TargetView) => `${route} ${target}`
      const known = new Map(before?.targets?.map((one) => [key(one), one]))
      return (look.targets ?? []).map((one) => targetRow(one, perSecond(one, known.get(key(one)))))
    }
  }
}

interface Counts {
  bytesIn: number
  bytesOut: number
}

/** null: not known before. Sums over live connections fall when one ends: that is no rate. */
const rates =
  (seconds: number) =>
  (now: Counts, then: Counts | undefined): Counts | null =>
    then && seconds > 0
      ? {
          bytesIn: Math.max(0, now.bytesIn - then.bytesIn) / seconds,
          bytesOut: Math.max(0, now.bytesOut - then.bytesOut) / seconds,
        }
      : null

const rate = (bytes: number | undefined) => (bytes === undefined ? '-' : size(bytes))

function routeRow(route: RouteSeen): Row {
  const moved = route.rates?.['1s']
  const state = route.draining ? 'draining' : route.state
  return {
    item: route,
    name: route.name,
    cells: () => [
      route.name,
      route.carrier,
      state,
      String(route.connections),
      String(route.total),
      rate(moved?.bytesIn),
      rate(moved?.bytesOut),
      moved ? String(Math.round(moved.opened * 10) / 10) : '-',
      listens(route.listens),
      route.reason,
    ],
    sort: {
      n: route.name,
      k: route.carrier,
      s: state,
      c: route.connections,
      t: route.total,
      i: moved?.bytesIn ?? -1,
      o: moved?.bytesOut ?? -1,
      w: moved?.opened ?? -1,
    },
    route: [route.name],
    client: '',
    target: '',
  }
}

function connectionRow(one: ConnectionRecord, nowMs: number, moved: Counts | null): Row {
  const ageMs = nowMs - Date.parse(one.openedAt)
  return {
    item: one,
    name: one.id,
    cells: () => [
      one.id,
      one.route,
      one.carrier,
      one.state,
      age(ageMs),
      size(one.bytesIn),
      size(one.bytesOut),
      rate(moved?.bytesIn),
      rate(moved?.bytesOut),
      one.client,
      one.target ?? '-',
      one.serverName ?? '',
    ],
    sort: {
      n: one.route,
      k: one.carrier,
      s: one.state,
      c: ageMs,
      t: one.bytesIn,
      u: one.bytesOut,
      i: moved?.bytesIn ?? -1,
      o: moved?.bytesOut ?? -1,
      a: one.client,
    },
    route: [one.route],
    client: one.client,
    target: one.target ?? '',
  }
}

function clientRow(one: ClientView, moved: Counts | null): Row {
  return {
    item: one,
    name: one.client,
    cells: () => [
      one.client,
      String(one.connections),
      size(one.bytesIn),
      size(one.bytesOut),
      rate(moved?.bytesIn),
      rate(moved?.bytesOut),
      one.routes.join(','),
    ],
    sort: {
      n: one.client,
      c: one.connections,
      t: one.bytesIn,
      u: one.bytesOut,
      i: moved?.bytesIn ?? -1,
      o: moved?.bytesOut ?? -1,
    },
    route: one.routes,
    client: one.client,
    target: '',
  }
}

function targetRow(one: TargetView, moved: Counts | null): Row {
  const name = one.configured === undefined ? one.target : `${one.target} (${one.configured})`
  return {
    item: one,
    name,
    cells: () => [
      name,
      one.route,
      one.state,
      String(one.connections),
      String(one.total),
      rate(moved?.bytesIn),
      rate(moved?.bytesOut),
      one.lastError ?? '',
    ],
    sort: {
      n: name,
      a: one.route,
      s: one.state,
      c: one.connections,
      t: one.total,
      i: moved?.bytesIn ?? -1,
      o: moved?.bytesOut ?? -1,
    },
    route: [one.route],
    client: '',
    target: name,
  }
}

/** What each carrier has now, and how fast it carries: of routes, by what carries them at this moment. */
export function perCarrier(routes: readonly RouteSeen[]) {
  const sums = new Map(
    ['kernel', 'splice', 'user'].map((carrier) => [carrier, { connections: 0, bytesIn: 0, bytesOut: 0 }]),
  )
  for (const { carrier, connections, rates } of routes) {
    const sum = sums.get(carrier)
    if (!sum) continue
    sum.connections += connections
    sum.bytesIn += rates?.['1s'].bytesIn ?? 0
    sum.bytesOut += rates?.['1s'].bytesOut ?? 0
  }
  return [...sums].map(([carrier, sum]) => ({ carrier, ...sum }))
}
