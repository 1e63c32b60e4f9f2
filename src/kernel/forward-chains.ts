// Other people's chains at the forward hook that would drop what the kernel forwards for us, and the words that mend it. They
// are never edited by us: whoever made them may make them anew at any moment. Pure.

/** What `nft -j` lists, as far as it is looked at. */
export interface ListedChain {
  family: string
  table: string
  name: string
  hook?: string
  policy?: string
}
export interface ListedRule {
  family: string
  table: string
  chain: string
  handle: number
  expr: Statement[]
  /** The rule as nft prints it, where iptables made it: in JSON its matches have a name but no values. */
  text?: string
}
export type Listed = { chain?: ListedChain; rule?: ListedRule }
type Statement = Record<string, unknown>

export interface Ours {
  tables: string[]
  /** Top byte of our conntrack marks, such as 0x51000000. */
  base: number
  /** The program iptables is there. */
  iptables: boolean
}

export interface ForwardFinding {
  family: string
  table: string
  chain: string
  /** What drops: "policy drop", or a rule of this or another chain. */
  drops: string
  madeBy: 'docker' | 'firewalld' | 'ufw' | 'iptables' | null
  /** To be typed as they are; together they let our flows through. */
  commands: string[]
  /** How that lasts. */
  note: string
}

/** The kernel's own limit for jumps within jumps. */
const DEPTH_MAX = 16
/** bridge and netdev chains see frames, not what is routed. */
const FAMILIES = ['ip', 'ip6', 'inet']

const chainsOf = (items: Listed[]) => items.flatMap(({ chain }) => (chain ? [chain] : []))
const rulesOf = (items: Listed[]) => items.flatMap(({ rule }) => (rule ? [rule] : []))

export const foreignForwardChains = (items: Listed[], ours: Ours): ListedChain[] =>
  chainsOf(items).filter(
    ({ family, table, hook }) =>
      hook === 'forward' &&
      FAMILIES.includes(family) &&
      !(family === 'inet' && ours.tables.some((own) => table === own || table === `${own}_anchor`)),
  )

/** Chains that every packet at the forward hook may come to, as far as the rules are known: those have to be read. */
export function chainsToRead(items: Listed[], ours: Ours): Omit<ListedRule, 'expr' | 'handle'>[] {
  const found = foreignForwardChains(items, ours).map(({ family, table, name }) => ({ family, table, chain: name }))
  const seen = new Set(found.map(({ family, table, chain }) => `${family} ${table} ${chain}`))
  const rules = rulesOf(items)
  for (const { family, table, chain } of found)
    for (const rule of rules) {
      if (rule.family !== family || rule.table !== table || rule.chain !== chain || isConditional(rule)) continue
      const target = targetOf(rule)
      if (target === undefined || seen.has(`${family} ${table} ${target}`)) continue
      seen.add(`${family} ${table} ${target}`)
      found.push({ family, table, chain: target })
    }
  return found
}

export function foreignForwardFindings(items: Listed[], ours: Ours): ForwardFinding[] {
  return foreignForwardChains(items, ours).flatMap((chain) => {
    const drops = whatDrops(chain, items, ours)
    if (drops === null) return []
    const { family, table, name } = chain
    return [{ family, table, chain: name, drops, ...mend(chain, items, ours) }]
  })
}

// ---- what happens to a packet of ours ----

type Outcome = 'passes' | 'returns' | { drops: string }

function whatDrops(base: ListedChain, items: Listed[], ours: Ours): string | null {
  const outcome = walk(base.name, 0)
  if (typeof outcome === 'object') return outcome.drops
  return outcome === 'returns' && base.policy === 'drop' ? 'policy drop' : null

  function walk(chain: string, depth: number): Outcome {
    if (depth > DEPTH_MAX) return 'returns'
    for (const rule of rulesOf(items)) {
      if (rule.family !== base.family || rule.table !== base.table || rule.chain !== chain) continue
      if (acceptsOurs(rule, ours.base)) return 'passes'
      const verdict = verdictOf(rule)
      if (stopsTcp(rule)) return { drops: ruleText(chain, `${verdict}" for TCP`) }
      if (isConditional(rule)) continue
      if (verdict === 'accept') return 'passes'
      if (verdict === 'return') return 'returns'
      if (verdict === 'drop' || verdict === 'reject') return { drops: ruleText(chain, `${verdict}"`) }
      const target = targetOf(rule)
      if (target === undefined) continue
      const outcome = walk(target, depth + 1)
      if (outcome !== 'returns' || verdict === 'goto') return outcome
    }
    return 'returns'
  }

  function ruleText(chain: string, rule: string): string {
    return chain === base.name ? `its rule "${rule}` : `the rule "${rule} of chain ${chain}`
  }
}

const VERDICTS = ['accept', 'drop', 'reject', 'return', 'jump', 'goto'] as const
/** Statements that do something and let every packet go on to the next one. */
const HARMLESS = [...VERDICTS, 'counter', 'log', 'mangle', 'flow', 'notrack']

const xtOf = (statement: Statement) => statement['xt'] as { type?: string; name?: string } | null | undefined

function verdictOf(rule: ListedRule): (typeof VERDICTS)[number] | undefined {
  for (const statement of rule.expr) {
    const found = VERDICTS.find((verdict) => verdict in statement)
    if (found) return found
    const xt = xtOf(statement)
    if (xt?.type === 'target' && (xt.name === 'REJECT' || xt.name === 'DROP'))
      return xt.name === 'DROP' ? 'drop' : 'reject'
  }
  return undefined
}

function targetOf(rule: ListedRule): string | undefined {
  for (const statement of rule.expr) {
    const to = (statement['jump'] ?? statement['goto']) as { target?: string } | undefined
    if (to) return to.target
  }
  return undefined
}

/** Not for every packet: a match, a limit, a verdict map. */
const isConditional = (rule: ListedRule) => rule.expr.some((statement) => !isHarmless(statement))

/** "reject with tcp reset" is for TCP by its nature, and nft says so before it. */
function stopsTcp(rule: ListedRule): boolean {
  const verdict = verdictOf(rule)
  const conditions = rule.expr.filter((statement) => !isHarmless(statement))
  const isTcp = ({ match }: Statement) => same(match, { op: '==', left: { meta: { key: 'l4proto' } }, right: 'tcp' })
  return (verdict === 'drop' || verdict === 'reject') && conditions.length > 0 && conditions.every(isTcp)
}

const isHarmless = (statement: Statement) =>
  'xt' in statement ? xtOf(statement)?.type === 'target' : Object.keys(statement).every((key) => HARMLESS.includes(key))

/** Accepts all that carries our mark, or all that is DNATed: what else it asks for would have to be ours as well. */
function acceptsOurs(rule: ListedRule, base: number): boolean {
  if (verdictOf(rule) !== 'accept') return false
  if (rule.text !== undefined) return acceptsOursText(rule.text, base)
  const conditions = rule.expr.filter((statement) => !isHarmless(statement))
  return conditions.length > 0 && conditions.every(({ match }) => isOurMark(match, base) || isDnat(match))
}

function acceptsOursText(text: string, base: number): boolean {
  const words = text.replace(/counter packets \d+ bytes \d+ ?|comment "[^"]*" ?|# handle \d+/g, '').trim()
  const mark = `ct mark (?:and|&) ${MASK} == ${hex(base)}`
  return new RegExp(`^(?:${mark}(?: ct status dnat)?|ct status dnat(?: ${mark})?) accept$`).test(words)
}

interface Match {
  op?: string
  left?: unknown
  right?: unknown
}
const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)

function isOurMark(match: unknown, base: number): boolean {
  const { op, left, right } = (match ?? {}) as Match
  if (op !== '==') return false
  const mark = { ct: { key: 'mark' } }
  return (
    (same(left, mark) && same(right, { prefix: { addr: base, len: 8 } })) ||
    (same(left, { '&': [mark, 0xff000000] }) && right === base)
  )
}

function isDnat(match: unknown): boolean {
  const { op, left, right } = (match ?? {}) as Match
  const status = { ct: { key: 'status' } }
  return (
    (op === 'in' && same(left, status) && [right].flat().includes('dnat')) ||
    (op === '==' && same(left, { '&': [status, 'dnat'] }) && right === 'dnat')
  )
}

// ---- what lets it through ----

const MASK = '0xff000000'
const hex = (base: number) => `0x${base.toString(16).padStart(8, '0')}`

function mend(chain: ListedChain, items: Listed[], ours: Ours): Pick<ForwardFinding, 'madeBy' | 'commands' | 'note'> {
  const { family, table, name } = chain
  const beside = chainsOf(items)
    .filter((other) => other.family === family && other.table === table)
    .map((other) => other.name)
  if (table === 'firewalld')
    return {
      madeBy: 'firewalld',
      // Its table may have an owner, which lets nobody else add a rule.
      commands: [
        "sed -i 's/^StrictForwardPorts=.*/StrictForwardPorts=no/' /etc/firewalld/firewalld.conf",
        'firewall-cmd --reload',
      ],
      note: 'firewalld then accepts what is DNATed ("ct status dnat accept"), and goes on doing so',
    }
  // A rule of nft's in such a table would keep iptables from reading it.
  const byIptables = ours.iptables && table === 'filter' && name === 'FORWARD' && family !== 'inet'
  if (!byIptables)
    return {
      madeBy: null,
      commands: [
        `nft 'insert rule ${family} ${table} ${name} ct mark and ${MASK} == ${hex(ours.base)} ct status dnat accept comment "sluice"'`,
      ],
      note: 'put the same rule where this chain is made (often /etc/nftables.conf), or it is gone with the next load',
    }
  const program = family === 'ip' ? 'iptables' : 'ip6tables'
  const rule = (into: string) => `${into} -m connmark --mark ${hex(ours.base)}/${MASK} -j ACCEPT`
  if (beside.includes('DOCKER-USER'))
    return {
      madeBy: 'docker',
      commands: [`${program} -I ${rule('DOCKER-USER')}`],
      note: 'docker keeps what is in DOCKER-USER; after a reboot it has to be added again, after docker has started',
    }
  const ufw = family === 'ip' ? 'ufw-before-forward' : 'ufw6-before-forward'
  if (beside.includes(ufw))
    return {
      madeBy: 'ufw',
      commands: [`${program} -I ${rule(ufw)}`],
      note: `put "-A ${rule(ufw)}" before COMMIT in /etc/ufw/${family === 'ip' ? 'before' : 'before6'}.rules, or it is gone with the next "ufw reload"`,
    }
  return {
    madeBy: 'iptables',
    commands: [`${program} -I ${rule('FORWARD')}`],
    note: `"netfilter-persistent save" keeps it where that is installed`,
  }
}
