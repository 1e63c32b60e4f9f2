// 100,000 live kernel flows: how long a start takes to adopt them, what a record costs, and how long the event loop stands
// still while they are listed, counted and closed. Prints one line each; nothing is asserted.
//
//   bun test/netns/inside.ts bun test/bench/flows.ts [COUNT]
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { check } from '../../src/config/check.ts'
import { Control } from '../../src/control.ts'
import { program } from './machine.ts'

const COUNT = Number(process.argv[2] ?? 100_000)
const MARK = '0x51000001'
const directory = mkdtempSync(join(tmpdir(), 'sluice-flows-'))
const socket = join(directory, 'admin.sock')

const run = async (...command: string[]) => {
  const child = Bun.spawn(command, { stdout: 'pipe', stderr: 'inherit' })
  if ((await child.exited) !== 0) throw new Error(`${command.join(' ')} failed`)
  return new Response(child.stdout).text()
}

/** What `act` takes, and the longest time that the event loop did not turn meanwhile. */
async function measure<T>(what: string, act: () => T | Promise<T>): Promise<T> {
  // Whatever went before has been collected.
  Bun.gc(true)
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  await Bun.sleep(20)
  delay.reset()
  const started = performance.now()
  const result = await act()
  const ms = performance.now() - started
  await Bun.sleep(20)
  delay.disable()
  console.log(`${what}: ${ms.toFixed(1)} ms, longest pause ${(delay.max / 1e6).toFixed(1)} ms`)
  return result
}

const checked = check({
  routes: [
    { name: 'live', match: { ports: 8400 }, action: { type: 'forward', targets: [{ host: '10.99.2.2', port: 8080 }] } },
  ],
  admin: { socket },
  log: { access: join(directory, 'access.jsonl'), level: 'warn' },
  stateDir: join(directory, 'state'),
})
if (!checked.ok) throw new Error(JSON.stringify(checked.problems))

const ready = async (control: Control) => {
  while (!(await control.api.routes()).every((route) => route.state === 'active')) await Bun.sleep(5)
}
const ask = (path: string, method = 'GET') =>
  fetch(`http://sluice${path}`, { unix: socket, method } as RequestInit).then((answer) => answer.text())

try {
  // The table has to be there: only then is what it carries known by name.
  const first = new Control({ ...checked.config, kernel: { onStop: 'keep' } })
  await first.start()
  await ready(first)
  await first.stop(0)
  console.log(`${(await run(program('flows'), String(COUNT), MARK)).trim()} flows in the kernel`)

  const control = new Control(checked.config)
  await measure('started, adopted', async () => {
    await control.start()
    while ((await control.api.status()).connections.kernel < COUNT) await Bun.sleep(1)
  })
  await ready(control)
  console.log(
    `resident memory: ${(process.memoryUsage().rss / 2 ** 20).toFixed(0)} MiB; run it with another COUNT to compare`,
  )
  await measure('routes', () => control.api.routes())
  await measure('targets', () => control.api.targets())
  const listed = await measure('connections', () => control.api.connections())
  if (listed.length !== COUNT) throw new Error(`${listed.length} are listed`)
  const text = await measure('GET /v1/connections', () => ask('/v1/connections'))
  console.log(`${(text.length / 2 ** 20).toFixed(0)} MiB of JSON`)
  await measure('one closed', () => ask(`/v1/connections/${listed[COUNT >> 1]!.id}`, 'DELETE'))
  await measure('conntrack -F, every record closed', async () => {
    await run('conntrack', '-F')
    while ((await control.api.status()).connections.kernel > 0) await Bun.sleep(1)
  })
  await run(program('flows'), String(COUNT), MARK)
  await measure('seen again', async () => {
    while ((await control.api.connections()).length < COUNT) await Bun.sleep(1)
  })
  await measure('stopped, all closed', () => control.stop(0))
} finally {
  rmSync(directory, { recursive: true, force: true })
}
process.exit(0)
