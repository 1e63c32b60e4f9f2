// What a route asks for, as sources: one for each certificate that is kept by itself.
import { hostname } from 'node:os'
import type { Certificate } from '../config/schema.ts'
import type { LocalAuthority } from './authority.ts'
import { AutoSource, type Automatic } from './auto-source.ts'
import { FileSource } from './file-source.ts'
import { ModuleSource, type Provide } from './module-source.ts'
import { certificateName } from './names.ts'
import { OwnSource } from './own-source.ts'
import type { Source, SourceHooks } from './source.ts'
import type { Directories } from './watch.ts'

export interface CertificateSpec {
  route: string
  /** The route's domains, in lower case; none: any. */
  names: string[]
  certificate: Certificate
}

/** What sources are made with. */
export interface SourceTools extends SourceHooks {
  settleMs: number
  directories: Directories
  authority(): Promise<LocalAuthority>
  provide: Provide
  /** undefined: it is not configured. */
  acme(): Automatic | undefined
}

/** Each has its own certificate for every name. */
export const isPerName = ({ certificate }: CertificateSpec) =>
  certificate === 'auto' || (typeof certificate === 'object' && 'module' in certificate)

export const isAutomatic = (source: Source) =>
  source.kind === 'auto' || (source instanceof ModuleSource && source.automatic !== undefined)

/** By keys under which equal ones are the same. Throws when it cannot be had at all. */
export function sourcesOf(
  { names, certificate }: CertificateSpec,
  tools: SourceTools,
): [key: string, make: () => Source][] {
  if (certificate === 'self-signed') {
    const own = selfSignedNames(names)
    return [[`own ${own.join(' ')}`, () => new OwnSource(own, tools.authority, tools)]]
  }
  if (certificate === 'auto') return names.map((name) => [`auto ${name}`, () => automatic(name, tools)])
  if ('cert' in certificate) {
    const { cert, key } = certificate
    return [[`file ${JSON.stringify([cert, key])}`, () => new FileSource(certificate, tools.directories, tools)]]
  }
  if (names.length === 0 || names.some((name) => certificateName(name) === undefined))
    throw new Error(
      'a certificate module is asked by name: give the route domains, each an exact name or "*.example.com"',
    )
  const { module } = certificate
  const hooks = { ...tools, automatic: (name: string) => automatic(name, tools) }
  return names.map((name) => [`module ${module} ${name}`, () => new ModuleSource(module, name, hooks)])
}

function automatic(name: string, tools: SourceTools): AutoSource {
  const fail = (why: string) => new Error(`Cannot issue a certificate for ${name}: ${why}`)
  if (name.startsWith('*')) throw fail('DNS-01 is not offered')
  const acme = tools.acme()
  if (!acme) throw fail('acme is not configured')
  return new AutoSource(name, acme, tools.now)
}

/** Of a route's domains those that a certificate can carry, sorted. A route for every name ("*", or no domains), or for patterns
 *  that no certificate knows ("example.*"), gets those the machine itself has. */
function selfSignedNames(domains: string[]): string[] {
  const names = domains.filter((name) => certificateName(name) !== undefined)
  if (names.length) return [...new Set(names)].sort()
  const own = hostname()
  return ['localhost', ...(certificateName(own) ? [own] : []), '127.0.0.1', '::1']
}
