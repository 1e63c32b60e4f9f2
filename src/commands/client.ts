// The commands that talk to a running gateway: clients of its admin API.
import type { ConnectionRecord } from '../connections/record.ts'
import type { Moved, Rates } from '../connections/throughput.ts'
import type { TargetView } from '../observe/admin.ts'
import { listens, printable, size } from './format.ts'
import { ask, errorOf, type ClientOptions } from './gateway.ts'
import { table } from './shared.ts'

export async function show(
  what: 'status' | 'routes' | 'connections' | 'targets',
  options: ClientOptions,
): Promise<number> {
  const answer = await ask('GET', `/v1/${what}`, options)
  if (typeof answer === 'string') return fail(answer)
  if (!answer.ok) return fail(await errorOf(answer))
  const body = await answer.json()
  process.stdout.write(options.json ? `${JSON.stringify(body, null, 2)}\n` : VIEWS[what](body as never))
  return 0
}

export async function act(method: string, path: string, options: ClientOptions): Promise<number> {
  const answer = await ask(method, path, options)
  if (typeof answer === 'string') return fail(answer)
  const body = (await answer.json()) as { error?: string }
  if (options.json) process.stdout.write(`${JSON.stringify(body, null, 2)}\n`)
  return answer.ok ? 0 : fail(body.error ?? `status ${answer.status}`)
}

export function fail(message: string): number {
  process.stderr.write(`sluice: ${message}\n`)
  return 1
}

interface RouteView {
  name: string
  carrier: string
  state: string
  draining: boolean
  reason: string
  connections: number
  total: number
  bytesIn: number
  bytesOut: number
  rates: Rates | null
  listens: { address: string | null; from: number; to: number }[]
}

/** The hour of history is for programs: --json has it. */
type StatusView = Record<string, unknown> & { rates: Rates | null; history: unknown }

const VIEWS = {
  status: ({ rates, history: _, ...status }: StatusView) => `${lines({ ...status, rates: ratesInWords(rates) })}\n`,
  routes: ({ routes }: { routes: RouteView[] }) =>
    table(
      ['ROUTE', 'LISTENS', 'CARRIER', 'STATE', 'NOW', 'TOTAL', 'IN', 'OUT', 'IN/S', 'OUT/S', 'WHY'],
      routes.map((route) => [
        route.name,
        listens(route.listens),
        route.carrier,
        route.draining ? 'draining' : route.state,
        String(route.connections),
        String(route.total),
        size(route.bytesIn),
        size(route.bytesOut),
        route.rates ? size(route.rates['10s'].bytesIn) : '?',
        route.rates ? size(route.rates['10s'].bytesOut) : '?',
        route.reason,
      ]),
    ),
  targets: ({ targets }: { targets: TargetView[] }) =>
    table(
      ['ROUTE', 'TARGET', 'STATE', 'WEIGHT', 'NOW', 'TOTAL', 'IN', 'OUT', 'WHY'],
      targets.map((one) => [
        one.route,
        one.configured === undefined ? one.target : `${one.target} (${one.configured})`,
        one.state,
        String(Math.round(one.weight * 100) / 100),
        String(one.connections),
        String(one.total),
        size(one.bytesIn),
        size(one.bytesOut),
        one.lastError ?? '',
      ]),
    ),
  connections: ({ connections }: { connections: ConnectionRecord[] }) =>
    table(
      ['ID', 'ROUTE', 'CARRIER', 'CLIENT', 'LISTENER', 'TARGET', 'STATE', 'IN', 'OUT', 'SINCE'],
      connections.map((one) => [
        one.id,
        one.route,
        one.carrier,
        one.client,
        one.listener,
        one.target ?? '-',
        one.state,
        size(one.bytesIn),
        size(one.bytesOut),
        one.openedAt,
      ]),
    ),
}

function lines(value: Record<string, unknown>, indent = ''): string {
  return Object.entries(value)
    .map(([name, item]) =>
      item && typeof item === 'object' && !Array.isArray(item)
        ? `${indent}${name}:\n${lines(item as Record<string, unknown>, `${indent}  `)}`
        : `${indent}${name}: ${printable(String(Array.isArray(item) ? item.join(', ') || '-' : (item ?? '-')))}`,
    )
    .join('\n')
}

const ratesInWords = (rates: Rates | null) =>
  Object.fromEntries(
    Object.entries(rates ?? {}).map(([window, { bytesIn, bytesOut, opened }]: [string, Moved]) => [
      window,
      `in ${size(bytesIn)}/s, out ${size(bytesOut)}/s, ${Math.round(opened * 10) / 10} connections/s`,
    ]),
  )
