// The admin API wherever it is answered: on its unix socket always, over HTTP where the configuration says so.
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { DEFAULT_SOCKET } from '../base/about.ts'
import { isLoopback } from '../base/addresses.ts'
import type { Config } from '../config/schema.ts'
import { AdminHttp } from './admin-http.ts'
import { tokenOf } from './admin-login.ts'
import type { Gateway } from './admin-routes.ts'
import { AdminSocket } from './admin-socket.ts'
import type { Log } from './log.ts'

export type * from './admin-routes.ts'

const DEFAULT_HOSTNAME = '127.0.0.1'

export interface AdminOptions {
  config: Config['admin']
  stateDir: string
  log: Log
}

export class Admin {
  readonly #socket: AdminSocket
  #http: AdminHttp | undefined

  constructor(
    private readonly options: AdminOptions,
    private readonly gateway: Gateway,
  ) {
    this.#socket = new AdminSocket(options.config?.socket ?? DEFAULT_SOCKET, gateway)
  }

  async start() {
    await this.#socket.start()
    if (this.options.config?.http) await this.#startHttp(this.options.config.http)
  }

  async #startHttp({ hostname = DEFAULT_HOSTNAME, port, token }: { hostname?: string; port: number; token?: string }) {
    const { stateDir, log } = this.options
    const file = join(stateDir, 'admin.token')
    await mkdir(stateDir, { recursive: true, mode: 0o700 })
    const onShutOut = (client: string) => log('warn', 'Too many wrong tokens for the admin API', { client })
    this.#http = new AdminHttp({ hostname, port, token: token ?? (await tokenOf(file)), onShutOut }, this.gateway)
    await this.#http.start()
    log('info', `The dashboard is at ${this.#http.url}`, { token: token === undefined ? file : 'admin.http.token' })
    if (!isLoopback(hostname))
      log('warn', 'The admin API is not encrypted: whoever is on the way to that address can read its token')
  }

  async stop() {
    await Promise.all([this.#socket.stop(), this.#http?.stop()])
  }
}
