// Changes of the running configuration, with a gateway that only notes what it is told to carry out.
import { afterAll, expect, jest, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TAKE_BACK_AGAIN_MS } from '../../src/base/limits.ts'
import type { Config } from '../../src/config/schema.ts'
import { Reloads } from '../../src/control/reloads.ts'
import { noFacts, plan } from '../../src/plan/plan.ts'

const directory = mkdtempSync(join(tmpdir(), 'sluice-reloads-'))
afterAll(() => rmSync(directory, { recursive: true }))

const config = (...names: string[]): Config => ({
  routes: names.map((name, i) => ({ name, match: { ports: 7000 + i }, action: { type: 'block' } })),
})
const planOf = (of: Config) => plan(of, noFacts(0, 'test'))

function make(file?: string) {
  let running = config('web')
  const carried: { names: string[]; partly: boolean }[] = []
  const lines: { level: string; message: string; fields?: object }[] = []
  let refuses: string | null = null
  let changing: Promise<unknown> = Promise.resolve()
  const reloads = new Reloads({
    log: (level, message, fields) => void lines.push({ level, message, ...(fields ? { fields } : {}) }),
    configFile: file,
    stateDir: directory,
    live: () => 0,
    running: () => ({ config: running, plan: planOf(running) }),
    serially<T>(work: () => Promise<T>) {
      const result = changing.then(work)
      changing = result.catch(() => {})
      return result
    },
    plan: async (next) => planOf(next),
    readAgain: async () => [],
    carryOut: async (next, partly) => {
      if (refuses) throw new Error(refuses)
      running = next
      carried.push({ names: next.routes.map(({ name }) => name), partly })
    },
  })
  return {
    reloads,
    carried,
    lines,
    refuse: (why: string | null) => (refuses = why),
    names: () => running.routes.map(({ name }) => name),
  }
}

test('issue 7.1: reloads read the file one after the other, and those that wait are one', async () => {
  const file = join(directory, 'storm.json')
  writeFileSync(file, JSON.stringify(config('web', 'first')))
  const { reloads, carried } = make(file)
  const results = await Promise.all(Array.from({ length: 200 }, () => reloads.reload()))
  expect(results.every(({ ok }) => ok)).toBe(true)
  expect(carried.length).toBeLessThanOrEqual(2)
  writeFileSync(file, JSON.stringify(config('web', 'second')))
  await reloads.reload()
  expect(carried.at(-1)).toEqual({ names: ['web', 'second'], partly: false })
})

test('issue 7.7: each change is one line of the log, however many routes it has', async () => {
  const { reloads, lines } = make()
  await reloads.setConfig(config('web', 'new'))
  const many = Array.from({ length: 10_000 }, (_, i) => `r${i}`)
  await reloads.setConfig(config(...many))
  expect(lines.map(({ message, fields }) => [message, fields])).toEqual([
    ['Changed the configuration', { added: ['new'], untouched: 1 }],
    ['Changed the configuration', { added: 10_000, removed: ['web', 'new'], untouched: 0 }],
  ])
})

test('issue 7.1: a change that cannot be taken back at once is taken back later, without what has gone meanwhile', async () => {
  const file = join(directory, 'back.json')
  writeFileSync(file, JSON.stringify(config('locks-out')))
  const { reloads, carried, lines, refuse, names } = make(file)
  jest.useFakeTimers()
  try {
    expect(await reloads.reload('1s')).toMatchObject({ ok: true })
    /** Whatever was to be done is done when it is this one's turn. */
    const waits = () => reloads.setRoutes([])
    refuse('port 7000 is in use')
    jest.advanceTimersByTime(1000)
    expect(await waits()).toMatchObject({ ok: false, problems: [{ path: '(the gateway)' }] })
    jest.advanceTimersByTime(TAKE_BACK_AGAIN_MS)
    await waits()
    expect(names()).toEqual(['locks-out'])
    expect(existsSync(join(directory, 'unconfirmed.json'))).toBe(true)
    refuse(null)
    jest.advanceTimersByTime(TAKE_BACK_AGAIN_MS)
    await waits()
    expect(carried[1]).toEqual({ names: ['web'], partly: true })
    expect(reloads.unconfirmedUntil).toBe(null)
    expect(existsSync(join(directory, 'unconfirmed.json'))).toBe(false)
    expect(lines.filter(({ level }) => level === 'error').map(({ message }) => message)).toEqual([
      'Cannot take back the change: port 7000 is in use',
    ])
  } finally {
    jest.useRealTimers()
  }
})
