// Both ends of the traffic that the gateway carries: a backend that answers, talkers that go back and forth, and bulk
// transfers whose every byte is checked at the other end.
import type { Socket } from 'bun'
import { slowness } from '../support.ts'
import type { Namespace } from './lab.ts'

export const MIB = 1024 * 1024
/** As many bytes as a bulk transfer is to have; less where each of them takes long. */
export const bulk = (mib: number) => Math.ceil(mib / slowness) * MIB
const ANSWER_MS_MAX = 5000 * slowness

// ---- a bulk transfer each way ----

const blocks = {
  up: randomBlock(),
  down: randomBlock(),
}
type Direction = keyof typeof blocks

function randomBlock(): Buffer {
  const block = Buffer.alloc(MIB)
  // Web Crypto gives at most 64 KiB at a time.
  for (let at = 0; at < MIB; at += 65_536) crypto.getRandomValues(block.subarray(at, at + 65_536))
  return block
}

const digests = new Map<string, string>()

/** What that stream has from this byte on, as far as it is in one piece. */
export function streamFrom(direction: Direction, at: number, end: number): Buffer {
  const from = at % MIB
  return blocks[direction].subarray(from, Math.min(MIB, from + end - at))
}

/** SHA-256 of the first `bytes` of the endless stream that `direction` carries. */
export function digestOf(direction: Direction, bytes: number): string {
  const key = `${direction} ${bytes}`
  let digest = digests.get(key)
  if (digest === undefined) {
    const hash = new Bun.CryptoHasher('sha256')
    for (let at = 0; at < bytes; at += MIB) hash.update(blocks[direction].subarray(0, Math.min(MIB, bytes - at)))
    digests.set(key, (digest = hash.digest('hex')))
  }
  return digest
}

/** One end of a transfer: sends its stream with backpressure, hashes what comes. Over when both are complete. */
export class Mover {
  readonly #hash = new Bun.CryptoHasher('sha256')
  readonly #done = Promise.withResolvers<void>()
  sent = 0
  received = 0
  failure: Error | null = null
  digest: string | undefined

  constructor(
    readonly direction: Direction,
    readonly toSend: number,
    readonly toReceive: number,
    /** The connecting end closes when it has sent and received everything; the other one follows. */
    readonly closes: boolean,
  ) {
    this.#done.promise.catch(() => {})
  }

  /** Resolves when everything is sent and received, rejects when the connection ends before. */
  get done(): Promise<void> {
    return this.#done.promise
  }

  pump(socket: Socket<any>) {
    const block = blocks[this.direction]
    while (this.sent < this.toSend) {
      const from = this.sent % MIB
      const piece = block.subarray(from, Math.min(MIB, from + this.toSend - this.sent))
      const written = socket.write(piece)
      if (written > 0) this.sent += written
      if (written < piece.length) return
    }
    this.#check(socket)
  }

  take(socket: Socket<any>, bytes: Uint8Array) {
    this.#hash.update(bytes)
    this.received += bytes.length
    if (this.received >= this.toReceive) this.#check(socket)
  }

  #check(socket: Socket<any>) {
    if (this.digest !== undefined || this.sent < this.toSend || this.received < this.toReceive) return
    this.digest = this.#hash.digest('hex')
    this.#done.resolve()
    if (this.closes) socket.end()
  }

  over(error?: Error) {
    if (this.digest !== undefined) return
    this.failure =
      error ??
      new Error(`closed after ${this.sent} of ${this.toSend} sent, ${this.received} of ${this.toReceive} received`)
    this.#done.reject(this.failure)
  }
}

const moverHandlers = {
  data: (socket: Socket<Mover>, bytes: Uint8Array) => socket.data.take(socket, bytes),
  drain: (socket: Socket<Mover>) => socket.data.pump(socket),
  end: (socket: Socket<Mover>) => void socket.end(),
  close: (socket: Socket<Mover>, error?: Error) => socket.data.over(error),
  error: () => {},
}

/** Listens for transfers of `bytes` each way; `movers` are the ends that came. */
export function moverBackend(
  where: Namespace,
  bytes: number,
  options: { port?: number; hostname?: string; tls?: { cert: string; key: string } } = {},
) {
  const movers: Mover[] = []
  const { port, stop } = where.listen<Mover>(
    {
      ...moverHandlers,
      open(socket) {
        const mover = new Mover('down', bytes, bytes, false)
        movers.push(mover)
        socket.data = mover
        mover.pump(socket)
      },
    },
    options,
  )
  return { port, movers, stop }
}

/** Connects and starts to move `bytes` each way; `mover.done` tells the end of it. */
export async function move(from: Namespace, host: string, port: number, bytes: number): Promise<Mover> {
  const mover = new Mover('up', bytes, bytes, true)
  await from.connect<Mover>(host, port, { ...moverHandlers, open: (socket) => mover.pump(socket) }, { data: mover })
  return mover
}

/** The same inside TLS with this server name; the certificate is not looked at. */
export async function moveTls(
  from: Namespace,
  host: string,
  port: number,
  bytes: number,
  serverName: string,
): Promise<Mover> {
  const mover = new Mover('up', bytes, bytes, true)
  const plain = await from.connect(host, port)
  const { promise, resolve } = Promise.withResolvers<void>()
  // The name and what is refused are settled by the upgrade, which bun-types knows for clients only in part.
  plain.upgradeTLS<Mover>({
    data: mover,
    tls: { serverName, rejectUnauthorized: false },
    socket: {
      ...moverHandlers,
      handshake(socket: Socket<Mover>) {
        resolve()
        mover.pump(socket)
      },
    },
  } as never)
  await promise
  return mover
}

// ---- talkers ----

/** Says everything back, and remembers who came. `name` is said first when it is given. */
export function echoBackend(where: Namespace, options: { port?: number; hostname?: string; name?: string } = {}) {
  const clients: string[] = []
  const open = new Set<Socket<any>>()
  const failures: Error[] = []
  const { port, stop } = where.listen(
    {
      open(socket) {
        clients.push(plain(socket.remoteAddress))
        open.add(socket)
        if (options.name) socket.write(`${options.name}\n`)
      },
      data: (socket, bytes) => void socket.write(bytes),
      end: (socket) => void socket.end(),
      close(socket, error) {
        open.delete(socket)
        if (error) failures.push(error)
      },
      error: () => {},
    },
    options,
  )
  return { port, stop, clients, open, failures }
}

const plain = (address: string) => (address.startsWith('::ffff:') ? address.slice(7) : address)

/** One connection that says a line and waits for the answer. It knows when and how it ended. */
export class Talker {
  readonly #socket: Socket<any>
  #heard = ''
  #wanted: { length: number; resolve(text: string): void; reject(error: Error): void } | null = null
  /** null while it lives; the error it ended with, or 'closed'. */
  ended: Error | 'closed' | null = null
  readonly gone = Promise.withResolvers<Error | 'closed'>()
  rounds = 0

  private constructor(socket: Socket<any>) {
    this.#socket = socket
  }

  static async connect(
    from: Namespace,
    host: string,
    port: number,
    options: { timeoutMs?: number; localPort?: number; localAddress?: string } = {},
  ): Promise<Talker> {
    let talker: Talker | undefined
    const early: Buffer[] = []
    let earlyEnd: Error | 'closed' | undefined
    const socket = await from.connect(
      host,
      port,
      {
        data: (_, bytes) => (talker ? talker.#hear(bytes.toString()) : void early.push(bytes)),
        close: (_, error) => (talker ? talker.#over(error ?? 'closed') : void (earlyEnd = error ?? 'closed')),
        error: () => {},
      },
      options,
    )
    talker = new Talker(socket)
    for (const bytes of early) talker.#hear(bytes.toString())
    if (earlyEnd) talker.#over(earlyEnd)
    return talker
  }

  get localPort() {
    return this.#socket.localPort
  }

  #hear(text: string) {
    this.#heard += text
    this.#answer()
  }

  #answer() {
    if (!this.#wanted || this.#heard.length < this.#wanted.length) return
    const text = this.#heard.slice(0, this.#wanted.length)
    this.#heard = this.#heard.slice(this.#wanted.length)
    this.#wanted.resolve(text)
    this.#wanted = null
  }

  #over(how: Error | 'closed') {
    this.ended = how
    this.#wanted?.reject(how === 'closed' ? new Error('closed') : how)
    this.gone.resolve(how)
  }

  /** The next `length` characters. */
  read(length: number, ms = ANSWER_MS_MAX): Promise<string> {
    if (this.ended) return Promise.reject(new Error(`the connection has ended: ${this.ended}`))
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const late = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms)
    this.#wanted = { length, resolve, reject }
    this.#answer()
    return promise.finally(() => clearTimeout(late))
  }

  /** Says it and hears it back. */
  async say(text = `round ${this.rounds}`, ms = ANSWER_MS_MAX): Promise<void> {
    if (this.ended) throw new Error(`the connection has ended: ${this.ended}`)
    this.#socket.write(text)
    const answer = await this.read(text.length, ms)
    if (answer !== text) throw new Error(`heard ${JSON.stringify(answer)} instead of ${JSON.stringify(text)}`)
    this.rounds++
  }

  close(): Promise<unknown> {
    this.#socket.end()
    return this.gone.promise
  }

  reset() {
    this.#socket.terminate()
  }
}

/** `count` talkers that talk without a pause until stopped; stop() resolves to what failed. */
export async function crowd(from: Namespace, host: string, port: number, count: number, paceMs = 20) {
  const talkers = await Promise.all(Array.from({ length: count }, () => Talker.connect(from, host, port)))
  let stopping = false
  const failures: Error[] = []
  const loops = talkers.map(async (talker) => {
    try {
      while (!stopping) {
        await talker.say()
        await Bun.sleep(paceMs)
      }
    } catch (error) {
      failures.push(error as Error)
    }
  })
  return {
    talkers,
    failures,
    async stop() {
      stopping = true
      await Promise.all(loops)
      for (const talker of talkers) if (!talker.ended) await talker.close()
      return failures
    },
  }
}

/** New connections one after another until stopped, each says one line; stop() resolves to what failed. */
export function visitors(from: Namespace, host: string, port: number, paceMs = 5) {
  let stopping = false
  let served = 0
  const failures: Error[] = []
  const loop = (async () => {
    while (!stopping) {
      try {
        const talker = await Talker.connect(from, host, port)
        await talker.say(`visit ${served}`)
        await talker.close()
        served++
      } catch (error) {
        failures.push(error as Error)
      }
      await Bun.sleep(paceMs)
    }
  })()
  return {
    failures,
    get served() {
      return served
    },
    async stop() {
      stopping = true
      await loop
      return failures
    },
  }
}

/** Connects, says one line, hears it, closes. */
export async function visit(from: Namespace, host: string, port: number, text = 'hello'): Promise<void> {
  const talker = await Talker.connect(from, host, port)
  await talker.say(text)
  await talker.close()
}

/** Connects `count` times, some at once, and closes each when it stands. Resolves when all are over; rejects when one is refused. */
export async function visitAll(from: Namespace, host: string, port: number, count: number, atOnce = 20): Promise<void> {
  let left = count
  const visitor = async () => {
    while (left-- > 0) {
      const socket = await from.connect(host, port)
      socket.terminate()
    }
  }
  await Promise.all(Array.from({ length: atOnce }, visitor))
}

// ---- datagrams ----

/** Bun binds before it returns, so the socket is born where the thread is. */
const udpSocket = (where: Namespace, options: object) => {
  let socket: Promise<Datagrams> | undefined
  where.enter(() => void (socket = Bun.udpSocket(options as never) as never))
  return socket!
}
interface Datagrams {
  port: number
  send(bytes: string, port: number, address: string): boolean
  close(): void
}

/** Says every datagram back after its name; `clients` are the ends that sent, as "address:port". */
export async function udpEcho(where: Namespace, options: { port?: number; hostname?: string; name?: string } = {}) {
  const clients: string[] = []
  const { name = '', hostname = '::', port = 0 } = options
  const socket = await udpSocket(where, {
    hostname,
    port,
    socket: {
      data(socket: Datagrams, bytes: Buffer, port: number, address: string) {
        const client = `${plain(address)}:${port}`
        if (!clients.includes(client)) clients.push(client)
        socket.send(`${name}${bytes.toString()}`, port, address)
      },
    },
  })
  return { port: socket.port, clients, close: () => socket.close() }
}

/** A client with one socket, so that all it says belongs to one flow for each listener. */
export async function udpClient(where: Namespace, hostname: string, port = 0) {
  const heard: { from: string; text: string }[] = []
  const socket = await udpSocket(where, {
    hostname,
    port,
    socket: {
      data: (_: Datagrams, bytes: Buffer, port: number, address: string) =>
        void heard.push({ from: `${plain(address)}:${port}`, text: bytes.toString() }),
      error: () => {},
    },
  })
  return {
    port: socket.port,
    heard,
    send: (text: string, host: string, port: number) => void socket.send(text, port, host),
    /** Sends once and waits for what comes next; undefined when nothing does. */
    async ask(text: string, host: string, port: number, waitMs = 1000) {
      const before = heard.length
      socket.send(text, port, host)
      const deadline = performance.now() + waitMs * slowness
      while (heard.length === before && performance.now() < deadline) await Bun.sleep(1)
      return heard[before]
    },
    close: () => socket.close(),
  }
}
