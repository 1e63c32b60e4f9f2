// What operators drain: what a request may say, what is remembered, when what is left is cut, and how targets are shown.
import { describe, expect, test } from 'bun:test'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ConnectionTable } from '../../src/connections/table.ts'
import { Drains, parseDrains, parseRequest, type What } from '../../src/control/drains.ts'
import { canonicalTarget, connectionsTo, targetViews } from '../../src/control/targets.ts'
import type { Endpoint } from '../../src/plan/types.ts'

async function bench() {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-drains-'))
  const path = join(directory, 'drains.json')
  const happened: string[] = []
  const configured = new Set(['route web', 'target 10.0.0.5:80', 'target db.internal:5432'])
  const left = new Map<string, number>()
  const text = ({ kind, name }: What) => `${kind} ${name}`
  const cut = Promise.withResolvers<void>()
  const open = () =>
    Drains.load(path, {
      log: (level, message) => void happened.push(`${level} ${message}`),
      exists: (what) => configured.has(text(what)),
      async apply(what) {
        happened.push(`apply ${text(what)}`)
      },
      left: (what) => left.get(text(what)) ?? 0,
      cut(what) {
        happened.push(`cut ${text(what)}`)
        left.delete(text(what))
        cut.resolve()
      },
    })
  return {
    path,
    happened,
    configured,
    left,
    cut: cut.promise,
    open,
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true }),
  }
}

describe('a request', () => {
  test('says what, how long and whether to undo', () => {
    expect(parseRequest({ route: 'web' })).toEqual({ what: { kind: 'route', name: 'web' }, forMs: null, undo: false })
    expect(parseRequest({ target: '[2001:DB8::0005]:80', for: '10m' })).toEqual({
      what: { kind: 'target', name: '[2001:db8::5]:80' },
      forMs: 600_000,
      undo: false,
    })
    expect(parseRequest({ target: 'DB.internal:5432', undo: true })).toMatchObject({
      what: { name: 'db.internal:5432' },
      undo: true,
    })
  })

  test('that cannot be understood is refused with a sentence', () => {
    const wrong: [unknown, string][] = [
      [undefined, 'an object'],
      [null, 'an object'],
      [[], 'either'],
      [{}, 'either "route" or "target"'],
      [{ route: 'a', target: 'b' }, 'either "route" or "target"'],
      [{ route: 5 }, 'as text'],
      [{ route: 'a', for: '10' }, 'a duration'],
      [{ route: 'a', for: 10 }, 'a duration'],
      [{ route: 'a', for: null }, 'a duration'],
      [{ route: 'a', undo: 'yes' }, 'true or false'],
      [{ route: 'a', undo: true, for: '1m' }, 'do not go together'],
      [{ route: 'a', force: true }, 'unknown field "force"'],
    ]
    for (const [request, words] of wrong) {
      const answer = parseRequest(request)
      expect(typeof answer).toBe('string')
      expect(answer).toContain(words)
    }
  })

  test('spells a target as the plan does', () => {
    const spelled = [
      '10.0.0.5:80',
      '[::1]:1',
      '[::FFFF:10.0.0.5]:80',
      'Web.Internal:65535',
      'a:preserve',
      '[::1]:preserve',
      'unix:/run/a',
    ]
    expect(spelled.map(canonicalTarget)).toEqual([
      '10.0.0.5:80',
      '[::1]:1',
      expect.any(String),
      'web.internal:65535',
      'a:preserve',
      '[::1]:preserve',
      'unix:/run/a',
    ])
    for (const none of [
      '10.0.0.5',
      '10.0.0.5:0',
      '10.0.0.5:65536',
      '::1:80',
      '[10.0.0.5',
      '[web]:80',
      ':80',
      'unix:a',
      '',
    ])
      expect([none, canonicalTarget(none)]).toEqual([none, undefined])
  })
})

describe('H9: a drain', () => {
  test('is applied, counted down and undone', async () => {
    await using place = await bench()
    const drains = await place.open()
    drains.start()
    place.left.set('route web', 2)
    const answer = await drains.request({ route: 'web' })
    expect(answer).toMatchObject({ ok: true, drain: { route: 'web', state: 'draining', left: 2, until: null } })
    expect(drains.facts()).toEqual({ draining: { web: true }, drained: {} })
    place.left.set('route web', 0)
    expect(drains.views()).toMatchObject([{ route: 'web', state: 'drained', left: 0 }])
    expect(await drains.request({ target: '10.0.0.5:80' })).toMatchObject({
      ok: true,
      drain: { target: '10.0.0.5:80' },
    })
    expect(drains.facts()).toEqual({ draining: { web: true }, drained: { '10.0.0.5:80': true } })
    expect(await drains.request({ route: 'web', undo: true })).toEqual({ ok: true, drain: null })
    expect(drains.facts()).toEqual({ draining: {}, drained: { '10.0.0.5:80': true } })
    expect(place.happened.filter((one) => one.startsWith('apply'))).toEqual([
      'apply route web',
      'apply target 10.0.0.5:80',
      'apply route web',
    ])
    expect(place.happened.some((one) => one.startsWith('cut'))).toBe(false)
  })

  test('of what is not there, or undone where there is none, is refused and changes nothing', async () => {
    await using place = await bench()
    const drains = await place.open()
    expect(await drains.request({ route: 'nobody' })).toEqual({ ok: false, status: 404, error: 'no route nobody' })
    expect(await drains.request({ target: '10.0.0.9:80' })).toMatchObject({ status: 404 })
    expect(await drains.request({ route: 'web', undo: true })).toMatchObject({
      status: 404,
      error: 'route web is not drained',
    })
    expect(await drains.request({})).toMatchObject({ status: 400 })
    expect([place.happened, drains.views()]).toEqual([[], []])
  })

  test('with a time cuts what is left then, and stays', async () => {
    await using place = await bench()
    const drains = await place.open()
    drains.start()
    place.left.set('target db.internal:5432', 3)
    await drains.request({ target: 'db.internal:5432', for: '20ms' })
    await place.cut
    expect(drains.views()).toMatchObject([{ target: 'db.internal:5432', state: 'drained', left: 0 }])
    drains.stop()
  })

  test('asked for again goes by the newest request', async () => {
    await using place = await bench()
    const drains = await place.open()
    drains.start()
    place.left.set('route web', 1)
    await drains.request({ route: 'web', for: '1h' })
    const [first] = drains.views()
    await drains.request({ route: 'web' })
    expect(drains.views()).toEqual([{ ...first!, until: null }])
    // An undo takes the deadline with it.
    await drains.request({ route: 'web', for: '30ms' })
    await drains.request({ route: 'web', undo: true })
    await Bun.sleep(60)
    expect(place.happened.some((one) => one.startsWith('cut'))).toBe(false)
  })

  test('holds over a restart; what is overdue is cut once the flows are known', async () => {
    await using place = await bench()
    const first = await place.open()
    first.start()
    await first.request({ target: '10.0.0.5:80', for: '20ms' })
    await first.request({ route: 'web' })
    first.stop()
    const drains = await place.open()
    expect(drains.facts()).toEqual({ draining: { web: true }, drained: { '10.0.0.5:80': true } })
    place.left.set('target 10.0.0.5:80', 1)
    place.left.set('route web', 1)
    await Bun.sleep(40)
    expect(place.happened.some((one) => one.startsWith('cut'))).toBe(false)
    drains.start()
    await place.cut
    expect(place.happened.filter((one) => one.startsWith('cut'))).toEqual(['cut target 10.0.0.5:80'])
    // What the configuration has no more can still be put back.
    place.configured.clear()
    expect(await drains.request({ route: 'web', undo: true })).toEqual({ ok: true, drain: null })
    drains.stop()
    expect(parseDrains(JSON.parse(await readFile(place.path, 'utf8')))).toMatchObject([{ name: '10.0.0.5:80' }])
  })

  test('requests at the same time are carried out one after another', async () => {
    await using place = await bench()
    const drains = await place.open()
    const answers = await Promise.all([
      drains.request({ route: 'web' }),
      drains.request({ route: 'web', undo: true }),
      drains.request({ route: 'web', undo: true }),
      drains.request({ route: 'web' }),
    ])
    expect(answers.map(({ ok }) => ok)).toEqual([true, true, false, true])
    expect(drains.has({ kind: 'route', name: 'web' })).toBe(true)
  })

  test('a damaged memory is put aside', async () => {
    await using place = await bench()
    for (const text of ['{"version":1,"drains":[{"kind":"user"}]}', '{"version":1}', '5', '{']) {
      await writeFile(place.path, text)
      place.happened.length = 0
      expect((await place.open()).views()).toEqual([])
      expect(place.happened).toHaveLength(1)
      expect(await readFile(`${place.path}.bad`, 'utf8')).toBe(text)
    }
  })
})

describe('targets', () => {
  const endpoint = (key: string, more: Partial<Endpoint> = {}): Endpoint => ({
    key,
    target: key,
    host: { kind: 'ip', address: '10.0.0.5' },
    port: 80,
    name: null,
    weight: 1,
    share: 1,
    ...more,
  })
  const table = new ConnectionTable()
  const carried = { bytesIn: 5, bytesOut: 7, packetsIn: 1, packetsOut: 1 }
  for (const [route, target] of [
    ['web', '10.0.0.5:80'],
    ['web', '10.0.0.5:80'],
    ['mail', '10.0.0.5:80'],
    ['all', '10.0.0.5:8001'],
    ['all', '10.0.0.5:8002'],
    ['all', '10.0.0.55:8002'],
  ] as const) {
    table.flowOpened(route, target, 1)
    table.flowCarried(route, target, 1, carried)
  }
  const named = endpoint('10.0.0.5:80', { target: 'db.internal:80', name: 'db.internal', share: 0 })
  const routes = [
    { name: 'web', endpoints: [endpoint('10.0.0.5:80'), endpoint('10.0.0.6:80', { weight: 3, share: 0 })] },
    { name: 'mail', endpoints: [named] },
    { name: 'all', endpoints: [endpoint('10.0.0.5:preserve', { port: null })] },
    { name: 'handler', endpoints: [] },
  ]
  const totals = (route: string) => table.totals(route)

  test('H19: are shown with what they carried and what is known of them', () => {
    const views = targetViews(routes, {
      totals,
      health: (_, key) => (key === '10.0.0.6:80' ? { up: false, lastError: 'refused' } : undefined),
      drained: (route) => route === 'mail',
    })
    const sums = { up: true, share: 1, weight: 1, total: 1, bytesIn: 5, bytesOut: 7 }
    expect([...views]).toEqual([
      {
        ...sums,
        route: 'web',
        target: '10.0.0.5:80',
        state: 'up',
        connections: 2,
        total: 2,
        bytesIn: 10,
        bytesOut: 14,
      },
      {
        ...sums,
        route: 'web',
        target: '10.0.0.6:80',
        state: 'down',
        up: false,
        weight: 3,
        share: 0,
        connections: 0,
        total: 0,
        bytesIn: 0,
        bytesOut: 0,
        lastError: 'refused',
      },
      {
        ...sums,
        route: 'mail',
        target: '10.0.0.5:80',
        configured: 'db.internal:80',
        state: 'draining',
        share: 0,
        connections: 1,
      },
      {
        ...sums,
        route: 'all',
        target: '10.0.0.5:preserve',
        state: 'up',
        connections: 2,
        total: 2,
        bytesIn: 10,
        bytesOut: 14,
      },
    ])
  })

  test('H9: what a target still has is counted over all of its routes, by its address or as it is configured', () => {
    expect(connectionsTo('10.0.0.5:80', routes, totals)).toBe(3)
    expect(connectionsTo('db.internal:80', routes, totals)).toBe(1)
    expect(connectionsTo('10.0.0.5:preserve', routes, totals)).toBe(2)
    expect(connectionsTo('10.0.0.7:80', routes, totals)).toBe(0)
  })
})
