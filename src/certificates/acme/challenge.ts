// Showing a CA that a name is ours: the challenge is chosen, put where it can be seen, and taken away whatever comes of it.
import type { Challenge, ChallengeType } from '../types.ts'
import { challengeCertificate } from './challenge-certificate.ts'
import type { Client } from './client.ts'
import { AcmeError, presentable } from './problem.ts'
import { ask, type Authorization } from './resources.ts'

export interface ChallengeOptions {
  name: string
  client: Client
  offers: ChallengeType[]
  failures: number
  place(challenge: Challenge): Promise<() => Promise<void>>
  signal: AbortSignal
  warn(message: string): void
  now(): number
}

/** Calls `decided` when the CA may look; the challenge can be seen until that has ended. */
export async function answerChallenge<T>(
  options: ChallengeOptions,
  authorization: Authorization,
  decided: (type: ChallengeType) => Promise<T>,
): Promise<T> {
  const { client, signal } = options
  const { type, url, status, token } = choose(options, authorization)
  // It becomes part of a path.
  if (token === undefined || !/^[\w-]{1,256}$/.test(token))
    throw new AcmeError('The CA gave a token that makes no sense')
  const keyAuthorization = await client.getChallengeKeyAuthorization({ type, token } as never)
  const remove = await placed(options, await challengeFor(options, type, token, keyAuthorization))
  try {
    signal.throwIfAborted()
    // One that was taken up may have been begun before.
    if (status === 'pending') await ask(() => client.completeChallenge({ url } as never))
    return await decided(type)
  } finally {
    await remove()
  }
}

function choose({ offers, failures, name }: ChallengeOptions, { challenges }: Authorization) {
  const usable = offers.flatMap((type) =>
    challenges.filter((one) => one.type === type).map((one) => ({ ...one, type })),
  )
  // After each failure the next one: a firewall often lets one of the two through.
  const chosen = usable[failures % usable.length]
  if (chosen) return chosen
  const offered = presentable(challenges.map(({ type }) => type).join(', ')) || 'none'
  throw new AcmeError(`No challenge for ${name} in common: the CA offers ${offered}, this gateway ${offers.join(', ')}`)
}

async function challengeFor(
  { name, now }: ChallengeOptions,
  type: ChallengeType,
  token: string,
  keyAuthorization: string,
): Promise<Challenge> {
  if (type === 'http-01') return { type, name, token, keyAuthorization }
  return { type, name, ...(await challengeCertificate(name, keyAuthorization, now())) }
}

/** How to take it away again, which never fails. */
async function placed(
  { name, place, signal, warn }: ChallengeOptions,
  challenge: Challenge,
): Promise<() => Promise<void>> {
  const remove = async (take: () => Promise<void>) => {
    try {
      await take()
    } catch (cause) {
      warn(`Cannot take away the challenge of ${name}: ${(cause as Error).message}`)
    }
  }
  const placing = place(challenge)
  const { promise: ended, reject } = Promise.withResolvers<never>()
  const end = () => reject(signal.reason)
  signal.addEventListener('abort', end)
  try {
    if (signal.aborted) end()
    const take = await Promise.race([placing, ended])
    return () => remove(take)
  } catch (error) {
    // Given up while it was being placed: it goes when it stands.
    placing.then(remove, () => {})
    throw error
  } finally {
    signal.removeEventListener('abort', end)
  }
}
