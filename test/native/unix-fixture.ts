// Listens on a unix socket and never accepts: its process stops itself as soon as it has said that it is there.
Bun.listen({ unix: process.argv[2]!, backlog: 4, socket: { data() {} } } as Bun.UnixSocketOptions<undefined>)
await Bun.write(Bun.stdout, 'listening\n')
process.kill(process.pid, 'SIGSTOP')
export {}
