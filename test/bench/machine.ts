// What the benchmark has to know and do about the machine: how busy it is with other things, how every namespace is set
// for many short connections, and the C programs that make the traffic.
import { mkdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Namespace } from '../netns/lab.ts'

const BUILD = join(import.meta.dir, '../../build/bench')
/** Others' work counts as ours in the machine's busy time: wait for a moment with less of it than this. */
const QUIET_SHARE = 0.1
const QUIET_SAMPLE_MS = 250
const QUIET_WAIT_MS_MAX = 15_000

/** What each traffic program is linked with. */
const PROGRAMS = {
  load: [],
  'load-server': [],
  'tls-load': ['-lssl', '-lcrypto'],
  'handshake-load': ['-lcrypto'],
  'echo-load': [],
  idle: [],
  flows: ['-lmnl'],
}
export type Program = keyof typeof PROGRAMS

/** The path of a compiled traffic program; compiles it when its source is newer. */
export function program(name: Program): string {
  const source = join(import.meta.dir, `${name}.c`)
  const binary = join(BUILD, name)
  const changed = Math.max(statSync(source).mtimeMs, statSync(join(import.meta.dir, 'common.h')).mtimeMs)
  if ((statSync(binary, { throwIfNoEntry: false })?.mtimeMs ?? 0) < changed) {
    mkdirSync(BUILD, { recursive: true })
    const command = ['cc', '-O2', '-Wall', '-Wextra', '-o', binary, source, ...PROGRAMS[name]]
    const { exitCode, stderr } = Bun.spawnSync(command)
    if (exitCode !== 0) throw new Error(`${command.join(' ')}:\n${stderr}`)
  }
  return binary
}

/** Left-over TIME_WAIT and a short accept queue would measure the namespace instead of the gateway. */
export function prepare(namespace: Namespace) {
  namespace.setSysctl({
    'net.core.somaxconn': 8192,
    'net.ipv4.tcp_max_syn_backlog': 8192,
    'net.ipv4.tcp_tw_reuse': 1,
    'net.ipv4.ip_local_port_range': '1024 65535',
    // The loads' own ports lie in that range, and must not be taken by a connection on its way out.
    'net.ipv4.ip_local_reserved_ports': '5201-5209',
  })
}

/** Whether there are other users than root: in a user namespace of one's own there is but one. */
export function hasOtherUsers(): boolean {
  const ranges = readFileSync('/proc/self/uid_map', 'utf8').trim().split('\n')
  return ranges.length > 1 || Number(ranges[0]!.trim().split(/\s+/)[2]) > 1
}

/** How many files a process may have open: what its limit can be raised to. */
export function descriptorsMax(): number {
  const limit = /^Max open files\s+\S+\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))![1]
  return limit === 'unlimited' ? Infinity : Number(limit)
}

/** Waits until the machine does little else; returns the share that was still busy when it gave up or was content. */
export async function quiet(): Promise<number> {
  const deadline = performance.now() + QUIET_WAIT_MS_MAX
  for (;;) {
    const before = ticks()
    await Bun.sleep(QUIET_SAMPLE_MS)
    const after = ticks()
    const share = (after.busy - before.busy) / Math.max(1, after.all - before.all)
    if (share <= QUIET_SHARE || performance.now() > deadline) return share
  }
}

function ticks() {
  const fields = readFileSync('/proc/stat', 'utf8').split('\n')[0]!.trim().split(/\s+/).slice(1, 9).map(Number)
  const all = fields.reduce((sum, value) => sum + value, 0)
  return { all, busy: all - fields[3]! - fields[4]! }
}

export function describeMachine(): string {
  const model = /model name\s*: (.*)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown processor'
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()
  return `${navigator.hardwareConcurrency} × ${model}, Linux ${kernel}, Bun ${Bun.version}`
}
