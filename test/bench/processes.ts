// What the processes of a gateway use: processor time of each thread between two moments, and resident memory. Where a
// figure is worse than wanted, the threads say who spent it.
import { readdirSync, readFileSync } from 'node:fs'

/** Processor seconds of one thread, in user space and in the kernel on its behalf. */
export interface ThreadTime {
  process: string
  thread: string
  user: number
  system: number
}
/** Of all processors of the machine; `softirq` is what the network does on nobody's behalf. */
export interface MachineTime {
  user: number
  system: number
  softirq: number
  idle: number
  stolen: number
}
export interface Times {
  threads: Map<string, ThreadTime>
  machine: MachineTime
}

const TICKS_PER_SECOND = 100

/** `root` and all that came of it. A process that ends meanwhile is left out. */
export function treeOf(root: number): number[] {
  const found = [root]
  // An array grows while it is walked, and each process has one parent.
  for (const pid of found)
    for (const tid of entries(`/proc/${pid}/task`))
      found.push(...read(`/proc/${pid}/task/${tid}/children`).split(' ').filter(Boolean).map(Number))
  return found
}

export function timesOf(root: number | null): Times {
  const threads = new Map<string, ThreadTime>()
  for (const pid of root === null ? [] : treeOf(root)) {
    const process = nameOf(pid, root!)
    for (const tid of entries(`/proc/${pid}/task`)) {
      // The name stands in parentheses and may hold anything, parentheses included.
      const [, thread, rest] = /\((.*)\) (.*)/s.exec(read(`/proc/${pid}/task/${tid}/stat`)) ?? []
      if (rest === undefined) continue
      const fields = rest.split(' ')
      const [user, system] = [Number(fields[11]) / TICKS_PER_SECOND, Number(fields[12]) / TICKS_PER_SECOND]
      threads.set(`${pid}/${tid}`, { process, thread: Number(tid) === pid ? 'main' : thread!, user, system })
    }
  }
  const ticks = read('/proc/stat').split('\n', 1)[0]!.trim().split(/\s+/).slice(1).map(Number)
  const [user, nice, system, idle, waiting, irq, softirq, stolen] = ticks.map((t) => t / TICKS_PER_SECOND)
  return {
    threads,
    machine: {
      user: user! + nice!,
      system: system! + irq!,
      softirq: softirq!,
      idle: idle! + waiting!,
      stolen: stolen!,
    },
  }
}

/** What was spent between the two, the biggest spender first. */
export function spent(before: Times, after: Times): { threads: ThreadTime[]; machine: MachineTime } {
  const threads = [...after.threads]
    .map(([key, { user, system, ...names }]) => {
      const earlier = before.threads.get(key)
      return { ...names, user: round(user - (earlier?.user ?? 0)), system: round(system - (earlier?.system ?? 0)) }
    })
    .filter(({ user, system }) => user + system > 0)
    .sort((a, b) => b.user + b.system - a.user - a.system)
  const machine = Object.fromEntries(
    Object.entries(after.machine).map(([kind, seconds]) => [
      kind,
      round(seconds - before.machine[kind as keyof MachineTime]),
    ]),
  ) as unknown as MachineTime
  return { threads, machine }
}

export const total = (threads: ThreadTime[]) => threads.reduce((sum, { user, system }) => sum + user + system, 0)

/** Resident memory of a process: its own, and what it shares with files (its program and libraries). */
export interface Resident {
  process: string
  anonymous: number
  file: number
}

/** Of `root` and all that came of it, by process id. */
export function residentOf(root: number | null): Map<number, Resident> {
  const pids = root === null ? [] : treeOf(root)
  return new Map(
    pids.map((pid) => {
      const text = read(`/proc/${pid}/smaps_rollup`)
      const bytes = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(text)?.[1] ?? 0) * 1024
      const anonymous = bytes('Anonymous')
      return [pid, { process: nameOf(pid, root!), anonymous, file: bytes('Rss') - anonymous }]
    }),
  )
}

/** What each process has more than before. */
export const grown = (before: Map<number, Resident>, after: Map<number, Resident>): Resident[] =>
  [...after].map(([pid, { process, anonymous, file }]) => {
    const earlier = before.get(pid)
    return { process, anonymous: anonymous - (earlier?.anonymous ?? 0), file: file - (earlier?.file ?? 0) }
  })

export interface MachineMemory {
  available: number
  slab: number
}

export function machineMemory(): MachineMemory {
  const text = read('/proc/meminfo')
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(text)![1]) * 1024
  return { available: bytes('MemAvailable'), slab: bytes('Slab') }
}

/** The programs of a gateway differ by what they were told to be: `… run`, `… worker`. */
function nameOf(pid: number, root: number): string {
  const [program = '', ...rest] = read(`/proc/${pid}/cmdline`).split('\0').filter(Boolean)
  if (rest.at(-1) === 'worker') return 'worker'
  const name = program.slice(program.lastIndexOf('/') + 1).split(':')[0]!
  return pid === root && rest.includes('run') ? 'control' : name
}

function entries(path: string): string[] {
  try {
    return readdirSync(path)
  } catch {
    return []
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

const round = (seconds: number) => Math.round(seconds * 100) / 100
