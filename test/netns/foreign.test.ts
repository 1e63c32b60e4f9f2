// Others at the same kernel: they flush and delete, and no live flow notices; what is theirs we never touch.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { elements, foreignRules, forward, Gateway, tables, until } from './gateway.ts'
import { crowd, echoBackend, Talker, visitors } from './traffic.ts'
import { emulated } from '../support.ts'

/** Live flows while our table is taken away, and how many of them talk all the time. */
const FLOWS = emulated ? 100 : 1000
const BUSY = 50

const WAYS = {
  'nft flush ruleset': ['nft', 'flush', 'ruleset'],
  'nft delete table inet sluice': ['nft', 'delete', 'table', 'inet', 'sluice'],
}

for (const [name, command] of Object.entries(WAYS))
  test(`H10: ${name} under ${FLOWS} live flows: none reset, the table is back within a second, new ones served`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    await using gateway = await Gateway.start(lab, [
      forward('live', 8400, [{ host: lab.backend.address4, port: backend.port }]),
    ])
    const host = lab.gateway.clientSide4
    const before = await elements(lab.gateway)
    expect(await tables(lab.gateway)).toContain('table inet sluice_anchor')
    const idle: Talker[] = []
    while (idle.length < FLOWS - BUSY)
      idle.push(...(await Promise.all(Array.from({ length: 50 }, () => Talker.connect(lab.client, host, 8400)))))
    for (const talker of idle) await talker.say()
    const busy = await crowd(lab.client, host, 8400, BUSY, 5)
    const coming = visitors(lab.client, host, 8400)
    await until(async () => (await gateway.status()).connections.kernel >= FLOWS, 5000, 'all flows are listed')

    for (let round = 0; round < 3; round++) {
      const started = performance.now()
      await lab.gateway.must(command)
      // The rules are the same again, and so is what the gateway says of itself.
      await until(async () => Bun.deepEquals(await elements(lab.gateway), before), 5000, 'the table is back')
      console.log(`${name}: back after ${(performance.now() - started).toFixed(0)} ms`)
      await gateway.settled()
      const served = coming.served
      await until(() => coming.served > served + 3, 5000, 'new connections are served')
    }
    expect((await gateway.status()).kernel.drifts).toBe(3)
    for (const talker of idle) await talker.say('still here')
    expect(await busy.stop()).toEqual([])
    expect(await coming.stop()).toEqual([])
    for (const talker of idle) await talker.close()
    const records = await gateway.recordsOf(FLOWS + coming.served)
    expect(records.filter((record) => record.reason !== 'finished')).toEqual([])
    expect(backend.failures).toEqual([])
  }, 60_000)

test('H10: what is not ours is the same before, during and after: start, reload, kill, stop', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await lab.gateway.nft(`
    table inet foreign {
      set people { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }
      }
      chain input { type filter hook input priority filter; policy accept; tcp dport 9 counter drop
      }
      chain nat { type nat hook prerouting priority dstnat - 5; tcp dport 7777 dnat ip to ${lab.backend.address4}:${backend.port}
      }
    }
    table ip sluicegate { chain nothing { ct mark set 0x51000001
      }
    }`)
  const before = await foreignRules(lab.gateway)
  await using gateway = await Gateway.start(lab, [forward('ours', 8400, to)])
  expect(await foreignRules(lab.gateway)).toBe(before)
  gateway.write([forward('other', 8401, to)])
  await gateway.reload()
  await gateway.settled()
  expect(await foreignRules(lab.gateway)).toBe(before)
  // Its NAT works, and is no business of ours.
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 7777)
  await talker.say()
  expect(await gateway.connections()).toEqual([])
  await gateway.kill9()
  expect(await foreignRules(lab.gateway)).toBe(before)
  await gateway.restart()
  expect(await foreignRules(lab.gateway)).toBe(before)
  expect(await gateway.stop()).toBe(0)
  expect(await foreignRules(lab.gateway)).toBe(before)
  expect(await tables(lab.gateway)).toEqual(['table inet foreign', 'table ip sluicegate'])
  // We put ip_forward back to 0, as it was: that ends the forwarding of this one too, as it would have been without us.
  expect(lab.gateway.sysctl('net.ipv4.ip_forward')).toBe('0')
})

test('H10: an element that somebody adds or removes is repaired; the anchor, too, comes back', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  await using gateway = await Gateway.start(lab, [
    forward('ours', 8400, [{ host: lab.backend.address4, port: backend.port }]),
  ])
  const before = await elements(lab.gateway)
  for (const change of [
    'delete element inet sluice listen { tcp . 8400 }',
    'add element inet sluice listen { tcp . 9400 : 0x51000001 }',
  ]) {
    await lab.gateway.must(['nft', change])
    await until(async () => Bun.deepEquals(await elements(lab.gateway), before), 5000, `repaired: ${change}`)
  }
  const holder = (await lab.gateway.must(['pgrep', '-P', String(gateway.process.pid), '-f', 'nft -i'])).trim()
  process.kill(Number(holder), 'SIGKILL')
  await until(async () => (await tables(lab.gateway)).length === 1, 5000, 'the anchor goes with its holder')
  await until(async () => (await tables(lab.gateway)).length === 2, 5000, 'the anchor is back')
  expect(await gateway.stop()).toBe(0)
  expect(await tables(lab.gateway)).toEqual([])
})

/** Our table's rules and the declarations of its sets, without what they hold. */
const program = (lab: Lab) => lab.gateway.must(['nft', '-s', '-t', 'list', 'table', 'inet', 'sluice'])

test('H10: whatever somebody edits in our table is noticed, named in the log and repaired; flows go on', async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const to = [{ host: lab.backend.address4, port: backend.port }]
  await using gateway = await Gateway.start(lab, [
    forward('one', 8400, to, {}, { security: { ipBlockList: ['192.0.2.0/24'], maxConnections: 1000 } }),
    forward(
      'several',
      8401,
      [...to, { host: lab.backend.address4, port: 9 }],
      {},
      { security: { maxConnectionsPerIp: 5 } },
    ),
  ])
  const host = lab.gateway.clientSide4
  const [elementsBefore, programBefore] = [await elements(lab.gateway), await program(lab)]
  const edits: [string, RegExp][] = [
    ['flush table inet sluice', /chain refuse.*changed rules/],
    ['flush chain inet sluice route', /chain route.*changed rules/],
    ['delete rule inet sluice route handle GATE', /chain route.*changed rules/],
    ['add rule inet sluice route accept', /chain route.*changed rules/],
    ['insert rule inet sluice client_max_5 return', /chain client_max_5.*changed rules/],
    ['add chain inet sluice theirs', /chain theirs.*changed rules/],
    [
      'add chain inet sluice theirs { type filter hook forward priority 0; policy drop; }',
      /chain theirs.*changed rules/,
    ],
    ['add set inet sluice theirs { type ipv4_addr; }', /set theirs.*changed rules/],
    ['delete element inet sluice listen { tcp . 8400 }', /listen.*8400.*changed elements/],
    ['add element inet sluice block4 { 0x51000001 . 198.51.100.0/24 }', /block4.*198\.51\.100\.0.*changed elements/],
    ['delete element inet sluice slot4 { 0x51000002 . 3 }', /slot4.*changed elements/],
    ['flush map inet sluice target4', /target4.*changed elements/],
    ['delete table inet sluice', /removed our nft table/],
  ]
  const busy = await crowd(lab.client, host, 8400, 30, 5)
  const coming = visitors(lab.client, host, 8400)
  const idle = await Talker.connect(lab.client, host, 8400)
  await idle.say()
  for (const [i, [edit, logged]] of edits.entries()) {
    const before = gateway.logText().length
    const started = performance.now()
    const rules = await lab.gateway.must(['nft', '-a', 'list', 'chain', 'inet', 'sluice', 'route'])
    await lab.gateway.nft(edit.replace('GATE', /@gate # handle (\d+)/.exec(rules)![1]!))
    await until(async () => (await gateway.status()).kernel.drifts === i + 1, 5000, `noticed: ${edit}`)
    await until(
      async () => Bun.deepEquals(await elements(lab.gateway), elementsBefore) && (await program(lab)) === programBefore,
      5000,
      `repaired: ${edit}`,
    )
    console.log(`${edit}: repaired after ${(performance.now() - started).toFixed(0)} ms`)
    expect(gateway.logText().slice(before)).toMatch(logged)
    await gateway.settled()
    const served = coming.served
    await until(() => coming.served > served, 5000, `new connections are served after: ${edit}`)
  }
  expect((await gateway.status()).kernel.drifts).toBe(edits.length)
  await idle.say('still here')
  expect(await busy.stop()).toEqual([])
  expect(await coming.stop()).toEqual([])
  await idle.close()
  const records = await gateway.recordsOf(31 + coming.served)
  expect(records.filter(({ reason }) => reason !== 'finished')).toEqual([])
}, 90_000)

test("H10: a real stop removes our tables and settings; onStop 'keep' leaves them forwarding", async () => {
  await using lab = await Lab.create()
  const backend = echoBackend(lab.backend)
  const routes = [forward('ours', 8400, [{ host: lab.backend.address4, port: backend.port }])]
  const names = [
    'net.ipv4.ip_forward',
    'net.ipv6.conf.all.forwarding',
    'net.netfilter.nf_conntrack_acct',
    'net.netfilter.nf_conntrack_timestamp',
    'net.netfilter.nf_conntrack_events',
  ]
  const settings = () => names.map((name) => lab.gateway.sysctl(name))
  const before = settings()
  {
    await using gateway = await Gateway.start(lab, routes)
    expect(settings()).toEqual(['1', '1', '1', '1', '1'])
    expect(await gateway.stop()).toBe(0)
    expect(settings()).toEqual(before)
    expect(await tables(lab.gateway)).toEqual([])
  }
  await using gateway = await Gateway.start(lab, routes, { config: { kernel: { onStop: 'keep' } } })
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()
  expect(await gateway.stop()).toBe(0)
  expect(await tables(lab.gateway)).toEqual(['table inet sluice'])
  await talker.say()
  const another = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await another.say()
  await gateway.restart()
  expect((await gateway.connections()).length).toBe(2)
  await talker.close()
  await another.close()
  await gateway.recordsOf(2)
})
