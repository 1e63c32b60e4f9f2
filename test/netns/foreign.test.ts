// Others at the same kernel: they flush and delete, and no live flow notices; what is theirs we never touch.
import { expect, test } from 'bun:test'
import { Lab } from './lab.ts'
import { elements, foreignRules, forward, Gateway, tables, until } from './gateway.ts'
import { crowd, echoBackend, Talker, visitors } from './traffic.ts'

const WAYS = {
  'nft flush ruleset': ['nft', 'flush', 'ruleset'],
  'nft delete table inet sluice': ['nft', 'delete', 'table', 'inet', 'sluice'],
}

for (const [name, command] of Object.entries(WAYS))
  test(`H10: ${name} under 100 live flows: none reset, the table is back within a second, new ones served`, async () => {
    await using lab = await Lab.create()
    const backend = echoBackend(lab.backend)
    await using gateway = await Gateway.start(lab, [
      forward('live', 8400, [{ host: lab.backend.address4, port: backend.port }]),
    ])
    const host = lab.gateway.clientSide4
    const before = await elements(lab.gateway)
    expect(await tables(lab.gateway)).toContain('table inet sluice_anchor')
    const idle = await Promise.all(Array.from({ length: 50 }, () => Talker.connect(lab.client, host, 8400)))
    for (const talker of idle) await talker.say()
    const busy = await crowd(lab.client, host, 8400, 50, 5)
    const coming = visitors(lab.client, host, 8400)
    await until(async () => (await gateway.status()).connections.kernel >= 100, 5000, '100 flows are listed')

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
    const records = await gateway.recordsOf(100 + coming.served)
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
