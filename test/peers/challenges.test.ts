// Pebble, a CA that looks as real ones do, at the challenges that a worker answers, on ports that belong to others.
import { expect } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import acme from 'acme-client'
import { testIf } from '../support.ts'
import { authority } from '../user/authority.ts'
import { ends, forward, later, open, route, server } from '../user/plane.ts'

const canPebble = Bun.which('pebble') !== null && Bun.which('pebble-challtestsrv') !== null

/** A port that was free a moment ago. */
function freePort(): number {
  using listener = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } })
  return listener.port
}

function start(command: string[], env: Record<string, string> = {}) {
  const child = Bun.spawn(command, { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'ignore'] })
  later(() => child.kill('SIGKILL'))
}

/** Pebble, which looks for challenges at these ports of this machine. Resolves to an account there. */
async function pebble(httpPort: number, tlsPort: number): Promise<acme.Client> {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-pebble-'))
  later(() => rmSync(directory, { recursive: true }))
  const at = (name: string) => join(directory, name)
  const own = await (await authority('pebble')).issue(['localhost', '127.0.0.1'])
  writeFileSync(at('cert'), own.cert)
  writeFileSync(at('key'), own.key)
  const [port, management, dns] = [freePort(), freePort(), freePort()]
  writeFileSync(
    at('config'),
    JSON.stringify({
      pebble: {
        ...{ listenAddress: `127.0.0.1:${port}`, managementListenAddress: `127.0.0.1:${management}` },
        ...{ certificate: at('cert'), privateKey: at('key'), httpPort, tlsPort, ocspResponderURL: '' },
        ...{ externalAccountBindingRequired: false },
      },
    }),
  )
  start([
    ...['pebble-challtestsrv', '-dns01', `127.0.0.1:${dns}`, '-http01', '', '-https01', '', '-tlsalpn01', ''],
    ...['-management', `127.0.0.1:${freePort()}`, '-defaultIPv4', '127.0.0.1', '-defaultIPv6', ''],
  ])
  start(['pebble', '-config', at('config'), '-dnsserver', `127.0.0.1:${dns}`, '-strict', 'false'], {
    PEBBLE_VA_NOSLEEP: '1',
    PEBBLE_WFE_NONCEREJECT: '0',
  })
  const directoryUrl = `https://127.0.0.1:${port}/dir`
  // Its certificate is made for this test; who it is does not matter here.
  const { httpsAgent } = acme.axios.defaults
  acme.axios.defaults.httpsAgent = new (await import('node:https')).Agent({ rejectUnauthorized: false })
  later(() => void (acme.axios.defaults.httpsAgent = httpsAgent))
  while (!(await fetch(directoryUrl, { tls: { rejectUnauthorized: false } }).catch(() => null))) await Bun.sleep(20)
  const accountKey = await acme.crypto.createPrivateEcdsaKey()
  const client = new acme.Client({ directoryUrl, accountKey, backoffMin: 50, backoffMax: 500, backoffAttempts: 30 })
  await client.createAccount({ termsOfServiceAgreed: true, contact: ['mailto:ops@example.com'] })
  return client
}

testIf(canPebble, 'needs pebble')(
  'F5: a CA takes the answers of a worker, HTTP-01 and TLS-ALPN-01, on ports of others',
  async () => {
    const taken: string[] = []
    const backend = await server((socket) => socket.on('data', (bytes) => void taken.push(String(bytes))))
    const bench = await open(
      [
        route('plain', { carrier: 'splice', action: forward(backend) }),
        route('secure', {
          carrier: 'splice',
          domains: ['a.test'],
          action: forward(backend, { tls: ends('passthrough') }),
        }),
      ],
      {
        listeners: [
          { routes: ['plain'], peek: true, challenge: true },
          { routes: ['secure'], peek: true },
        ],
      },
    )
    const client = await pebble(bench.ports[0]!, bench.ports[1]!)
    for (const type of ['http-01', 'tls-alpn-01'] as const) {
      const name = type === 'http-01' ? 'www.a.test' : 'a.test'
      const order = await client.createOrder({ identifiers: [{ type: 'dns', value: name }] })
      const [authorization] = await client.getAuthorizations(order)
      const challenge = authorization!.challenges.find((one) => one.type === type)!
      const answer = await client.getChallengeKeyAuthorization(challenge)
      if (type === 'http-01') bench.plane.challenge({ http: { [challenge.token]: answer }, tls: {} })
      else {
        const [key, cert] = await acme.crypto.createAlpnCertificate(authorization!, answer)
        bench.plane.challenge({ http: {}, tls: { [name]: { cert: String(cert), key: String(key) } } })
      }
      await client.completeChallenge(challenge)
      await client.waitForValidStatus(challenge)
      const [, csr] = await acme.crypto.createCsr({ commonName: name })
      const issued = await client.getCertificate(await client.finalizeOrder(order, csr))
      expect(new X509Certificate(issued).subjectAltName).toBe(`DNS:${name}`)
    }
    const answered = (await bench.settle(2)).filter(({ reason }) => reason === 'challenge_answered')
    expect(new Set(answered.map(({ serverName, tls }) => `${serverName} ${tls?.alpn}`))).toEqual(
      new Set(['www.a.test undefined', 'a.test acme-tls/1']),
    )
    expect(taken).toEqual([])
  },
)
