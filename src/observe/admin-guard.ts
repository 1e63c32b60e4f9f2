// Who may ask the admin API over HTTP, read from a request's head alone: a browser carries the operator's cookie to
// whatever page makes it ask, so what is asked for must have been asked by our own page, under our own name. Pure.
import { canonicalIp, isIp } from '../base/addresses.ts'

export interface Listens {
  /** An address; 0.0.0.0 and :: are all of them. */
  hostname: string
  port: number
}

export interface Refusal {
  status: 401 | 403 | 413 | 421 | 429
  error: string
}

const ALL_ADDRESSES = ['0.0.0.0', '::']
const HTTP_PORT = 80
const HOST = /^(\[[0-9a-f:.]+\]|[^:[\]]+)(?::([0-9]+))?$/
const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS']
/** What a browser says of a request that our own page makes, and of one that its user makes by hand. */
const OWN_SITES = ['same-origin', 'none']

/** DNS rebinding: a name of the attacker's that leads to our address makes his page "same origin" with us, but it is still
 *  his name that the browser sends. An address in its place cannot be rebound. */
export function isOwnHost(host: string | null, { hostname, port }: Listens): boolean {
  const [, name, given] = HOST.exec(host?.toLowerCase() ?? '') ?? []
  if (name === undefined || Number(given ?? HTTP_PORT) !== port) return false
  if (name === 'localhost') return true
  const ip = name.startsWith('[') ? name.slice(1, -1) : name
  if (!isIp(ip)) return false
  return ALL_ADDRESSES.includes(hostname) || canonicalIp(ip) === canonicalIp(hostname)
}

/** Before anything else is looked at. null: go on. */
export function whyNotOurs(request: Request, listens: Listens): Refusal | null {
  const { headers, method } = request
  const host = headers.get('host')
  if (!isOwnHost(host, listens))
    return {
      status: 421,
      error: `nobody of that name here: ask for localhost or the address, with port ${listens.port}`,
    }
  const origin = headers.get('origin')
  if (origin !== null && origin !== `http://${host}`) return CROSS_SITE
  const site = headers.get('sec-fetch-site')
  // Following a link to the dashboard is allowed: it comes without the cookie (SameSite=Strict), and does nothing.
  const isVisit = method === 'GET' && headers.get('sec-fetch-mode') === 'navigate'
  if (site !== null && !OWN_SITES.includes(site) && !isVisit) return CROSS_SITE
  return null
}

/** Of a request that only a cookie speaks for: every browser says where one that changes something comes from. */
export function whyNotByCookie({ headers, method }: Request): Refusal | null {
  return SAFE_METHODS.includes(method) || headers.has('origin') ? null : CROSS_SITE
}

const CROSS_SITE: Refusal = { status: 403, error: 'refused: another site made the browser ask' }

/** On every answer. Nothing from elsewhere is loaded, and nobody else shows us in a frame. */
export const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy':
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'",
  'x-frame-options': 'DENY',
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
}
