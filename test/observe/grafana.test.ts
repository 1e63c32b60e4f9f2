// The dashboard and the alerts: every metric and label in them is one that the gateway exposes, and every query could be one.
import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { reasons, refusals } from '../../src/connections/reasons.ts'
import { parseMetrics } from './exposition.ts'
import { fullExposition } from './full.ts'

const FOLDER = join(import.meta.dir, '../../src/observe/grafana')

interface Panel {
  id: number
  type: string
  title: string
  gridPos: { x: number; y: number; w: number; h: number }
  targets?: { expr: string; refId: string }[]
}
interface Dashboard {
  panels: Panel[]
  annotations: { list: { expr: string }[] }
  templating: { list: { name: string; definition?: string }[] }
}
interface Rule {
  alert: string
  expr: string
  labels: { severity: string }
  annotations: { summary: string; description: string }
}

const dashboard = (await Bun.file(join(FOLDER, 'dashboard.json')).json()) as Dashboard
const { groups } = Bun.YAML.parse(await Bun.file(join(FOLDER, 'alerts.yaml')).text()) as { groups: { rules: Rule[] }[] }
const rules = groups.flatMap((group) => group.rules)

const labels = new Map<string, Set<string>>()
for (const { name, labels: own } of parseMetrics(await fullExposition())) {
  const known = labels.get(name) ?? new Set()
  for (const label of Object.keys(own)) known.add(label)
  labels.set(name, known)
}
labels.set('up', new Set())

const FUNCTIONS = new Set(
  'sum min max count topk sort rate increase changes vector histogram_quantile label_values or by'.split(' '),
)
/** Given by Prometheus to what it scrapes. */
const OF_THE_SCRAPE = ['job', 'instance']
const TOKEN =
  /\s+|"(?:[^"\\]|\\.)*"|\$?[A-Za-z_][A-Za-z0-9_]*|\d+(?:\.\d+)?[smhd]?|=~|!~|!=|==|>=|<=|[-+*/<>=(){}[\],]/y

/** What is wrong with a query, as far as one can tell without a parser. */
function problems(query: string): string[] {
  const tokens: string[] = []
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < query.length;) {
    const at = TOKEN.lastIndex
    const found = TOKEN.exec(query)
    if (!found) return [`no token at "${query.slice(at, at + 20)}"`]
    if (found[0].trim()) tokens.push(found[0])
  }
  return [...unbalanced(tokens), ...unknown(tokens)]
}

function unbalanced(tokens: string[]): string[] {
  const closes: Record<string, string> = { ')': '(', '}': '{', ']': '[' }
  const open: string[] = []
  for (const token of tokens) {
    if (Object.values(closes).includes(token)) open.push(token)
    else if (closes[token] && open.pop() !== closes[token]) return [`"${token}" closes nothing`]
  }
  return open.length > 0 ? [`"${open.at(-1)}" is not closed`] : []
}

function unknown(tokens: string[]): string[] {
  const found: string[] = []
  const metrics = tokens.filter((token) => labels.has(token))
  if (metrics.length === 0 && !tokens.includes('label_values')) found.push('names no metric of ours')
  const has = (metric: string, label: string) => OF_THE_SCRAPE.includes(label) || labels.get(metric)!.has(label)
  let within: 'selector' | 'grouping' | null = null
  let metric = ''
  for (const [i, token] of tokens.entries()) {
    if (token === '{') within = 'selector'
    else if (token === '(' && tokens[i - 1] === 'by') within = 'grouping'
    else if (token === '}' || token === ')') within = null
    else if (labels.has(token) && within === null) {
      metric = token
      if (/_total$|_bucket$/.test(token) && !isInRange(tokens, i)) found.push(`${token} without rate or increase`)
    } else if (!/^[a-z_]\w*$/i.test(token)) continue
    else if (within === 'selector' && !has(metric, token)) found.push(`${metric} has no label ${token}`)
    else if (within === 'grouping' && !metrics.every((one) => has(one, token))) found.push(`by ${token}: no such label`)
    else if (within === null && !FUNCTIONS.has(token) && tokens[i - 2] !== 'label_values' && !isValuesLabel(tokens, i))
      found.push(`${token} is neither a metric nor a function`)
  }
  return found
}

const isValuesLabel = (tokens: string[], i: number) => tokens[0] === 'label_values' && i === tokens.length - 2
/** A counter says something by its growth only: a range follows its selector. */
const isInRange = (tokens: string[], i: number) =>
  tokens[tokens[i + 1] === '{' ? tokens.indexOf('}', i) + 1 : i + 1] === '['

const panels = dashboard.panels.filter(({ type }) => type !== 'row')
const queries = [
  ...panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => [title, expr] as const)),
  ...dashboard.annotations.list.map(({ expr }) => ['an annotation', expr] as const),
  ...dashboard.templating.list.flatMap(({ name, definition }) => (definition ? [[name, definition] as const] : [])),
  ...rules.map(({ alert, expr }) => [alert, expr] as const),
]

test('every query of the dashboard and the alerts asks for what the gateway exposes', () => {
  expect(queries.length).toBeGreaterThan(45)
  expect(queries.flatMap(([where, query]) => problems(query).map((what) => `${where}: ${what}`))).toEqual([])
})

test('nearly every metric is in one of them', () => {
  const all = queries.map(([, query]) => query).join(' ')
  const unused = [...labels.keys()].filter((name) => !new RegExp(`\\b${name}\\b`).test(all))
  expect(unused.toSorted()).toEqual([
    'sluice_receive_packets_total',
    'sluice_setup_seconds_count',
    'sluice_setup_seconds_sum',
    'sluice_target_connections_total',
    'sluice_target_share',
    'sluice_transmit_packets_total',
  ])
})

test('values that are selected are ones that there are', () => {
  const known = [...Object.keys(reasons), ...Object.keys(refusals)]
  for (const [, query] of queries)
    for (const [, pattern] of query.matchAll(/\breason(?:=~|!?=)"([^"]+)"/g))
      expect([pattern, known.some((reason) => new RegExp(`^(?:${pattern})$`).test(reason))]).toEqual([pattern, true])
})

test('panels have titles and ids of their own and do not lie on each other', () => {
  expect(new Set(dashboard.panels.map(({ id }) => id)).size).toBe(dashboard.panels.length)
  expect(panels.filter(({ title, targets }) => !title || !targets?.length)).toEqual([])
  const overlaps = dashboard.panels.flatMap((a) =>
    dashboard.panels.filter(({ id, gridPos: b }) => {
      const { x, y, w, h } = a.gridPos
      return a.id < id && x < b.x + b.w && b.x < x + w && y < b.y + b.h && b.y < y + h
    }),
  )
  expect(overlaps).toEqual([])
  for (const { gridPos } of dashboard.panels) expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24)
})

test('alerts say how urgent they are, what is wrong, and where to look', () => {
  expect(rules.length).toBeGreaterThan(10)
  expect(new Set(rules.map(({ alert }) => alert)).size).toBe(rules.length)
  for (const { alert, labels, annotations } of rules) {
    expect([alert, ['page', 'ticket'].includes(labels.severity)]).toEqual([alert, true])
    expect(annotations.summary.length).toBeGreaterThan(10)
    expect(annotations.description).toEndWith('.')
  }
})

test('the check finds what it is for', () => {
  expect(problems('sum(rate(sluice_connections_opened_total[5m])) by (route)')).toEqual([])
  for (const wrong of [
    'sum(sluice_nothing)',
    'sum(sluice_connections',
    'sum(sluice_connections))',
    'sluice_connections{color="red"}',
    'sum by (target) (sluice_connections)',
    'sluice_connections_opened_total > 5',
    'total(sluice_connections)',
    'sluice_connections § 5',
  ])
    expect([wrong, problems(wrong).length > 0]).toEqual([wrong, true])
})
