// `make bench`: compares gateways on a real kernel.
//
//   bun test/netns/inside.ts bun test/bench/bench.ts [CASE...] [--list] [--runs 5] [--seconds 3] [--json FILE]
//                                                    [--program FILE] [--profile] [--with perf|strace]
//
// A case runs its subject and its peer in turn, A B A B, each run in a fresh lab, and compares pair by pair: two figures
// that were taken one after the other on a shared machine say more than two medians. CPU is the busy time of the whole
// machine, because the kernel's part of forwarding belongs to no process. The JSON has the seconds of each thread of the
// gateway beside it; they are printed where a ratio misses what it should be (--profile: after each run). --with looks
// deeper, and spoils the figures.
import { appendFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { Lab } from '../netns/lab.ts'
import { type Case, cases } from './cases.ts'
import { type Metric, requestFor, type Sample, startBackend } from './loads.ts'
import { describeMachine, prepare, quiet } from './machine.ts'
import { profile } from './profile.ts'
import { type Comparison, compare } from './statistics.ts'
import type { Subject } from './subjects.ts'
import { TOOLS } from './tools.ts'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '3' },
    json: { type: 'string' },
    program: { type: 'string' },
    with: { type: 'string' },
    profile: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
  },
})
const runs = number('runs', options.runs, 1, 100)
const seconds = number('seconds', options.seconds, 0.2, 60)
const tool = TOOLS.get(options.with ?? '')
if (options.with && !tool) fail(`--with takes ${[...TOOLS.keys()].join(' or ')}`)
const known = cases(
  options.program ? [options.program] : [process.execPath, join(import.meta.dir, '../../src/main.ts')],
)

if (options.list) {
  for (const { name, subject, peer, question } of known)
    console.log(`${name.padEnd(20)} ${subject.name} / ${peer.name}: ${question}`)
  process.exit(0)
}
// `user` is both its loads, `user-bulk` is one; without a name, everything but the looks at the measurement itself.
const wanted = known.filter((c) =>
  positionals.length === 0 ? !c.extra : positionals.some((p) => p === c.name || p === c.name.split('-')[0]),
)
const unknown = positionals.filter((p) => !known.some((c) => p === c.name || p === c.name.split('-')[0]))
if (unknown.length > 0) fail(`no such case: ${unknown.join(', ')}; --list shows them`)

console.log(`${describeMachine()}; ${runs} runs of ${seconds} s\n`)
record({ machine: describeMachine(), runs, seconds, at: new Date().toISOString() })
const startedAt = performance.now()
const summary: string[][] = []
let failures = 0
for (const one of wanted) {
  try {
    for (const row of await compareSubjects(one)) summary.push(row)
  } catch (error) {
    // What went wrong first; that the lab could not be cleared up after it is only its consequence.
    const first = error instanceof SuppressedError ? (error.suppressed as Error) : (error as Error)
    failures++
    console.error(`  not measured: ${first.message}`)
    record({ case: one.name, error: first.message })
    summary.push([one.name, 'not measured', '', '', '', '', ''])
  }
}
printTable([['case', 'metric', 'subject', 'peer', 'ratio', 'lowest–highest', 'should be'], ...summary])
console.log(`\n${((performance.now() - startedAt) / 60_000).toFixed(1)} minutes`)
process.exit(failures > 0 ? 1 : 0)

async function compareSubjects(one: Case): Promise<string[][]> {
  console.log(`${one.name}: ${one.subject.name} / ${one.peer.name}`)
  const samples: [Sample[], Sample[]] = [[], []]
  const times = Math.min(runs, one.runsMax ?? runs)
  for (let i = 1; i <= times; i++)
    for (const [side, subject] of [one.subject, one.peer].entries()) {
      const { sample, othersShare } = await measure(one, subject)
      samples[side]!.push(sample)
      const figures = one.load.metrics.map((m) => `${figure(m.of(sample))} ${m.name}`).join(', ')
      const noise = othersShare > 0.1 ? `  (others kept ${Math.round(othersShare * 100)} % of the machine)` : ''
      console.log(`  ${i}/${times} ${subject.name.padEnd(24)} ${figures}${noise}`)
      for (const line of sample.seen ?? []) console.log(`      ${line}`)
      if (options.profile) for (const line of profile(sample, one.load.unit)) console.log(`      ${line}`)
      record({ case: one.name, run: i, subject: subject.name, ...sample, othersShare })
    }
  // A gateway that is the kernel alone has no processes to charge.
  const comparable = ({ of }: Metric) => samples.every((side) => side.some((sample) => of(sample) > 0))
  const missed: Comparison[] = []
  const rows = one.load.metrics.filter(comparable).map((metric) => {
    const result = compare(samples[0].map(metric.of), samples[1].map(metric.of))
    const names = { subject: one.subject.name, peer: one.peer.name }
    const target = one.targets?.[metric.name]
    if (target !== undefined && !reached(metric, result.ratio, target)) missed.push(result)
    record({ case: one.name, metric: metric.name, better: metric.better, names, target, ...result })
    return [
      one.name,
      `${metric.name} (${metric.better} is better)`,
      figure(result.subject),
      figure(result.peer),
      result.ratio.toFixed(2),
      `${result.lowest.toFixed(2)}–${result.highest.toFixed(2)}`,
      target === undefined ? '' : describeTarget(metric, result.ratio, target),
    ]
  })
  if (missed.length > 0 && !options.profile)
    for (const [side, subject] of [one.subject, one.peer].entries()) {
      console.log(`  where the time goes of ${subject.name}:`)
      for (const line of profile(samples[side]![missed[0]!.typical]!, one.load.unit)) console.log(`      ${line}`)
    }
  return rows
}

function reached({ better }: Metric, ratio: number, target: number): boolean {
  return better === 'higher' ? ratio >= target : ratio <= target
}

function describeTarget(metric: Metric, ratio: number, target: number): string {
  return `${metric.better === 'higher' ? '≥' : '≤'} ${target.toFixed(2)}${reached(metric, ratio, target) ? '' : ', missed'}`
}

/** One run: a lab, a backend, a subject and a load, all gone afterwards. */
async function measure(one: Case, subject: Subject): Promise<{ sample: Sample; othersShare: number }> {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-bench-'))
  try {
    await using lab = await Lab.create()
    lab.namespaces.forEach(prepare)
    const request = await requestFor(one.peeking)
    startBackend(lab, request.length)
    const { pid: gateway, stop } = await subject.start(lab, directory, one.load.connections)
    const othersShare = await quiet()
    const look = tool && ((pid: number) => tool(pid, seconds, directory))
    const sample = await one.load.run({ lab, host: subject.entry(lab), request, seconds, gateway, look })
    await stop()
    return { sample, othersShare }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(2)
}

function printTable(rows: string[][]) {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  console.log()
  for (const row of rows)
    console.log(
      row
        .map((cell, column) => (column < 2 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
        .join('  '),
    )
}

/** One JSON line, kept when --json names a file: a bench that is broken off keeps what it has. */
function record(line: object) {
  if (options.json) appendFileSync(options.json, JSON.stringify(line) + '\n')
}

function number(name: string, text: string, lowest: number, highest: number): number {
  const value = Number(text)
  if (!(value >= lowest && value <= highest)) fail(`--${name} takes a number from ${lowest} to ${highest}`)
  return value
}

function fail(message: string): never {
  console.error(message)
  process.exit(2)
}
