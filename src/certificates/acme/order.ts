// One order for one name: from the CA's promise to a certificate that was looked at. An order that was cut off is taken up
// where it was, so a restart asks for no second certificate.
import { setTimeout as pause } from 'node:timers/promises'
import { z } from 'zod'
import { ACME_POLL_MS_MAX, ACME_POLL_MS_MIN, ORDER_MS_MAX } from '../../base/limits.ts'
import type { Store } from '../store.ts'
import type { Challenge, ChallengeType, StoredCertificate } from '../types.ts'
import type { Account } from './account.ts'
import { answerChallenge } from './challenge.ts'
import { acmeClient, type Client } from './client.ts'
import { checkIssued } from './issued.ts'
import { readJson, writeJson } from './json.ts'
import { AcmeError, presentable, problemOf } from './problem.ts'
import { ask, Authorization, checked, nonsense, Order } from './resources.ts'
import type { Transport } from './transport.ts'

export interface OrderOptions {
  name: string
  client: Client
  account: Account
  transport: Transport
  store: Store
  /** Where in the store the order is kept while it lives. */
  storeKey: string
  offers: ChallengeType[]
  /** Attempts in a row that have failed: each tries the next kind of challenge. */
  failures: number
  place(challenge: Challenge): Promise<() => Promise<void>>
  /** The certificate that this one is for, by its name in the CA's renewal information. */
  replaces?: string | undefined
  /** Ends the order when it is given up, or has taken too long. */
  signal: AbortSignal
  orderMs?: number
  warn(message: string): void
  now(): number
  random(): number
}

/** An order on its way, as it is kept. */
const Kept = z.object({ url: z.string(), account: z.string(), key: z.string() })
type Kept = z.infer<typeof Kept>

export async function order(options: OrderOptions): Promise<StoredCertificate> {
  const { store, storeKey, orderMs = ORDER_MS_MAX } = options
  const late = AbortSignal.timeout(orderMs)
  const stage = { name: 'the order' }
  const kept = await readJson(store, storeKey, Kept)
  const resumed = kept?.account === options.account.url ? kept : undefined
  try {
    return await issue({ ...options, signal: AbortSignal.any([options.signal, late]), stage }, resumed)
  } catch (cause) {
    // Given up from outside: that is no answer of the CA, and the order is taken up by the next attempt.
    options.signal.throwIfAborted()
    const error = late.aborted
      ? new AcmeError(`The CA has not decided about ${stage.name} within ${orderMs / 1000} s`, { kind: 'late' })
      : cause
    const kind = error instanceof AcmeError ? error.kind : 'refused'
    // One that may still become a certificate is taken up once; if nothing comes of that either, the CA may have lost it.
    if (kind === 'refused' || (resumed && kind !== 'unreachable')) await store.delete(storeKey)
    throw error
  }
}

interface Ordering extends OrderOptions {
  /** What the CA was asked last, for people. */
  stage: { name: string }
}

async function issue(options: Ordering, resumed: Kept | undefined): Promise<StoredCertificate> {
  const { name, client, stage } = options
  let { current, key } = resumed ? await takeUp(options, resumed) : await begin(options)
  if (current.status === 'pending') {
    for (const url of current.authorizations) await authorize(options, url)
    stage.name = 'the order'
    current = await settled(
      options,
      () => readOrder(options, current.url),
      ({ status }) => status === 'pending',
    )
  }
  if (current.status === 'ready') {
    stage.name = 'the certificate'
    const { crypto } = await acmeClient()
    const [, csr] = await crypto.createCsr({ altNames: [name] }, key)
    const { finalize, url } = current
    current = checked(Order, await ask(() => client.finalizeOrder({ finalize, url } as never, csr)))
  }
  const last = await settled(
    options,
    () => readOrder(options, current.url),
    ({ status }) => status === 'ready' || status === 'processing',
    current,
  )
  if (last.status !== 'valid') throw refused('The CA has refused the order', last.error)
  if (last.certificate === undefined) throw nonsense()
  const chain = await ask(() => client.getCertificate(last as never))
  return checkIssued(name, String(chain), key, options.now(), options.random())
}

async function begin(options: Ordering): Promise<{ current: Order; key: string }> {
  const { name, client, account, store, storeKey, replaces } = options
  const { crypto } = await acmeClient()
  const key = (await crypto.createPrivateEcdsaKey()).toString()
  const create = (more: object) =>
    ask(() => client.createOrder({ identifiers: [{ type: 'dns', value: name }], ...more }))
  const answer = await create(replaces === undefined ? {} : { replaces }).catch((error) => {
    // What an order replaces decides about limits only; a CA that wants to know nothing of it gets the order without.
    if (replaces === undefined || !(error instanceof AcmeError) || error.kind !== 'refused') throw error
    if (error.type !== 'alreadyReplaced' && error.type !== 'malformed') throw error
    return create({})
  })
  const current = checked(Order, answer)
  // Before anything else is done for it: from here on a certificate can come of it.
  await writeJson(store, storeKey, { url: current.url, account: account.url, key } satisfies Kept)
  return { current, key }
}

/** A new one when the CA has no use for the old one any more. */
async function takeUp(options: Ordering, { url, key }: Kept): Promise<{ current: Order; key: string }> {
  try {
    const current = await readOrder(options, url)
    if (current.status !== 'invalid') return { current, key }
  } catch (error) {
    if (!(error instanceof AcmeError) || error.kind !== 'refused' || error.type === 'accountDoesNotExist') throw error
  }
  return begin(options)
}

async function authorize(options: Ordering, url: string): Promise<void> {
  const { name, client, stage } = options
  const read = async () => {
    const [answer] = await ask(() => client.getAuthorizations({ authorizations: [url] } as never))
    return checked(Authorization, answer)
  }
  stage.name = 'the authorization'
  const authorization = await read()
  if (authorization.status === 'valid') return
  if (authorization.status !== 'pending')
    throw refused(`The CA calls the authorization ${presentable(authorization.status)}`, undefined)
  if (authorization.identifier.value.toLowerCase() !== name)
    throw refused(`The CA wants to see ${presentable(authorization.identifier.value)} authorized`, undefined)
  const last = await answerChallenge(options, authorization, async (type) => {
    stage.name = `the challenge ${type}`
    return settled(options, read, ({ status, challenges }) => {
      // One that is pending again with an error waits to be asked for again (RFC 8555, section 8.2): that is the next attempt's.
      const waits = challenges.some((one) => one.type === type && one.status === 'pending' && one.error !== undefined)
      return status === 'pending' && !waits
    })
  })
  if (last.status === 'valid') return
  const failed = last.challenges.find((challenge) => challenge.error !== undefined)
  throw refused(`The CA could not see that ${name} is ours${failed ? `, by ${failed.type}` : ''}`, failed?.error)
}

const readOrder = async ({ client }: Ordering, url: string): Promise<Order> =>
  checked(Order, await ask(() => client.getOrder({ url } as never)))

/** Looks until the CA has made up its mind. */
async function settled<T extends object>(
  { transport, signal }: Ordering,
  look: () => Promise<T>,
  undecided: (item: T) => boolean,
  known?: T,
): Promise<T> {
  let item = known ?? (await look())
  for (let wait = ACME_POLL_MS_MIN; undecided(item); wait *= 2) {
    const asked = transport.retryAfter.get(item) ?? wait
    await pause(Math.min(Math.max(asked, ACME_POLL_MS_MIN), ACME_POLL_MS_MAX), undefined, { signal })
    item = await look()
  }
  return item
}

function refused(sentence: string, problem: unknown): AcmeError {
  const said = problemOf(problem)
  return new AcmeError(said ? `${sentence}: ${said.sentence}` : sentence, { type: said?.type })
}
