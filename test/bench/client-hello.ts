// A real ClientHello: caught from a real TLS client, so that it has the size and the order of extensions real ones have.

export async function clientHello(serverName: string): Promise<Uint8Array> {
  const { promise, resolve } = Promise.withResolvers<Buffer>()
  const heard: Buffer[] = []
  const listener = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      data(socket, bytes) {
        heard.push(Buffer.from(bytes))
        const all = Buffer.concat(heard)
        // One TLS record: five bytes of header, the last two of them the length of the rest.
        if (all.length < 5 || all.length < 5 + all.readUInt16BE(3)) return
        resolve(all)
        socket.terminate()
      },
    },
  })
  try {
    const attempt = Bun.connect({
      hostname: listener.hostname,
      port: listener.port,
      tls: { serverName },
      socket: { data() {}, error() {}, handshake() {} },
    })
    attempt.catch(() => {}) // it never becomes a TLS connection
    return await promise
  } finally {
    listener.stop(true)
  }
}
