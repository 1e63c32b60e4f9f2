// What a change of the configuration means: what cannot change under a running gateway, what did, and how it is refused.
import type { Problem } from '../config/check.ts'
import type { Config } from '../config/schema.ts'
import type { Plan } from '../plan/types.ts'

/** A start or a change that cannot be done; nothing of it was. */
export class GatewayError extends Error {
  override name = 'GatewayError'
}

/** The same, with the places in the configuration that are to blame. */
export class ProblemsError extends GatewayError {
  constructor(readonly problems: Problem[]) {
    super(problems.map((problem) => `${problem.path}: ${problem.message}`).join('; '))
  }
}

/** What is opened once at the start and cannot change under a running gateway. */
export function fixedChanges(before: Config, after: Config): Problem[] {
  const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)
  const remedy = 'restart the gateway for this change'
  return (['kernel', 'admin', 'stateDir', 'log', 'workers', 'store'] as const)
    .filter((field) => !same(before[field], after[field]))
    .map((path) => ({ path, message: 'cannot change while the gateway runs', remedy }))
}

export function changesOf(before: Plan, after: Plan): Record<string, string[]> {
  // A reason may change with the machine while the route does not.
  const text = (route: Plan['routes'][number]) => JSON.stringify({ ...route, reason: '' })
  const old = new Map(before.routes.map((route) => [route.name, text(route)]))
  const changes: Record<'added' | 'removed' | 'changed' | 'untouched', string[]> = {
    added: [],
    removed: [],
    changed: [],
    untouched: [],
  }
  for (const route of after.routes) {
    const was = old.get(route.name)
    changes[was === undefined ? 'added' : was === text(route) ? 'untouched' : 'changed'].push(route.name)
    old.delete(route.name)
  }
  changes.removed = [...old.keys()]
  return changes
}
