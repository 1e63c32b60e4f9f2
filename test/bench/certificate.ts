// The certificate that gateways which end TLS show: ECDSA on P-256, with its issuer's behind it as certificates of
// authorities come, new for each run. With nothing behind it both libraries look for an issuer in each handshake.
import { join } from 'node:path'
import type { Lab } from '../netns/lab.ts'
import { TLS_NAME } from './loads.ts'

export interface CertificateFiles {
  chain: string
  key: string
  /** Both in one file, as HAProxy wants them. */
  both: string
}

export async function certificate(lab: Lab, directory: string): Promise<CertificateFiles> {
  const file = (name: string) => join(directory, name)
  const make = async (name: string, options: string[]) => {
    const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30']
    const out = ['-keyout', file(`${name}.key`), '-out', file(`${name}.crt`)]
    await lab.gateway.must(['openssl', 'req', ...kind, ...options, ...out])
    return await Bun.file(file(`${name}.crt`)).text()
  }
  const issuer = await make('issuer', ['-subj', '/CN=issuer.example'])
  const leaf = await make('leaf', [
    ...['-CA', file('issuer.crt'), '-CAkey', file('issuer.key'), '-subj', `/CN=${TLS_NAME}`],
    ...['-addext', `subjectAltName=DNS:${TLS_NAME}`, '-addext', 'basicConstraints=critical,CA:FALSE'],
  ])
  const key = file('leaf.key')
  await Bun.write(file('chain.crt'), leaf + issuer)
  await Bun.write(file('both.pem'), leaf + issuer + (await Bun.file(key).text()))
  return { chain: file('chain.crt'), key, both: file('both.pem') }
}
