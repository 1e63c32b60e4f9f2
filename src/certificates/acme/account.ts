// The account at a CA: made once for each directory, also by several gateways that share a store, and found again after a
// restart.
import { setTimeout as pause } from 'node:timers/promises'
import { z } from 'zod'
import { ISSUE_LOOK_MS, ORDER_MS_MAX } from '../../base/limits.ts'
import type { Lock, Store } from '../store.ts'
import type { AcmeSettings } from '../types.ts'
import { acmeClient, connect } from './client.ts'
import { readJson, writeJson } from './json.ts'
import type { Transport } from './transport.ts'

const Kept = z.object({
  /** PEM. */
  key: z.string(),
  /** Missing when the gateway ended before the CA had answered: the same key then finds the same account. */
  url: z.string().optional(),
  email: z.string(),
  /** Of the external account it is bound to. */
  kid: z.string().nullable(),
})

export interface Account {
  key: string
  url: string
}

export interface AccountOptions {
  settings: AcmeSettings
  store: Store
  directoryId: string
  transport: Transport
  signal: AbortSignal
}

const accountKey = (directoryId: string) => `acme/${directoryId}/account`
const lockKey = (directoryId: string) => `locks/account/${directoryId}`

export async function openAccount(options: AccountOptions): Promise<Account> {
  const { settings, store, directoryId } = options
  const kid = settings.eab?.kid ?? null
  // An account that is bound to another external account is another account.
  const find = async () => {
    const kept = await readJson(store, accountKey(directoryId), Kept)
    return kept?.kid === kid ? kept : undefined
  }
  const known = await find()
  if (known?.url !== undefined && known.email === settings.email) return { key: known.key, url: known.url }

  return locked(options, async () => {
    const kept = await find()
    const key = kept?.key ?? (await (await acmeClient()).crypto.createPrivateEcdsaKey()).toString()
    const write = (url: string | undefined, email: string) =>
      writeJson(store, accountKey(directoryId), { key, url, email, kid })
    if (!kept) await write(undefined, settings.email)
    const client = await connect(settings, { key, url: kept?.url }, options.transport)
    const contact = [`mailto:${settings.email}`]
    if (kept?.url === undefined) await client.createAccount({ termsOfServiceAgreed: true, contact })
    else if (kept.email !== settings.email) await client.updateAccount({ contact })
    const url = client.getAccountUrl()
    await write(url, settings.email)
    return { key, url }
  })
}

/** The CA does not know it any more. What another gateway has made in the meantime stays. */
export async function forgetAccount(options: AccountOptions, account: Account): Promise<void> {
  const { store, directoryId } = options
  await locked(options, async () => {
    const kept = await readJson(store, accountKey(directoryId), Kept)
    if (kept?.key === account.key) await store.delete(accountKey(directoryId))
  })
}

async function locked<T>({ store, directoryId, signal }: AccountOptions, act: () => Promise<T>): Promise<T> {
  const lock = await waitForLock(store, lockKey(directoryId), signal)
  try {
    return await act()
  } finally {
    // Whoever waits for it gets it when it ends by itself.
    await lock.release().catch(() => {})
  }
}

async function waitForLock(store: Store, key: string, signal: AbortSignal): Promise<Lock> {
  const giveUp = performance.now() + ORDER_MS_MAX
  for (;;) {
    signal.throwIfAborted()
    const lock = await store.lock(key)
    if (lock) return lock
    if (performance.now() > giveUp) throw new Error('another gateway has been busy with the account for too long')
    await pause(ISSUE_LOOK_MS / 4, undefined, { signal })
  }
}
