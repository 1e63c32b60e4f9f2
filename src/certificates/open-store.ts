// Opens the store that the configuration names: files, or a Redis that several gateways share.
import { join } from 'node:path'
import { nameOf } from './redis-connection.ts'
import { FileStore } from './store-file.ts'
import { KeptStore, type StoreLog } from './store-kept.ts'
import { RedisStore, type RedisStoreOptions } from './store-redis.ts'
import type { Store } from './store.ts'

/** A Redis that does not answer is no reason not to start: what is kept of it in files is served, and it is asked again. */
export async function openStore(
  store: string,
  stateDir: string,
  log: StoreLog,
  options: Omit<RedisStoreOptions, 'state'> = {},
): Promise<Store> {
  if (store !== 'file' && !/^rediss?:\/\/[^/]/.test(store))
    throw new Error(`Cannot use store ${nameOf(store)}: "file" or redis://HOST[:PORT][/NUMBER]`)
  const files = await FileStore.open(join(stateDir, 'store'))
  if (store === 'file') return files
  const redis = new RedisStore(store, {
    ...options,
    state: (up, error) =>
      up
        ? log('info', `The shared store ${nameOf(store)} answers again`)
        : log('warn', `${error!.message}; what is kept of it here is served`),
  })
  // Said at once, not with the first certificate.
  redis.get('probe').catch(() => {})
  return new KeptStore(redis, files, log)
}
