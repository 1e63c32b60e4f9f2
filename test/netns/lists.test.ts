// Lists of clients in the real kernel: many routes with random lists in one table, SYNs from many addresses, and for each
// the verdict that the user plane would give. The program is not started: its plan is loaded with nft, as it would do it.
import { expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'
import { parseListing, renderAll, renderDifference } from '../../src/kernel/program.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import { address4, address6, randomLists, randomOf, userVerdict } from '../plan/lists.ts'
import { Lab, type Namespace } from './lab.ts'
import { echoBackend } from './traffic.ts'

const BASE = 0x51000000
const FIRST_PORT = 10_000
const ROUTES = 300
const CLIENTS = 50
const AT_ONCE = 16

/** Lets `client` speak from every address of these networks, and the gateway answer them. */
async function manyAddresses(lab: Lab) {
  await lab.client.must(['ip', 'route', 'add', 'local', '172.16.0.0/12', 'dev', 'lo'])
  await lab.client.must(['ip', '-6', 'route', 'add', 'local', '2001:db8::/32', 'dev', 'lo'])
  lab.client.setSysctl({ 'net.ipv6.ip_nonlocal_bind': 1 })
  await lab.gateway.must(['ip', 'route', 'add', '172.16.0.0/12', 'via', lab.client.address4])
  await lab.gateway.must(['ip', '-6', 'route', 'add', '2001:db8::/32', 'via', lab.client.address6])
}

async function connects(from: Namespace, localAddress: string, host: string, port: number) {
  try {
    const socket = await from.connect(host, port, {}, { localAddress })
    socket.terminate()
    return 'admitted'
  } catch (error) {
    if (!String(error).includes('refused')) throw error
    return 'refused'
  }
}

test('H13, I1: the kernel refuses whom the user plane would: random lists, IPv4 and IPv6, in the kernel and in user space', async () => {
  await using lab = await Lab.create()
  await manyAddresses(lab)
  lab.gateway.forward()
  const backend = echoBackend(lab.backend)
  const seed = Math.floor(Math.random() * 2 ** 32)
  const random = randomOf(seed)
  const lists = Array.from({ length: ROUTES }, () => randomLists(random))
  const checked = check({
    routes: lists.map((security, i) => ({
      name: `r${i}`,
      match: { ports: FIRST_PORT + i },
      action: {
        type: 'forward',
        targets: [lab.backend.address4, lab.backend.address6].map((host) => ({ host, port: backend.port })),
        // Half of them are only looked at in the kernel, and accepted by a socket of the gateway.
        forwardingEngine: i % 2 === 0 ? 'nftables' : 'user',
      },
      security,
    })),
  })
  if (!checked.ok) throw new Error(Bun.inspect([seed, checked.problems]))
  const { kernel } = plan(checked.config, noFacts(BASE, 'test'))
  // One after the other: in a user namespace all of them are too much for a transaction.
  for (const command of renderAll('sluice', BASE, kernel)) await lab.gateway.nft(command)
  for (let i = 1; i < ROUTES; i += 2) echoBackend(lab.gateway, { port: FIRST_PORT + i })

  // As the kernel lists them they are the same elements: nothing to repair for ever.
  const listed = JSON.parse(await lab.gateway.must(['nft', '-j', 'list', 'table', 'inet', 'sluice'])) as {
    nftables: unknown[]
  }
  expect(renderDifference('sluice', parseListing(listed.nftables, BASE).state, kernel)).toEqual([])

  const questions = lists.flatMap((list, i) => {
    const verdict = userVerdict(list)
    return Array.from({ length: CLIENTS }, () => {
      const ip = random.below(3) === 0 ? address6(random) : address4(random)
      return { ip, port: FIRST_PORT + i, lists: list, expected: verdict(ip) }
    })
  })
  const started = performance.now()
  const wrong: object[] = []
  const ask = async () => {
    for (let question = questions.pop(); question; question = questions.pop()) {
      const { ip, port, expected } = question
      const host = ip.includes(':') ? lab.gateway.clientSide6 : lab.gateway.clientSide4
      const found = await connects(lab.client, ip, host, port)
      if (found !== expected) wrong.push({ seed, ...question, found })
      count[found]++
    }
  }
  const count = { refused: 0, admitted: 0 }
  await Promise.all(Array.from({ length: AT_ONCE }, ask))
  const ms = (performance.now() - started).toFixed(0)
  console.log(`seed ${seed}: ${count.refused} refused, ${count.admitted} admitted in ${ms} ms`)
  expect(wrong).toEqual([])
  expect(Math.min(count.refused, count.admitted)).toBeGreaterThan((ROUTES * CLIENTS) / 5)
}, 120_000)

test('H4, I1: lists are taken out of the kernel as they were put in: every spelling, both families', async () => {
  await using lab = await Lab.create()
  const planned = (security: object) => {
    const target = { host: '10.0.0.1', port: 80 }
    const checked = check({
      routes: [{ name: 'r', match: { ports: 80 }, action: { type: 'forward', targets: [target] }, security }],
    })
    if (!checked.ok) throw new Error(Bun.inspect(checked.problems))
    return plan(checked.config, noFacts(BASE, 'test')).kernel
  }
  const list = ['192.0.2.1', '192.0.2.7-192.0.2.9', '198.51.100.0/24', '10.*', '2001:db8::1', '2001:db8:1::/48']
  const [full, some, none] = [
    planned({ ipBlockList: list, ipAllowList: list }),
    planned({ ipBlockList: ['192.0.2.1', '2001:db8::1'], ipAllowList: list.slice(1) }),
    planned({ maxConnections: 5 }),
  ]
  for (const command of renderAll('sluice', BASE, full)) await lab.gateway.nft(command)
  for (const [from, to] of [
    [full, some],
    [some, full],
    [full, none],
    [none, some],
    [some, none],
  ] as const) {
    await lab.gateway.nft(renderDifference('sluice', from, to).join('\n'))
    const listed = JSON.parse(await lab.gateway.must(['nft', '-j', 'list', 'table', 'inet', 'sluice']))
    expect(renderDifference('sluice', parseListing(listed.nftables, BASE).state, to)).toEqual([])
  }
}, 60_000)
