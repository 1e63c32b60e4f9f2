// What ACME keeps in the store, as JSON that is checked when it is read: another version may have written it, or a hand.
import type { z } from 'zod'
import type { Store } from '../store.ts'

/** undefined: nothing is there, or nothing of use; then it is made again. */
export async function readJson<T>(store: Store, key: string, schema: z.ZodType<T>): Promise<T | undefined> {
  const text = await store.get(key)
  if (text === undefined) return undefined
  try {
    return schema.parse(JSON.parse(text))
  } catch {
    return undefined
  }
}

export const writeJson = (store: Store, key: string, value: unknown): Promise<void> =>
  store.put(key, JSON.stringify(value))
