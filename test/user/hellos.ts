// ClientHellos for tests: captured from real clients, put together from parts, and cut into pieces.

/** Starts a client against a port that only listens, and returns the first bytes it sends: its whole ClientHello. */
export async function captureHello(client: (port: number) => string[] | Promise<void>): Promise<Uint8Array> {
  const { promise, resolve } = Promise.withResolvers<Uint8Array>()
  let seen = Buffer.alloc(0)
  using listener = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      data(socket, chunk) {
        seen = Buffer.concat([seen, chunk])
        if (!isWhole(seen)) return
        resolve(new Uint8Array(seen))
        socket.terminate()
      },
    },
  })
  const started = client(listener.port)
  if (started instanceof Promise) {
    await Promise.all([started, promise])
    return promise
  }
  await using process = Bun.spawn(started, { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe' })
  const left = process.exited.then(async (code) => {
    if (!isWhole(seen)) throw new Error(`${started[0]} left with ${code}: ${await new Response(process.stderr).text()}`)
    return new Uint8Array(seen)
  })
  return await Promise.race([promise, left])
}

/** The records hold all that the handshake header announces. Written apart from the parser that the tests are about. */
function isWhole(bytes: Buffer): boolean {
  const payload: Buffer[] = []
  for (let at = 0; at + 5 <= bytes.length; at += 5 + bytes.readUInt16BE(at + 3)) {
    payload.push(bytes.subarray(at + 5, at + 5 + bytes.readUInt16BE(at + 3)))
  }
  const message = Buffer.concat(payload)
  return message.length >= 4 && message.length >= 4 + message.readUIntBE(1, 3)
}

type Bytes = Uint8Array | number[] | string

export const bytes = (...parts: Bytes[]) =>
  new Uint8Array(
    Buffer.concat(
      parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'latin1') : Uint8Array.from(part))),
    ),
  )

/** A vector with its length in `prefix` bytes before it. */
export function vector(prefix: 1 | 2 | 3, ...parts: Bytes[]): Uint8Array {
  const body = bytes(...parts)
  return bytes(
    Array.from({ length: prefix }, (_, i) => (body.length >> (8 * (prefix - 1 - i))) & 0xff),
    body,
  )
}

const uint16 = (value: number) => [value >> 8, value & 0xff]
export const extension = (type: number, ...data: Bytes[]) => bytes(uint16(type), vector(2, ...data))
export const sni = (...names: string[]) => extension(0, vector(2, ...names.map((name) => bytes([0], vector(2, name)))))
export const alpn = (...names: string[]) => extension(16, vector(2, ...names.map((name) => vector(1, name))))
export const versions = (...list: number[]) => extension(43, vector(1, list.flatMap(uint16)))

export interface Parts {
  version?: number
  sessionId?: Bytes
  ciphers?: Bytes
  compressions?: Bytes
  /** Absent: a hello that ends before the extensions. */
  extensions?: Bytes[]
  after?: Bytes
}

/** The handshake message, no record around it. */
export function helloMessage(parts: Parts): Uint8Array {
  const { version = 0x0303, sessionId = [], ciphers = [0x13, 0x01], compressions = [0], extensions, after = [] } = parts
  const random = Array.from({ length: 32 }, (_, i) => i)
  const tail = extensions ? vector(2, ...extensions) : []
  return bytes(
    [1],
    vector(3, uint16(version), random, vector(1, sessionId), vector(2, ciphers), vector(1, compressions), tail, after),
  )
}

/** Records of at most `size` bytes around a message. */
export function inRecords(message: Uint8Array, size = 16384): Uint8Array {
  const records: Uint8Array[] = []
  for (let at = 0; at < message.length; at += size)
    records.push(bytes([22, 3, 1], vector(2, message.subarray(at, at + size))))
  return bytes(...records)
}

export const hello = (...extensions: Bytes[]) => inRecords(helloMessage({ extensions }))

/** The handshake message inside records. */
export function fromRecords(wire: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = []
  for (let at = 0; at < wire.length;) {
    const size = (wire[at + 3]! << 8) | wire[at + 4]!
    parts.push(wire.subarray(at + 5, at + 5 + size))
    at += 5 + size
  }
  return bytes(...parts)
}

/** A small seeded generator (mulberry32): the same seed gives the same run on every machine. */
export function random(seed: number) {
  let state = seed >>> 0
  return (below: number): number => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

/** A view that fails the test when an index outside of it is read. */
export function guarded(target: Uint8Array): Uint8Array {
  return new Proxy(target, {
    get(array, key) {
      if (typeof key === 'string' && /^-?\d+$/.test(key)) {
        if (Number(key) < 0 || Number(key) >= array.length)
          throw new RangeError(`read of byte ${key} of ${array.length}`)
        return array[Number(key)]
      }
      if (key === 'subarray') return (from: number, to: number) => guarded(array.subarray(from, to))
      if (key === 'length') return array.length
      throw new TypeError(`the parser uses ${String(key)}: teach it to this guard`)
    },
  })
}
