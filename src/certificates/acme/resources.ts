// What a CA answers, as far as it is needed here (RFC 8555, section 7.1), checked before it is used.
import { setTimeout as pause } from 'node:timers/promises'
import { z } from 'zod'
import { ACME_ASKS_MAX, ACME_POLL_MS_MIN } from '../../base/limits.ts'
import { AcmeError, hasStumbled } from './problem.ts'

export const Order = z.looseObject({
  url: z.string(),
  status: z.string(),
  authorizations: z.array(z.string()).max(10),
  finalize: z.string(),
  certificate: z.string().optional(),
  error: z.unknown().optional(),
})
export type Order = z.infer<typeof Order>

export const Authorization = z.looseObject({
  url: z.string(),
  status: z.string(),
  identifier: z.object({ type: z.string(), value: z.string() }),
  challenges: z
    .array(
      z.looseObject({
        type: z.string(),
        url: z.string(),
        status: z.string(),
        token: z.string().optional(),
        error: z.unknown().optional(),
      }),
    )
    .max(20),
})
export type Authorization = z.infer<typeof Authorization>

/** A CA that stumbles over what it is asked at the same moment, as some do, is asked once more: for a name a failure is a minute at
 *  least. acme-client takes answers for what they should be, and stumbles itself where they are not. */
export async function ask<T>(request: () => Promise<T>): Promise<T> {
  for (let times = 1; ; times++) {
    try {
      return await request()
    } catch (error) {
      if (error instanceof TypeError) throw nonsense()
      if (!hasStumbled(error) || times >= ACME_ASKS_MAX) throw error
      await pause(times * ACME_POLL_MS_MIN * (1 + Math.random()))
    }
  }
}

/** The same object when it is right: what is known of an answer (Retry-After) is known by it. */
export function checked<T>(schema: z.ZodType<T>, answer: unknown): T {
  if (!schema.safeParse(answer).success) throw nonsense()
  return answer as T
}

export const nonsense = () => new AcmeError("The CA's answer makes no sense")
