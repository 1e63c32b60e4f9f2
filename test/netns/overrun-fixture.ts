// The kernel plane alone, with an event socket whose buffer is as small as the kernel allows: run by overrun.test.ts in the
// gateway's namespace. GET on its unix socket says what it knows.
import { check } from '../../src/config/check.ts'
import type { ConnectionRecord } from '../../src/connections/record.ts'
import { ConnectionTable } from '../../src/connections/table.ts'
import { KernelPlane, programVersion } from '../../src/kernel/index.ts'
import { DEFAULT_MARK_BASE, noFacts, plan } from '../../src/plan/plan.ts'

const { directory, target, port, receiveBuffer } = JSON.parse(process.argv[2]!) as {
  directory: string
  target: string
  port: number
  receiveBuffer: number
}

const checked = check({
  routes: [{ name: 'live', match: { ports: 8400 }, action: { type: 'forward', targets: [{ host: target, port }] } }],
})
if (!checked.ok) throw new Error(JSON.stringify(checked.problems))
const wanted = plan(checked.config, noFacts(DEFAULT_MARK_BASE, programVersion))

const table = new ConnectionTable()
const settled: ConnectionRecord[] = []
const setup: { ms: number; clock: string; target: string }[] = []
table.observe({ settled: (record) => settled.push(record) })
const kernel = new KernelPlane({
  table: 'sluice',
  base: DEFAULT_MARK_BASE,
  sysctlMemory: `${directory}/sysctl.json`,
  sealMemory: `${directory}/seal`,
  log: (level, message, fields) => level === 'error' && console.error(message, fields),
  flowOpened: (route, target, openedMs) => table.flowOpened(route, target, openedMs),
  flowCarried: (...carried) => table.flowCarried(...carried),
  flowSettled: (...settled) => table.flowSettled(...settled),
  established: (_route, target, ms, clock) => setup.push({ ms, clock, target }),
  refused: () => {},
  receiveBuffer,
})
await kernel.start()
kernel.learn(Object.fromEntries(wanted.routes.map((route) => [route.name, route.number])))
await kernel.apply(wanted.kernel, true)

Bun.serve({
  unix: `${directory}/fixture.sock`,
  fetch: () => {
    const { total, now, reasons, bytesIn } = table.totals('live')
    const live = [...kernel.flows.records()]
    return Response.json({ live, settled, lost: kernel.lost, setup, total, now, reasons, bytesIn })
  },
})
