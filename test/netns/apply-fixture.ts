// The control process with a thousand kernel routes to apply, and a histogram of its event loop's delay meanwhile: run by
// apply.test.ts in the gateway's namespace, prints one line of JSON.
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { check } from '../../src/config/check.ts'
import { Control } from '../../src/control.ts'

const { directory, target, count } = JSON.parse(process.argv[2]!) as {
  directory: string
  target: string
  count: number
}

const config = (routes: number) => {
  const checked = check({
    routes: Array.from({ length: routes }, (_, i) => ({
      name: `r${i}`,
      match: { ports: 10_000 + i },
      action: { type: 'forward', targets: [{ host: target, port: 9000 + (i % 100) }] },
    })),
    admin: { socket: `${directory}/fixture.sock` },
    log: { access: 'off', level: 'warn' },
    stateDir: `${directory}/state`,
  })
  if (!checked.ok) throw new Error(JSON.stringify(checked.problems))
  return checked.config
}

const control = new Control(config(1))
await control.start()
const active = async (wanted: number) => {
  for (;;) {
    const routes = await control.api.routes()
    if (routes.length === wanted && routes.every((route) => route.state === 'active' && route.carrier === 'kernel'))
      return
    await Bun.sleep(1)
  }
}
await active(1)

/** Carries `act` out and waits for its end in the kernel; what the loop felt of it. */
async function measure(act: () => Promise<unknown>, wanted: number) {
  const delay = monitorEventLoopDelay({ resolution: 1 })
  const transactions = (await control.api.status()).kernel.transactions
  delay.enable()
  let turns = 0
  const turn = setInterval(() => turns++, 1)
  const started = performance.now()
  await act()
  while (!((await control.api.status()).kernel.transactions > transactions)) await Bun.sleep(1)
  const ms = performance.now() - started
  delay.disable()
  clearInterval(turn)
  await active(wanted)
  return { ms, turns, maxMs: delay.max / 1e6, p99Ms: delay.percentile(99) / 1e6 }
}

const wanted = config(count)
const applied = await measure(() => control.reloads.setConfig(wanted), count)
const fewer = config(1)
const removed = await measure(() => control.reloads.setConfig(fewer), 1)
console.log(JSON.stringify({ applied, removed, elements: (await control.api.status()).kernel.elements }))
await control.stop(0)
process.exit(0)
