// The one door to acme-client: it signs, counts nonces, binds accounts and writes requests for certificates; how it
// talks is ours.
import '../x509.ts'
import type { Client } from 'acme-client'
import { ACME_NONCES_MAX } from '../../base/limits.ts'
import type { AcmeSettings } from '../types.ts'
import type { Transport } from './transport.ts'

export type { Client } from 'acme-client'

/** Loaded when it is needed: not everybody has automatic certificates. And only when what stands above has run: it brings an
 * @peculiar/x509 of its own, which needs the same before it, and as a CommonJS module could otherwise run first. */
export const acmeClient = () => import('acme-client')

/** Not among its types, but all of its requests go through here. */
interface Inside {
  http: { request: Transport['request']; maxBadNonceRetries: number }
}

/** @param account its key in PEM, and its address at the CA when it has one. */
export async function connect(
  settings: AcmeSettings,
  account: { key: string; url?: string | undefined },
  transport: Transport,
): Promise<Client> {
  const library = await acmeClient()
  const client = new library.Client({
    directoryUrl: settings.directory,
    accountKey: account.key,
    ...(account.url === undefined ? {} : { accountUrl: account.url }),
    ...(settings.eab ? { externalAccountBinding: settings.eab } : {}),
  })
  const { http } = client as unknown as Inside
  // Its own way cannot be ended, waits as long as any CA wants, knows no root but those of the machine, and keeps of an error
  // nothing but its sentence.
  http.request = (url, method, options) => transport.request(url, method, options)
  http.maxBadNonceRetries = ACME_NONCES_MAX
  return client
}
