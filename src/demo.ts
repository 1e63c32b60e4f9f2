// sluice demo: the real gateway between a client and backends of its own, in three throwaway network namespaces:
//
//   sluice-demo-client ──────── sluice-demo-gateway ──────── sluice-demo-backend
//   10.77.1.2                   10.77.1.1 | 10.77.2.1        10.77.2.2
//
// Everything it makes has a name of its own (namespaces, one directory in /run): Ctrl-C removes it all, and what a killed
// demo left, the next one removes.
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { relative } from 'node:path'
import { $ } from 'zx'
import { colour, table } from './commands/shared.ts'
import { selfArguments } from './config/load.ts'

const DIRECTORY = '/run/sluice-demo'
const SOCKET = `${DIRECTORY}/admin.sock`
const NAMESPACES = ['client', 'gateway', 'backend'].map((name) => `sluice-demo-${name}`)
const [CLIENT, GATEWAY, BACKEND] = NAMESPACES as [string, string, string]
/** The gateway serves within a second; a machine that needs longer than this has another problem, which its log tells. */
const READY_MS_MAX = 20_000
const STOP_MS_MAX = 10_000

const CONFIG = `import { defineConfig } from 'sluice'

export default defineConfig({
  routes: [
    { name: 'web', match: { ports: 8080 }, action: { type: 'forward', targets: [{ host: '10.77.2.2', port: 3000 }] } },
    { name: 'app', match: { ports: 8443, domains: 'app.demo.test' }, action: { type: 'forward', targets: [{ host: '10.77.2.2', port: 3443 }], tls: { mode: 'passthrough' } } },
    { name: 'api', match: { ports: 9443, domains: 'api.demo.test' }, action: { type: 'forward', targets: [{ host: '10.77.2.2', port: 3000 }], tls: { mode: 'terminate', certificate: 'self-signed' } } },
    {
      name: 'echo',
      match: { ports: 7000 },
      action: {
        type: 'socket-handler',
        handler: {
          async connect(socket) {
            const writer = socket.writable.getWriter()
            await writer.write(new TextEncoder().encode('You talk to a handler; it says what you say.\\n'))
            writer.releaseLock()
            await socket.readable.pipeTo(socket.writable)
          },
        },
      },
    },
  ],
  admin: { socket: '${SOCKET}' },
  stateDir: '${DIRECTORY}/state',
  log: { level: 'warn' },
})
`

const IN_CLIENT = `ip netns exec ${CLIENT}`
const TRY: Record<string, string> = {
  web: `${IN_CLIENT} curl -sS http://10.77.1.1:8080/`,
  app: `${IN_CLIENT} curl -sS --cacert ${DIRECTORY}/backend.crt --resolve app.demo.test:8443:10.77.1.1 https://app.demo.test:8443/`,
  api: `${IN_CLIENT} curl -sS --cacert ${DIRECTORY}/state/authority/ca.crt --resolve api.demo.test:9443:10.77.1.1 https://api.demo.test:9443/`,
  echo: `${IN_CLIENT} bash -c 'exec 3<>/dev/tcp/10.77.1.1/7000; echo hello >&3; head -n 2 <&3'`,
}

const run = $({ quiet: true })
const attempt = $({ quiet: true, nothrow: true })
const self = () => [process.execPath, ...selfArguments()]
const say = (text: string) => process.stdout.write(`${text}\n`)

export async function demo(): Promise<number> {
  if (process.getuid!() !== 0) {
    process.stderr.write('sluice: the demo makes network namespaces, which only root may: sudo make run\n')
    return 1
  }
  const other = await livingDemo()
  if (other) {
    process.stderr.write(`sluice: another demo runs (process ${other}); end it with Ctrl-C there, or: kill ${other}\n`)
    return 1
  }
  // From the first thing made on, a signal takes everything away again.
  const interrupted = Promise.withResolvers<'interrupted'>()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => interrupted.resolve('interrupted'))
  const children: Bun.Subprocess[] = []
  try {
    say('Removing what an earlier demo left, if anything')
    await remove()
    say(`Making the namespaces ${NAMESPACES.join(', ')}`)
    await makeNamespaces()
    say('Starting the backends and the gateway')
    children.push(start(BACKEND, 'demo-backend', '10.77.2.2'))
    const gateway = start(GATEWAY, 'run', '--config', `${DIRECTORY}/sluice.config.ts`)
    children.push(gateway)
    const ended = gateway.exited.then((code) => `ended with exit code ${code}` as const)
    const first = await Promise.race([ready(), interrupted.promise, ended])
    if (typeof first === 'string') {
      if (first === 'interrupted') return 0
      process.stderr.write(`sluice: the gateway ${first}\n`)
      return 1
    }
    show(first)
    const last = await Promise.race([interrupted.promise, ended])
    if (last === 'interrupted') return 0
    process.stderr.write(`sluice: the gateway ${last}\n`)
    return 1
  } finally {
    say('\nRemoving the demo')
    for (const child of children) child.kill('SIGTERM')
    const killer = setTimeout(() => children.forEach((child) => child.kill('SIGKILL')), STOP_MS_MAX)
    await Promise.all(children.map((child) => child.exited))
    clearTimeout(killer)
    await remove()
  }
}

/** The process of a demo that runs now; a directory whose process is gone is a leftover. */
async function livingDemo(): Promise<number | null> {
  const pid = Number(await readFile(`${DIRECTORY}/pid`, 'utf8').catch(() => ''))
  if (!pid || pid === process.pid) return null
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  return command.split('\0').includes('demo') ? pid : null
}

async function remove() {
  const existing = new Set((await attempt`ip netns list`).stdout.split('\n').map((line) => line.split(' ')[0]))
  for (const name of NAMESPACES) {
    if (!existing.has(name)) continue
    for (const pid of (await attempt`ip netns pids ${name}`).stdout.split('\n').filter(Boolean))
      await attempt`kill -9 ${pid}`
    await attempt`ip netns delete ${name}`
  }
  await rm(DIRECTORY, { recursive: true, force: true })
}

async function makeNamespaces() {
  await mkdir(DIRECTORY, { recursive: true, mode: 0o755 })
  await writeFile(`${DIRECTORY}/pid`, String(process.pid))
  await writeFile(`${DIRECTORY}/sluice.config.ts`, CONFIG)
  for (const name of NAMESPACES) {
    await run`ip netns add ${name}`
    await run`ip -n ${name} link set lo up`
  }
  await link(CLIENT, '10.77.1.2/24', GATEWAY, '10.77.1.1/24')
  await link(BACKEND, '10.77.2.2/24', GATEWAY, '10.77.2.1/24')
  await run`ip -n ${CLIENT} route add default via 10.77.1.1`
  await run`ip -n ${BACKEND} route add default via 10.77.2.1`
}

async function link(a: string, addressA: string, b: string, addressB: string) {
  const [nameA, nameB] = ['gateway', a.replace('sluice-demo-', '')]
  await run`ip link add ${nameA} netns ${a} type veth peer name ${nameB} netns ${b}`
  await run`ip -n ${a} addr add ${addressA} dev ${nameA}`
  await run`ip -n ${b} addr add ${addressB} dev ${nameB}`
  await run`ip -n ${a} link set ${nameA} up`
  await run`ip -n ${b} link set ${nameB} up`
}

const start = (namespace: string, ...args: string[]) =>
  Bun.spawn(['ip', 'netns', 'exec', namespace, ...self(), ...args], { stdio: ['ignore', 'inherit', 'inherit'] })

interface RouteView {
  name: string
  carrier: string
  state: string
  reason: string
  listens: { from: number }[]
}

/** Resolves when every route is carried as planned. */
async function ready(): Promise<RouteView[]> {
  for (const until = performance.now() + READY_MS_MAX; ; await Bun.sleep(50)) {
    const answer = await fetch('http://sluice/v1/routes', { unix: SOCKET } as RequestInit).then(
      (response) => response.json() as Promise<{ routes: RouteView[] }>,
      () => null,
    )
    if (answer?.routes.every((route) => route.state !== 'applying')) return answer.routes
    if (performance.now() > until) throw new Error('Cannot start the demo: the gateway is not ready in time')
  }
}

function show(routes: RouteView[]) {
  say('')
  process.stdout.write(
    table(
      ['ROUTE', 'PORT', 'CARRIER', 'WHY'],
      routes.map((route) => [route.name, String(route.listens[0]!.from), route.carrier, route.reason]),
    ),
  )
  say('\nTry them from another shell, as root:')
  for (const route of routes) say(`\n  ${colour(2, `# ${route.name}: ${route.carrier}`)}\n  ${TRY[route.name] ?? ''}`)
  const program = self()
    .map((part) => (part.startsWith(process.cwd()) ? relative(process.cwd(), part) : part))
    .join(' ')
  say(`\n  ${colour(2, '# the gateway')}`)
  for (const command of ['routes', 'connections', 'top', 'certificates', 'explain 10.77.1.2 8443 app.demo.test'])
    say(`  ${program} ${command} --admin ${SOCKET}`)
  say(`  ip netns exec ${GATEWAY} nft list table inet sluice`)
  say('\nEach closed connection is a line here. Ctrl-C ends the demo and removes everything it made.\n')
}
