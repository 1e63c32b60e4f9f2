// Caddy as the CA of a laboratory: a real ACME server in the clients' namespace, which finds the names of the test where the test
// says they are.
import type { Subprocess } from 'bun'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from './gateway.ts'
import type { Lab } from './lab.ts'

const PORT = 8443
const READY_MS_MAX = 20_000

export const hasCaddy = Bun.which('caddy') !== null

export class Ca implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'sluice-ca-'))
  #process: Subprocess | undefined

  private constructor(private readonly lab: Lab) {}

  /** @param names where each of them leads. */
  static async start(lab: Lab, names: Record<string, string>): Promise<Ca> {
    const ca = new Ca(lab)
    mkdirSync(ca.#at('data'))
    const lines = Object.entries(names).map(([name, address]) => `${address} ${name}`)
    writeFileSync(ca.#at('hosts'), ['127.0.0.1 localhost', ...lines, ''].join('\n'))
    const { address4 } = lab.client
    writeFileSync(
      ca.#at('Caddyfile'),
      `{
        admin off
        skip_install_trust
        storage file_system ${ca.#at('data')}
        auto_https disable_redirects
        http_port 8080
        https_port ${PORT}
        default_bind ${address4}
        default_sni ${address4}
      }
      https://${address4}:${PORT} {
        tls internal
        acme_server
      }\n`,
    )
    await ca.start()
    return ca
  }

  #at(name: string) {
    return join(this.directory, name)
  }

  /** PEM file of what signs everything here. */
  get root() {
    return this.#at('data/pki/authorities/local/root.crt')
  }

  /** What a gateway's configuration says of it. */
  get settings() {
    const directory = `https://${this.lab.client.address4}:${PORT}/acme/local/directory`
    return { email: 'ops@acme.test', termsAgreed: true, directory, ca: this.root }
  }

  /** Also again, after it was killed: it is the same CA. */
  async start() {
    const hosts = `mount --bind ${this.#at('hosts')} /etc/hosts && exec "$@"`
    // The database of its ACME server is elsewhere than its storage: below the home directory, for one Caddy at a time.
    const caddy = [
      'env',
      `XDG_DATA_HOME=${this.#at('home')}`,
      'caddy',
      'run',
      '--config',
      this.#at('Caddyfile'),
      '--adapter',
      'caddyfile',
    ]
    const log = Bun.file(this.#at('output'))
    this.#process = this.lab.client.spawn(['unshare', '--mount', 'sh', '-c', hosts, 'sh', ...caddy], {
      stdin: 'ignore',
      stdout: log,
      stderr: log,
    })
    const { settings } = this
    const answers = async () =>
      (await this.lab.client.run(['curl', '-fsS', '--max-time', '2', '--cacert', this.root, settings.directory]))
        .exitCode === 0
    await until(answers, READY_MS_MAX, 'the CA answers').catch((error: Error) => {
      throw new Error(`${error.message}\n${readFileSync(this.#at('output'), 'utf8')}`)
    })
  }

  signal(signal: NodeJS.Signals) {
    this.#process?.kill(signal)
  }

  async kill() {
    this.#process?.kill('SIGKILL')
    await this.#process?.exited
  }

  async [Symbol.asyncDispose]() {
    await this.kill()
    rmSync(this.directory, { recursive: true, force: true })
  }
}
