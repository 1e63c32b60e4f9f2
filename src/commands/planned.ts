// The plan of a configuration on this machine, without a gateway.
import type { Config } from '../config/schema.ts'
import { resolveNames } from '../control/names.ts'
import { knownNumbers, probeKernel, programVersion } from '../kernel/index.ts'
import { DEFAULT_MARK_BASE, noFacts, plan } from '../plan/plan.ts'
import type { Facts, Plan } from '../plan/types.ts'

export interface Planned {
  plan: Plan
  facts: Facts
  /** Name of our table. */
  table: string
}

export async function planned(config: Config): Promise<Planned> {
  const { unusable } = await probeKernel()
  const table = config.kernel?.table ?? 'sluice'
  const markBase = config.kernel?.markBase ?? DEFAULT_MARK_BASE
  const facts = {
    ...noFacts(markBase, programVersion),
    kernelUnusable: unusable,
    // Those of a gateway that runs, so that what is shown is what a reload would do.
    numbers: unusable ? {} : await knownNumbers(table, markBase),
    resolved: await resolveNames(config, {}),
  }
  return { plan: plan(config, facts), facts, table }
}
