// What the kernel is told about lists against what the user plane makes of them: random lists, random clients, one verdict.
// test/netns/lists.test.ts asks the kernel itself.
import { expect, test } from 'bun:test'
import { inInterval, ipBytes, parseNetwork } from '../../src/base/addresses.ts'
import { check } from '../../src/config/check.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import type { KernelGroup } from '../../src/plan/types.ts'
import {
  address4,
  address6,
  meantVerdict,
  randomLists,
  randomOf,
  respelled,
  userVerdict,
  type Lists,
  type Random,
} from './lists.ts'

/** The elements that a route with these lists has. */
function planned(lists: Lists, engine: string): KernelGroup {
  const target = { host: '10.0.0.1', port: 80 }
  const action = { type: 'forward', targets: [target], forwardingEngine: engine }
  const checked = check({ routes: [{ name: 'r', match: { ports: 80 }, action, security: lists }] })
  if (!checked.ok) throw new Error(Bun.inspect([lists, checked.problems]))
  return plan(checked.config, noFacts(0x51000000, 'v')).kernel.groups['0x51000001']!
}

/** Chain limits of nft/sluice.nft on those elements. */
function kernelVerdict(group: KernelGroup, client: string): 'refused' | 'admitted' {
  const bytes = ipBytes(client)
  const among = (list: string) =>
    Object.keys(group[`${list}${bytes.length === 4 ? 4 : 6}`] ?? {}).some((key) =>
      parseNetwork(key.slice('0x51000001 . '.length))!.some((interval) => inInterval(bytes, interval)),
    )
  if (group.gate?.['0x51000001']?.value !== 'jump limits') return 'admitted'
  if (among('block')) return 'refused'
  return group.allowed?.['0x51000001'] && !among('allow') ? 'refused' : 'admitted'
}

const client = (random: Random) => respelled(random, random.below(3) === 0 ? address6(random) : address4(random))

test('H13, I1: what the kernel is told and what the user plane does mean the same: 2,000 random lists', () => {
  const seed = Math.floor(Math.random() * 2 ** 32)
  const random = randomOf(seed)
  const verdicts = { refused: 0, admitted: 0 }
  for (let round = 0; round < 2000; round++) {
    const lists = randomLists(random)
    const group = planned(lists, random.one(['auto', 'user']))
    const [byUser, meant] = [userVerdict(lists), meantVerdict(lists)]
    for (let i = 0; i < 10; i++) {
      const ip = client(random)
      const verdict = meant(ip)
      verdicts[verdict]++
      const found = { user: byUser(ip), kernel: kernelVerdict(group, ip) }
      if (found.user !== verdict || found.kernel !== verdict)
        expect({ seed, lists, ip, ...found }).toEqual({ seed, lists, ip, user: verdict, kernel: verdict })
    }
  }
  console.log(`seed ${seed}: ${verdicts.refused} refused, ${verdicts.admitted} admitted`)
  // Lists that nobody meets would show nothing.
  expect(Math.min(verdicts.refused, verdicts.admitted)).toBeGreaterThan(2000)
}, 60_000)
