// Front door of the certificates: from what the routes ask for to the PEM texts their workers get.
import { hostname } from 'node:os'
import { join } from 'node:path'
import { LocalAuthority } from './authority.ts'
import { loadCertificate, type CertificateFiles } from './files.ts'
import { certificateName } from './names.ts'

export { LocalAuthority, type Issued } from './authority.ts'
export { loadCertificate, type CertificateFiles, type LoadedCertificate } from './files.ts'

export interface CertificateSpec {
  route: string
  /** The route's domains; for 'self-signed' the names it is made for. */
  names: string[]
  certificate: 'self-signed' | CertificateFiles
}

export interface Prepared {
  cert: string
  key: string
  names: string[]
  notAfter: Date
}

export interface Preparation {
  /** By route; routes with a problem are missing. */
  certificates: Map<string, Prepared>
  problems: { route: string; message: string }[]
}

export class Certificates {
  #directory: string
  #now: () => number
  #authority: Promise<LocalAuthority> | undefined

  /** Everything kept on disk is below `stateDir`/authority, which is made when the first route needs it. */
  constructor(stateDir: string, now: () => number = Date.now) {
    this.#directory = join(stateDir, 'authority')
    this.#now = now
  }

  /** The local authority, made on first use. A failure is not remembered: the next call tries again. */
  authority(): Promise<LocalAuthority> {
    return (this.#authority ??= LocalAuthority.open(this.#directory, this.#now).catch((cause) => {
      this.#authority = undefined
      throw cause
    }))
  }

  /** Never throws for a route: one wrong file must not take the others' certificates away. */
  async prepare(specs: CertificateSpec[]): Promise<Preparation> {
    const certificates: Preparation['certificates'] = new Map()
    const problems: Preparation['problems'] = []
    for (const spec of specs) {
      try {
        certificates.set(spec.route, await this.#one(spec))
      } catch (cause) {
        problems.push({ route: spec.route, message: (cause as Error).message })
      }
    }
    return { certificates, problems }
  }

  async #one({ names, certificate }: CertificateSpec): Promise<Prepared> {
    if (certificate !== 'self-signed') return loadCertificate(certificate, this.#now())
    const wanted = selfSignedNames(names)
    const authority = await this.authority()
    return { ...(await authority.issue(wanted)), names: wanted }
  }
}

/** Of a route's domains those that a certificate can carry. A route for every name ("*", or no domains), or for patterns that
 *  no certificate knows ("example.*"), gets those the machine itself has. */
function selfSignedNames(domains: string[]): string[] {
  const names = domains.filter((name) => certificateName(name) !== undefined)
  if (names.length) return names
  const own = hostname()
  return ['localhost', ...(certificateName(own) ? [own] : []), '127.0.0.1', '::1']
}
