// Certificates from real ACME servers, Caddy's and Pebble, which look at the challenges through the network.
import { afterAll, beforeAll, describe, expect } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import tls from 'node:tls'
import { Acme, type AcmeOptions } from '../../src/certificates/acme/index.ts'
import type { AcmeSettings, Challenge, ChallengeType } from '../../src/certificates/types.ts'
import { MemoryStore } from '../certificates/memory-store.ts'
import { openssl, signed } from '../certificates/tools.ts'
import { until } from '../netns/gateway.ts'
import { testIf } from '../support.ts'
import { Place } from './peers.ts'

// Addresses of its own on the loopback interface: other tests run in this namespace, and CAs look at ports 80 and 443.
const GATEWAY = '127.0.77.1'
const CA = '127.0.77.2'
const READY_MS_MAX = 10_000
const NAMES = Array.from({ length: 10 }, (_, i) => `n${i}.acme.test`)
/** Nothing listens where it points to. */
const BAD = 'n3.acme.test'

const caddy = Bun.which('caddy')
const pebble = Bun.which('pebble')

/** What a gateway answers, at its least. */
class Responder implements Disposable {
  readonly placed = new Set<Challenge>()
  readonly answered: string[] = []
  #http = Bun.serve({
    hostname: GATEWAY,
    port: 80,
    fetch: (request) => {
      const token = new URL(request.url).pathname.slice('/.well-known/acme-challenge/'.length)
      const challenge = [...this.placed].find((one) => one.type === 'http-01' && one.token === token)
      if (challenge?.type !== 'http-01') return new Response('', { status: 404 })
      this.answered.push('http-01')
      return new Response(challenge.keyAuthorization)
    },
  })
  #tls = tls
    .createServer(
      {
        ALPNProtocols: ['acme-tls/1'],
        SNICallback: (name, done) => {
          const challenge = [...this.placed].find((one) => one.type === 'tls-alpn-01' && one.name === name)
          if (challenge?.type !== 'tls-alpn-01') return done(new Error('unknown name'))
          this.answered.push('tls-alpn-01')
          done(null, tls.createSecureContext(challenge))
        },
      },
      (socket) => socket.on('error', () => {}).end(),
    )
    .on('tlsClientError', () => {})
    .listen(443, GATEWAY)

  place = async (challenge: Challenge) => {
    this.placed.add(challenge)
    return async () => void this.placed.delete(challenge)
  };

  [Symbol.dispose]() {
    void this.#http.stop(true)
    this.#tls.close()
  }
}

/** Runs a CA that finds our names, and nobody else does. */
async function startCa(place: Place, command: string[], env: Record<string, string>, ready: () => Promise<Response>) {
  const hosts = place.file(
    'hosts',
    `127.0.0.1 localhost\n${NAMES.map((name) => `${name === BAD ? '127.0.77.9' : GATEWAY} ${name}`).join('\n')}\n`,
  )
  const log = Bun.file(place.file('output'))
  const child = Bun.spawn(
    ['unshare', '--mount', 'sh', '-c', `mount --bind ${hosts} /etc/hosts && exec "$@"`, 'sh', ...command],
    { stdin: 'ignore', stdout: log, stderr: log, env: { ...process.env, ...env } },
  )
  const answers = () =>
    ready().then(
      ({ ok }) => ok,
      () => false,
    )
  await until(async () => child.exitCode !== null || (await answers()), READY_MS_MAX, `${command[0]} answers`)
  if (child.exitCode !== null) throw new Error(`${command[0]} has ended:\n${place.read('output')}`)
  return child
}

function gateway(settings: Pick<AcmeSettings, 'directory' | 'ca'> & Partial<AcmeSettings>, more: Partial<AcmeOptions>) {
  return new Acme({
    settings: { email: 'ops@acme.test', eab: null, renewBeforeDays: 30, ...settings },
    store: new MemoryStore(),
    offers: () => ['http-01'],
    place: async () => async () => {},
    log: () => {},
    changed: () => {},
    event: () => {},
    ...more,
  })
}

const settle = (acme: Acme, name: string) =>
  until(() => acme.get(name) !== undefined || acme.status(name).failures > 0, 20_000, `${name} is decided about`)

async function isTrusted(place: Place, root: string, name: string, cert: string) {
  const [ca, chain] = [place.file('root.pem', root), place.file('chain.pem', cert)]
  const { code, output } = await openssl(
    ...['verify', '-CAfile', ca, '-untrusted', chain, '-verify_hostname', name, chain],
  )
  expect(`${code} ${output}`).toStartWith('0')
}

describe('F3, F7: ten names at once, one of which fails', () => {
  let responder: Responder
  beforeAll(() => void (responder = new Responder()))
  afterAll(() => responder[Symbol.dispose]())

  async function tenNames(acme: Acme, place: Place, root: string) {
    const begun = performance.now()
    acme.follow(NAMES)
    for (const name of NAMES) await settle(acme, name)
    console.log(`  ten names in ${Math.round(performance.now() - begun)} ms`)
    for (const name of NAMES) {
      if (name === BAD) continue
      expect([name, acme.status(name).lastError]).toEqual([name, undefined])
      await isTrusted(place, root, name, acme.get(name)!.cert)
    }
    expect(acme.status(BAD)).toMatchObject({ state: 'failed', failures: 1 })
    expect(acme.status(BAD).lastError).toContain('connect')
    expect(responder.placed.size).toBe(0)
  }

  testIf(caddy !== null, 'needs caddy')(
    'by Caddy, through each kind of challenge, and after a restart nothing is asked again',
    async () => {
      using place = new Place()
      const data = join(place.path, 'data')
      mkdirSync(data)
      const config = place.file(
        'Caddyfile',
        `{
          admin off
          skip_install_trust
          storage file_system ${data}
          auto_https disable_redirects
          http_port 8080
          https_port 8443
          default_bind ${CA}
          default_sni ${CA}
        }
        https://${CA}:8443 {
          tls internal
          acme_server
        }\n`,
      )
      const root = async () => Bun.file(join(data, 'pki/authorities/local/root.crt')).text()
      const directory = `https://${CA}:8443/acme/local/directory`
      const ready = async () => fetch(directory, { tls: { ca: await root() } })
      await using _child = await startCa(
        place,
        ['caddy', 'run', '--config', config, '--adapter', 'caddyfile'],
        // The database of its ACME server is elsewhere than its storage: below the home directory, for one Caddy at a time.
        { XDG_DATA_HOME: place.path },
        ready,
      )
      const ca = await root()
      const store = new MemoryStore()
      for (const type of ['http-01', 'tls-alpn-01'] as ChallengeType[]) {
        const begun = responder.answered.length
        const own = type === 'http-01' ? store : new MemoryStore()
        const acme = gateway({ directory, ca }, { store: own, offers: () => [type], place: responder.place })
        await tenNames(acme, place, ca)
        expect(new Set(responder.answered.slice(begun))).toEqual(new Set([type]))
        await acme.stop()
      }
      const before = responder.answered.length
      const again = gateway({ directory, ca }, { store, place: responder.place })
      again.follow(NAMES)
      for (const name of NAMES) await settle(again, name)
      const first = again.get(NAMES[0]!)!
      const renewed = await again.renew(NAMES[0]!)
      expect(new X509Certificate(renewed.cert).serialNumber).not.toBe(new X509Certificate(first.cert).serialNumber)
      expect(responder.answered.length - before).toBe(1)
      await again.stop()
    },
    60_000,
  )

  testIf(pebble !== null, 'needs pebble')(
    'by Pebble, which refuses every second nonce and wants an external account',
    async () => {
      using place = new Place()
      const own = await signed([CA])
      const eab = { kid: 'kid-1', hmacKey: 'zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W' }
      const config = {
        listenAddress: `${CA}:14000`,
        managementListenAddress: `${CA}:15000`,
        certificate: place.file('cert.pem', own.cert),
        privateKey: place.file('key.pem', own.key),
        httpPort: 80,
        tlsPort: 443,
        externalAccountBindingRequired: true,
        externalAccountMACKeys: { [eab.kid]: eab.hmacKey },
      }
      const file = place.file('pebble.json', JSON.stringify({ pebble: config }))
      const env = { PEBBLE_VA_NOSLEEP: '1', PEBBLE_WFE_NONCEREJECT: '50', PEBBLE_AUTHZREUSE: '0' }
      const directory = `https://${CA}:14000/dir`
      const ready = () => fetch(directory, { tls: { ca: own.cert } })
      await using _child = await startCa(place, ['pebble', '-config', file, '-strict'], env, ready)
      const root = await (await fetch(`https://${CA}:15000/roots/0`, { tls: { ca: own.cert } })).text()

      for (const type of ['http-01', 'tls-alpn-01'] as ChallengeType[]) {
        const acme = gateway({ directory, ca: own.cert, eab }, { offers: () => [type], place: responder.place })
        await tenNames(acme, place, root)
        await acme.stop()
      }
      const stranger = gateway({ directory, ca: own.cert }, { place: responder.place })
      stranger.follow([NAMES[0]!])
      await settle(stranger, NAMES[0]!)
      expect(stranger.status(NAMES[0]!).lastError).toContain('externalAccountRequired')
      await stranger.stop()
    },
    60_000,
  )
})
