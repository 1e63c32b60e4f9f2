// The loop that keeps the table equal to what is wanted, on a stateful fake: coalescing, no overlap, retries, drift (H2–H4, H9).
import { describe, expect, test } from 'bun:test'
import { Ruleset } from '../../src/kernel/ruleset.ts'
import { chainsOf, programVersion, renderDifference } from '../../src/kernel/program.ts'
import type { KernelState } from '../../src/plan/types.ts'
import { FakeNft } from './fake-nft.ts'

const state = (routes: Record<string, string>, version = programVersion): KernelState => {
  const made: KernelState = { groups: { '': { program: { '0x00000001': { value: '0x51000000', comment: version } } } } }
  let number = 0x51000001
  for (const [port, target] of Object.entries(routes)) {
    const key = `0x${(number++).toString(16)}`
    made.groups[key] = {
      routes: { [key]: { comment: `r${port}` } },
      listen: { [`tcp . ${port}`]: { value: key } },
      timeouts: { [key]: { value: 'jump timeout_udp_5' } },
      target4: { [key]: { value: target } },
    }
  }
  return made
}
const memory = () => {
  let kept: string | null = null
  return {
    read: async () => kept,
    write: async (seal: string) => void (kept = seal),
  }
}

function setUp() {
  const nft = new FakeNft()
  const logs: string[] = []
  const seal = memory()
  const ruleset = new Ruleset({
    table: 'sluice',
    base: 0x51000000,
    nft,
    seal,
    log: (_level, message) => logs.push(message),
  })
  return { nft, logs, ruleset, seal }
}

describe('the loop', () => {
  test('H4: the first state is the program and its elements in one transaction, later ones only what differs', async () => {
    const { nft, ruleset } = setUp()
    await ruleset.want(state({ 80: '10.0.0.1 . 80', 81: '10.0.0.1 . 81' }))
    await ruleset.want(state({ 80: '10.0.0.1 . 80', 81: '10.0.0.2 . 81' }))
    expect(nft.transactions.length).toBe(2)
    expect(nft.transactions[1]).toEqual([
      'delete element inet sluice target4 { 0x51000002 }',
      'add element inet sluice target4 { 0x51000002 : 10.0.0.2 . 81 }',
    ])
    expect(nft.elements('sluice', 'target4')).toEqual({
      '0x51000001': ' : 10.0.0.1 . 80',
      '0x51000002': ' : 10.0.0.2 . 81',
    })
  })

  test('H2: wishes during a round are served together by the next, and rounds never overlap', async () => {
    const { nft, ruleset } = setUp()
    const gate = Promise.withResolvers<void>()
    nft.gate = gate.promise
    const wishes = Array.from({ length: 50 }, (_, i) => ruleset.want(state({ [1000 + i]: '10.0.0.1 . 1' })))
    gate.resolve()
    await Promise.all(wishes)
    expect([nft.transactions.length, nft.mostConcurrent]).toEqual([2, 1])
    expect(nft.elements('sluice', 'listen')).toEqual({ 'tcp . 1049': ' : 0x51000001' })
  })

  test('H3: a failure is told, retried, and over when nft recovers', async () => {
    const { nft, ruleset, logs } = setUp()
    nft.failure = 'broken'
    await expect(ruleset.want(state({ 80: '10.0.0.1 . 80' }))).rejects.toThrow('broken')
    expect([ruleset.error, ruleset.isActive('0x51000001', 'r80'), logs]).toEqual(['broken', false, ['broken']])
    nft.failure = null
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    expect([ruleset.error, ruleset.isActive('0x51000001', 'r80')]).toEqual([null, 'as wanted'])
  })

  test('H10: the table of an earlier life is adopted: only the difference is applied', async () => {
    const { nft, ruleset, seal } = setUp()
    await ruleset.want(state({ 80: '10.0.0.1 . 80', 81: '10.0.0.1 . 81' }))
    const next = new Ruleset({ table: 'sluice', base: 0x51000000, nft, seal, log: () => {} })
    const found = await next.adopt()
    expect(Object.values(found!.groups).flatMap(({ routes }) => (routes ? [routes] : []))).toEqual([
      { '0x51000001': { comment: 'r80' } },
      { '0x51000002': { comment: 'r81' } },
    ])
    await next.want(state({ 80: '10.0.0.1 . 80' }))
    expect(nft.transactions.at(-1)).toEqual([
      'delete element inet sluice listen { tcp . 81 }',
      'delete element inet sluice routes { 0x51000002 }',
      'delete element inet sluice timeouts { 0x51000002 }',
      'delete element inet sluice target4 { 0x51000002 }',
    ])
  })

  test('a table of another version is replaced as a whole', async () => {
    const { nft, ruleset, seal } = setUp()
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }, 'older'))
    const next = new Ruleset({ table: 'sluice', base: 0x51000000, nft, seal, log: () => {} })
    expect(Object.keys((await next.adopt())!.groups)).toEqual(['0x51000001', ''])
    await next.want(state({ 80: '10.0.0.1 . 80' }))
    expect(nft.transactions.at(-1)![0]).toContain('delete table inet sluice')
  })

  test('rules that were edited while nobody watched are replaced as a whole', async () => {
    const { nft, ruleset, seal } = setUp()
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    nft.edited.add('refuse')
    const next = new Ruleset({ table: 'sluice', base: 0x51000000, nft, seal, log: () => {} })
    await next.adopt()
    await next.want(state({ 80: '10.0.0.1 . 80' }))
    expect(nft.transactions.at(-1)![0]).toContain('delete table inet sluice')
  })

  test('drift: another process changed the table; it is read, logged and repaired, ours is not even read', async () => {
    const { nft, ruleset, logs } = setUp()
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    ruleset.notified(nft.pid)
    expect(ruleset.settled).toBe(true)
    nft.tables.delete('sluice')
    ruleset.notified(99)
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    expect([ruleset.drifts, logs, nft.elements('sluice', 'listen')]).toEqual([
      1,
      ['Someone removed our nft table; putting it back'],
      { 'tcp . 80': ' : 0x51000001' },
    ])
    nft.tables.get('sluice')!.get('listen')!.clear()
    ruleset.notified(99)
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    expect([ruleset.drifts, nft.elements('sluice', 'listen')]).toEqual([2, { 'tcp . 80': ' : 0x51000001' }])
    nft.edited.add('refuse')
    ruleset.notified(99)
    await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
    expect([ruleset.drifts, logs.at(-1), nft.edited.size]).toEqual([
      3,
      'Someone changed rules of our nft table; loading it again',
      0,
    ])
  })

  test('H10: stop removes the table, or keeps it', async () => {
    for (const onStop of ['remove', 'keep'] as const) {
      const { nft, ruleset } = setUp()
      await ruleset.want(state({ 80: '10.0.0.1 . 80' }))
      await ruleset.stop(onStop)
      expect(nft.tables.has('sluice')).toBe(onStop === 'keep')
    }
  })
})

describe('differences', () => {
  test('H9: applying the difference of any two states gives the second, in any split', async () => {
    const random = (n: number) => Math.floor(Math.random() * n)
    for (let round = 0; round < 200; round++) {
      const make = () =>
        state(
          Object.fromEntries(Array.from({ length: random(20) }, () => [1 + random(30), `10.0.0.${random(3)} . 80`])),
        )
      const [a, b] = [make(), make()]
      const nft = new FakeNft()
      const ruleset = new Ruleset({ table: 'sluice', base: 0x51000000, nft, seal: memory(), log: () => {} })
      await ruleset.want(a)
      for (const command of renderDifference('sluice', a, b)) await nft.apply([command])
      for (const map of ['routes', 'listen', 'target4', 'timeouts'])
        expect(Object.keys(nft.elements('sluice', map)).toSorted()).toEqual(
          Object.values(b.groups)
            .flatMap((group) => Object.keys(group[map] ?? {}))
            .toSorted(),
        )
      expect([...nft.chains].toSorted()).toEqual([...chainsOf(b)])
      expect(renderDifference('sluice', b, b)).toEqual([])
    }
  })
})
