// The anchor table (nft/anchor.nft): made and held by one interactive nft that lives as long as we do, because its owner
// flag ties the table to that process's netlink socket. When the holder dies the table goes with it; it is started again.
import { anchorLines } from './program.ts'

const RESTART_MS_MIN = 1000
const RESTART_MS_MAX = 30_000
/** What is kept of the holder's output: its table is a dozen lines. */
const OUTPUT_CHARS_MAX = 65_536
/** The holder answers within this, or the anchor counts as missing: as long as any other nft may take (nft.ts). */
const READY_MS_MAX = 30_000

export class Anchor {
  #child: Bun.PipedSubprocess | undefined
  #restart: ReturnType<typeof setTimeout> | undefined
  #stopped = false
  #restartMs = RESTART_MS_MIN
  #up: Promise<void> | undefined

  constructor(
    private readonly table: string,
    private readonly base: number,
    private readonly log: (level: 'info' | 'warn', message: string) => void,
  ) {}

  /** Resolves when the table is in the kernel, or when the first attempt has failed: that is logged and tried again. Without
   *  the anchor everything works; it only protects against others. */
  ensure(): Promise<void> {
    this.#up ??= this.#start()
    return this.#up
  }

  async #start(): Promise<void> {
    try {
      await this.#hold()
      this.#restartMs = RESTART_MS_MIN
    } catch (error) {
      if (!this.#stopped && this.#restartMs === RESTART_MS_MIN) this.log('warn', (error as Error).message)
      this.#child?.kill()
    }
  }

  async #hold(): Promise<void> {
    // A holder of an earlier life that was killed with us took its table along: there is nothing to remove first.
    const child = Bun.spawn(['nft', '-i'], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, TERM: 'dumb' },
      // A session of its own: a terminal's Ctrl-C is for us, and the anchor is the last to go.
      detached: true,
    })
    this.#child = child
    void child.exited.then(() => this.#onExit(child))
    // Commands are served in order: when the last one's answer is there, all before it have been carried out.
    const lines = anchorLines(this.table, this.base).join('\n') + `\nlist table inet ${this.table}_anchor\n`
    await Promise.all([child.stdin.write(lines), child.stdin.flush()])
    await withDeadline(this.#awaitAnswer(child), READY_MS_MAX, 'the anchor table was not confirmed in time')
  }

  #awaitAnswer(child: Bun.PipedSubprocess): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const errors = drain(child.stderr)
    // Both are read to their end: a pipe that nobody reads any more kills the holder at its next word, and the anchor with it.
    void drain(child.stdout, (text) => {
      // Only the listing says this: it repeats what it is told as well, before it does it, but in our spelling.
      if (text.includes('tcp flags fin,rst')) resolve()
    }).then(async () => {
      const reason = (await errors).trim().split('\n')[0] || 'nft ended'
      reject(new Error(`Cannot make the anchor table: ${reason}`))
    })
    return promise
  }

  #onExit(child: Bun.PipedSubprocess) {
    if (this.#stopped || this.#child !== child) return
    this.#child = undefined
    if (this.#restartMs === RESTART_MS_MIN)
      this.log('warn', 'The nft process that holds the anchor table has ended; starting it again')
    this.#restart = setTimeout(() => void this.#start(), this.#restartMs)
    this.#restartMs = Math.min(this.#restartMs * 2, RESTART_MS_MAX)
  }

  /** Ends the holder; the kernel removes its table. */
  async stop(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#restart)
    const child = this.#child
    if (!child) return
    await Promise.resolve(child.stdin.end()).catch(() => {})
    const killer = setTimeout(() => child.kill('SIGKILL'), 1000)
    await child.exited
    clearTimeout(killer)
  }
}

/** Reads a stream to its end; resolves to its beginning, which `seen` is shown as it grows. */
async function drain(stream: ReadableStream<Uint8Array>, seen: (text: string) => void = () => {}): Promise<string> {
  let text = ''
  for await (const chunk of stream) {
    if (text.length > OUTPUT_CHARS_MAX) continue
    text += Buffer.from(chunk).toString()
    seen(text)
  }
  return text
}

async function withDeadline<T>(promise: Promise<T>, ms: number, message: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(message)), ms)
  })
  try {
    return await Promise.race([promise, deadline])
  } finally {
    clearTimeout(timer)
  }
}
