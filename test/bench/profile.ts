// Where the processor time and the memory of one run went, for people: each thread of the gateway, and the whole machine.
import type { Load, Sample } from './loads.ts'

const THREADS_SHOWN_MAX = 12

export function profile<S extends Sample>(sample: S, unit: Load<S>['unit']): string[] {
  const count = unit.count(sample)
  const per = (seconds: number) => {
    const us = (seconds * 1e6) / count
    return us < 1000 ? `${us.toFixed(1)} us` : `${(us / 1000).toFixed(1)} ms`
  }
  const line = (name: string, user: number, system: number) =>
    `${name.padEnd(28)} user ${seconds(user)} (${per(user)})  system ${seconds(system)} (${per(system)})`
  const { user, system, softirq, idle, stolen } = sample.machine
  return [
    `per ${unit.name}:`,
    ...(sample.memory ?? []).map(
      ({ process, anonymous, file }) =>
        `${process.padEnd(28)} own memory ${bytes(anonymous / count)}, program and libraries ${bytes(file / count)}`,
    ),
    ...sample.threads.slice(0, THREADS_SHOWN_MAX).map((t) => line(`${t.process}/${t.thread}`, t.user, t.system)),
    `${line('the whole machine', user, system)}  softirq ${seconds(softirq)} (${per(softirq)})  idle ${seconds(idle)}${stolen > 0 ? `  stolen ${seconds(stolen)}` : ''}`,
  ]
}

const bytes = (value: number) => `${value.toFixed(0)} B`
const seconds = (value: number) => `${value.toFixed(2)} s`
