// A restart by the service manager: listening sockets stay in its descriptor store, so that nobody is refused, and the kernel
// goes on forwarding. The stand-in does as systemd does: it keeps what comes with FDSTORE, and starts the program with it again.
import { expect } from 'bun:test'
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Place } from '../peers/peers.ts'
import { testIf } from '../support.ts'
import { forward, Gateway, listening, tables, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { crowd, echoBackend, visitors } from './traffic.ts'

const python = Bun.which('python3')

/** Arguments: a directory, then the command. A line on standard input restarts or stops it. */
const MANAGER = `
import array, json, os, signal, socket, subprocess, sys, threading
directory, command = sys.argv[1], sys.argv[2:]
path = directory + "/notify"
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(path)
os.chmod(path, 0o666)
kept, ready = {}, threading.Event()
def say(**what): print(json.dumps(what), flush=True)
def hear():
    while True:
        data, control, _, _ = listener.recvmsg(65536, socket.CMSG_SPACE(4))
        words = dict(line.split("=", 1) for line in data.decode().splitlines())
        fds = [fd for level, kind, part in control if kind == socket.SCM_RIGHTS for fd in array.array("i", part)]
        name = words.get("FDNAME")
        if words.get("FDSTORE") == "1": kept.setdefault(name, fds[0])
        if words.get("FDSTOREREMOVE") == "1" and name in kept: os.close(kept.pop(name))
        if words.get("READY") == "1": ready.set()
        say(words=words, kept=sorted(kept))
threading.Thread(target=hear, daemon=True).start()
def start():
    ready.clear()
    names, fds = list(kept), list(kept.values())
    high = [os.dup2(fd, 200 + i) for i, fd in enumerate(fds)]
    def place():
        for i, fd in enumerate(high): os.dup2(fd, 3 + i)
    env = {**os.environ, "NOTIFY_SOCKET": path}
    if fds: env.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(names))
    # The program's own process id, which only that process knows.
    inside = ["sh", "-c", ("export LISTEN_PID=$$; " if fds else "") + 'exec "$@"', "sh", *command]
    child = subprocess.Popen(inside, env=env, preexec_fn=place, pass_fds=range(3, 3 + len(fds)))
    for fd in high: os.close(fd)
    return child
child = start()
for line in sys.stdin:
    word = line.strip()
    child.send_signal(signal.SIGTERM)
    code = child.wait()
    say(exited=code)
    if word == "stop": break
    child = start()
`

testIf(python !== null, 'needs python3')(
  'issue 7.2: the service is restarted under load, again and again: nobody is refused, kernel flows go on; a stop takes everything away',
  async () => {
    await using lab = await Lab.create()
    const echo = echoBackend(lab.backend)
    const host = lab.gateway.clientSide4
    const to = [{ host: lab.backend.address4, port: echo.port }]
    const routes = [
      forward('kernel', 8400, to),
      forward('user', 8401, to, { forwardingEngine: 'user' }),
      forward('udp', 8402, to, {}, { match: { protocol: 'udp' } }),
    ]
    // It answers as systemctl does while the job is a restart.
    using place = new Place()
    const job = place.file('job', ' 123 sluice.service restart running\n 124 other.service stop waiting\n')
    const bin = join(place.path, 'bin')
    mkdirSync(bin)
    writeFileSync(join(bin, 'systemctl'), `#!/bin/sh\ncat ${job}\n`)
    chmodSync(join(bin, 'systemctl'), 0o755)

    await using gateway = await Gateway.start(lab, routes, {
      through: [python!, '-c', MANAGER, place.path],
      talks: true,
      env: { PATH: `${bin}:${process.env.PATH}`, SLUICE_UNIT: 'sluice.service' },
      config: { timeouts: { grace: '300ms' } },
    })
    const heard: { words?: Record<string, string>; kept?: string[]; exited?: number }[] = []
    void (async () => {
      let rest = ''
      for await (const bytes of gateway.process.stdout as ReadableStream<Uint8Array>) {
        const lines = (rest + Buffer.from(bytes).toString()).split('\n')
        rest = lines.pop()!
        heard.push(...lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)))
      }
    })()
    const tell = (word: string) => {
      const words = gateway.process.stdin as unknown as Bun.FileSink
      words.write(`${word}\n`)
      void words.flush()
    }
    const kept = () => heard.findLast((one) => one.kept)?.kept
    await until(() => kept()?.length === 3, 5000, 'three sockets are kept')
    expect(kept()).toEqual(['tcp [~~]~8400', 'tcp [~~]~8401', 'udp [~~]~8402'])

    const standing = await crowd(lab.client, host, 8400, 5)
    const coming = [8400, 8401].map((port) => visitors(lab.client, host, port))
    const lives: number[] = []
    for (let i = 0; i < 3; i++) {
      const { pid } = await gateway.status()
      lives.push(pid)
      const served = coming.map((one) => one.served)
      tell('restart')
      await until(async () => (await gateway.status()).pid !== pid, 20_000, 'the next life answers')
      await gateway.settled()
      await until(() => coming.every((one, at) => one.served > served[at]! + 5), 10_000, 'visitors are served')
    }
    expect(new Set(lives).size).toBe(3)
    for (const each of coming) expect((await each.stop()).map(String)).toEqual([])
    const rounds = standing.talkers.map((talker) => talker.rounds)
    await until(() => standing.talkers.every((one, i) => one.rounds > rounds[i]! + 2), 5000, 'flows go on')
    expect(await standing.stop()).toEqual([])
    expect(heard.filter(({ exited }) => exited !== undefined).map(({ exited }) => exited)).toEqual([0, 0, 0])
    // Each of them has one record and is counted once, over four lives.
    const served = [coming[0]!.served + 5, coming[1]!.served]
    const records = await gateway.recordsOf(served[0]! + served[1]!)
    expect(new Set(records.map(({ id }) => id)).size).toBe(records.length)
    expect(records.filter(({ reason }) => reason !== 'finished')).toEqual([])
    const counts = (await gateway.routes()).map(({ connections, total }) => [connections, total])
    expect(counts).toEqual([[0, served[0]!], [0, served[1]!], [0, 0]]) // prettier-ignore

    // What is not wanted any more is not kept; what comes is.
    gateway.write([routes[0], forward('new', 8405, to)])
    expect((await gateway.reload()).status).toBe(200)
    await until(() => kept()?.join() === 'tcp [~~]~8400,tcp [~~]~8405', 5000, 'others are kept')

    // No restart: the rules go.
    writeFileSync(job, '')
    expect(await tables(lab.gateway)).not.toEqual([])
    tell('stop')
    expect(await gateway.exited()).toBe(0)
    expect(await tables(lab.gateway)).toEqual([])
    expect(await listening(lab.gateway)).toEqual([])
  },
  60_000,
)
