// connect(): what it takes, how it fails, and that nothing of it stays behind.
import { describe, expect, test } from 'bun:test'
import net from 'node:net'
import tls from 'node:tls'
import { HANDLER_SOCKETS_MAX } from '../../src/base/limits.ts'
import { connect, SocketError, type Socket } from '../../src/sockets.ts'
import { parseAddress, parseConnectOptions, parseTlsOptions } from '../../src/user/socket-options.ts'
import { authority } from './authority.ts'
import { bytes, failureOf, handled, handling, nothingLeft, textOf } from './handling.ts'
import { blackHole, descriptors, echo, later, readAll, reasons, server, synSent } from './plane.ts'

/** A port that answers no SYN, and how many more of them go to it than when it began. */
async function silent() {
  const port = await blackHole()
  const before = synSent(port)
  return { port, syns: () => synSent(port) - before }
}

describe('A1: addresses', () => {
  const good: [unknown, string, number][] = [
    ['example.com:80', 'example.com', 80],
    ['h:443', 'h', 443],
    ['H.Example.COM.:7', 'h.example.com', 7],
    ['10.0.0.1:65535', '10.0.0.1', 65535],
    ['[2001:DB8::1]:22', '2001:db8::1', 22],
    ['[::ffff:10.0.0.1]:22', '10.0.0.1', 22],
    ['under_score.test:1', 'under_score.test', 1],
    [{ hostname: 'h', port: 5432 }, 'h', 5432],
    [{ hostname: 'h', port: '5432' }, 'h', 5432],
    [{ hostname: '::1', port: 1 }, '::1', 1],
    [{ hostname: '[::1]', port: 1 }, '::1', 1],
    [new URL('tcp://h.test:99'), 'h.test', 99],
  ]
  for (const [address, hostname, port] of good)
    test(`${JSON.stringify(address)}`, () => expect(parseAddress(address)).toEqual({ hostname, port }))

  const bad: [unknown, RegExp][] = [
    ['', /empty/],
    [':80', /missing hostname/],
    ['host', /missing port/],
    ['host:', /missing port/],
    ['[::1]', /missing port/],
    ['host:0', /could not be parsed/],
    ['host:65536', /could not be parsed/],
    ['host:999999', /could not be parsed/],
    ['::1:80', /could not be parsed/],
    ['[1.2.3.4]:80', /could not be parsed/],
    ['[::1:80', /could not be parsed/],
    ['[fe80::1]x:80', /could not be parsed/],
    ['256.1.1.1:80', /could not be parsed/],
    ['127.1:80', /could not be parsed/],
    ['-a.test:80', /could not be parsed/],
    ['http://host:80', /characters/],
    ['user@host:80', /characters/],
    ['ho st:80', /characters/],
    ['hö:80', /characters/],
    [`${'a'.repeat(260)}:80`, /longer than 255/],
    [undefined, /could not be parsed/],
    [null, /could not be parsed/],
    [80, /could not be parsed/],
    [{ port: 80 }, /missing hostname/],
    [{ hostname: '', port: 80 }, /missing hostname/],
    [{ hostname: 'h' }, /missing port/],
    [{ hostname: 'h', port: 1.5 }, /could not be parsed/],
    [{ hostname: 'h:1', port: 80 }, /could not be parsed/],
    [{ hostname: 7, port: 80 }, /could not be parsed/],
  ]
  for (const [address, message] of bad)
    test(`${JSON.stringify(address)?.slice(0, 40)} is refused`, () => {
      expect(() => parseAddress(address)).toThrow(TypeError)
      expect(() => parseAddress(address)).toThrow(message)
    })
})

describe('A2 A5: options', () => {
  test('defaults', () =>
    expect(parseConnectOptions(undefined)).toMatchObject({
      secureTransport: 'off',
      allowHalfOpen: false,
      signal: null,
      connectTimeout: null,
      tls: { sni: null, alpn: [] },
    }))
  test('an unknown secureTransport', () =>
    expect(() => parseConnectOptions({ secureTransport: 'maybe' })).toThrow(
      new TypeError('Unsupported value in secureTransport socket option: maybe'),
    ))
  const bad: [object, RegExp][] = [
    [{ sni: 'a.test' }, /sni needs secureTransport/],
    [{ alpn: ['h2'] }, /alpn needs secureTransport/],
    [{ ca: '-----BEGIN' }, /ca needs secureTransport/],
    [{ expectedServerHostname: 'a.test' }, /expectedServerHostname needs secureTransport/],
    [{ secureTransport: 'on', sni: 'a b' }, /sni is a host name/],
    [{ secureTransport: 'on', alpn: [''] }, /1 to 255/],
    [{ secureTransport: 'on', alpn: ['x'.repeat(256)] }, /1 to 255/],
    [{ secureTransport: 'on', ca: 'nothing' }, /PEM/],
    [{ secureTransport: 'on', cert: '-----BEGIN' }, /go together/],
    [{ highWaterMark: -1 }, /highWaterMark/],
    [{ highWaterMark: Infinity }, /highWaterMark/],
    [{ connectTimeout: 0 }, /connectTimeout/],
    [{ connectTimeout: '5s' }, /connectTimeout/],
    [{ signal: {} }, /AbortSignal/],
  ]
  for (const [options, message] of bad)
    test(`${JSON.stringify(options).slice(0, 60)} is refused`, () => {
      expect(() => parseConnectOptions(options)).toThrow(TypeError)
      expect(() => parseConnectOptions(options)).toThrow(message)
    })
  test('an empty alpn and no sni are nothing', () =>
    expect(parseConnectOptions({ alpn: [], sni: null }).tls).toMatchObject({ alpn: [], sni: null }))
  test('A15: what startTls() is not given is as it was', () => {
    const { tls } = parseConnectOptions({ secureTransport: 'starttls', sni: 'a.test', alpn: ['x'] })
    expect(parseTlsOptions({ alpn: ['y'] }, tls)).toMatchObject({ sni: 'a.test', alpn: ['y'] })
    expect(parseTlsOptions(undefined, tls)).toEqual(tls)
  })
})

test('A21: outside of a handler there is nothing to belong to', () => {
  expect(() => connect('h:1')).toThrow('belongs to a handler')
})

test('A1 A22: what is thrown in a handler can be caught, and nothing was opened', async () => {
  const bench = await handling()
  const caught = await handled(bench, (socket) => {
    try {
      connect('nowhere')
    } catch (error) {
      return error
    } finally {
      void socket.close()
    }
  })
  expect(caught).toBeInstanceOf(TypeError)
  expect(bench.plane.opened).toBe(0)
})

test('A6 A7 A10 A12: queued before it is open, in order; opened tells both addresses; close() flushes and sends FIN', async () => {
  const heard = Promise.withResolvers<string>()
  let peer = ''
  const port = await server((socket) => {
    peer = `127.0.0.1:${socket.remotePort}`
    void readAll(socket).then(({ bytes }) => {
      heard.resolve(bytes.toString())
      socket.end()
    })
  })
  const bench = await handling()
  const { info, ended } = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    const writer = socket.writable.getWriter()
    for (const word of ['one ', 'two ', 'three']) void writer.write(bytes(word))
    const info = await socket.opened
    const ended = await socket.close().then(() => 'resolved')
    return { info, ended }
  })
  expect(await heard.promise).toBe('one two three')
  expect(ended).toBe('resolved')
  expect(info).toEqual({ remoteAddress: `127.0.0.1:${port}`, localAddress: peer, alpn: null })
  await nothingLeft(bench)
})

test('A11 Q13: a view is taken as its bytes; a string is a TypeError, and no FIN says that this was all', async () => {
  const ended = Promise.withResolvers<{ bytes: Buffer; error?: string }>()
  const port = await server((socket) => void readAll(socket).then(ended.resolve))
  const bench = await handling()
  const error = await handled(bench, async () => {
    const socket = connect({ hostname: '127.0.0.1', port })
    const writer = socket.writable.getWriter()
    await writer.write(new DataView(bytes('.view.').buffer, 1, 4) as never)
    await writer.write(Buffer.from('buffer'))
    const error = await failureOf(writer.write('text' as never))
    void socket.close()
    return error
  })
  expect(error).toBeInstanceOf(TypeError)
  expect(error.message).toContain('bytes only')
  expect(await ended.promise).toMatchObject({ error: 'ECONNRESET' })
  await nothingLeft(bench)
})

describe('A9 A17: a connect that fails is told everywhere', async () => {
  const fourWays = async (socket: Socket) => {
    const writer = socket.writable.getWriter()
    const write = failureOf(writer.write(bytes('x')))
    const read = failureOf(socket.readable.getReader().read())
    return Promise.all([failureOf(socket.opened), failureOf(socket.closed), read, write])
  }

  test('a closed port', async () => {
    const port = await server(() => {})
    // Free again, and nobody else's so soon.
    const listening = net.createServer().listen(0, '127.0.0.1')
    await new Promise((resolve) => listening.once('listening', resolve))
    const closed = (listening.address() as net.AddressInfo).port
    await new Promise((resolve) => listening.close(resolve))
    expect(closed).not.toBe(port)
    const bench = await handling()
    const errors = await handled(bench, () => fourWays(connect(`127.0.0.1:${closed}`)))
    for (const error of errors) {
      expect(error).toBeInstanceOf(SocketError)
      expect(error).toBeInstanceOf(TypeError)
      expect(error).toBe(errors[0])
    }
    expect(errors[0].code).toBe('connect_refused')
    expect(errors[0].message).toStartWith(
      'SocketError: proxy request failed, cannot connect to the specified address: 127.0.0.1',
    )
    await nothingLeft(bench)
  })

  test('A23: no answer within connectTimeout', async () => {
    const { port, syns } = await silent()
    const bench = await handling()
    const errors = await handled(bench, () => fourWays(connect(`127.0.0.1:${port}`, { connectTimeout: 200 })))
    expect(errors.map((error) => error.code)).toEqual(Array(4).fill('connect_timeout'))
    expect(syns()).toBe(0)
    await nothingLeft(bench)
  })

  test('the text for who means HTTP', async () => {
    const bench = await handling()
    const error = await handled(bench, () => failureOf(connect('name.invalid:443').opened))
    expect(error.code).toBe('name_not_resolved')
    expect(error.message).toContain('consider using fetch instead')
  })

  test('A7 A22: one that nobody looks at is no unhandled rejection', async () => {
    const unhandled: unknown[] = []
    const listener = (error: unknown) => void unhandled.push(error)
    process.on('unhandledRejection', listener)
    later(() => process.off('unhandledRejection', listener))
    const { port } = await silent()
    const bench = await handling()
    await handled(bench, () => void connect(`127.0.0.1:${port}`, { connectTimeout: 100 }))
    await nothingLeft(bench)
    await new Promise((resolve) => setImmediate(resolve))
    expect(unhandled).toEqual([])
  })
})

describe('A12 A23 C5: given up while it connects', () => {
  const ways: [string, (socket: Socket, abort: AbortController) => unknown, string][] = [
    ['close()', (socket) => socket.close(), 'closed'],
    ['the signal', (_, abort) => abort.abort(new Error('enough')), 'aborted'],
    ['writable.abort()', (socket) => socket.writable.abort('enough'), 'aborted'],
  ]
  for (const [name, giveUp, code] of ways)
    test(name, async () => {
      const { port, syns } = await silent()
      const bench = await handling()
      const { pending, error, closed } = await handled(bench, async () => {
        const abort = new AbortController()
        const socket = connect(`127.0.0.1:${port}`, { signal: abort.signal })
        const pending = syns()
        void giveUp(socket, abort)
        return {
          pending,
          error: await failureOf(socket.opened),
          closed: await socket.closed.then(
            () => 'resolved',
            (error) => error,
          ),
        }
      })
      expect(pending).toBe(1)
      expect(error.code).toBe(code)
      expect(name === 'close()' ? closed : closed.code).toBe(name === 'close()' ? 'resolved' : code)
      expect(syns()).toBe(0)
      await nothingLeft(bench)
    })

  test('a signal that is aborted already: no SYN', async () => {
    const { port, syns } = await silent()
    const bench = await handling()
    const [error, sent] = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, { signal: AbortSignal.abort() })
      return [await failureOf(socket.opened), syns()]
    })
    expect(error.code).toBe('aborted')
    expect(sent).toBe(0)
  })

  test('the client leaves', async () => {
    const { port, syns } = await silent()
    const bench = await handling()
    const { promise, resolve } = Promise.withResolvers<Promise<any>>()
    const dropped = Promise.withResolvers<void>()
    void handled(bench, async (socket) => {
      const out = connect(`127.0.0.1:${port}`)
      resolve(failureOf(out.opened))
      dropped.resolve()
      await socket.closed.catch(() => {})
    })
    await dropped.promise
    for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
    expect((await promise).code).toBe('client_disconnected')
    expect(syns()).toBe(0)
    await nothingLeft(bench)
  })
})

test('A8 A13: for await to EOF, then close(): resolves; afterwards everything fails cleanly', async () => {
  const port = await server((socket) => socket.end('all'))
  const bench = await handling()
  const [text, write, read] = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    const text = await textOf(socket.readable)
    await socket.close()
    await socket.closed
    const write = await failureOf(socket.writable.getWriter().write(bytes('late')))
    return [text, write, await socket.readable.getReader().read()] as const
  })
  expect(text).toBe('all')
  expect(write.code).toBe('closed')
  expect(read).toEqual({ done: true, value: undefined })
  await nothingLeft(bench)
})

test('A8 Q14: a reset rejects `closed` with an Error, also when nobody reads', async () => {
  const port = await server((socket) => socket.once('data', () => socket.resetAndDestroy()))
  const bench = await handling()
  const error = await handled(bench, async () => {
    const socket = connect(`127.0.0.1:${port}`)
    void socket.writable
      .getWriter()
      .write(bytes('x'))
      .catch(() => {})
    return failureOf(socket.closed)
  })
  expect(error).toBeInstanceOf(SocketError)
  expect(error.code).toBe('reset')
  await nothingLeft(bench)
})

test('A23: the signal ends an open socket, too', async () => {
  const port = await echo()
  const bench = await handling()
  const error = await handled(bench, async () => {
    const abort = new AbortController()
    const socket = connect(`127.0.0.1:${port}`, { signal: abort.signal })
    await socket.opened
    abort.abort()
    return failureOf(socket.closed)
  })
  expect(error.code).toBe('aborted')
  await nothingLeft(bench)
})

test('A3: FIN of the peer: what was written still goes out, then our FIN; with allowHalfOpen writing goes on', async () => {
  const bench = await handling()
  for (const allowHalfOpen of [false, true]) {
    const heard = Promise.withResolvers<string>()
    const port = await server((socket) => {
      socket.end('bye')
      void readAll(socket).then(({ bytes }) => heard.resolve(bytes.toString()))
    })
    const late = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, { allowHalfOpen })
      const writer = socket.writable.getWriter()
      const queued = writer.write(bytes('queued'))
      await textOf(socket.readable)
      await queued
      const late = await failureOf(writer.write(bytes(' late')))
      if (allowHalfOpen) await writer.close()
      return late
    })
    expect(await heard.promise).toBe(allowHalfOpen ? 'queued late' : 'queued')
    if (allowHalfOpen) expect(late).toBeUndefined()
    else expect(late).toBeInstanceOf(SocketError)
  }
  await nothingLeft(bench)
})

test('A4: highWaterMark bytes may be written ahead', async () => {
  const { port } = await silent()
  const bench = await handling()
  const sizes = await handled(bench, () => {
    const socket = connect(`127.0.0.1:${port}`, { highWaterMark: 10 })
    const writer = socket.writable.getWriter()
    writer.closed.catch(() => {})
    const sizes = [writer.desiredSize]
    void writer.write(bytes('123456')).catch(() => {})
    sizes.push(writer.desiredSize)
    void writer.write(bytes('789abc')).catch(() => {})
    sizes.push(writer.desiredSize)
    void socket.close()
    return sizes
  })
  expect(sizes).toEqual([10, 4, -2])
})

test('C6: changing the address after the call changes nothing', async () => {
  const port = await echo()
  const bench = await handling()
  const info = await handled(bench, async () => {
    const address = { hostname: '127.0.0.1', port }
    const socket = connect(address)
    address.hostname = 'name.invalid'
    address.port = 1
    return socket.opened
  })
  expect(info.remoteAddress).toBe(`127.0.0.1:${port}`)
})

test('A20: a name is resolved, a hundred sockets one after the other leave nothing, and one too many is refused', async () => {
  const port = await echo()
  const bench = await handling()
  let before = 0
  const codes = await handled(bench, async (client) => {
    for (let i = 0; i < 100; i++) {
      const socket = connect(`localhost:${port}`)
      const writer = socket.writable.getWriter()
      await writer.write(bytes('x'))
      await writer.close()
      expect(await textOf(socket.readable)).toBe('x')
      await socket.closed
      // The first one has brought the resolver's.
      if (i === 0) before = descriptors()
    }
    expect(bench.plane.opened).toBe(0)
    const sockets = Array.from({ length: HANDLER_SOCKETS_MAX }, () => connect(`127.0.0.1:${port}`))
    const tooMany = await failureOf(connect(`127.0.0.1:${port}`).opened)
    await sockets[0]!.opened
    await sockets[0]!.close()
    const again = await failureOf(connect(`127.0.0.1:${port}`).opened)
    void client.close()
    return [tooMany.code, again]
  })
  expect(codes).toEqual(['too_many_sockets', undefined])
  for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
  await nothingLeft(bench)
  while (descriptors() > before) await Bun.sleep(5)
})

test('A21 D5: what the handler opened ends with its connection, and then fails cleanly', async () => {
  const port = await echo()
  const bench = await handling()
  let out!: Socket
  let late!: (address: string) => Socket
  await handled(bench, async () => {
    out = connect(`127.0.0.1:${port}`)
    await out.opened
    late = (address) => connect(address)
  })
  expect(bench.plane.opened).toBe(1)
  for (const id of [...bench.plane.table.keys()]) bench.plane.close(id, 'killed')
  expect((await failureOf(out.closed)).code).toBe('client_disconnected')
  expect((await failureOf(out.writable.getWriter().write(bytes('x')))).code).toBe('client_disconnected')
  expect(() => late(`127.0.0.1:${port}`)).toThrow('belongs to a handler')
  expect(bench.plane.opened).toBe(0)
})

describe('A14 A15 A16: TLS', async () => {
  const root = await authority('Root of the test')
  const pair = await root.issue(['db.test', '127.0.0.1'])

  interface Seen {
    sni: string | false | undefined
    plain: string
    secret: string
    clientCert: string | undefined
  }

  /** Speaks plain until it has heard STARTTLS, where it is asked to. */
  async function secureServer(starttls: boolean, options: tls.TlsOptions = {}) {
    const heard: Seen = { sni: undefined, plain: '', secret: '', clientCert: undefined }
    const port = await server((socket) => {
      const secure = () => {
        const secured = new tls.TLSSocket(socket, {
          isServer: true,
          secureContext: tls.createSecureContext({ ...pair, ...options }),
          ALPNProtocols: ['one', 'two'],
          requestCert: options.requestCert,
          rejectUnauthorized: false,
          SNICallback: (name, done) => {
            heard.sni = name
            done(null, tls.createSecureContext({ ...pair, ...options }))
          },
        })
        secured.on('error', () => {})
        secured.on('end', () => secured.end())
        secured.on('data', (chunk: Buffer) => {
          heard.secret += chunk.toString()
          heard.clientCert ??= secured.getPeerCertificate()?.subject?.CN as string | undefined
          secured.write(`secret ${chunk.toString()}`)
        })
      }
      if (!starttls) return secure()
      socket.once('data', (chunk: Buffer) => {
        // What follows may have come along.
        heard.plain = chunk.subarray(0, 8).toString()
        socket.pause()
        if (chunk.length > 8) socket.unshift(chunk.subarray(8))
        secure()
      })
    })
    return { port, heard }
  }

  async function ask(socket: Socket, text: string) {
    const writer = socket.writable.getWriter()
    await writer.write(bytes(text))
    const { value } = await socket.readable.getReader().read()
    return Buffer.from(value!).toString()
  }

  test("'on': verified, with SNI and ALPN", async () => {
    const { port, heard } = await secureServer(false)
    const bench = await handling()
    const [info, answer] = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, {
        secureTransport: 'on',
        ca: root.ca,
        sni: 'db.test',
        alpn: ['two'],
      })
      expect(socket.secureTransport).toBe('on')
      return [await socket.opened, await ask(socket, 'hello')] as const
    })
    expect(info).toMatchObject({ alpn: 'two', remoteAddress: `127.0.0.1:${port}` })
    expect(answer).toBe('secret hello')
    expect(heard.sni).toBe('db.test')
  })

  test('an address is verified, too, without SNI', async () => {
    const { port, heard } = await secureServer(false)
    const bench = await handling()
    const answer = await handled(bench, () =>
      ask(connect(`127.0.0.1:${port}`, { secureTransport: 'on', ca: root.ca }), 'hello'),
    )
    expect(answer).toBe('secret hello')
    expect(heard.sni).toBeFalsy()
  })

  const failing: [string, object][] = [
    ['an authority nobody knows', {}],
    ['another name', { ca: root.ca, sni: 'other.test' }],
    ['another name than the one asked for', { ca: root.ca, sni: 'db.test', expectedServerHostname: 'other.test' }],
  ]
  for (const [name, options] of failing)
    test(`A7: ${name} is a failure, and no byte was sent`, async () => {
      const { port, heard } = await secureServer(false)
      const bench = await handling()
      const error = await handled(bench, async () => {
        const socket = connect(`127.0.0.1:${port}`, { secureTransport: 'on', ...options })
        void failureOf(socket.writable.getWriter().write(bytes('password')))
        return failureOf(socket.opened)
      })
      expect(error.code).toBe('tls_failed')
      await nothingLeft(bench)
      expect(heard.secret).toBe('')
    })

  test('a server that does not speak TLS, and one that says nothing', async () => {
    const plain = await server((socket) => void socket.write('220 hello\r\n'))
    const mute = await server(() => {})
    const bench = await handling({ timeoutsMs: { handshake: 300 } })
    const codes = await handled(bench, () =>
      Promise.all(
        [plain, mute].map(
          async (port) => (await failureOf(connect(`127.0.0.1:${port}`, { secureTransport: 'on' }).opened))?.code,
        ),
      ),
    )
    expect(codes).toEqual(['tls_failed', 'tls_failed'])
    await nothingLeft(bench)
  })

  test('client certificates', async () => {
    const own = await root.issue(['worker.test'])
    const { port, heard } = await secureServer(false, { requestCert: true, ca: root.ca })
    const bench = await handling()
    await handled(bench, () =>
      ask(connect(`127.0.0.1:${port}`, { secureTransport: 'on', sni: 'db.test', ca: root.ca, ...own }), 'hello'),
    )
    expect(heard.clientCert).toBe('worker.test')
  })

  test('startTls(): what was written goes out before it; the old socket is over, the new one is the connection', async () => {
    const { port, heard } = await secureServer(true)
    const bench = await handling()
    const seen = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, { secureTransport: 'starttls', ca: root.ca })
      const writer = socket.writable.getWriter()
      const reading = socket.readable.getReader().read()
      void writer.write(bytes('STARTTLS'))
      const secure = socket.startTls({ expectedServerHostname: 'db.test' })
      const upgradedWhenClosed = socket.closed.then(() => socket.upgraded)
      const info = await secure.opened
      return {
        transports: [socket.secureTransport, secure.secureTransport],
        upgraded: [socket.upgraded, secure.upgraded, await upgradedWhenClosed],
        info,
        read: await reading,
        write: await failureOf(writer.write(bytes('more'))),
        twice: await failureOf((async () => socket.startTls())()),
        onTls: await failureOf((async () => secure.startTls())()),
        answer: await ask(secure, 'hello'),
        closed: await secure.close(),
      }
    })
    expect(heard).toMatchObject({ plain: 'STARTTLS', secret: 'hello', sni: 'db.test' })
    expect(seen).toMatchObject({
      transports: ['starttls', 'on'],
      upgraded: [true, false, true],
      answer: 'secret hello',
    })
    expect(seen.info.remoteAddress).toBe(`127.0.0.1:${port}`)
    expect(seen.read).toEqual({ done: true, value: undefined })
    expect([seen.write.code, seen.twice.code, seen.onTls.code]).toEqual([
      'upgraded',
      'starttls_twice',
      'starttls_on_tls',
    ])
  })

  test('A14: startTls() where it is not possible', async () => {
    const port = await echo()
    const bench = await handling()
    const codes = await handled(bench, async (inbound) => {
      const off = connect(`127.0.0.1:${port}`)
      const closed = connect(`127.0.0.1:${port}`, { secureTransport: 'starttls' })
      void closed.close()
      return Promise.all(
        [inbound, off, closed].map(async (one) => (await failureOf((async () => one.startTls())()))?.code),
      )
    })
    expect(codes).toEqual(['starttls_not_enabled', 'starttls_not_enabled', 'starttls_closed'])
  })

  test('A15: a connection that dies before the handshake fails the new socket, and nothing hangs', async () => {
    const port = await server((socket) => socket.once('data', () => socket.resetAndDestroy()))
    const bench = await handling()
    const errors = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, { secureTransport: 'starttls' })
      void failureOf(socket.writable.getWriter().write(bytes('STARTTLS')))
      const secure = socket.startTls()
      return Promise.all([failureOf(secure.opened), failureOf(secure.closed)])
    })
    for (const error of errors) expect(error).toBeInstanceOf(SocketError)
    await nothingLeft(bench)
  })

  test('A15: startTls() before it is open, and a connect that fails then', async () => {
    const { port } = await silent()
    const bench = await handling()
    const errors = await handled(bench, async () => {
      const socket = connect(`127.0.0.1:${port}`, { secureTransport: 'starttls', connectTimeout: 100 })
      const secure = socket.startTls()
      return Promise.all([socket.opened, socket.closed, secure.opened, secure.closed].map(failureOf))
    })
    expect(errors.map((error) => error.code)).toEqual(Array(4).fill('connect_timeout'))
    await nothingLeft(bench)
  })
})

test('D9: a handler whose client says nothing is ended by the idle limit', async () => {
  const bench = await handling({ timeoutsMs: { idle: 200 } })
  const error = await handled(bench, (socket) => failureOf(socket.readable.getReader().read()))
  expect(error.code).toBe('client_disconnected')
  expect(reasons(await bench.settle(1))).toEqual(['idle_timeout'])
})
