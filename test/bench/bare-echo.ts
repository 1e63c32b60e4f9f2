// An echo as one would write it on Bun's sockets alone: `bare-echo.ts HOST PORT`. What could not be written waits, and
// nothing is read meanwhile.
const [hostname, port] = process.argv.slice(2) as [string, string]

function say(socket: Bun.Socket<Buffer | undefined>, bytes: Buffer) {
  const written = socket.write(bytes)
  if (written < bytes.length) socket.pause()
  // What came is Bun's own memory; what waits has to be ours.
  socket.data = written < bytes.length ? Buffer.from(bytes.subarray(written)) : undefined
  if (written === bytes.length) socket.resume()
}

Bun.listen<Buffer | undefined>({
  hostname,
  port: Number(port),
  allowHalfOpen: true,
  socket: {
    data: say,
    drain: (socket) => socket.data && say(socket, socket.data),
    end: (socket) => void socket.end(),
  },
})
