// Real programs as peers of the gateway: each runs in a namespace of the laboratory from files of its own, never as a
// service of the machine, and ends with the test.
import type { Subprocess } from 'bun'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { listening, until } from '../netns/gateway.ts'
import type { Lab, Namespace } from '../netns/lab.ts'

const START_MS_MAX = 10_000

/** A directory that other users may enter (a server may give up being root). `using`: gone with the end of the test. */
export class Place implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'sluice-peer-'))

  constructor() {
    chmodSync(this.path, 0o755)
  }

  file(name: string, text = ''): string {
    const path = join(this.path, name)
    writeFileSync(path, text)
    return path
  }

  read(name: string): string {
    return readFileSync(join(this.path, name), 'utf8')
  }

  [Symbol.dispose]() {
    rmSync(this.path, { recursive: true, force: true })
  }
}

export interface Peer extends AsyncDisposable {
  readonly process: Subprocess<any, any, any>
  /** All it has printed. */
  output(): string
}

/** Starts a server and waits until it listens on these ports. @param end the signal that makes it end with all its children. */
export async function serve(
  where: Namespace,
  command: string[],
  ports: number[],
  end: NodeJS.Signals = 'SIGKILL',
): Promise<Peer> {
  const place = new Place()
  const log = place.file('output')
  const process = where.spawn(command, { stdin: 'ignore', stdout: Bun.file(log), stderr: Bun.file(log) })
  const peer: Peer = {
    process,
    output: () => place.read('output'),
    async [Symbol.asyncDispose]() {
      process.kill(end)
      await process.exited
      place[Symbol.dispose]()
    },
  }
  try {
    await until(
      async () => {
        if (process.exitCode !== null) return true
        const listens = await listening(where)
        return ports.every((port) => listens.some((address) => address.endsWith(`:${port}`)))
      },
      START_MS_MAX,
      `${command[0]} listens`,
    )
    if (process.exitCode !== null) throw new Error(`${command[0]} ended with ${process.exitCode}`)
    return peer
  } catch (error) {
    const said = peer.output()
    await peer[Symbol.asyncDispose]()
    throw new Error(`${(error as Error).message}\n${said}`, { cause: error })
  }
}

/** HAProxy with these frontends and backends, in mode tcp. Its log is its output. */
export function haproxy(where: Namespace, place: Place, sections: string, ports: number[]): Promise<Peer> {
  const config = place.file(
    'haproxy.cfg',
    `global
  log stdout format raw local0
defaults
  mode tcp
  log global
  timeout connect 5s
  timeout client 10s
  timeout server 10s
${sections}\n`,
  )
  return serve(where, ['haproxy', '-db', '-f', config], ports)
}

/** nginx with these servers in its stream module. One process, which stays who it is: a namespace may have one user only. */
export function nginx(where: Namespace, place: Place, servers: string, ports: number[]): Promise<Peer> {
  const config = place.file(
    'nginx.conf',
    `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid ${place.path}/nginx.pid;
events {}
stream {
${servers}
}\n`,
  )
  return serve(where, ['nginx', '-e', join(place.path, 'error.log'), '-p', place.path, '-c', config], ports)
}

/** Servers that refuse to be root are somebody else in a user namespace of their own, which needs no second user. */
export const asNobody = (...command: string[]) => [
  'unshare',
  '--user',
  '--map-user=65534',
  '--map-group=65534',
  ...command,
]

const postgresBin = [...new Bun.Glob('*/bin').scanSync({ cwd: '/usr/lib/postgresql', onlyFiles: false })].at(-1)
/** One of its programs; null: it is not installed. */
export const postgres = (name: string) =>
  postgresBin === undefined ? null : Bun.which(name, { PATH: join('/usr/lib/postgresql', postgresBin) })

/** PostgreSQL on its port, of which "tester" may do anything. */
export async function startPostgres(lab: Lab, place: Place, more: Record<string, string> = {}): Promise<Peer> {
  const data = join(place.path, 'data')
  const make = ['-D', data, '-U', 'tester', '-A', 'trust', '--no-sync', '--no-locale']
  await lab.backend.must(asNobody(postgres('initdb')!, ...make))
  const settings = {
    listen_addresses: lab.backend.address4,
    unix_socket_directories: '',
    hba_file: place.file('hba', 'host all all all trust\n'),
    ...more,
  }
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  return serve(lab.backend, asNobody(postgres('postgres')!, '-D', data, ...flags), [5432], 'SIGQUIT')
}

/** Redis, whose port the flags say. */
export const startRedis = (lab: Lab, place: Place, flags: string[], port: number): Promise<Peer> =>
  serve(
    lab.backend,
    [
      'redis-server',
      '--bind',
      lab.backend.address4,
      '--protected-mode',
      'no',
      '--save',
      '',
      '--dir',
      place.path,
      ...flags,
    ],
    [port],
  )
