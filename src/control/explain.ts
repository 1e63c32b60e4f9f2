// What "sluice explain" says of a running gateway: the plan's answer, with what the machine and the live connections add to it.
import { networkInterfaces } from 'node:os'
import { canonicalIp, parseEnd } from '../base/addresses.ts'
import { own } from '../base/own.ts'
import { inTurns } from '../base/turns.ts'
import type { ConnectionRecord } from '../connections/record.ts'
import { foreignForwardFindings, readForwardChains } from '../kernel/index.ts'
import type { ExplainAnswer } from '../observe/admin.ts'
import { parseAsked } from '../plan/asked.ts'
import { explain } from '../plan/explain.ts'
import type { Now } from '../plan/explanation.ts'
import type { Facts, KernelState, Plan } from '../plan/types.ts'

export interface Explained {
  plan: Plan
  facts: Facts
  kernel: KernelState | null
  kernelReason: string | null
  problems: Record<string, string>
  /** Name of our table. */
  table: string
  connections(): Promise<ConnectionRecord[]>
}

const RECORDS_PER_TURN = 2000

export async function explainNow(
  client: string,
  listener: string,
  serverName: string | null,
  known: Explained,
): Promise<ExplainAnswer> {
  const asked = parseAsked(client, listener, serverName)
  if ('error' in asked) return { ok: false, error: asked.error }
  const { plan, facts, kernel, kernelReason, problems } = known
  const now: Now = { kernel, kernelReason, problems, addresses: ownAddresses(), counts: null, foreign: [] }
  const first = explain(plan, facts, asked, now)
  // What costs something is asked for only where it can change the answer.
  if (isLimited(plan, first.route)) now.counts = await counted(known, asked.client)
  if (first.carrier === 'kernel') now.foreign = await foreignDrops(known)
  return { ok: true, explanation: explain(plan, facts, asked, now) }
}

export const ownAddresses = (): ReadonlySet<string> =>
  new Set(
    Object.values(networkInterfaces())
      .flatMap((all) => all ?? [])
      .map(({ address }) => canonicalIp(address.split('%')[0]!)),
  )

export async function foreignDrops({ table, facts }: Pick<Explained, 'table' | 'facts'>): Promise<Now['foreign']> {
  const ours = { tables: [table], base: facts.markBase, iptables: Bun.which('iptables') !== null }
  const { items } = await readForwardChains(ours)
  return foreignForwardFindings(items, ours)
}

function isLimited({ limits, routes }: Plan, name: string | null): boolean {
  const ofRoute = routes.find((route) => route.name === name)?.user.security
  return [limits, ofRoute].some((one) => one && (one.maxConnections !== null || one.maxConnectionsPerIp !== null))
}

/** By route, and of all routes: ''. */
async function counted({ connections }: Explained, client: string): Promise<NonNullable<Now['counts']>> {
  const counts: NonNullable<Now['counts']> = {}
  await inTurns(await connections(), RECORDS_PER_TURN, (record) => {
    const isClients = parseEnd(record.client).ip === client
    for (const name of ['', record.route]) {
      const count = (counts[name] = own(counts, name) ?? { now: 0, ofClient: 0 })
      count.now++
      if (isClients) count.ofClient++
    }
  })
  return counts
}
