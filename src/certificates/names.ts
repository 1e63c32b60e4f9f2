// The names a certificate can carry: host names, wildcards for one label, addresses; one spelling of each.
import { canonicalIp, isHostName, isIp } from '../base/addresses.ts'

/** Lower case, addresses as RFC 5952 spells them; undefined when no certificate can carry it. */
export function certificateName(text: string): string | undefined {
  if (isIp(text)) return canonicalIp(text)
  const host = text.startsWith('*.') ? text.slice(2) : text
  return isHostName(host) ? text.toLowerCase() : undefined
}

/** The host names and addresses of a subjectAltName as node:crypto writes it; other kinds (mail, URI) are left out. */
export function alternativeNames(subjectAltName: string | undefined): string[] {
  const names = (subjectAltName ?? '').split(', ').flatMap((item) => {
    const found = /^(?:DNS|IP Address):(.+)$/.exec(item)
    return (found && certificateName(found[1]!)) || []
  })
  return [...new Set(names)]
}
