// The small chains that verdicts of the static program jump to, one for each different number that nft wants inside a rule.
// Everything about a chain is in its name, so a name is all that a plan, a listing or a comparison needs. Pure.

/** Commands that make the chain where there is none; null when the name is none of ours. */
export function makeChain(table: string, name: string): string[] | null {
  const rules = rulesOf(name)
  if (!rules) return null
  return [
    ...(rules.object ? [`add ct timeout inet ${table} ${objectOf(name)} { ${rules.object} }`] : []),
    `add chain inet ${table} ${name}`,
    ...rules.rules.map((rule) => `add rule inet ${table} ${name} ${rule}`),
  ]
}

/** Commands that remove it, after everything that jumps to it. */
export const removeChain = (table: string, name: string): string[] => [
  `delete chain inet ${table} ${name}`,
  ...(rulesOf(name)?.object ? [`delete ct timeout inet ${table} ${objectOf(name)}`] : []),
]

export const isGenerated = (name: string) => rulesOf(name) !== null

/** "jump client_max_20" → "client_max_20"; undefined when the verdict names a chain of the static program, or none. */
export function generatedIn(verdict: string): string | undefined {
  const name = /^(?:jump|goto) (\w+)$/.exec(verdict)?.[1]
  return name !== undefined && isGenerated(name) ? name : undefined
}

/** A ct timeout object has the name of its chain without the first word: "timeout_tcp_…" sets "tcp_…". */
const objectOf = (chain: string) => chain.replace(/^timeout_/, '')

type Rules = { rules: string[]; object?: string }

function rulesOf(name: string): Rules | null {
  for (const [shape, make] of KINDS) {
    const found = shape.exec(name)
    if (found) return make(found)
  }
  return null
}

const KINDS: [RegExp, (found: RegExpExecArray) => Rules][] = [
  // turn_ROUTE_SLOTS4_SLOTS6: numgen counts for each rule, so a route whose targets take turns has rules of its own.
  [/^turn_\d+_(\d+)_(\d+)(_keep|_udp)?$/, ([, four, six, kind]) => slots('numgen inc', 'numgen inc', four!, six!, kind)],
  [/^hash_(\d+)_(\d+)(_keep|_udp)?$/, ([, four, six, kind]) => slots('jhash ip saddr', 'jhash ip6 saddr', four!, six!, kind, SEED)],
  [/^client_max_(\d+)$/, ([, count]) => perClient('clients', `ct mark . ${count}`, over(count!), 'refuse_route_ip_limit')],
  [/^client_max_all_(\d+)$/, ([, count]) => perClient('clients_all', `${count}`, over(count!), 'refuse_global_ip_limit')],
  [/^client_rate_(\d+)_(second|minute|hour)$/, ([, count, unit]) => perClient('rates', `ct mark . ${count} . ${SECONDS[unit!]}`, bucket(count!, unit!), 'refuse_route_rate')],
  [/^client_rate_all_(\d+)_(second|minute|hour)$/, ([, count, unit]) => perClient('rates_all', `${count} . ${SECONDS[unit!]}`, bucket(count!, unit!), 'refuse_global_rate')],
  [/^timeout_tcp_(\d+)_(\d+)_(\d+)$/, ([name, idle, half, connect]) => timeouts(name, 'tcp', tcpTimeouts(Number(idle), Number(half), Number(connect)))],
  [/^timeout_udp_(\d+)$/, ([name, idle]) => timeouts(name, 'udp', { unreplied: Math.min(30, Number(idle)), replied: Number(idle) })],
] // prettier-ignore

/** Without a seed of ours the kernel draws one whenever it gets the rule: a larger table, or our table loaded again, would
 *  send every client elsewhere. */
const SEED = ' seed 0x51'

/** @param kind whose slots: with a port of their own, TCP or UDP, or keeping the client's port. */
function slots(choose4: string, choose6: string, four: string, six: string, kind = '', seed = ''): Rules {
  const protocol = kind === '_keep' ? '' : kind === '_udp' ? 'meta l4proto udp ' : 'meta l4proto tcp '
  const rule = (ip: string, choose: string, count: string, family: number) =>
    `${protocol}dnat ${ip} to ct mark . ${choose} mod ${count}${seed} map @slot${kind}${family}`
  return {
    rules: [
      ...(four === '0' ? [] : [rule('ip', choose4, four, 4)]),
      ...(six === '0' ? [] : [rule('ip6', choose6, six, 6)]),
    ],
  }
}

const SECONDS: Record<string, number> = { second: 1, minute: 60, hour: 3600 }

const over = (count: string) => `ct count over ${count}`

/** A bucket that holds as many as may come at once, filled at the rate: src/user/security.ts counts the same way. */
const bucket = (count: string, unit: string) => `limit rate over ${count}/${unit} burst ${count} packets`

/** The limit is part of the key: an element keeps the one it was made with, for as long as its client comes again.
 *  `add` keeps the element while it has connections; a bucket is forgotten an hour after its last use, when it is full again. */
function perClient(set: string, key: string, statement: string, refuse: string): Rules {
  const verb = statement.startsWith('limit') ? 'update' : 'add'
  return {
    rules: [
      `${verb} @${set}4 { ${key} . ip saddr ${statement} } jump ${refuse}`,
      `${verb} @${set}6 { ${key} . ip6 saddr ${statement} } jump ${refuse}`,
    ],
  }
}

const timeouts = (chain: string, protocol: string, policy: Record<string, number>): Rules => ({
  object: `protocol ${protocol}; l3proto inet; policy = { ${Object.entries(policy)
    .map(([state, seconds]) => `${state} : ${seconds}`)
    .join(', ')} };`,
  rules: [`ct timeout set "${objectOf(chain)}"`],
})

/** Never below the kernel's defaults for states that pass by themselves (net.netfilter.nf_conntrack_tcp_timeout_*). */
const tcpTimeouts = (idle: number, half: number, connect: number) => ({
  syn_sent: Math.max(120, connect),
  syn_recv: Math.max(60, connect),
  established: idle,
  fin_wait: Math.max(120, half),
  close_wait: Math.max(60, half),
  last_ack: Math.max(30, half),
})
