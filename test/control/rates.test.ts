// When the worker and the kernel are asked what they carry, so that rates are known.
import { expect, test } from 'bun:test'
import { RateWatch, type RateSources } from '../../src/control/rates.ts'
import type { Counted } from '../../src/connections/throughput.ts'

function sources(more: Partial<RateSources> = {}) {
  const web: Counted = { bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0, total: 0, now: 0, reasons: {} }
  const asked = { worker: 0, kernel: 0 }
  const errors: Error[] = []
  const all: RateSources = {
    totals: () => [['web', web]],
    proxied: () => 1,
    count: () => {
      asked.worker++
      return Promise.resolve(true)
    },
    kernel: () => null,
    onError: (error) => errors.push(error),
    ...more,
  }
  return { web, asked, errors, all }
}

test('M2: the worker is asked only while there is something to count, and once at a time', async () => {
  let proxied = 0
  const answer = Promise.withResolvers<boolean>()
  const { asked, all } = sources({ proxied: () => proxied })
  const slow = { ...all, count: () => (all.count(), answer.promise) }
  const watch = await RateWatch.begin(slow)
  await watch.count()
  expect(asked.worker).toBe(0)
  proxied = 1
  const both = [watch.count(), watch.count()]
  await both[1]
  expect(asked.worker).toBe(1)
  answer.resolve(true)
  await Promise.all(both)
})

test('M2: one that takes long to answer is asked less often, one that does not answer is no error', async () => {
  const { asked, errors, all, web } = sources({
    count: async () => {
      asked.worker++
      await Bun.sleep(20)
      return false
    },
  })
  const watch = await RateWatch.begin(all)
  await watch.count()
  // Without an answer there is nothing that was counted lately: it is asked again.
  await watch.count()
  expect(asked.worker).toBe(2)
  web.total = 5
  await watch.refresh()
  expect([errors, watch.history(null).reduce((sum, { opened }) => sum + opened, 0)]).toEqual([[], 5])

  const answering = sources({
    count: async () => {
      answering.asked.worker++
      await Bun.sleep(20)
      return true
    },
  })
  const other = await RateWatch.begin(answering.all)
  for (let i = 0; i < 5; i++) await other.count()
  expect(answering.asked.worker).toBe(1)
})

test('M2: a kernel that does not answer keeps nobody from hearing the rest', async () => {
  const never = Promise.withResolvers<void>()
  const { web, all } = sources({ kernel: () => ({ readMs: performance.now(), recent: () => never.promise }) })
  const watch = await RateWatch.begin(all)
  web.total = 3
  await watch.refresh()
  expect(watch.history('web').reduce((sum, { opened }) => sum + opened, 0)).toBe(3)
})

test('M2: whoever asks has the kernel read first; what it told when it was taken over is no throughput', async () => {
  let taken = false
  const { web, asked, all } = sources({
    proxied: () => 0,
    kernel: () =>
      taken
        ? {
            readMs: performance.now(),
            recent: async () => {
              asked.kernel++
              web.bytesOut += 10
              web.packetsOut++
            },
          }
        : null,
  })
  const watch = await RateWatch.begin(all)
  const told = () => watch.history('web').reduce((sum, { bytesOut }) => sum + bytesOut, 0)
  Object.assign(web, { bytesOut: 1000, packetsOut: 1 })
  await watch.count()
  taken = true
  Object.assign(web, { bytesOut: 3000, packetsOut: 3 })
  await watch.count()
  expect([asked.kernel, told()]).toEqual([0, 0])
  await watch.refresh()
  await watch.refresh()
  expect([asked.kernel, told()]).toEqual([2, 20])
})
