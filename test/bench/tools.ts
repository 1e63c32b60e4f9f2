// Looks deeper than the seconds of threads: perf's samples, or strace's counts of system calls. Both slow down what they look
// at, so a run with one of them says where the time goes and no more.
import { join } from 'node:path'
import { timesOf, treeOf } from './processes.ts'

/** Looks at a gateway, by its first process, for so many seconds, and says what it saw in lines. */
type Tool = (gateway: number, seconds: number, directory: string) => Promise<string[]>

export const TOOLS = new Map<string, Tool>([
  ['perf', perf],
  ['strace', strace],
])

const SAMPLES_PER_SECOND = 997
const LINES_MAX = 40
const THREADS_MAX = 4
const CALLS_SHOWN_MAX = 25

async function perf(gateway: number, seconds: number, directory: string): Promise<string[]> {
  const data = join(directory, 'perf.data')
  const pids = treeOf(gateway).join(',')
  await output(['perf', 'record', '-F', `${SAMPLES_PER_SECOND}`, '-o', data, '-p', pids, 'sleep', `${seconds}`])
  const fields = ['--fields', 'overhead,comm,dso,symbol', '--percent-limit', '0.5']
  const report = await output(['perf', 'report', '-i', data, '--stdio', ...fields])
  return report
    .split('\n')
    .filter((line) => line.trim() && !line.startsWith('#'))
    .slice(0, LINES_MAX)
}

/** One strace for each of the threads that have done most so far: its own summary would mix them. */
async function strace(gateway: number, seconds: number, directory: string): Promise<string[]> {
  const busiest = [...timesOf(gateway).threads]
    .sort(([, a], [, b]) => b.user + b.system - a.user - a.system)
    .slice(0, THREADS_MAX)
  const sections = await Promise.all(
    busiest.map(async ([key, { process, thread }]) => {
      const [, tid] = key.split('/') as [string, string]
      const file = join(directory, `strace-${tid}`)
      await output(['timeout', '--signal=INT', `${seconds}`, 'strace', '-c', '-U', 'calls,name', '-o', file, '-p', tid])
      const lines = (await Bun.file(file).text()).split('\n').filter((line) => /^\s*\d+ \w/.test(line))
      return [`${process}/${thread}: calls in ${seconds} s`, ...lines.slice(0, CALLS_SHOWN_MAX)]
    }),
  )
  return sections.flat()
}

/** What a command printed, however it ended: both tools are stopped by a signal. */
async function output(command: string[]): Promise<string> {
  const child = Bun.spawn(command, { stdin: 'ignore', stdout: 'pipe', stderr: 'ignore' })
  const text = await new Response(child.stdout).text()
  await child.exited
  return text
}
