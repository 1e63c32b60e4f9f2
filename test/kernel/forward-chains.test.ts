// Other people's forward chains, as nft 1.0.6 listed them (listings/*.json: docker 28, ufw 0.36 and plain iptables through
// iptables-nft 1.8.9, firewalld's own table): which of them drop what is ours, and what lets it through.
import { expect, test } from 'bun:test'
import {
  chainsToRead,
  foreignForwardFindings,
  type ForwardFinding,
  type Listed,
  type Ours,
} from '../../src/kernel/forward-chains.ts'

const ours: Ours = { tables: ['sluice'], base: 0x51000000, iptables: true }
const recorded = (name: string): Promise<Listed[]> => Bun.file(`${import.meta.dir}/listings/${name}.json`).json()
const brief = (findings: ForwardFinding[]) =>
  findings.map(({ family, table, chain, drops, madeBy, commands }) => [
    `${family} ${table} ${chain}: ${drops}`,
    madeBy,
    ...commands,
  ])

test('H17: docker: policy drop is found, DOCKER-USER is where the rule goes, and with it all is well', async () => {
  expect(brief(foreignForwardFindings(await recorded('docker'), ours))).toEqual([
    [
      'ip filter FORWARD: policy drop',
      'docker',
      'iptables -I DOCKER-USER -m connmark --mark 0x51000000/0xff000000 -j ACCEPT',
    ],
  ])
  expect(foreignForwardFindings(await recorded('docker-mended'), ours)).toEqual([])
  // The rule lets another gateway's mark through, not ours.
  expect(foreignForwardFindings(await recorded('docker-mended'), { ...ours, base: 0x52000000 })).toHaveLength(1)
})

test('H17: ufw: its own chain, its own file', async () => {
  const findings = foreignForwardFindings(await recorded('ufw'), ours)
  expect(brief(findings)).toEqual([
    [
      'ip filter FORWARD: policy drop',
      'ufw',
      'iptables -I ufw-before-forward -m connmark --mark 0x51000000/0xff000000 -j ACCEPT',
    ],
  ])
  expect(findings[0]!.note).toContain('/etc/ufw/before.rules')
  expect(foreignForwardFindings(await recorded('ufw-mended'), ours)).toEqual([])
})

test('H17: firewalld accepts what is DNATed, unless it is told to be strict', async () => {
  expect(foreignForwardFindings(await recorded('firewalld'), ours)).toEqual([])
  expect(brief(foreignForwardFindings(await recorded('firewalld-strict'), ours))).toEqual([
    [
      'inet firewalld filter_FORWARD: its rule "reject"',
      'firewalld',
      "sed -i 's/^StrictForwardPorts=.*/StrictForwardPorts=no/' /etc/firewalld/firewalld.conf",
      'firewall-cmd --reload',
    ],
  ])
})

test('H17: rules of iptables that end in a drop, in both families; without the program iptables, nft is what there is', async () => {
  const listing = await recorded('iptables')
  expect(brief(foreignForwardFindings(listing, ours))).toEqual([
    [
      'ip filter FORWARD: its rule "reject"',
      'iptables',
      'iptables -I FORWARD -m connmark --mark 0x51000000/0xff000000 -j ACCEPT',
    ],
    [
      'ip6 filter FORWARD: its rule "drop"',
      'iptables',
      'ip6tables -I FORWARD -m connmark --mark 0x51000000/0xff000000 -j ACCEPT',
    ],
  ])
  expect(brief(foreignForwardFindings(listing, { ...ours, iptables: false })).map((one) => one.slice(1))).toEqual([
    [
      null,
      `nft 'insert rule ip filter FORWARD ct mark and 0xff000000 == 0x51000000 ct status dnat accept comment "sluice"'`,
    ],
    [
      null,
      `nft 'insert rule ip6 filter FORWARD ct mark and 0xff000000 == 0x51000000 ct status dnat accept comment "sluice"'`,
    ],
  ])
})

// ---- small rulesets ----

const base = (policy: string, more: object = {}): Listed => ({
  chain: { family: 'inet', table: 'filter', name: 'forward', hook: 'forward', policy, ...more },
})
let handles = 0
const rule = (...expr: object[]): Listed => ruleOf('forward', ...expr)
const ruleOf = (chain: string, ...expr: object[]): Listed => ({
  rule: { family: 'inet', table: 'filter', chain, handle: ++handles, expr: expr as Record<string, unknown>[] },
})
const match = (left: object, right: unknown, op = '==') => ({ match: { op, left, right } })
const [mark, status, state] = ['mark', 'status', 'state'].map((key) => ({ ct: { key } })) as [object, object, object]
const ourMark = match(mark, { prefix: { addr: 0x51000000, len: 8 } })
const dnat = match(status, 'dnat', 'in')
const accept = { accept: null }
const counter = { counter: { packets: 1, bytes: 2 } }
const found = (...items: Listed[]) => foreignForwardFindings(items, ours).map(({ drops }) => drops)

test('H17: policy drop, and every spelling of a rule that lets ours through', () => {
  expect(found(base('drop'))).toEqual(['policy drop'])
  expect(found(base('accept'))).toEqual([])
  for (const good of [
    [ourMark, dnat, accept],
    [ourMark, counter, accept],
    [dnat, accept],
    [match(status, ['snat', 'dnat'], 'in'), accept],
    [match({ '&': [status, 'dnat'] }, 'dnat'), accept],
    [match({ '&': [mark, 0xff000000] }, 0x51000000), { log: { prefix: 'ours' } }, accept],
    [accept],
  ])
    expect([good, found(base('drop'), rule(...good))]).toEqual([good, []])
  for (const bad of [
    [match(state, { set: ['established', 'related'] }), accept],
    [match(mark, { prefix: { addr: 0x52000000, len: 8 } }), accept],
    [match(mark, { prefix: { addr: 0x51000000, len: 8 } }, '!='), accept],
    [match(status, 'snat', 'in'), accept],
    [ourMark, match({ meta: { key: 'iifname' } }, 'eth0'), accept],
    [ourMark, { limit: { rate: 3, per: 'second' } }, accept],
    [ourMark, counter],
    [{ vmap: { key: state, data: { set: [] } } }],
  ])
    expect([bad, found(base('drop'), rule(...bad))]).toEqual([bad, ['policy drop']])
})

test('H17: rules count in their order, and jumps that every packet takes are followed', () => {
  const drop = rule({ log: { prefix: 'x' } }, counter, { drop: null })
  expect(found(base('accept'), drop)).toEqual(['its rule "drop"'])
  expect(found(base('accept'), rule(dnat, accept), drop)).toEqual([])
  expect(found(base('accept'), drop, rule(dnat, accept))).toEqual(['its rule "drop"'])
  expect(found(base('accept'), rule(match(state, 'invalid', 'in'), { drop: null }))).toEqual([])
  const jump = rule(counter, { jump: { target: 'last' } })
  expect(found(base('accept'), jump, ruleOf('last', { reject: null }))).toEqual(['the rule "reject" of chain last'])
  expect(found(base('drop'), jump, ruleOf('last', dnat, accept))).toEqual([])
  expect(found(base('accept'), jump, ruleOf('last', { return: null }), ruleOf('last', { drop: null }))).toEqual([])
  // What follows a goto is never reached.
  const goto = rule({ goto: { target: 'last' } })
  expect(found(base('drop'), goto, rule(dnat, accept))).toEqual(['policy drop'])
  // nft refuses circles; a listing may have been read while it changed.
  expect(found(base('drop'), jump, ruleOf('last', { jump: { target: 'last' } }))).toEqual(['policy drop'])
})

test('our own tables, other hooks and families are no business of this', () => {
  expect(found(base('drop', { table: 'sluice' }), base('drop', { table: 'sluice_anchor' }))).toEqual([])
  expect(found(base('drop', { family: 'bridge' }), base('drop', { hook: 'input' }))).toEqual([])
  expect(found(base('drop', { family: 'ip', table: 'sluice' }))).toEqual(['policy drop'])
})

test('chains are read as far as every packet comes, each once', () => {
  const items = [
    base('drop'),
    base('drop', { name: 'other', hook: 'input' }),
    rule({ jump: { target: 'a' } }),
    rule(dnat, { jump: { target: 'b' } }),
    ruleOf('a', { goto: { target: 'forward' } }),
    ruleOf('a', { jump: { target: 'c' } }),
    ruleOf('c', { jump: { target: 'a' } }),
  ]
  expect(chainsToRead(items, ours).map(({ chain }) => chain)).toEqual(['forward', 'a', 'c'])
})

test('H17: a rule that stops all of TCP does, one that lets it through says nothing of UDP', () => {
  const tcp = { match: { op: '==', left: { meta: { key: 'l4proto' } }, right: 'tcp' } }
  const udp = { match: { op: '==', left: { meta: { key: 'l4proto' } }, right: 'udp' } }
  const drops = (...rules: Record<string, unknown>[][]) => {
    const where = { family: 'inet', table: 'fw' }
    const chain = { ...where, name: 'forward', hook: 'forward', policy: 'accept' }
    const listed = rules.map((expr, handle) => ({ rule: { ...where, chain: 'forward', handle, expr } }))
    return foreignForwardFindings([{ chain }, ...listed], ours).map((finding) => finding.drops)
  }
  expect(drops([tcp, { reject: { type: 'tcp reset' } }])).toEqual(['its rule "reject" for TCP'])
  expect(drops([tcp, { counter: null }, { drop: null }])).toEqual(['its rule "drop" for TCP'])
  expect(drops([udp, { drop: null }])).toEqual([])
  expect(drops([tcp, { accept: null }], [{ drop: null }])).toEqual(['its rule "drop"'])
})
