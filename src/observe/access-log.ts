// One JSON line per closed connection (and for what else is told of connections: refused, still open), to standard output or a
// file. Lines are collected and written in large pieces,
// asynchronously; when the destination does not keep up they are dropped and counted, never piled up without end.
import { open, type FileHandle } from 'node:fs/promises'
import { write } from 'node:fs'
import type { ConnectionObserver } from '../connections/table.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import { writtenSince } from './written.ts'

const FLUSH_MS = 50
/** About 60,000 lines: a second and a half of a machine's worst. */
const QUEUE_BYTES_MAX = 16 * 1024 * 1024
const PIECE_BYTES_MAX = 256 * 1024

export class AccessLog implements ConnectionObserver {
  #lines: string[] = []
  #bytes = 0
  #timer: ReturnType<typeof setTimeout> | undefined
  #writing: Promise<void> | null = null
  #file: FileHandle | undefined
  dropped = 0

  private constructor(
    private readonly path: string | null,
    private readonly onError: (message: string) => void,
  ) {}

  /** @param destination 'stdout' or a file, which is appended to. */
  static async open(destination: string, onError: (message: string) => void): Promise<AccessLog> {
    const log = new AccessLog(destination === 'stdout' ? null : destination, onError)
    await log.reopen()
    return log
  }

  /** After logrotate moved the file away. */
  async reopen() {
    const before = this.#file
    if (this.path !== null) this.#file = await open(this.path, 'a', 0o640)
    await this.#writing
    await before?.close()
  }

  settled(record: ConnectionRecord) {
    this.line('closed', record)
  }

  line(event: 'closed' | 'open' | 'refused', what: object) {
    const line = `{"event":"${event}",${JSON.stringify(what).slice(1)}\n`
    if (this.#bytes + line.length > QUEUE_BYTES_MAX) {
      this.dropped++
      return
    }
    this.#lines.push(line)
    this.#bytes += line.length
    if (this.#bytes > PIECE_BYTES_MAX) this.#flush()
    else this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS)
  }

  /** Kernel flows that have their line already, with when they closed; null when what was written cannot be read. */
  async writtenSince(sinceMs: number): Promise<Map<string, number> | null> {
    return this.path === null ? null : writtenSince(this.path, sinceMs)
  }

  #flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#writing ??= this.#write().finally(() => {
      this.#writing = null
    })
  }

  /** Resolves when the lines so far have been taken by the destination, or dropped: for who has very many of them. */
  async flushed() {
    this.#flush()
    await this.#writing
  }

  async #write() {
    while (this.#lines.length > 0) {
      const piece = Buffer.from(this.#lines.join(''))
      this.#lines = []
      this.#bytes = 0
      try {
        if (this.#file) await this.#file.appendFile(piece)
        else await writeStdout(piece)
      } catch (error) {
        this.onError(`Cannot write the access log: ${(error as Error).message}`)
        return
      }
    }
  }

  async close() {
    this.#flush()
    await this.#writing
    await this.#file?.close()
    this.#file = undefined
  }
}

/** A pipe may be full: EAGAIN is waited out, so that a slow reader of our output costs lines (QUEUE_BYTES_MAX), not order. */
async function writeStdout(piece: Buffer) {
  for (let at = 0; at < piece.length;) {
    const { promise, resolve, reject } = Promise.withResolvers<number>()
    write(1, piece, at, piece.length - at, null, (error, written) =>
      error && (error as NodeJS.ErrnoException).code !== 'EAGAIN' ? reject(error) : resolve(error ? 0 : written),
    )
    const written = await promise
    at += written
    if (written === 0) await Bun.sleep(10)
  }
}
