// One JSON line per closed connection (and for what else is told of connections: refused, still open, opened where the log is
// durable), to standard output or a file. Lines are collected and written in large pieces,
// asynchronously; when the destination does not keep up they are dropped and counted, never piled up without end.
import { open, type FileHandle } from 'node:fs/promises'
import { write } from 'node:fs'
import { dirname } from 'node:path'
import { ACCESS_LOG_ERROR_INTERVAL_MS } from '../base/limits.ts'
import type { ConnectionObserver } from '../connections/table.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import { writtenSince } from './written.ts'

const FLUSH_MS = 50
/** About 60,000 lines: a second and a half of a machine's worst. */
const QUEUE_BYTES_MAX = 16 * 1024 * 1024
const PIECE_BYTES_MAX = 256 * 1024

type Event = 'closed' | 'open' | 'opened' | 'refused'

export class AccessLog implements ConnectionObserver {
  #lines: string[] = []
  #bytes = 0
  #timer: ReturnType<typeof setTimeout> | undefined
  #writing: Promise<void> | null = null
  #file: FileHandle | undefined
  /** Those who wait for what is collected now to be on disk. */
  #synced: PromiseWithResolvers<boolean> | undefined
  /** The last line in the file may be cut off: nothing is to be appended to it. */
  #torn = false
  #nextError = -Infinity
  dropped = 0

  private constructor(
    private readonly path: string | null,
    private readonly onError: (message: string) => void,
    readonly durable: boolean,
  ) {}

  /** @param destination 'stdout' or a file, which is appended to.
   *  @param durable openings are written, and are on disk before anybody is told so. The file has to be one that can be synced. */
  static async open(destination: string, onError: (message: string) => void, durable = false): Promise<AccessLog> {
    const log = new AccessLog(destination === 'stdout' ? null : destination, onError, durable)
    await log.reopen()
    return log
  }

  /** After logrotate moved the file away. */
  async reopen() {
    const before = this.#file
    if (this.path !== null) this.#file = await openFile(this.path, this.durable)
    await this.#writing
    await before?.close()
  }

  settled(record: ConnectionRecord) {
    this.line('closed', record)
  }

  /** Resolves when the openings of these connections are on disk, one sync for all that came while the last one ran; false: they
   *  cannot be written. */
  writeOpened(records: readonly ConnectionRecord[]): Promise<boolean> {
    const text = records.map((record) => lineOf('opened', record)).join('')
    // Together with the lines: who waits is told of the piece that they are in.
    this.#synced ??= Promise.withResolvers()
    const { promise } = this.#synced
    const taken = this.#add(text, records.length)
    this.#flush()
    return taken ? promise : Promise.resolve(false)
  }

  /** false: dropped. */
  line(event: Event, what: object): boolean {
    return this.#add(lineOf(event, what), 1)
  }

  #add(lines: string, count: number): boolean {
    if (this.#bytes + lines.length > QUEUE_BYTES_MAX) {
      this.dropped += count
      return false
    }
    this.#lines.push(lines)
    this.#bytes += lines.length
    if (this.#bytes > PIECE_BYTES_MAX) this.#flush()
    else this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS)
    return true
  }

  /** Kernel flows that have their line already, with when they closed; null when what was written cannot be read. */
  async writtenSince(sinceMs: number): Promise<Map<number, number> | null> {
    return this.path === null ? null : writtenSince(this.path, sinceMs)
  }

  #flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#writing ??= this.#write().finally(() => {
      this.#writing = null
      // Whoever was told by the last piece may have had more to say at once.
      if (this.#lines.length > 0) this.#flush()
    })
  }

  /** Resolves when the lines so far have been taken by the destination, or dropped: for who has very many of them. */
  async flushed() {
    this.#flush()
    while (this.#writing) await this.#writing
  }

  async #write() {
    while (this.#lines.length > 0) {
      const piece = Buffer.from((this.#torn ? '\n' : '') + this.#lines.join(''))
      const synced = this.#synced
      const file = this.#file
      this.#lines = []
      this.#bytes = 0
      this.#synced = undefined
      this.#torn = true
      try {
        if (file) await file.appendFile(piece)
        else await writeStdout(piece)
        this.#torn = false
        if (synced) await file!.datasync()
        synced?.resolve(true)
      } catch (error) {
        synced?.resolve(false)
        this.#failed(error as Error)
      }
    }
  }

  #failed(error: Error) {
    const now = performance.now()
    // Whoever waits for its line causes the next attempt.
    if (now < this.#nextError) return
    this.#nextError = now + ACCESS_LOG_ERROR_INTERVAL_MS
    this.onError(`Cannot write the access log: ${error.message}`)
  }

  async close() {
    await this.flushed()
    await this.#file?.close()
    this.#file = undefined
  }
}

/** @param durable its name is on disk, too, and what cannot be synced is refused. */
async function openFile(path: string, durable: boolean): Promise<FileHandle> {
  const file = await open(path, 'a', 0o640)
  if (!durable) return file
  try {
    await file.datasync()
    const directory = await open(dirname(path), 'r')
    await directory.sync().finally(() => directory.close())
    return file
  } catch (cause) {
    await file.close()
    throw new Error(`Cannot keep a durable access log in ${path}: ${(cause as Error).message}`, { cause })
  }
}

const lineOf = (event: Event, what: object) => `{"event":"${event}",${JSON.stringify(what).slice(1)}\n`

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
