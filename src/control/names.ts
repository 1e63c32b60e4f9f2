// The addresses of targets that are named: looked up by control, so that a plan has nothing to wait for.
import { lookup } from 'node:dns/promises'
import { canonicalIp, parseTarget } from '../base/addresses.ts'
import { own } from '../base/own.ts'
import type { Config } from '../config/schema.ts'
import { configuredRoutes } from '../plan/default.ts'

const RESOLVE_MS_MAX = 2000

/** name → addresses, sorted. A name that does not resolve now keeps the addresses it had in `before`. */
export async function resolveNames(
  config: Config,
  before: Record<string, string[]>,
): Promise<Record<string, string[]>> {
  const names = new Set(
    configuredRoutes(config)
      .flatMap((route) => (route.action.type === 'forward' ? route.action.targets : []))
      .flatMap((target) => {
        const host = parseTarget(target.host)
        return host?.kind === 'name' ? [host.name] : []
      }),
  )
  const resolved: Record<string, string[]> = {}
  await Promise.all(
    [...names].map(async (name) => {
      const addresses = (await addressesOf(name)) ?? own(before, name)
      if (addresses) resolved[name] = addresses
    }),
  )
  return resolved
}

async function addressesOf(name: string): Promise<string[] | null> {
  const deadline = Promise.withResolvers<null>()
  const timer = setTimeout(() => deadline.resolve(null), RESOLVE_MS_MAX)
  const found = await Promise.race([lookup(name, { all: true }).catch(() => null), deadline.promise])
  clearTimeout(timer)
  return found && [...new Set(found.map((entry) => canonicalIp(entry.address)))].toSorted()
}
