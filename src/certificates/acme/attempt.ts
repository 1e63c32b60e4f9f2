// One attempt to get a certificate: with the account of this gateway, or with a new one when the CA does not know it any more.
import type { Store } from '../store.ts'
import type { Challenge, ChallengeType, StoredCertificate } from '../types.ts'
import type { Authority } from './authority.ts'
import { order } from './order.ts'
import { AcmeError } from './problem.ts'

export interface AttemptOptions {
  name: string
  authority: Authority
  store: Store
  /** Where the order is kept while it lives. */
  storeKey: string
  offers(name: string): ChallengeType[] | Promise<ChallengeType[]>
  place(challenge: Challenge): Promise<() => Promise<void>>
  /** Attempts in a row that have failed before. */
  failures: number
  /** What is to be replaced. */
  held: StoredCertificate | undefined
  signal: AbortSignal
  log(level: 'warn', message: string): void
  now(): number
  random(): number
  orderMs?: number | undefined
}

export async function attempt(options: AttemptOptions): Promise<StoredCertificate> {
  const offers = await options.offers(options.name)
  options.signal.throwIfAborted()
  if (offers.length === 0) throw new AcmeError('No port of this gateway can answer a challenge of the CA')
  try {
    return await once(options, offers)
  } catch (cause) {
    if (!isUnknownAccount(cause)) throw cause
    options.log('warn', 'The CA does not know the account any more; making a new one')
    return once(options, offers)
  }
}

async function once(options: AttemptOptions, offers: ChallengeType[]): Promise<StoredCertificate> {
  const { name, authority, store, storeKey, place, failures, held, signal, log, now, random, orderMs } = options
  const session = await authority.session(signal)
  const replaces = held && (await authority.replacing(held.cert, signal))
  try {
    return await order({
      ...session,
      ...{ name, store, storeKey, offers, place, failures, replaces, signal, now, random },
      ...(orderMs === undefined ? {} : { orderMs }),
      warn: (message) => log('warn', message),
    })
  } catch (cause) {
    if (isUnknownAccount(cause)) await authority.forget(session.account)
    throw cause
  }
}

const isUnknownAccount = (cause: unknown) => cause instanceof AcmeError && cause.type === 'accountDoesNotExist'
