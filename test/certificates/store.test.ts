// What every store does, tried on both: the files of one gateway, and a Redis that several share.
import { describe, expect, test } from 'bun:test'
import { randomUUID } from 'node:crypto'
import { readdir, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { STORE_PAGE_KEYS } from '../../src/base/limits.ts'
import { FileStore } from '../../src/certificates/store-file.ts'
import { RedisStore } from '../../src/certificates/store-redis.ts'
import type { Store } from '../../src/certificates/store.ts'
import { until } from '../netns/gateway.ts'
import { hasRedis, Redis } from '../peers/redis.ts'
import { isWhole, longText } from './fixtures/long-text.ts'
import { temporaryDirectory } from './tools.ts'

const LOCK_MS = 1500
const SOON_MS = 5000

interface Place extends AsyncDisposable {
  /** A directory or a URL, for another process. */
  where: string
  /** Another user of the same store. */
  open(): Promise<Store>
}

async function inFiles(): Promise<Place> {
  const directory = await temporaryDirectory()
  const stores: Store[] = []
  return {
    where: directory.path,
    open: async () => (stores.push(await FileStore.open(directory.path, 50)), stores.at(-1)!),
    async [Symbol.asyncDispose]() {
      await Promise.all(stores.map((store) => store.close()))
      await directory[Symbol.asyncDispose]()
    },
  }
}

async function inRedis(): Promise<Place> {
  const redis = await Redis.start()
  const stores: Store[] = []
  return {
    where: redis.url,
    open: async () => (stores.push(new RedisStore(redis.url, { lockMs: LOCK_MS })), stores.at(-1)!),
    async [Symbol.asyncDispose]() {
      await Promise.all(stores.map((store) => store.close()))
      await redis[Symbol.asyncDispose]()
    },
  }
}

/** Resolves when the process has said its first word. */
async function storeUser(place: Place, args: string[], ...more: string[]) {
  const fixture = join(import.meta.dir, 'fixtures/store-user.ts')
  const command = [process.execPath, fixture, place.where, ...args, `${LOCK_MS}`, ...more]
  const user = Bun.spawn(command, { stdio: ['ignore', 'pipe', 'inherit'] })
  const { value } = await user.stdout.getReader().read()
  const kill = async () => {
    user.kill('SIGKILL')
    await user.exited
  }
  return {
    said: Buffer.from(value ?? [])
      .toString()
      .trim(),
    kill,
    [Symbol.asyncDispose]: kill,
  }
}

const kinds: [string, () => Promise<Place>][] = [['files', inFiles]]
if (hasRedis) kinds.push(['Redis', inRedis])
else test.skip('the store in Redis (skipped: needs redis-server)', () => {})

describe.each(kinds)('the store in %s', (kind, start) => {
  test('gives back what was put, to every user of it, until it is deleted', async () => {
    await using place = await start()
    const [one, other] = [await place.open(), await place.open()]
    expect(await one.get('certificates/a.test')).toBeUndefined()
    const text = 'first line\nexpires never\n\u00e4\u{1f600}\n'
    await one.put('certificates/a.test', text)
    expect(await other.get('certificates/a.test')).toBe(text)
    await other.put('certificates/a.test', '')
    expect(await one.get('certificates/a.test')).toBe('')
    await one.delete('certificates/a.test')
    await one.delete('certificates/a.test')
    expect(await other.get('certificates/a.test')).toBeUndefined()
  })

  test('lists by the beginning of the key, sorted', async () => {
    await using place = await start()
    const store = await place.open()
    const long = `${`${'a'.repeat(61)}.`.repeat(4)}test`
    const keys = ['a/*.b.test', 'a/b', 'a/b.test', 'a/b/c', 'a/b:1', `a/${long}`, `a/${long}/x`, 'ab/c', 'z']
    await Promise.all(keys.map((key) => store.put(key, key)))
    expect(await store.list('')).toEqual(keys.toSorted())
    expect(await store.list('a/')).toEqual(keys.filter((key) => key.startsWith('a/')).toSorted())
    expect(await store.list('a/b')).toEqual(['a/b', 'a/b.test', 'a/b/c', 'a/b:1'])
    expect(await store.list('a/b/')).toEqual(['a/b/c'])
    expect(await store.list('nothing/')).toEqual([])
    for (const key of keys) expect(await store.get(key)).toBe(key)
    await store.delete('a/b')
    expect(await store.get('a/b/c')).toBe('a/b/c')
  })

  test('lists many', async () => {
    await using place = await start()
    const store = await place.open()
    // A Redis lists in pages; a disk takes its time for each.
    const many = kind === 'Redis' ? STORE_PAGE_KEYS * 2 + 100 : 50
    const keys = Array.from({ length: many }, (_, i) => `many/${i}.test`)
    await Promise.all(keys.map((key) => store.put(key, key)))
    expect(await store.list('many/')).toEqual(keys.toSorted())
  })

  test('refuses keys that could mean something else, and texts without an end', async () => {
    await using place = await start()
    const store = await place.open()
    const bad = [
      '',
      '/',
      'a/',
      '/a',
      'a//b',
      '.',
      '..',
      'a/../b',
      'a/.b',
      'a/b.',
      'a..b',
      'A',
      'a b',
      'a\0',
      'a\n',
      'ä',
      'a'.repeat(600),
    ]
    for (const key of bad) {
      await expect(store.put(key, 'x')).rejects.toThrow('Cannot use')
      await expect(store.get(key)).rejects.toThrow('Cannot use')
      await expect(store.delete(key)).rejects.toThrow('Cannot use')
      await expect(store.lock(key)).rejects.toThrow('Cannot use')
    }
    await expect(store.put('a', 'x'.repeat(200_000))).rejects.toThrow('more than 128 KiB')
    expect(await store.list('')).toEqual([])
  })

  test('forgets what has a life, and what is put again has the new one', async () => {
    await using place = await start()
    const store = await place.open()
    await store.put('challenges/short', 'x', { ttlMs: 50 })
    await store.put('challenges/longer', 'x', { ttlMs: 50 })
    await store.put('challenges/longer', 'y')
    await until(async () => (await store.get('challenges/short')) === undefined, SOON_MS, 'its life is over')
    expect(await store.list('challenges/')).toEqual(['challenges/longer'])
    expect(await store.get('challenges/longer')).toBe('y')
    await store.put('challenges/short', 'z', { ttlMs: 60_000 })
    expect(await store.list('challenges/')).toEqual(['challenges/longer', 'challenges/short'])
  })

  test('an end that comes late takes nothing new away', async () => {
    await using place = await start()
    const store = await place.open()
    for (let round = 0; round < 20; round++) {
      await store.put('a', 'old', { ttlMs: 1 })
      await Bun.sleep(3)
      await Promise.all([store.get('a'), store.put('a', 'new')])
      expect(await store.get('a')).toBe('new')
    }
  })

  test('200 puts of one key at once: one of them stays, whole, and the last one of each user is not lost to an earlier one', async () => {
    await using place = await start()
    const stores = [await place.open(), await place.open()]
    await Promise.all(Array.from({ length: 200 }, (_, n) => stores[n % 2]!.put('busy', longText(n))))
    expect([longText(198), longText(199)]).toContain((await stores[0]!.get('busy'))!)
  }, 20_000)

  test('a writer that is killed leaves the old text or the new one, never a part', async () => {
    await using place = await start()
    for (let round = 0; round < 4; round++) {
      await using writer = await storeUser(place, ['puts', 'torn'])
      await Bun.sleep(Math.random() * 30)
      await writer.kill()
      const store = await place.open()
      expect(isWhole((await store.get('torn'))!)).toBe(true)
      expect(await store.list('')).toEqual(['torn'])
    }
    if (kind !== 'files') return
    // What they have left is cleaned up, once it is sure that nobody writes it.
    const temporaries = join(place.where, 'TEMPORARY')
    await Bun.write(join(temporaries, 'one-more'), 'half a te')
    const long = new Date(Date.now() - 120_000)
    for (const name of await readdir(temporaries)) await utimes(join(temporaries, name), long, long)
    await place.open()
    expect(await readdir(temporaries)).toEqual([])
  }, 20_000)

  test('of 20 who want a lock exactly one has it, then the next one', async () => {
    await using place = await start()
    const stores = [await place.open(), await place.open()]
    for (let round = 0; round < 5; round++) {
      const locks = await Promise.all(Array.from({ length: 20 }, (_, n) => stores[n % 2]!.lock('locks/one')))
      const held = locks.filter((lock) => lock !== null)
      expect(held).toHaveLength(1)
      expect(held[0]!.lost.aborted).toBe(false)
      await held[0]!.release()
      await held[0]!.release()
    }
  })

  test('a lock is never with two processes, however fast it changes hands', async () => {
    await using place = await start()
    await using directory = await temporaryDirectory()
    const compete = () => storeUser(place, ['compete', 'locks/hot/x'], join(directory.path, 'inside'))
    const users = await Promise.all([compete(), compete(), compete()])
    expect(users.map(({ said }) => said)).toEqual(['alone', 'alone', 'alone'])
    await Promise.all(users.map(({ kill }) => kill()))
  }, 20_000)

  test('the lock of a process that is killed is free', async () => {
    await using place = await start()
    const store = await place.open()
    await using holder = await storeUser(place, ['lock', 'locks/crash'])
    expect(holder.said).toBe('held')
    expect(await store.lock('locks/crash')).toBeNull()
    expect(await store.lock('locks/other')).not.toBeNull()
    await holder.kill()
    let lock = null
    await until(async () => (lock = await store.lock('locks/crash')) !== null, LOCK_MS * 3, 'the lock is free')
    expect(lock).not.toBeNull()
  })

  test('closing lets go of locks', async () => {
    await using place = await start()
    const [one, other] = [await place.open(), await place.open()]
    await one.lock('locks/a')
    expect(await other.lock('locks/a')).toBeNull()
    await one.close()
    expect(await other.lock('locks/a')).not.toBeNull()
  })

  test('tells of what anybody changes below a prefix, until it is not wanted any more', async () => {
    await using place = await start()
    const [one, other] = [await place.open(), await place.open()]
    await one.put('c/before', 'x')
    const told: string[] = []
    const stop = one.watch('c/', (key) => told.push(key))
    const hears = async (key: string, change: () => Promise<void>) => {
      told.length = 0
      await change()
      await until(() => told.includes(key), SOON_MS, `${key} is told`)
    }
    await hears('c/own', () => one.put('c/own', 'x'))
    await hears('c/deep/new.test', () => other.put('c/deep/new.test', 'x'))
    await hears('c/deep/new.test', () => other.put('c/deep/new.test', 'y'))
    await hears('c/deep/new.test', () => other.delete('c/deep/new.test'))
    await hears('c/before', () => other.delete('c/before'))
    await hears('c/own', () => one.delete('c/own'))
    told.length = 0
    await other.put('d/elsewhere', 'x')
    await hears('c/last', () => other.put('c/last', 'x'))
    expect(told.filter((key) => key !== 'c/last' && key !== 'c/own')).toEqual([])
    stop()
    told.length = 0
    const again: string[] = []
    one.watch('', (key) => again.push(key))
    await other.put('c/after', 'x')
    await until(() => again.includes('c/after'), SOON_MS, 'the other one is told')
    expect(told).toEqual([])
  }, 20_000)
})

describe('the store in files', () => {
  test('is for its owner only, and leaves nothing behind', async () => {
    await using place = await inFiles()
    const store = await place.open()
    await store.put('certificates/x/*.a.test', 'secret')
    const lock = await store.lock('locks/issue/a.test')
    const modes: number[] = []
    for (const path of [
      '',
      'certificates',
      'certificates/x',
      'certificates/x/%2a.a.test.ENTRY',
      'locks/issue/a.test.LOCK',
    ])
      modes.push((await stat(join(place.where, path))).mode & 0o777)
    expect(modes).toEqual([0o700, 0o700, 0o700, 0o600, 0o600])
    await lock!.release()
    await store.delete('certificates/x/*.a.test')
    expect(await readdir(place.where)).toEqual(['TEMPORARY'])
  })

  test('opening it again, as an upgrade does, disturbs nobody who writes', async () => {
    await using place = await inFiles()
    const store = await place.open()
    let done = false
    const opening = (async () => {
      while (!done) await place.open()
    })()
    for (let n = 0; n < 25; n++) {
      await store.put('a/busy', longText(n))
      expect(await store.get('a/busy')).toBe(longText(n))
    }
    done = true
    await opening
  })

  test('tells of two changes within one tick of the clock of the file system', async () => {
    await using place = await inFiles()
    const [store, other] = [await place.open(), await place.open()]
    const tick = new Date()
    const told = new Set<string>()
    store.watch('a/', (key) => told.add(key))
    for (const key of ['a/1', 'a/2', 'a/3']) {
      await other.put(key, 'x')
      await utimes(join(place.where, 'a'), tick, tick)
      await until(() => told.has(key), SOON_MS, `${key} is told`)
    }
  })

  test('tells of what a person takes away', async () => {
    await using place = await inFiles()
    const store = await place.open()
    for (const key of ['a/b/x', 'a/b/y', 'a/z']) await store.put(key, 'x')
    const told = new Set<string>()
    store.watch('a/b/', (key) => told.add(key))
    await until(() => told.size === 2, SOON_MS, 'what was put a moment ago is told')
    told.clear()
    await rm(join(place.where, 'a'), { recursive: true })
    await until(() => told.size === 2, SOON_MS, 'what was taken away is told')
    expect([...told].sort()).toEqual(['a/b/x', 'a/b/y'])
  })

  test('a damaged file is as good as none, a foreign one is left alone', async () => {
    await using place = await inFiles()
    const store = await place.open()
    await store.put('a/x', 'x')
    await Bun.write(join(place.where, 'a/x.ENTRY'), '')
    await Bun.write(join(place.where, 'a/README'), 'not ours')
    expect(await store.get('a/x')).toBeUndefined()
    expect(await store.list('')).toEqual([])
    await store.put('a/x', 'y')
    expect(await store.get('a/x')).toBe('y')
    expect(await Bun.file(join(place.where, 'a/README')).text()).toBe('not ours')
  })

  test('a directory that cannot be written fails with its path', async () => {
    await using place = await inFiles()
    const store = await place.open()
    await Bun.write(join(place.where, 'a'), 'in the way')
    await expect(store.put(`a/${randomUUID()}`, 'x')).rejects.toThrow(`Cannot write ${place.where}/a/`)
    expect(await store.get('a/x')).toBeUndefined()
  })
})
