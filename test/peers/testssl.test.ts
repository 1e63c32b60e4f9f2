// testssl.sh against a route that terminates TLS: what a suspicious client learns of it, with keys of both kinds.
import { expect, test } from 'bun:test'
import { chmodSync } from 'node:fs'
import { run } from '../certificates/tools.ts'
import { forward, Gateway } from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { emulated, testIf } from '../support.ts'
import { Place } from './peers.ts'

/** What must have been looked at; more is. */
const LOOKED_AT = [
  ...['SSLv2', 'SSLv3', 'TLS1', 'TLS1_1', 'TLS1_2', 'TLS1_3', 'cipherlist_NULL', 'cipherlist_EXPORT', 'PFS'],
  ...['cipher_order', 'heartbleed', 'CCS', 'ticketbleed', 'ROBOT', 'secure_renego', 'secure_client_renego'],
  ...['CRIME_TLS', 'POODLE_SSL', 'fallback_SCSV', 'SWEET32', 'FREAK', 'DROWN', 'LOGJAM', 'BEAST', 'LUCKY13', 'RC4'],
]
const PASSABLE = new Set(['OK', 'INFO', 'LOW', 'DEBUG'])

interface Finding {
  id: string
  severity: string
  finding: string
}

/** Protocols, categories of ciphers, forward secrecy, what the server prefers, and all vulnerabilities it knows. */
const scan = (place: Place, host: string, port: number) => [
  // Its openssl asks a resolver again and again for a name that is none, and there is no resolver here to say so.
  ...['unshare', '--mount', 'sh', '-c', 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'],
  ...[place.file('nsswitch.conf', 'hosts: files\n'), 'testssl', '--quiet', '--color', '0', '--warnings', 'off'],
  ...['--nodns', 'none', '--connect-timeout', '10', '--openssl-timeout', '10', '--jsonfile', `${place.path}/findings`],
  ...['-p', '-s', '-f', '-P', '-U', '--ip', host, `a.test:${port}`],
]

async function rsa(place: Place) {
  const [key, cert] = [`${place.path}/key.pem`, `${place.path}/cert.pem`]
  await run(
    ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=a.test'],
    ...['-addext', 'subjectAltName=DNS:a.test', '-keyout', key, '-out', cert],
  )
  chmodSync(key, 0o600)
  return { cert, key }
}

// Both at once: most of the time is testssl's waiting.
for (const kind of ['ECDSA', 'RSA'] as const)
  testIf(
    Bun.which('testssl') !== null && !emulated,
    'needs testssl, and a machine that is not emulated',
    test.concurrent,
  )(
    `F1: testssl.sh finds no weakness where TLS ends (${kind})`,
    async () => {
      await using lab = await Lab.create()
      using place = new Place()
      const backend = lab.backend.listen({
        data(socket) {
          socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok')
          socket.end()
        },
        error: () => {},
      })
      const certificate = kind === 'RSA' ? await rsa(place) : 'self-signed'
      const to = [{ host: lab.backend.address4, port: backend.port }]
      await using gateway = await Gateway.start(lab, [
        forward('tls', 8443, to, { tls: { mode: 'terminate', certificate } }),
      ])
      const started = performance.now()
      const { stdout, stderr } = await lab.client.run(scan(place, lab.gateway.clientSide4, 8443))
      console.log(`${kind}: ${((performance.now() - started) / 1000).toFixed(0)} s`)
      const findings = JSON.parse(place.read('findings')) as Finding[]
      const ids = new Set(findings.map(({ id }) => id))
      if (!LOOKED_AT.every((id) => ids.has(id))) throw new Error(`not all was looked at:\n${stdout}\n${stderr}`)
      // That one is about the openssl of this machine.
      const found = findings.filter(
        ({ id, severity }) => id !== 'engine_problem' && severity !== 'OK' && severity !== 'INFO',
      )
      for (const { severity, id, finding } of found) console.log(`${kind}: ${severity} ${id}: ${finding}`)
      expect(found.filter(({ severity }) => !PASSABLE.has(severity))).toEqual([])

      // A hundred handshakes that were made to go wrong have done no harm.
      const { reasons, connections } = await gateway.route('tls')
      expect({ connections, wrong: reasons['internal_error'] ?? 0 }).toEqual({ connections: 0, wrong: 0 })
      expect((await gateway.status()).anomalies).toBe(0)
    },
    200_000,
  )
