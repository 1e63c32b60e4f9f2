// Three network namespaces joined by veth pairs: a real kernel to forward with, made in a moment and thrown away.
//
//   ┌─ client ───────────┐      ┌─ gateway ───────────────────────────┐      ┌─ backend ──────────┐
//   │        10.99.1.2   │      │ 10.99.1.1                 10.99.2.1 │      │   10.99.2.2        │
//   │   fd00:99:1::2     ├──────┤ fd00:99:1::1           fd00:99:2::1 ├──────┤   fd00:99:2::2     │
//   │             uplink │      │ to-client                to-backend │      │ uplink             │
//   └────────────────────┘      └─────────────────────────────────────┘      └────────────────────┘
//     default route ────────────►                                     ◄──────────── default route
//
// Both ends route through the gateway, so a preserved source address finds its way back. The gateway forwards nothing
// until somebody turns that on (`lab.gateway.forward()`). Run it with test/netns/inside.ts.
import type { Socket, SocketHandler, Subprocess, TCPSocketListener } from 'bun'
import { closeSync, existsSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { slowness } from '../support.ts'
import { connectSocket, describe, listenSocket, localPort, pendingError, setNetworkNamespace } from './libc.ts'

const BACKLOG = 4096
/** What was killed needs a moment to be gone; nothing sane needs this long. */
const GONE_MS_MAX = 3000 * slowness
const CONNECT_MS_MAX = 5000 * slowness

const HOW = `this needs a network, mounts and a /run of its own. Run it so:
  bun test/netns/inside.ts COMMAND...     (COMMAND: bun test test/netns, for example)`

export interface Result {
  stdout: string
  stderr: string
  exitCode: number
}

/** Handlers as Bun.connect takes them; `open` is called when the connection stands. */
export type Handlers<Data> = SocketHandler<Data>

let labs = 0
/** The namespace this thread belongs to (kept open for the life of the process), and the one it is in now. */
const home = openSync('/proc/thread-self/ns/net', 'r')
let current = home

export class Namespace {
  readonly #descriptor: number
  /** All that has to end with the lab. */
  readonly #children = new Set<Subprocess<any, any, any>>()
  readonly #listeners = new Set<TCPSocketListener<any>>()
  readonly #sockets = new Set<Socket<any>>()

  constructor(
    readonly name: string,
    readonly address4: string,
    readonly address6: string,
  ) {
    this.#descriptor = openSync(`/run/netns/${name}`, 'r')
  }

  /** The command line that runs `command` here. Not `ip netns exec`: that one mounts /sys anew. */
  command(command: string[]): string[] {
    return ['nsenter', `--net=/run/netns/${this.name}`, ...command]
  }

  /** Runs a command to its end, whatever that is. */
  async run(command: string[], options: { stdin?: string } = {}): Promise<Result> {
    const child = this.spawn(command, {
      stdin: options.stdin === undefined ? 'ignore' : Buffer.from(options.stdin),
      stdout: 'pipe',
      stderr: 'pipe',
    })
    const [stdout, stderr, exitCode] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ])
    return { stdout, stderr, exitCode }
  }

  /** Runs a command that has to work; returns what it printed. */
  async must(command: string[], options: { stdin?: string } = {}): Promise<string> {
    const { stdout, stderr, exitCode } = await this.run(command, options)
    if (exitCode !== 0) throw new Error(`${command.join(' ')} in ${this.name}: exit ${exitCode}\n${stderr || stdout}`)
    return stdout
  }

  /** Starts a program that runs until it ends or the lab does. */
  spawn<
    In extends Bun.SpawnOptions.Writable = 'ignore',
    Out extends Bun.SpawnOptions.Readable = 'pipe',
    Err extends Bun.SpawnOptions.Readable = 'inherit',
  >(command: string[], options?: Bun.SpawnOptions.OptionsObject<In, Out, Err>): Subprocess<In, Out, Err> {
    const child = Bun.spawn(this.command(command), options)
    this.#children.add(child)
    void child.exited.then(() => this.#children.delete(child))
    return child
  }

  /** Loads a ruleset, in one transaction. */
  async nft(text: string) {
    await this.must(['nft', '-f', '-'], { stdin: text })
  }

  /** How many flows the kernel tracks here. */
  conntrackCount(): number {
    return Number(this.sysctl('net.netfilter.nf_conntrack_count'))
  }

  sysctl(name: string): string {
    return this.enter(() => readFileSync(`/proc/sys/${name.replaceAll('.', '/')}`, 'utf8').trim())
  }

  setSysctl(values: Record<string, string | number>) {
    this.enter(() => {
      for (const [name, value] of Object.entries(values))
        writeFileSync(`/proc/sys/${name.replaceAll('.', '/')}`, String(value))
    })
  }

  /** Lets this namespace route packets of others. */
  forward() {
    this.setSysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv6.conf.all.forwarding': 1 })
  }

  /** Runs `act` with this thread's network namespace switched to this one: sockets it opens are born here and stay here. */
  enter<T>(act: () => T): T {
    const before = current
    setNetworkNamespace(this.#descriptor)
    current = this.#descriptor
    try {
      const result = act()
      // What comes after the first await would run at home again, and open its sockets there.
      if (result instanceof Promise) throw new Error('enter() takes a synchronous function')
      return result
    } finally {
      setNetworkNamespace(before)
      current = before
    }
  }

  /** A listener of this very process in this namespace. Port 0 (the default) lets the kernel choose. */
  listen<Data = undefined>(
    socket: Handlers<Data>,
    options: { port?: number; hostname?: string; backlog?: number; allowHalfOpen?: boolean; data?: Data } = {},
  ) {
    const fd = this.enter(() => listenSocket(options.hostname ?? '::', options.port ?? 0, options.backlog ?? BACKLOG))
    const port = localPort(fd)
    const listener = Bun.listen<Data>({ ...options, fd, hostname: undefined, port: undefined, socket } as never)
    this.#listeners.add(listener)
    const stop = (closeConnections = true) => {
      this.#listeners.delete(listener)
      listener.stop(closeConnections)
    }
    return { port, listener, stop }
  }

  /** Connects from this namespace, in this very process. Rejects when refused, unreachable or too late. */
  connect<Data = undefined>(
    hostname: string,
    port: number,
    socket: Handlers<Data> = {},
    options: {
      localAddress?: string
      localPort?: number
      allowHalfOpen?: boolean
      data?: Data
      timeoutMs?: number
    } = {},
  ): Promise<Socket<Data>> {
    const {
      localAddress: host = hostname.includes(':') ? '::' : '0.0.0.0',
      localPort = 0,
      timeoutMs,
      ...rest
    } = options
    const from = options.localAddress || localPort ? { host, port: localPort } : undefined
    const fd = this.enter(() => connectSocket(hostname, port, from))
    const where = `connect ${hostname}:${port} from ${this.name}`
    const sockets = this.#sockets
    return new Promise((resolve, reject) => {
      let state: 'connecting' | 'open' | 'failed' = 'connecting'
      const fail = (socket: Socket<Data>, why: string) => {
        if (state !== 'connecting') return
        state = 'failed'
        clearTimeout(late)
        reject(new Error(`${where}: ${why}`))
        socket.terminate()
      }
      // An adopted descriptor is called open at once. Writable means it has connected, or failed: then it has no peer.
      const settled = (socket: Socket<Data>) => {
        if (state !== 'connecting') return state === 'open'
        if (socket.remotePort === undefined) fail(socket, describe(pendingError(fd)))
        else {
          state = 'open'
          clearTimeout(late)
          handlers.open?.(socket)
          resolve(socket)
        }
        return (state as string) === 'open'
      }
      let adopted: Socket<Data> | undefined
      const late = setTimeout(() => adopted && fail(adopted, 'timed out'), timeoutMs ?? CONNECT_MS_MAX)
      const handlers = socket
      Bun.connect<Data>({
        ...rest,
        fd,
        socket: {
          ...socket,
          open(socket: Socket<Data>) {
            adopted = socket
            sockets.add(socket)
          },
          drain(socket: Socket<Data>) {
            if (settled(socket)) handlers.drain?.(socket)
          },
          data(socket: Socket<Data>, bytes: never) {
            if (settled(socket)) handlers.data?.(socket, bytes)
          },
          end(socket: Socket<Data>) {
            if (settled(socket)) handlers.end?.(socket)
          },
          close(socket: Socket<Data>, error?: Error) {
            sockets.delete(socket)
            if (state === 'open') handlers.close?.(socket, error)
            else fail(socket, error?.message ?? 'closed before it was connected')
          },
        },
      } as never).catch((error) => {
        clearTimeout(late)
        reject(error)
      })
    })
  }

  /** Ends what was started here; returns what did not go away. */
  async dispose(): Promise<string[]> {
    for (const socket of this.#sockets) socket.terminate()
    for (const listener of this.#listeners) listener.stop(true)
    const children = [...this.#children]
    for (const child of children) child.kill('SIGKILL')
    await Promise.all(children.map((child) => child.exited))
    closeSync(this.#descriptor)
    const left = await this.#waitForProcesses()
    const { exitCode, stderr } = Bun.spawnSync(['ip', 'netns', 'delete', this.name])
    if (exitCode !== 0) left.push(stderr.toString().trim())
    if (existsSync(`/run/netns/${this.name}`)) left.push(`/run/netns/${this.name}`)
    return left
  }

  /** A killed program's own children end a moment later. Those that do not are leaks: named, then killed. */
  async #waitForProcesses(): Promise<string[]> {
    const processes = () =>
      Bun.spawnSync(['ip', 'netns', 'pids', this.name]).stdout.toString().split('\n').filter(Boolean)
    const deadline = performance.now() + GONE_MS_MAX
    let left = processes()
    while (left.length > 0 && performance.now() < deadline) {
      await Bun.sleep(20)
      left = processes()
    }
    return left.map((pid) => {
      const what = commandLine(pid)
      process.kill(Number(pid), 'SIGKILL')
      return `process ${pid} in ${this.name}: ${what}`
    })
  }
}

/** The gateway has two sides; `address4` and `address6` are the ones clients know. */
export class Gateway extends Namespace {
  readonly clientSide4 = '10.99.1.1'
  readonly clientSide6 = 'fd00:99:1::1'
  readonly backendSide4 = '10.99.2.1'
  readonly backendSide6 = 'fd00:99:2::1'
}

export class Lab implements AsyncDisposable {
  private constructor(
    readonly client: Namespace,
    readonly gateway: Gateway,
    readonly backend: Namespace,
  ) {}

  get namespaces(): Namespace[] {
    return [this.client, this.gateway, this.backend]
  }

  /** @param machine the gateway is the machine itself, which is thrown away afterwards: such a lab is not disposed of. */
  static async create(machine = false): Promise<Lab> {
    refuseOutside()
    // Several test processes may share one /run, and one process may build several labs.
    const id = `${process.pid}-${++labs}`
    const [client, gateway, backend] = [`client-${id}`, `gateway-${id}`, `backend-${id}`] as const
    const names = [client, gateway, backend]
    try {
      await ip(names.map((name) => (machine && name === gateway ? `netns attach ${name} 1` : `netns add ${name}`)))
      const lab = new Lab(
        new Namespace(client, '10.99.1.2', 'fd00:99:1::2'),
        new Gateway(gateway, '10.99.1.1', 'fd00:99:1::1'),
        new Namespace(backend, '10.99.2.2', 'fd00:99:2::2'),
      )
      // A router without a link-local address cannot ask for a neighbour, and duplicate detection holds it back for 2 s.
      for (const namespace of lab.namespaces) namespace.setSysctl({ 'net.ipv6.conf.default.accept_dad': 0 })
      await ip(
        [
          `link add to-client type veth peer name uplink netns ${client}`,
          `link add to-backend type veth peer name uplink netns ${backend}`,
          'link set lo up',
          ...addresses('to-client', '10.99.1.1', 'fd00:99:1::1'),
          ...addresses('to-backend', '10.99.2.1', 'fd00:99:2::1'),
        ],
        lab.gateway,
      )
      for (const [end, net] of [
        [lab.client, 1],
        [lab.backend, 2],
      ] as const)
        await ip(
          [
            'link set lo up',
            ...addresses('uplink', end.address4, end.address6),
            `route add default via 10.99.${net}.1`,
            `-6 route add default via fd00:99:${net}::1`,
          ],
          end,
        )
      return lab
    } catch (error) {
      for (const name of names) Bun.spawnSync(['ip', 'netns', 'delete', name])
      throw error
    }
  }

  async [Symbol.asyncDispose]() {
    const left = (await Promise.all(this.namespaces.map((namespace) => namespace.dispose()))).flat()
    if (left.length > 0) throw new Error(`the lab was left with:\n  ${left.join('\n  ')}`)
  }
}

function addresses(link: string, v4: string, v6: string): string[] {
  return [`link set ${link} up`, `addr add ${v4}/24 dev ${link}`, `addr add ${v6}/64 dev ${link} nodad`]
}

/** Runs `ip` commands, those of one namespace in one process. */
async function ip(commands: string[], inside?: Namespace) {
  if (inside)
    for (const family of ['-4', '-6']) {
      const batch = commands.filter((command) => command.startsWith('-6 ') === (family === '-6'))
      const stdin = batch.map((command) => command.replace('-6 ', '')).join('\n')
      await inside.must(['ip', ...(family === '-6' ? ['-6'] : []), '-batch', '-'], { stdin })
    }
  else
    for (const command of commands) {
      const { exitCode, stderr } = Bun.spawnSync(['ip', ...command.split(' ')])
      if (exitCode !== 0) throw new Error(`ip ${command}: ${stderr}`)
    }
}

/** A lab on the machine's own network could be mistaken for the machine: refuse what does not look thrown away. */
function refuseOutside() {
  const own = existsSync('/run/netns') && statSync('/run').dev !== statSync('/').dev
  const routes = readFileSync('/proc/thread-self/net/route', 'utf8').trim().split('\n').slice(1)
  if (!own || routes.some((route) => route.split('\t')[1] === '00000000')) throw new Error(HOW)
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
  } catch {
    return 'gone'
  }
}
