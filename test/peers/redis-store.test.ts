// The shared store with a real Redis that is killed, stopped, emptied and started again, and the gateways that share it.
import { describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { Fleet } from '../../src/certificates/fleet.ts'
import { openStore } from '../../src/certificates/open-store.ts'
import { RedisStore } from '../../src/certificates/store-redis.ts'
import type { Challenge } from '../../src/certificates/types.ts'
import { signed, temporaryDirectory } from '../certificates/tools.ts'
import { until } from '../netns/gateway.ts'
import { slowness, testIf } from '../support.ts'
import { freePort, hasRedis, Redis } from './redis.ts'

const times = { answerMs: 300, pauseMs: 50 }
const SOON_MS = 5000
const withRedis = testIf(hasRedis, 'needs redis-server')

/** `using`: closed with the end of the test. */
function storeOf(redis: Redis, options: ConstructorParameters<typeof RedisStore>[1] = {}) {
  const store = new RedisStore(redis.url, { times, askMs: 200, ...options })
  return Object.assign(store, { [Symbol.asyncDispose]: () => store.close() })
}

function lines() {
  const said: string[] = []
  return { said, log: (_: string, message: string) => void said.push(message) }
}

const works = (store: { put(key: string, text: string): Promise<void> }) => () =>
  store.put('probe', '').then(() => true)

describe('a Redis', () => {
  withRedis('that is killed and started again is used again; asked meanwhile, it is an error', async () => {
    await using redis = await Redis.start()
    const states: string[] = []
    await using store = storeOf(redis, { state: (up, error) => states.push(up ? 'up' : error!.message) })
    await store.put('a', 'x')
    await redis.kill()
    const all = [store.get('a'), store.put('a', 'y'), store.delete('a'), store.list(''), store.lock('a')]
    for (const { status, reason } of (await Promise.allSettled(all)) as PromiseRejectedResult[]) {
      expect(status).toBe('rejected')
      expect(reason.message).toStartWith(`${redis.url} does not answer`)
    }
    // Once more after the pause: that is no news.
    await Bun.sleep(times.pauseMs * 2)
    await expect(store.get('a')).rejects.toThrow('does not answer')
    await redis.start()
    await until(works(store), SOON_MS, 'it answers again')
    await store.put('a', 'z')
    expect(await store.get('a')).toBe('z')
    expect(states).toEqual([expect.stringContaining('does not answer'), 'up'])
  })

  withRedis('that hangs costs a deadline, and the next ones nothing', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis)
    await store.put('a', 'x')
    redis.signal('SIGSTOP')
    await expect(store.get('a')).rejects.toThrow(`no answer within ${times.answerMs} ms`)
    // It is still there and takes connections, but no words.
    await expect(Promise.all(Array.from({ length: 100 }, () => store.get('a')))).rejects.toThrow('does not answer')
    redis.signal('SIGCONT')
    await until(works(store), SOON_MS, 'it answers again')
    expect(await store.get('a')).toBe('x')
  })

  withRedis('that does not answer is left alone for a while', async () => {
    await using redis = await Redis.start()
    await redis.kill()
    await using store = storeOf(redis, { times: { ...times, pauseMs: 60_000 } })
    const first = await store.get('a').catch((error: Error) => error)
    expect(first).toBeInstanceOf(Error)
    // Not asked: it is the same error.
    expect(await store.get('a').catch((error: Error) => error)).toBe(first as Error)
  })

  withRedis('with users, passwords and databases; no message tells the password', async () => {
    await using redis = await Redis.start(['--requirepass', 'hush:1'], 'default:hush%3A1@')
    await using store = storeOf(redis)
    await store.put('a', 'x')
    const url = `redis://default:wrong@127.0.0.1:${redis.port}`
    const wrong = new RedisStore(url, { times })
    const error = await wrong.get('a').catch((error: Error) => error)
    await wrong.close()
    expect(error).toBeInstanceOf(Error)
    expect((error as Error).message).toStartWith(`redis://127.0.0.1:${redis.port} does not answer`)
    expect((error as Error).message).not.toContain('wrong')
    const second = new RedisStore(`${redis.url}/1`, { times })
    try {
      expect(await second.get('a')).toBeUndefined()
      await second.put('a', 'second')
      expect(await store.get('a')).toBe('x')
    } finally {
      await second.close()
    }
  })

  withRedis('that refuses a command says why, and goes on', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis)
    await store.put('a', 'x')
    await redis.cli('config', 'set', 'maxmemory', '1')
    await expect(store.put('a', 'y')).rejects.toThrow(/refuses: .*OOM/)
    await redis.cli('config', 'set', 'maxmemory', '0')
    await store.put('a', 'z')
    expect(await store.get('a')).toBe('z')
  })

  withRedis('is not searched through for a list: what others keep there does not matter', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis)
    await redis.cli('set', 'sluice-of-somebody:a/x', 'x')
    await redis.cli('set', 'a/y', 'x')
    await store.put('a/z', 'x')
    expect(await store.list('a/')).toEqual(['a/z'])
    expect(await redis.cli('info', 'commandstats')).not.toMatch(/cmdstat_(keys|scan):/)
  })

  withRedis('with TLS, trusted by its authority', async () => {
    await using directory = await temporaryDirectory()
    const pair = await signed(['localhost', '127.0.0.1'])
    const [cert, key] = [join(directory.path, 'cert'), join(directory.path, 'key')]
    await Promise.all([Bun.write(cert, pair.cert), Bun.write(key, pair.key)])
    await using redis = await Redis.start()
    const tls = { 'tls-cert-file': cert, 'tls-key-file': key, 'tls-ca-cert-file': cert, 'tls-auth-clients': 'no' }
    for (const [name, value] of Object.entries(tls)) await redis.cli('config', 'set', name, value)
    const port = freePort()
    expect(await redis.cli('config', 'set', 'tls-port', `${port}`)).toBe('OK')
    const asks = (env: Record<string, string>) => {
      const code = `
        const { RedisStore } = await import(${JSON.stringify(join(import.meta.dir, '../../src/certificates/store-redis.ts'))})
        const store = new RedisStore('rediss://localhost:${port}')
        console.log(await store.put('a', 'x').then(() => store.get('a'), (error) => error.message))
        await store.close()`
      const child = Bun.spawn([process.execPath, '-e', code], { env: { ...process.env, ...env }, stdout: 'pipe' })
      return child.stdout.text()
    }
    const [trusted, other] = await Promise.all([asks({ NODE_EXTRA_CA_CERTS: cert }), asks({})])
    expect(trusted).toBe('x\n')
    expect(other).toContain(`rediss://localhost:${port} does not answer`)
  })
})

describe('a lock in Redis', () => {
  withRedis('is held for longer than its life', async () => {
    await using redis = await Redis.start()
    const lockMs = 900 * slowness
    await using store = storeOf(redis, { lockMs })
    await using other = storeOf(redis, { lockMs })
    const lock = await store.lock('a')
    const until = performance.now() + lockMs * 1.5
    while (performance.now() < until) {
      expect(await other.lock('a')).toBeNull()
      await Bun.sleep(20)
    }
    expect(lock!.lost.aborted).toBe(false)
    await lock!.release()
    expect(await other.lock('a')).not.toBeNull()
  })

  withRedis('that another has is lost, and not released for it', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis, { lockMs: 300 })
    await using other = storeOf(redis)
    const lock = await store.lock('a')
    await redis.cli('del', 'sluice:LOCK/a')
    expect(await other.lock('a')).not.toBeNull()
    await until(() => lock!.lost.aborted, SOON_MS, 'the lock is lost')
    await lock!.release()
    expect(await store.lock('a')).toBeNull()
  })

  withRedis('is lost before its life is over when its Redis hangs, and not for a hiccup', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis, { lockMs: 1500 * slowness })
    const lock = await store.lock('a')
    const life = async () => Number(await redis.cli('pttl', 'sluice:LOCK/a'))
    redis.signal('SIGSTOP')
    // Long enough for the first renewal to come and fail.
    await Bun.sleep(950 * slowness)
    redis.signal('SIGCONT')
    await until(async () => (await life()) > 1100 * slowness, SOON_MS, 'it is renewed')
    expect(lock!.lost.aborted).toBe(false)
    redis.signal('SIGSTOP')
    await until(() => lock!.lost.aborted, SOON_MS, 'the lock is lost')
    redis.signal('SIGCONT')
    // Its life ends at its Redis a moment later.
    await until(async () => (await store.lock('a')) !== null, SOON_MS, 'the lock is free')
  })
})

describe('who watches a Redis', () => {
  withRedis('hears of changes that were made while the connection was away', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis)
    await using other = storeOf(redis)
    const told: string[] = []
    store.watch('a/', (key) => told.push(key))
    await other.put('a/1', 'x')
    await until(() => told.includes('a/1'), SOON_MS, 'the first is told')
    for (let round = 2; round < 5; round++) {
      for (const type of ['pubsub', 'normal']) await redis.cli('client', 'kill', 'type', type)
      await until(() => other.put(`a/${round}`, 'x').then(() => true), SOON_MS, 'it is put')
      await until(() => told.includes(`a/${round}`), SOON_MS, `a/${round} is told`)
    }
  })

  withRedis('goes on with one that lost its memory', async () => {
    await using redis = await Redis.start()
    await using store = storeOf(redis)
    await using other = storeOf(redis)
    const told: string[] = []
    store.watch('a/', (key) => told.push(key))
    for (let i = 0; i < 20; i++) await other.put('a/before', `${i}`)
    await until(() => told.includes('a/before'), SOON_MS, 'the first is told')
    await redis.kill()
    await redis.start()
    await until(() => other.put('a/after', 'x').then(() => true), SOON_MS, 'it is put')
    await until(() => told.includes('a/after'), SOON_MS, 'the other is told')
  })

  withRedis('that is not there yet hears of it when it is', async () => {
    await using redis = await Redis.start()
    await using other = storeOf(redis)
    await other.put('a/new', 'x')
    // Of long ago.
    await redis.cli('zadd', 'sluice:CHANGES', '1', 'a/old')
    redis.signal('SIGSTOP')
    await using store = storeOf(redis)
    const told: string[] = []
    store.watch('a/', (key) => told.push(key))
    await expect(store.get('a/new')).rejects.toThrow('does not answer')
    redis.signal('SIGCONT')
    await until(() => told.includes('a/new') && told.includes('a/old'), SOON_MS, 'both are told')
  })
})

describe('the store of the configuration', () => {
  test('is of one of two kinds', async () => {
    await using directory = await temporaryDirectory()
    const files = await openStore('file', directory.path, () => {})
    expect(files.shared).toBe(false)
    await files.close()
    for (const bad of ['redis://', 'redis:///1', 'http://user:secret@a.test', 'files', '']) {
      const error = await openStore(bad, directory.path, () => {}).catch((error: Error) => error)
      expect((error as Error).message).toStartWith('Cannot use store')
      expect((error as Error).message).not.toContain('secret')
    }
  })

  withRedis('starts and serves without its Redis, says so once, and again when it is back', async () => {
    await using directory = await temporaryDirectory()
    await using redis = await Redis.start()
    const first = await openStore(redis.url, directory.path, () => {}, { times })
    await first.put('certificates/x/a.test', 'of a')
    await first.put('attempts/x/a.test', 'not kept')
    await first.close()
    await redis.kill()
    const { said, log } = lines()
    const store = await openStore(redis.url, directory.path, log, { times })
    try {
      for (let i = 0; i < 3; i++) expect(await store.get('certificates/x/a.test')).toBe('of a')
      expect(await store.list('certificates/x/')).toEqual(['certificates/x/a.test'])
      await expect(store.get('attempts/x/a.test')).rejects.toThrow('does not answer')
      await expect(store.get('certificates/x/b.test')).rejects.toThrow('does not answer')
      await expect(store.put('certificates/x/a.test', 'new')).rejects.toThrow('does not answer')
      await expect(store.list('attempts/')).rejects.toThrow('does not answer')
      expect(await store.get('certificates/x/a.test')).toBe('of a')
      expect(said).toEqual([expect.stringContaining('does not answer')])
      await redis.start()
      await until(() => store.put('attempts/x/a.test', 'again').then(() => true), SOON_MS, 'it answers again')
      expect(said).toEqual([expect.anything(), `The shared store ${redis.url} answers again`])
    } finally {
      await store.close()
    }
  })

  withRedis('gives what is kept to a Redis that lost its memory; what was deleted stays so', async () => {
    await using directories = {
      one: await temporaryDirectory(),
      two: await temporaryDirectory(),
      async [Symbol.asyncDispose]() {
        await Promise.all([this.one[Symbol.asyncDispose](), this.two[Symbol.asyncDispose]()])
      },
    }
    await using redis = await Redis.start()
    const { said, log } = lines()
    const one = await openStore(redis.url, directories.one.path, log, { times })
    const two = await openStore(redis.url, directories.two.path, () => {}, { times })
    try {
      await one.put('certificates/x/a.test', 'of a')
      await one.put('certificates/x/b.test', 'of b')
      expect(await two.get('certificates/x/a.test')).toBe('of a')
      await redis.kill()
      await redis.start()
      await until(works(one), SOON_MS, 'it answers again')
      await until(works(two), SOON_MS, 'it answers again')
      expect(await one.get('certificates/x/a.test')).toBe('of a')
      expect(await redis.cli('get', 'sluice:certificates/x/a.test')).toBe('of a')
      expect(said.at(-1)).toContain('had lost certificates/x/a.test')
      // Taken away at the other gateway: nobody has it any more.
      await two.delete('certificates/x/a.test')
      expect(await one.get('certificates/x/a.test')).toBeUndefined()
      expect(await one.get('certificates/x/a.test')).toBeUndefined()
      expect(await two.get('certificates/x/b.test')).toBeUndefined()
      expect(await one.get('certificates/x/b.test')).toBe('of b')
      // One that came later has the newer one.
      await two.put('certificates/x/b.test', 'newer')
      expect(await one.get('certificates/x/b.test')).toBe('newer')
      await redis.kill()
      expect(await one.get('certificates/x/b.test')).toBe('newer')
    } finally {
      await Promise.all([one.close(), two.close()])
    }
  })
})

/** A gateway as far as challenges go. */
async function gateway(redis: Redis, id: string, apply?: (challenges: Challenge[]) => Promise<void>, readyMs = 1000) {
  const store = new RedisStore(redis.url, { times, askMs: 200 })
  const answered: string[][] = [[]]
  const { said, log } = lines()
  const fleet = new Fleet({
    store,
    id,
    log,
    readyMs,
    apply: async (challenges) => {
      await apply?.(challenges)
      answered.push(challenges.map(({ name }) => name).sort())
    },
  })
  await until(async () => (await store.list('gateways/')).includes(`gateways/${id}`), SOON_MS, `${id} is announced`)
  const close = async () => {
    await fleet.stop()
    await store.close()
  }
  return { store, fleet, said, answers: () => answered.at(-1)!, [Symbol.asyncDispose]: close }
}

const http = (name: string): Challenge => ({
  type: 'http-01',
  name,
  token: `T_${name}`,
  keyAuthorization: `T_${name}.k`,
})

describe('gateways that share a store', () => {
  withRedis('all answer a challenge before place() resolves, until it is taken away', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one')
    await using two = await gateway(redis, 'two')
    await using three = await gateway(redis, 'three', () => Bun.sleep(50))
    const takeAway = await one.fleet.place(http('a.test'))
    expect([one.answers(), two.answers(), three.answers()]).toEqual([['a.test'], ['a.test'], ['a.test']])
    const again = await two.fleet.place({ type: 'tls-alpn-01', name: 'b.test', cert: 'c', key: 'k' })
    for (const each of [one, two, three]) expect(each.answers()).toEqual(['a.test', 'b.test'])
    await takeAway()
    await takeAway()
    expect(one.answers()).toEqual(['b.test'])
    await until(
      () => [two, three].every((each) => each.answers().join() === 'b.test'),
      SOON_MS,
      'taken away everywhere',
    )
    await again()
    await until(() => [one, three].every((each) => each.answers().length === 0), SOON_MS, 'taken away everywhere')
    // The same once more counts anew.
    const third = await one.fleet.place(http('a.test'))
    expect(three.answers()).toEqual(['a.test'])
    await third()
    await until(() => three.answers().length === 0, SOON_MS, 'taken away everywhere')
    expect(await one.store.list('challenges/')).toEqual([])
    expect([...one.said, ...two.said, ...three.said]).toEqual([])
  })

  withRedis('many challenges at once', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one')
    await using two = await gateway(redis, 'two')
    const names = Array.from({ length: 30 }, (_, i) => `${i}.test`)
    const placed = await Promise.all(names.map((name, i) => [one, two][i % 2]!.fleet.place(http(name))))
    for (const each of [one, two]) expect(each.answers()).toEqual(names.toSorted())
    await Promise.all(placed.map((takeAway) => takeAway()))
    await until(() => [one, two].every((each) => each.answers().length === 0), SOON_MS, 'taken away everywhere')
  })

  withRedis('one that joins answers what is placed; one that left is not waited for', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one')
    const takeAway = await one.fleet.place(http('a.test'))
    await using two = await gateway(redis, 'two')
    await until(() => two.answers().join() === 'a.test', SOON_MS, 'the one that joined answers')
    await takeAway()
    await two.fleet.stop()
    expect(await one.store.list('gateways/')).toEqual(['gateways/one'])
    await (
      await one.fleet.place(http('b.test'))
    )()
    expect(one.said).toEqual([])
  })

  withRedis('one that does not answer in time is said, and the CA is told anyway', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one')
    await using _two = await gateway(redis, 'two', () => Promise.reject(new Error('no worker')))
    const takeAway = await one.fleet.place(http('a.test'))
    expect(one.said).toEqual([expect.stringContaining('Not every gateway')])
    await takeAway()
  })

  withRedis('a store that hesitates is waited for', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one', undefined, 5000)
    const applying = Promise.withResolvers<void>()
    const applied = Promise.withResolvers<void>()
    await using two = await gateway(redis, 'two', () => (applying.resolve(), applied.promise))
    const placing = one.fleet.place(http('a.test'))
    await applying.promise
    redis.signal('SIGSTOP')
    // Longer than one command may take.
    await Bun.sleep(times.answerMs + 100)
    applied.resolve()
    await Bun.sleep(times.answerMs + 100)
    redis.signal('SIGCONT')
    const takeAway = await placing
    expect(two.answers()).toEqual(['a.test'])
    expect(one.said).toEqual([])
    await takeAway()
  })

  withRedis('who could not say that it answers says it later', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one', undefined, 5000)
    const applying = Promise.withResolvers<void>()
    const applied = Promise.withResolvers<void>()
    await using _two = await gateway(redis, 'two', () => (applying.resolve(), applied.promise))
    const placing = one.fleet.place(http('a.test'))
    await applying.promise
    // Full: nothing can be put.
    await redis.cli('config', 'set', 'maxmemory', '1')
    applied.resolve()
    await Bun.sleep(100)
    await redis.cli('config', 'set', 'maxmemory', '0')
    const takeAway = await placing
    expect(one.said).toEqual([])
    await takeAway()
  })

  withRedis('what cannot be shared, or not be answered here, is not placed', async () => {
    await using redis = await Redis.start()
    let broken = false
    await using one = await gateway(redis, 'one', async () => {
      if (broken) throw new Error('no worker')
    })
    broken = true
    await expect(one.fleet.place(http('a.test'))).rejects.toThrow('no worker')
    broken = false
    await redis.kill()
    await expect(one.fleet.place(http('b.test'))).rejects.toThrow('does not answer')
    expect(one.answers()).toEqual([])
    await redis.start()
    await until(works(one.store), SOON_MS, 'it answers again')
    await (
      await one.fleet.place(http('c.test'))
    )()
    await one.fleet.stop()
    await expect(one.fleet.place(http('d.test'))).rejects.toThrow('the gateway stops')
  })

  withRedis('stopping takes away what was placed here', async () => {
    await using redis = await Redis.start()
    await using one = await gateway(redis, 'one')
    await using two = await gateway(redis, 'two')
    await one.fleet.place(http('a.test'))
    await one.fleet.stop()
    expect(one.answers()).toEqual([])
    await until(() => two.answers().length === 0, SOON_MS, 'taken away everywhere')
  })
})

test('a gateway alone answers its own challenges', async () => {
  await using directory = await temporaryDirectory()
  const store = await openStore('file', directory.path, () => {})
  const answered: string[][] = []
  const apply = async (challenges: Challenge[]) => void answered.push(challenges.map(({ name }) => name))
  const fleet = new Fleet({ store, id: 'one', apply, log: () => {} })
  const takeAway = await fleet.place(http('a.test'))
  await fleet.place(http('b.test'))
  await takeAway()
  await fleet.stop()
  expect(answered).toEqual([['a.test'], ['a.test', 'b.test'], ['b.test'], []])
  expect(await store.list('')).toEqual([])
  await store.close()
})
