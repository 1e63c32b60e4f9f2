// What the kernel is told about lists against what the user plane makes of them: random lists, random clients, one verdict.
// test/netns/lists.test.ts asks the kernel itself.
import { expect, test } from 'bun:test'
import { inInterval, ipBytes, parseNetwork } from '../../src/base/addresses.ts'
import { check } from '../../src/config/check.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'
import type { KernelGroup, Plan } from '../../src/plan/types.ts'
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

/** A route with these lists on the port where a CA is answered, which it is now or not. */
function planned(lists: Lists, engine: string, challenging: boolean): Plan {
  const targets = [{ host: '10.0.0.1', port: 80 }]
  const forward = { type: 'forward', targets, forwardingEngine: engine }
  const secure = { type: 'forward', targets, tls: { mode: 'terminate', certificate: 'auto' } }
  const routes = [
    { name: 'r', match: { ports: 80 }, action: forward, security: lists },
    { name: 'secure', match: { ports: 443, domains: 'a.test' }, action: secure },
  ]
  const checked = check({ routes, acme: { email: 'a@a.test', termsAgreed: true } })
  if (!checked.ok) throw new Error(Bun.inspect([lists, checked.problems]))
  return plan(checked.config, { ...noFacts(0x51000000, 'v'), challenging })
}

/** Chain limits of nft/sluice.nft on those elements. undefined: the kernel does not know whose the port is, and leaves it to
 *  user space. */
function kernelVerdict({ kernel }: Plan, client: string): 'refused' | 'admitted' | undefined {
  const group: KernelGroup = kernel.groups['0x51000001'] ?? {}
  if (Object.values(kernel.groups).every(({ listen }) => !listen?.['tcp . 80'])) return undefined
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

test('H13, I1, F5: what the kernel is told and what the user plane does mean the same: 2,000 random lists', () => {
  const seed = Math.floor(Math.random() * 2 ** 32)
  const random = randomOf(seed)
  const verdicts = { refused: 0, admitted: 0 }
  for (let round = 0; round < 2000; round++) {
    const lists = randomLists(random)
    // A CA may come from anywhere: the kernel refuses nobody on its port, and user space refuses for the route as ever.
    const challenging = random.below(4) === 0
    const made = planned(lists, random.one(['auto', 'user']), challenging)
    const inKernel = !challenging && made.routes[0]!.carrier === 'kernel'
    const limited = Object.values(lists).some((list) => Array.isArray(list) && list.length > 0)
    const [byUser, meant] = [userVerdict(lists), meantVerdict(lists)]
    for (let i = 0; i < 10; i++) {
      const ip = client(random)
      const verdict = meant(ip)
      verdicts[verdict]++
      const kernel = inKernel || (!challenging && limited) ? verdict : undefined
      const found = { user: byUser(ip), kernel: kernelVerdict(made, ip) }
      if (found.user !== verdict || found.kernel !== kernel)
        expect({ seed, lists, ip, challenging, ...found }).toEqual({
          seed,
          lists,
          ip,
          challenging,
          user: verdict,
          kernel,
        })
    }
  }
  console.log(`seed ${seed}: ${verdicts.refused} refused, ${verdicts.admitted} admitted`)
  // Lists that nobody meets would show nothing.
  expect(Math.min(verdicts.refused, verdicts.admitted)).toBeGreaterThan(2000)
}, 60_000)
