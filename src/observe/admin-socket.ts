// The admin API on its unix socket: who may open the socket may do everything. The command line is its client.
import { chmod, chown, mkdir, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { adminRoutes, failed, notFound, type Gateway } from './admin-routes.ts'

/** A client on this machine takes what is meant for it within a moment. */
const LAST_ANSWERS_MS_MAX = 250
const BODY_BYTES_MAX = 64 * 1024 * 1024
/** bind(2): sun_path is 108 bytes. */
const PATH_BYTES_MAX = 107
/** Who is in it may operate the gateway. */
const GROUP = 'sluice'

export class AdminSocket {
  #server: ReturnType<typeof Bun.serve> | undefined
  constructor(
    private readonly path: string,
    private readonly gateway: Gateway,
  ) {}

  async start() {
    if (Buffer.byteLength(this.path) > PATH_BYTES_MAX)
      throw new Error(`Cannot listen on ${this.path}: a unix socket's path has at most ${PATH_BYTES_MAX} bytes`)
    await mkdir(dirname(this.path), { recursive: true, mode: 0o755 })
    if (await answers(this.path))
      throw new Error(`Cannot listen on ${this.path}: another sluice answers there; stop it, or set admin.socket`)
    // A socket nobody answers on is what a killed gateway left.
    await rm(this.path, { force: true })
    this.#server = Bun.serve({
      unix: this.path,
      maxRequestBodySize: BODY_BYTES_MAX,
      routes: adminRoutes(this.gateway),
      fetch: notFound,
      error: failed,
    })
    await this.#giveToGroup()
    await chmod(this.path, 0o660)
  }

  /** Where the group does not exist, or cannot be given anything (no root), the socket stays the gateway's own. */
  async #giveToGroup() {
    const groups = await Bun.file('/etc/group')
      .text()
      .catch(() => '')
    const group = groupNumber(groups, GROUP)
    if (group !== null) await chown(this.path, process.getuid!(), group).catch(() => {})
  }

  async stop() {
    // One that was refused because another gateway answers there must leave that one's socket alone.
    if (!this.#server) return
    // Answers that are on their way still go out: the last events, that of a stop.
    const { promise: late, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, LAST_ANSWERS_MS_MAX)
    await Promise.race([this.#server.stop(), late])
    clearTimeout(timer)
    await this.#server.stop(true)
    await rm(this.path, { force: true })
  }
}

function answers(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const socket = connect(path)
  socket.once('connect', () => resolve(true))
  socket.once('error', () => resolve(false))
  return promise.finally(() => socket.destroy())
}

/** @param text /etc/group. */
export function groupNumber(text: string, name: string): number | null {
  const line = text.split('\n').find((one) => one.startsWith(`${name}:`))
  const number = line?.split(':')[2]
  return number !== undefined && /^[0-9]+$/.test(number) ? Number(number) : null
}
