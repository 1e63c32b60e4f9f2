// A Redis for one test, on a loopback port, that keeps nothing on disk.
import type { Subprocess } from 'bun'
import { until } from '../netns/gateway.ts'

export const hasRedis = Bun.which('redis-server') !== null
const START_MS_MAX = 10_000

export class Redis implements AsyncDisposable {
  #process: Subprocess | undefined

  private constructor(
    readonly port: number,
    private readonly more: string[],
    private readonly user: string,
  ) {}

  static async start(more: string[] = [], user = ''): Promise<Redis> {
    const redis = new Redis(freePort(), more, user)
    await redis.start()
    return redis
  }

  get url() {
    return `redis://${this.user}127.0.0.1:${this.port}`
  }

  /** Also again, on the same port, after it was killed. */
  async start(): Promise<void> {
    const own = ['--port', `${this.port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
    this.#process = Bun.spawn(['redis-server', ...own, ...this.more], { stdio: ['ignore', 'ignore', 'inherit'] })
    const answers = () =>
      Bun.connect({ hostname: '127.0.0.1', port: this.port, socket: { data() {} } }).then(
        (socket) => (socket.terminate(), true),
        () => false,
      )
    await until(answers, START_MS_MAX, 'redis-server listens')
  }

  signal(signal: NodeJS.Signals) {
    this.#process?.kill(signal)
  }

  async kill(): Promise<void> {
    this.#process?.kill('SIGKILL')
    await this.#process?.exited
  }

  /** One command, by the program that comes with it. */
  async cli(...command: string[]): Promise<string> {
    const args = ['-h', '127.0.0.1', '-p', `${this.port}`, ...command]
    await using process = Bun.spawn(['redis-cli', ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
    return (await process.stdout.text()).trim()
  }

  [Symbol.asyncDispose]() {
    return this.kill()
  }
}

/** Of loopback, which nobody has now. */
export function freePort(): number {
  const listener = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } })
  const { port } = listener
  listener.stop(true)
  return port
}
