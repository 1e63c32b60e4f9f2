// The certificate that gateways which end TLS show: ECDSA on P-256, new for each run, the same kind for all.
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
  const files = { chain: join(directory, 'tls.crt'), key: join(directory, 'tls.key'), both: join(directory, 'tls.pem') }
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30']
  const names = ['-subj', `/CN=${TLS_NAME}`, '-addext', `subjectAltName=DNS:${TLS_NAME}`]
  await lab.gateway.must(['openssl', 'req', ...kind, ...names, '-keyout', files.key, '-out', files.chain])
  await Bun.write(files.both, (await Bun.file(files.chain).text()) + (await Bun.file(files.key).text()))
  return files
}
