// Automatic certificates through the whole gateway, from a real CA (Caddy) that looks at its ports: while other routes own them,
// under load, over restarts, without the CA, and for several gateways that share a Redis.
import { expect } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { testIf } from '../support.ts'
import { Ca, hasCaddy } from './certificate-authority.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab, type Namespace } from './lab.ts'
import { echoBackend, visitors } from './traffic.ts'

const testWithCaddy = testIf(hasCaddy, 'needs caddy')
const ISSUED_MS_MAX = 30_000

interface View {
  name: string
  state: string
  routes: string[]
  source: string
  serialNumber: string
  lastError?: string
  nextAttempt?: string
  renewAt?: string
}
const certificates = async (gateway: Gateway) =>
  (await gateway.ask<{ certificates: View[] }>('/v1/certificates')).certificates
const certificateOf = async (gateway: Gateway, name: string) =>
  (await certificates(gateway)).find((one) => one.name === name)
const issued = (gateway: Gateway, name: string) =>
  until(async () => (await certificateOf(gateway, name))?.state === 'valid', ISSUED_MS_MAX, `${name} has a certificate`)

/** The CA has said no, or nothing. */
const hasFailed = (gateway: Gateway, name: string) =>
  until(
    async () => {
      const view = await certificateOf(gateway, name)
      return view?.lastError !== undefined && view
    },
    ISSUED_MS_MAX,
    `${name} has failed`,
  )

/** TLS ends here, with a certificate of the CA. */
const automatic = (name: string, ports: number, domains: string | string[], targets: unknown[]) =>
  forward(name, ports, targets, { tls: { mode: 'terminate' } }, { match: { domains } })

/** A visit of openssl that believes the CA alone: the serial number that it saw, or why it did not like it. */
async function shake(from: Namespace, ca: Ca, host: string, port: number, name: string): Promise<string> {
  const { stdout, stderr } = await from.run(
    [
      ...['openssl', 's_client', '-connect', `${host}:${port}`, '-servername', name, '-verify_hostname', name],
      ...['-CAfile', ca.root, '-verify_return_error'],
    ],
    { stdin: '' },
  )
  const pem = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(stdout + stderr)?.[0]
  const text = stdout + stderr
  if (!text.includes('Verification: OK') || pem === undefined) return text
  return new X509Certificate(pem).serialNumber.toLowerCase()
}

/** What the gateway tells of a certificate is what a client sees, a moment later. */
async function isServed(from: Namespace, ca: Ca, gateway: Gateway, host: string, port: number, name: string) {
  let seen = ''
  const same = async () =>
    (seen = await shake(from, ca, host, port, name)) === (await certificateOf(gateway, name))?.serialNumber
  await until(same, 5000, `${name} is served on port ${port}`).catch((error: Error) => {
    throw new Error(`${error.message}\n${seen}`)
  })
}

/** Handshakes one after another until stopped; stop() resolves to what failed. */
function shakers(from: Namespace, ca: Ca, host: string, port: number, name: string, count = 3) {
  let stopping = false
  let good = 0
  const failures: string[] = []
  const loops = Array.from({ length: count }, async () => {
    while (!stopping) {
      const seen = await shake(from, ca, host, port, name)
      if (/^[0-9a-f]+$/.test(seen)) good++
      else failures.push(seen)
    }
  })
  return {
    get good() {
      return good
    },
    async stop() {
      stopping = true
      await Promise.all(loops)
      return failures
    },
  }
}

testWithCaddy(
  'F2 to F6, E13, D10: certificates by both challenges, while routes of others own ports 80 and 443, which never notice',
  async () => {
    await using lab = await Lab.create()
    const host = lab.gateway.clientSide4
    await using ca = await Ca.start(lab, { 'a.acme.test': host, 'b.acme.test': host })
    const echo = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: echo.port }]
    await using gateway = await Gateway.start(lab, [forward('plain', 80, to)], { config: { acme: ca.settings } })
    const coming = visitors(lab.client, host, 80)
    await until(() => coming.served > 5, 5000, 'port 80 is served')
    expect(await gateway.route('plain')).toMatchObject({ carrier: 'kernel' })

    // Of a name on port 443 the handshake itself answers; of one elsewhere port 80 has to, which the kernel carries.
    const seen = new Set<string>()
    gateway.write([
      forward('plain', 80, to),
      automatic('first', 443, 'a.acme.test', to),
      automatic('second', 9443, 'b.acme.test', to),
    ])
    expect((await gateway.reload()).status).toBe(200)
    await until(
      async () => {
        const { carrier, reason } = await gateway.route('plain')
        seen.add(`${carrier} ${reason}`)
        const views = await certificates(gateway)
        return views.length === 2 && views.every(({ state }) => state === 'valid')
      },
      ISSUED_MS_MAX,
      'both have a certificate',
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${Bun.inspect(await certificates(gateway))}\n${gateway.logText()}`)
    })
    expect([...seen].some((words) => words.startsWith('splice acme challenge'))).toBe(true)
    await isServed(lab.client, ca, gateway, host, 443, 'a.acme.test')
    await isServed(lab.client, ca, gateway, host, 9443, 'b.acme.test')
    const url = 'https://a.acme.test/'
    const curl = [
      'curl',
      '-sS',
      '--http0.9',
      '--max-time',
      '5',
      '--cacert',
      ca.root,
      '--resolve',
      `a.acme.test:443:${host}`,
    ]
    const { stdout, stderr } = await lab.client.run([...curl, '--max-filesize', '1000', url], { stdin: '' })
    expect(stdout + stderr).toContain('Host: a.acme.test')

    await until(
      async () => (await gateway.route('plain')).carrier === 'kernel',
      15_000,
      'port 80 is the kernel’s again',
    )
    expect(await coming.stop()).toEqual([])
    const answered = gateway.records().filter(({ reason }) => reason === 'challenge_answered')
    expect(answered.length).toBeGreaterThanOrEqual(2)
    expect(new Set(answered.map(({ listener }) => listener.split(':').at(-1)))).toEqual(new Set(['80', '443']))
    expect((await gateway.cli('certificates', '--admin', gateway.socket)).stdout).toMatch(/a\.acme\.test +auto +valid/)
  },
  90_000,
)

testWithCaddy(
  'F7: ten names at once of which one fails: the others have theirs; renewed under load without a failed handshake; a restart asks for nothing',
  async () => {
    await using lab = await Lab.create()
    const host = lab.gateway.clientSide4
    const names = Array.from({ length: 10 }, (_, i) => `n${i}.acme.test`)
    const good = names.filter((name) => name !== 'n3.acme.test')
    // Nobody is there.
    await using ca = await Ca.start(
      lab,
      Object.fromEntries(names.map((name) => [name, good.includes(name) ? host : '10.99.1.77'])),
    )
    const echo = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: echo.port }]
    const began = performance.now()
    await using gateway = await Gateway.start(lab, [automatic('ten', 443, names, to)], {
      config: { acme: ca.settings },
    })
    for (const name of good) await issued(gateway, name)
    console.log(`nine of ten names from start to certificate: ${Math.round(performance.now() - began)} ms`)
    const bad = await hasFailed(gateway, 'n3.acme.test')
    expect(bad.nextAttempt).toBeDefined()
    // It is told apart from a name that nobody knows.
    await shake(lab.client, ca, host, 443, 'n3.acme.test')
    await shake(lab.client, ca, host, 443, 'stranger.acme.test')
    const reasons = async () => gateway.records().map(({ serverName, reason }) => `${serverName} ${reason}`)
    await until(async () => (await reasons()).includes('n3.acme.test certificate_pending'), 5000, 'it is pending')
    await until(async () => (await reasons()).includes('stranger.acme.test no_route'), 5000, 'the stranger is not')

    const before = (await certificateOf(gateway, 'n0.acme.test'))!.serialNumber
    const clients = shakers(lab.client, ca, host, 443, 'n0.acme.test')
    await until(() => clients.good > 3, 10_000, 'handshakes go on')
    for (let i = 0; i < 3; i++)
      expect(await gateway.cli('certificates', 'renew', 'n0.acme.test', '--admin', gateway.socket)).toMatchObject({
        exitCode: 0,
      })
    const served = clients.good
    await until(() => clients.good > served + 3, 10_000, 'handshakes go on')
    expect(await clients.stop()).toEqual([])
    const renewed = (await certificateOf(gateway, 'n0.acme.test'))!.serialNumber
    expect(renewed).not.toBe(before)
    await until(
      async () => (await shake(lab.client, ca, host, 443, 'n0.acme.test')) === renewed,
      5000,
      'it is the new one',
    )

    // A CA that is away is no reason not to serve.
    const serials = new Map((await certificates(gateway)).map(({ name, serialNumber }) => [name, serialNumber]))
    await ca.kill()
    await gateway.stop()
    await gateway.restart()
    for (const name of good)
      await until(
        async () => (await shake(lab.client, ca, host, 443, name)) === serials.get(name),
        10_000,
        `${name} is served`,
      )
    expect((await certificates(gateway)).filter(({ state }) => state === 'valid')).toHaveLength(9)
  },
  120_000,
)

testWithCaddy(
  'F4, F7: a gateway that is killed in the middle of an order goes on with it; a CA that is down for a while costs nothing but time',
  async () => {
    await using lab = await Lab.create()
    const host = lab.gateway.clientSide4
    await using ca = await Ca.start(lab, { 'a.acme.test': host, 'b.acme.test': host })
    const echo = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: echo.port }]
    await using gateway = await Gateway.start(lab, [automatic('a', 443, 'a.acme.test', to)], {
      config: { acme: ca.settings },
      ready: false,
    })
    // As soon as it has begun with the CA, which then stands still.
    const begun = join(gateway.directory, 'state/store/acme')
    await until(() => existsSync(begun), 10_000, 'there is an account')
    ca.signal('SIGSTOP')
    await gateway.kill9()
    ca.signal('SIGCONT')
    await gateway.restart()
    await issued(gateway, 'a.acme.test')
    await isServed(lab.client, ca, gateway, host, 443, 'a.acme.test')

    await ca.kill()
    gateway.write([automatic('a', 443, 'a.acme.test', to), automatic('b', 443, 'b.acme.test', to)])
    expect((await gateway.reload()).status).toBe(200)
    const failed = await hasFailed(gateway, 'b.acme.test')
    expect(Date.parse(failed.nextAttempt!)).toBeGreaterThan(Date.now())
    expect((await certificateOf(gateway, 'a.acme.test'))!.state).toBe('valid')
    await shake(lab.client, ca, host, 443, 'a.acme.test')
    await ca.start()
    expect((await gateway.cli('certificates', 'renew', 'b.acme.test', '--admin', gateway.socket)).exitCode).toBe(0)
    await isServed(lab.client, ca, gateway, host, 443, 'b.acme.test')
  },
  120_000,
)

testWithCaddy(
  'F5, F6: another program has the challenge port: it is told, and taken as soon as it is free and a name needs it',
  async () => {
    await using lab = await Lab.create()
    const host = lab.gateway.clientSide4
    await using ca = await Ca.start(lab, { 'a.acme.test': host })
    const to = [{ host: lab.backend.address4, port: echoBackend(lab.backend).port }]
    const other = lab.gateway.listen({ data: () => {} }, { port: 80 } as never)
    await using gateway = await Gateway.start(lab, [automatic('a', 9443, 'a.acme.test', to)], {
      config: { acme: ca.settings },
    })
    const { nextAttempt } = await until(
      async () => {
        const view = await certificateOf(gateway, 'a.acme.test')
        return view?.lastError === 'No port of this gateway can answer a challenge of the CA' && view
      },
      ISSUED_MS_MAX,
      'nothing is asked',
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${gateway.logText()}`)
    })
    expect(Date.parse(nextAttempt!)).toBeGreaterThan(Date.now())
    expect(gateway.logText()).toContain('HTTP-01 will fail')
    other.stop(true)
    expect((await gateway.cli('certificates', 'renew', 'a.acme.test', '--admin', gateway.socket)).exitCode).toBe(0)
    await isServed(lab.client, ca, gateway, host, 9443, 'a.acme.test')
  },
  60_000,
)

testIf(hasCaddy && Bun.which('redis-server') !== null, 'needs caddy and redis-server')(
  'issue 6.5: two gateways that share a Redis, started together: each name is asked for once, wherever the CA looks, and both serve it',
  async () => {
    await using lab = await Lab.create()
    lab.gateway.forward()
    const [one, two] = [lab.gateway.clientSide4, lab.backend.address4]
    const names = Array.from({ length: 6 }, (_, i) => `n${i}.acme.test`)
    await using ca = await Ca.start(lab, Object.fromEntries(names.map((name, i) => [name, i % 2 ? one : two])))
    const redis = lab.client.spawn(
      ['redis-server', '--bind', '0.0.0.0', '--port', '6390', '--save', '', '--protected-mode', 'no'],
      { stdout: 'ignore', stderr: 'ignore' },
    )
    const store = `redis://${lab.client.address4}:6390`
    const [here, there] = [echoBackend(lab.backend), echoBackend(lab.backend)]
    const config = { acme: ca.settings, store }
    const to = (port: number) => [{ host: lab.backend.address4, port }]
    const second = Object.assign(Object.create(Object.getPrototypeOf(lab)), lab, { gateway: lab.backend }) as Lab
    const gateways = await Promise.all([
      Gateway.start(lab, [automatic('ten', 443, names, to(here.port))], { config }),
      Gateway.start(second, [automatic('ten', 443, names, to(there.port))], {
        config,
      }),
    ])
    await using a = gateways[0]
    await using b = gateways[1]
    for (const name of names) await Promise.all([issued(a, name), issued(b, name)])
    for (const name of names) {
      const serial = (await certificateOf(a, name))!.serialNumber
      expect([name, (await certificateOf(b, name))!.serialNumber]).toEqual([name, serial])
      await isServed(lab.client, ca, a, one, 443, name)
      await isServed(lab.client, ca, b, two, 443, name)
    }
    // What each has asked for.
    const count = (gateway: Gateway) => gateway.logText().split('\n').filter((line) => /Certificate n\d.*: issued/.test(line)).length // prettier-ignore
    const asked = [count(a), count(b)]
    console.log(`asked for by one and the other: ${asked.join(' and ')}`)
    expect(asked[0]! + asked[1]!).toBe(names.length)
    // A Redis that is away: both serve, also after a restart.
    redis.kill('SIGKILL')
    await redis.exited
    await a.stop()
    await a.restart()
    await until(
      async () =>
        (await shake(lab.client, ca, one, 443, names[0]!)) === (await certificateOf(a, names[0]!))?.serialNumber,
      20_000,
      'what was kept in files is served',
    )
  },
  120_000,
)
