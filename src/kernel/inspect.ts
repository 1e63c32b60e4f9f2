// What "sluice doctor" asks of nft: whether this kernel takes our kind of rules, and other people's chains at the forward hook.
// It changes nothing. Chains only, one at a time: listing the sets of a newer nft can crash this one, and a crash is an answer.
import { chainsToRead, type Listed, type Ours } from './forward-chains.ts'
import { nft, run, type Result } from './nft.ts'

/** One nft each: what sees forwarded packets is some ten chains beside docker and firewalld. Above: it is said that the others were not read. */
const CHAINS_MAX = 64
/** Enough of nft's message to understand it. */
const MESSAGE_CHARS_MAX = 200

const endOf = ({ exitCode, signal, stderr }: Result) =>
  stderr
    .split('\n')
    .find((line) => /error/i.test(line))
    ?.slice(0, MESSAGE_CHARS_MAX) ?? (signal ? `nft crashed (${signal})` : `nft ended with ${exitCode}`)

/** The version of nft, or why there is none. */
export const nftVersion = (): Promise<string | { error: string }> =>
  nft.version().catch((error: Error) => ({ error: error.message }))

/** Every kind of expression that nft/sluice.nft cannot do without. */
const PROBE = `table inet sluice_probe {
	map target { typeof ct mark : ip daddr . th dport; }
	map slot { typeof ct mark . numgen random mod 256 : ip daddr . th dport; }
	ct timeout quiet { protocol tcp; l3proto ip; policy = { established: 14400 }; }
	set clients { typeof ct mark . ip saddr; size 16; flags dynamic; }
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local ct mark set 1 ct event set new,destroy
		add @clients { ct mark . ip saddr ct count over 1 } reject
		meta l4proto { tcp, udp } dnat ip to ct mark map @target
		meta l4proto tcp dnat ip to ct mark . jhash ip saddr mod 256 map @slot
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat masquerade
	}
	chain quiet {
		type filter hook prerouting priority mangle; policy accept;
		meta l4proto tcp ct timeout set "quiet"
	}
}
`

/** Why this kernel, or this nft, does not take rules like ours; null when it does. They are checked, and not applied. */
export async function probeRules(): Promise<string | null> {
  const result = await run(['-c', '-f', '-'], PROBE)
  return result.exitCode === 0 ? null : endOf(result)
}

/** All chains, and the rules of those that forwarded packets come to. `problems`: what could not be read, in words. */
export async function readForwardChains(ours: Ours): Promise<{ items: Listed[]; problems: string[] }> {
  const chains = await run(['-j', 'list', 'chains'])
  if (chains.exitCode !== 0) return { items: [], problems: [`the chains cannot be listed: ${endOf(chains)}`] }
  const items = listed(chains.stdout)
  const problems: string[] = []
  const read = new Set<string>()
  for (;;) {
    const next = chainsToRead(items, ours).find((chain) => !read.has(keyOf(chain)))
    if (!next) return { items, problems }
    if (read.size >= CHAINS_MAX) {
      problems.push(`more than ${CHAINS_MAX} chains see forwarded packets; the others were not read`)
      return { items, problems }
    }
    read.add(keyOf(next))
    const { rules, problem } = await readRules(next)
    items.push(...rules)
    if (problem) problems.push(`chain ${next.chain} of table ${next.family} ${next.table} cannot be read: ${problem}`)
  }
}

interface ChainName {
  family: string
  table: string
  chain: string
}
const keyOf = ({ family, table, chain }: ChainName) => `${family} ${table} ${chain}`
const listed = (stdout: string) => (JSON.parse(stdout) as { nftables: Listed[] }).nftables

async function readRules({ family, table, chain }: ChainName): Promise<{ rules: Listed[]; problem?: string }> {
  const result = await run(['-j', 'list', 'chain', family, table, chain])
  if (result.exitCode !== 0) return { rules: [], problem: endOf(result) }
  const rules = listed(result.stdout).filter(({ rule }) => rule !== undefined)
  // What iptables made has its values in the text only.
  if (!rules.some(({ rule }) => rule!.expr.some((statement) => 'xt' in statement))) return { rules }
  const text = await run(['-a', 'list', 'chain', family, table, chain])
  if (text.exitCode !== 0) return { rules, problem: endOf(text) }
  const byHandle = new Map(
    text.stdout.split('\n').flatMap((line) => {
      const handle = /# handle (\d+)$/.exec(line)?.[1]
      return handle === undefined ? [] : [[Number(handle), line.trim()] as const]
    }),
  )
  return {
    rules: rules.map(({ rule }) => {
      const line = byHandle.get(rule!.handle)
      const ofIptables = rule!.expr.some((statement) => 'xt' in statement)
      return { rule: ofIptables && line !== undefined ? { ...rule!, text: line } : rule! }
    }),
  }
}
