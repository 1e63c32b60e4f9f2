// A port reads first only where it must: protocols in which the server speaks first, and old ones in which the client does,
// work on ports without names, between real servers and their real clients.
import { expect } from 'bun:test'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { forward, Gateway } from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { testIf } from '../support.ts'
import { asNobody, type Peer, Place, postgres, serve, startPostgres, startRedis } from './peers.ts'

interface Protocol {
  name: string
  /** What has to be installed; null: it is not. */
  programs: (string | null)[]
  port: number
  start(lab: Lab, place: Place): Promise<Peer>
  /** A client's command line. What it prints has to contain `answer`. */
  client(place: Place, host: string, port: number): string[]
  answer: string
  /** What the server has to have printed then. */
  served?: string
}

const protocols: Protocol[] = [
  {
    name: 'SMTP',
    programs: [Bun.which('aiosmtpd'), Bun.which('curl')],
    port: 2525,
    start: (lab) =>
      serve(
        lab.backend,
        ['env', 'PYTHONUNBUFFERED=1', 'aiosmtpd', '--nosetuid', '--listen', `${lab.backend.address4}:2525`],
        [2525],
      ),
    client: (place, host, port) => [
      ...['curl', '--silent', '--show-error', '--verbose', '--max-time', '10', `smtp://${host}:${port}`],
      ...['--mail-from', 'a@a.test', '--mail-rcpt', 'b@b.test', '--upload-file'],
      place.file('mail', 'Subject: by way of the gateway\r\n\r\nHello\r\n'),
    ],
    answer: '250 OK',
    served: 'Subject: by way of the gateway',
  },
  {
    name: 'SSH',
    programs: [Bun.which('sshd'), Bun.which('sftp'), Bun.which('ssh-keygen')],
    port: 2222,
    async start(lab, place) {
      for (const name of ['host', 'user'])
        await lab.backend.must(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', join(place.path, name)])
      const options = {
        ListenAddress: lab.backend.address4,
        HostKey: join(place.path, 'host'),
        AuthorizedKeysFile: join(place.path, 'user.pub'),
        StrictModes: 'no',
        UsePAM: 'no',
        PidFile: 'none',
        Subsystem: 'sftp internal-sftp',
      }
      const flags = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`])
      mkdirSync('/run/sshd', { recursive: true })
      const sshd = asNobody(Bun.which('sshd')!, '-D', '-e', '-f', '/dev/null', '-p', '2222', ...flags)
      return serve(lab.backend, sshd, [2222])
    },
    client: (place, host, port) => [
      ...['sftp', '-F', 'none', '-b', place.file('batch', 'pwd\n'), '-P', String(port)],
      ...['-i', join(place.path, 'user'), '-o', 'IdentitiesOnly=yes', '-o', 'ConnectTimeout=10'],
      ...['-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', `nobody@${host}`],
    ],
    answer: 'Remote working directory: /',
  },
  {
    name: 'MariaDB',
    programs: [Bun.which('mariadbd'), Bun.which('mariadb')],
    port: 3306,
    start: (lab, place) =>
      serve(
        lab.backend,
        [
          ...['mariadbd', '--no-defaults', '--user=root', '--skip-grant-tables', '--skip-name-resolve', '--innodb=OFF'],
          ...[`--datadir=${place.path}`, `--socket=${place.path}/socket`, `--pid-file=${place.path}/pid`],
          ...['--default-storage-engine=Aria', `--bind-address=${lab.backend.address4}`, '--port=3306'],
        ],
        [3306],
      ),
    client: (_, host, port) => [
      ...['mariadb', '--no-defaults', '--protocol=tcp', '--connect-timeout=10', '--batch', '--skip-column-names'],
      ...['-h', host, '-P', String(port), '-u', 'any', '-e', 'select 6*7'],
    ],
    answer: '42',
  },
  {
    name: 'PostgreSQL',
    programs: [postgres('postgres'), postgres('initdb'), Bun.which('psql')],
    port: 5432,
    start: (lab, place) => startPostgres(lab, place),
    client: (_, host, port) => [
      ...['psql', '--no-psqlrc', '--no-align', '--tuples-only', '--command', 'select 6*7'],
      `host=${host} port=${port} user=tester dbname=postgres connect_timeout=10`,
    ],
    answer: '42',
  },
  {
    name: 'Redis',
    programs: [Bun.which('redis-server'), Bun.which('redis-cli')],
    port: 6379,
    start: (lab, place) => startRedis(lab, place, ['--port', '6379'], 6379),
    client: (_, host, port) => ['redis-cli', '-h', host, '-p', String(port), 'eval', 'return 6*7', '0'],
    answer: '42',
  },
]

for (const { name, programs, port, start, client, answer, served } of protocols)
  testIf(
    programs.every((program) => program !== null),
    `needs the ${name} server and its client`,
  )(
    `Q7, G1: ${name} on a port without names, through the kernel and through user space`,
    async () => {
      await using lab = await Lab.create()
      using place = new Place()
      await using server = await start(lab, place)
      const to = [{ host: lab.backend.address4, port }]
      await using gateway = await Gateway.start(lab, [
        forward('kernel', 8400, to),
        forward('user', 8401, to, { forwardingEngine: 'user' }),
        // Senders whose header would be read, and this client is none of them.
        forward('splice', 8402, to, {}, { acceptProxyProtocol: { from: ['192.0.2.0/24'] } }),
      ])
      const carriers = ['kernel', 'user', 'splice']
      for (const [i] of carriers.entries()) {
        const { stdout, stderr } = await lab.client.run(client(place, lab.gateway.clientSide4, 8400 + i))
        if (!`${stdout}${stderr}`.includes(answer)) throw new Error(`${stdout}\n${stderr}\n${server.output()}`)
      }
      if (served !== undefined) expect(server.output().split(served)).toHaveLength(carriers.length + 1)
      const records = await gateway.recordsOf(carriers.length)
      console.log(name, records.map(({ carrier, bytesIn, bytesOut }) => `${carrier} ${bytesIn} ${bytesOut}`).join(', '))
      for (const [i, record] of records.toSorted((a, b) => a.listener.localeCompare(b.listener)).entries()) {
        expect(record).toMatchObject({ route: carriers[i], carrier: carriers[i], reason: 'finished' })
        expect(Math.min(record.bytesIn, record.bytesOut)).toBeGreaterThan(0)
      }
    },
    60_000,
  )
