// The route on which a CA is answered: it holds the challenge port for as long as a CA may be asked for any name, behind all
// others there, and carries nothing. Pure.
import { matchesName } from '../base/names.ts'
import { demandsKernel } from '../config/check-tls.ts'
import { DEFAULT_CHALLENGE_PORT, listensOn, mayAskCa, TLS_ALPN_PORT } from '../config/needs.ts'
import type { Config, Route } from '../config/schema.ts'

/** No configuration can have it: names begin with a letter or a digit there. */
export const CHALLENGE_ROUTE = '_acme'

export type ChallengeType = 'http-01' | 'tls-alpn-01'

/** null: nobody asks a CA, or the kernel has the port for good and every name does without it (config/check-tls.ts). */
export function challengeRoute(config: Config): Route | null {
  const port = challengePort(config)
  if (port === null) return null
  // What it does instead of blocking is for the user plane alone: see plan().
  return { name: CHALLENGE_ROUTE, match: { ports: port }, action: { type: 'block' }, security: {} }
}

/** Where HTTP-01 is answered; null: nowhere. */
function challengePort({ acme, routes }: Config): number | null {
  const enabled = routes.filter(isEnabled)
  if (!acme || !enabled.some(mayAskCa)) return null
  const port = acme.challengePort ?? DEFAULT_CHALLENGE_PORT
  return enabled.some((route) => demandsKernel(route) && listensOn(route, port)) ? null : port
}

/** How it can be shown that this name is ours, best first: without a second port where the CA finds the route itself. */
export function challengesFor(config: Config, name: string): ChallengeType[] {
  const wanted = name.toLowerCase()
  const byTls = config.routes.some(
    (route) =>
      isEnabled(route) &&
      mayAskCa(route) &&
      listensOn(route, TLS_ALPN_PORT) &&
      [route.match.domains ?? []].flat().some((pattern) => matchesName(pattern.toLowerCase(), wanted)),
  )
  return [...(byTls ? ['tls-alpn-01' as const] : []), ...(challengePort(config) === null ? [] : ['http-01' as const])]
}

const isEnabled = ({ enabled }: Route) => enabled !== false
