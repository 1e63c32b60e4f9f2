// What certificates need of a configuration: names that a CA can be asked for, the CA itself, and a port on which it is answered.
import { asksModule, DEFAULT_CHALLENGE_PORT, isAutomatic, listensOn, mayAskCa, TLS_ALPN_PORT } from './needs.ts'
import type { Problem } from './problems.ts'
import type { Route } from './schema.ts'

/** Of a route that terminates TLS. */
export function checkCertificate(route: Route, path: string): Problem[] {
  const where = `${path}.match.domains`
  const names = [route.match.domains ?? []].flat()
  if (asksModule(route) && names.length === 0)
    return [
      {
        path: where,
        message: 'a certificate module is asked for names, and this route has none',
        remedy: 'add match.domains; "*.example.com" is allowed with a module',
      },
    ]
  if (!isAutomatic(route)) return []
  if (names.length === 0)
    return [
      {
        path: where,
        message: 'automatic certificates are made for names, and this route has none',
        remedy: 'add match.domains, or set action.tls.certificate to "self-signed" or { cert, key } files',
      },
    ]
  return names.flatMap((name, i) => {
    const at = typeof route.match.domains === 'string' ? where : `${where}[${i}]`
    if (typeof name !== 'string') return []
    if (name.includes('*'))
      return [
        {
          path: at,
          message: `"${shown(name)}" cannot have an automatic certificate: wildcard names need DNS-01, which is not offered`,
          remedy: 'name the hosts one by one, or use { cert, key } files for the wildcard',
        },
      ]
    return []
  })
}

const shown = (name: string) => name.replace(/[\u0000-\u001f\u007f]/g, '?').slice(0, 253)

interface Placed {
  route: Route
  path: string
}

/** @param acme the field as it came: what is wrong inside it the schema says. */
export function checkAcme(routes: Placed[], acme: unknown): Problem[] {
  const enabled = routes.filter(({ route }) => route.enabled !== false)
  const asking = enabled.filter(({ route }) => mayAskCa(route))
  if (acme === undefined)
    return asking
      .filter(({ route }) => isAutomatic(route))
      .map(({ path }) => ({
        path: `${path}.action.tls.certificate`,
        message: 'automatic certificates (also the default) need the field "acme", which is missing',
        remedy: 'add acme: { email: "…", termsAgreed: true }, or use "self-signed" or { cert, key } files',
      }))
  const given = (acme as { challengePort?: unknown } | null)?.challengePort
  const port = typeof given === 'number' ? given : DEFAULT_CHALLENGE_PORT
  const needy = asking.find(({ route }) => !listensOn(route, TLS_ALPN_PORT))
  if (!needy) return []
  // The kernel answers no CA, and hands nothing to who would.
  return enabled.flatMap(({ route, path }) => {
    const field = kernelOnly(route)
    if (!field || !listensOn(route, port)) return []
    return [
      {
        path: `${path}.action.${field}`,
        message: `on port ${port} a CA is answered for the names of route "${needy.route.name}", which the kernel cannot do`,
        remedy: `remove it, move the route to another port, or let "${needy.route.name}" listen on port ${TLS_ALPN_PORT}, where the CA needs no second port`,
      },
    ]
  })
}

/** The field that demands the kernel for every connection of the route. */
function kernelOnly({ action }: Route): 'forwardingEngine' | 'preserveSourceIp' | undefined {
  if (action.type !== 'forward') return undefined
  if (action.forwardingEngine === 'nftables') return 'forwardingEngine'
  return action.preserveSourceIp === true ? 'preserveSourceIp' : undefined
}

/** It stays in the kernel whatever happens on its port. */
export const demandsKernel = (route: Route) => kernelOnly(route) !== undefined
