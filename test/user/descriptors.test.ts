// When accepting pauses and when it goes on: near the limit of descriptors, whoever uses them.
import { describe, expect, test } from 'bun:test'
import { DESCRIPTORS_RESERVED } from '../../src/base/limits.ts'
import { native } from '../../src/base/native.ts'
import { Accepting, thresholds } from '../../src/user/descriptors.ts'
import { descriptors, later } from './plane.ts'

/** A process with `limit` descriptors, of which others than connections have some. */
function machine(limit: number) {
  const state = { limit, connections: 0, others: 0, nowMs: 0, pauses: 0, resumes: 0, asked: 0, bound: 0 }
  const accepting = new Accepting({
    promised: () => state.connections * 2,
    limit: () => state.limit,
    free(below, enough) {
      state.asked++
      return Math.min(enough, Math.max(0, below - state.others - state.connections * 2))
    },
    pause: () => state.pauses++,
    resume: () => state.resumes++,
    bound: (descriptors) => void (state.bound = descriptors),
    limited: () => {},
    now: () => state.nowMs,
  })
  accepting.look()
  const come = () => {
    state.connections++
    accepting.accepted(state.others + state.connections * 2 - 2)
  }
  const go = () => {
    state.connections--
    state.nowMs += 1000
    accepting.left()
  }
  return { state, accepting, come, go }
}

describe('thresholds', () => {
  test('keep the reserve, and a gap between the two', () => {
    expect(thresholds(1024)).toEqual({ pauseAt: 960, resumeAt: 900 })
    expect(thresholds(1_048_576)).toEqual({ pauseAt: 1_048_512, resumeAt: 1_048_256 })
    expect(thresholds(Infinity)).toEqual({ pauseAt: Infinity, resumeAt: Infinity })
  })
  test('of a tiny limit leave room for someone', () => expect(thresholds(70)).toEqual({ pauseAt: 35, resumeAt: 33 }))
})

describe('accepting', () => {
  test('pauses at the threshold, goes on below the gap, and neither for each connection', () => {
    const { state, accepting, come, go } = machine(256)
    for (let i = 0; i < 95; i++) come()
    expect(accepting.paused).toBe(false)
    come()
    expect(accepting.paused).toBe(true)
    for (let i = 0; i < 5; i++) go()
    expect(accepting.paused).toBe(true)
    go()
    expect(accepting.paused).toBe(false)
    expect(state).toMatchObject({ pauses: 1, resumes: 1, connections: 90 })
  })

  test('pauses for what others have taken: as a connection comes, and when it looks', () => {
    const { state, accepting, come } = machine(256)
    come()
    state.others = 190
    come()
    expect(accepting.paused).toBe(true)
    state.others = 100
    accepting.look()
    expect(accepting.paused).toBe(false)
    state.others = 200
    accepting.look()
    expect(accepting.paused).toBe(true)
    // One that came all the same is carried as long as the other half of the reserve is there.
    expect(accepting.isTooLate(256 - DESCRIPTORS_RESERVED / 2 - 1)).toBe(false)
    expect(accepting.isTooLate(256 - DESCRIPTORS_RESERVED / 2)).toBe(true)
  })

  test('hears of another limit', () => {
    const { state, accepting, come } = machine(1024)
    for (let i = 0; i < 100; i++) come()
    state.limit = 128
    accepting.look()
    expect(accepting.paused).toBe(true)
    state.limit = 1024
    accepting.look()
    expect(accepting.paused).toBe(false)
  })

  test('a storm of ends costs few looks', () => {
    const { state, accepting, come } = machine(1024)
    for (let i = 0; i < 480; i++) come()
    expect(accepting.paused).toBe(true)
    state.others = 900
    const before = state.asked
    while (state.connections > 0) {
      state.connections--
      accepting.left()
    }
    expect(state.asked - before).toBeLessThanOrEqual(1)
    expect(accepting.paused).toBe(true)
  })
})

test('the native count of free descriptors follows what is opened and closed, and leaves nothing open', () => {
  const below = descriptors() + 200
  const free = () => native().sluice_descriptors_free(0, below, 1000)
  const [before, open] = [free(), descriptors()]
  const taken = Array.from({ length: 10 }, () => native().sluice_dup(0))
  later(() => taken.forEach((fd) => native().sluice_close(fd)))
  expect(descriptors()).toBe(open + 10)
  expect(free()).toBe(before - 10)
  expect(native().sluice_descriptors_free(0, below, 7)).toBe(7)
  native().sluice_close(taken.pop()!)
  expect(free()).toBe(before - 9)
  expect(descriptors()).toBe(open + 9)
})
