// Between the configuration and the certificates: which routes need one, what is told when it cannot be had, and what their
// workers get.
import type { RouteCertificates } from '../channel/messages.ts'
import type { CertificateSpec, Certificates, Preparation } from '../certificates/index.ts'
import type { Problem } from '../config/check.ts'
import type { Config } from '../config/schema.ts'
import type { Log } from '../observe/log.ts'
import type { Plan } from '../plan/types.ts'
import { ProblemsError } from './changes.ts'

/** Of the routes that the plan carries those that terminate TLS. */
export function certificateSpecs(config: Config, plan: Plan): CertificateSpec[] {
  const planned = new Set(plan.routes.map((route) => route.name))
  return config.routes.flatMap((route) => {
    const tls = 'tls' in route.action ? route.action.tls : undefined
    if (!tls || tls.mode === 'passthrough' || !planned.has(route.name)) return []
    const domains = [route.match.domains ?? []].flat().map((name) => name.toLowerCase())
    // A certificate is for names; whoever asks for any other is shown that one.
    const names = domains.filter((name) => name !== '*')
    return [{ route: route.name, names, certificate: tls.certificate ?? 'auto' }]
  })
}

/** Rejects with what is wrong, when something is. */
export async function prepareCertificates(certificates: Certificates, specs: CertificateSpec[]): Promise<void> {
  const { problems } = await certificates.prepare(specs)
  if (problems.length > 0) throw new ProblemsError(problemsOf(problems, MEND))
}

/** At the start nothing is served yet: a certificate that cannot be read takes its own route away, and no other. It is read again until it
 *  is good. Rejects where the configuration itself is wrong. */
export async function prepareAtStart(certificates: Certificates, specs: CertificateSpec[], log: Log): Promise<void> {
  const { problems } = await certificates.prepare(specs)
  const wrong = problems.filter((problem) => problem.wrong)
  if (wrong.length > 0) throw new ProblemsError(problemsOf(wrong, MEND))
  for (const { route, message } of problems)
    log('error', `Route "${route}" cannot end TLS: ${message}`, { remedy: 'mend the files; they are read again' })
}

/** Of these the ones with files: who takes over from another gateway must not have less to show than that one. */
export const withFiles = (specs: CertificateSpec[]) =>
  specs.filter(({ certificate }) => typeof certificate === 'object' && 'cert' in certificate)

const MEND = 'mend the files, or use "self-signed"'

/** Of files that are in use, and may have been replaced by others that are no good. */
export async function readCertificatesAgain(certificates: Certificates, specs: CertificateSpec[]): Promise<Problem[]> {
  const { problems } = await certificates.readAgain(specs)
  return problemsOf(problems, 'mend the files: they are taken as soon as they are good')
}

const problemsOf = (problems: Preparation['problems'], remedy: string): Problem[] =>
  problems.map(({ route, message }) => ({ path: `routes.${route}.action.tls.certificate`, message, remedy }))

/** By route. @param only of these routes. */
export function workerCertificates(
  certificates: Certificates,
  specs: CertificateSpec[],
  only?: ReadonlySet<string>,
): Record<string, RouteCertificates> {
  const wanted = only ? specs.filter(({ route }) => only.has(route)) : specs
  return Object.fromEntries(wanted.map((spec) => [spec.route, certificates.of(spec)]))
}
