// The token of the admin API over HTTP, and what stands for it in a browser: a cookie that whoever has the token can make
// and nobody else, so that nothing is kept of it. Wrong tokens are counted by the address they come from.
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { chmod } from 'node:fs/promises'
import {
  ADMIN_FAILURE_CLIENTS_MAX,
  ADMIN_FAILURES_MAX,
  ADMIN_FAILURES_MS,
  ADMIN_SESSION_MS_MAX,
} from '../base/limits.ts'
import { createFile } from '../certificates/durable.ts'

const TOKEN_BYTES = 32
const TOKEN = /^\S{1,256}$/

/** The token of that file (0600), made when there is none. */
export async function tokenOf(path: string): Promise<string> {
  await createFile(path, `${randomBytes(TOKEN_BYTES).toString('base64url')}\n`)
  await chmod(path, 0o600)
  const token = (await Bun.file(path).text()).trim()
  if (!TOKEN.test(token)) throw new Error(`Cannot use ${path}: it does not contain one token; remove it for a new one`)
  return token
}

/** Texts of different lengths take the same time too. */
function isSame(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(a), digest(b))
}

export class Login {
  /** By address; the one that came first is the first. */
  readonly #failures = new Map<string, { count: number; untilMs: number }>()

  constructor(
    private readonly token: string,
    /** Told once for each time that an address is shut out. */
    private readonly shutOut: (client: string) => void = () => {},
    private readonly now: () => number = Date.now,
  ) {}

  /** `limited`: the address has guessed too often, and whether this guess is right is not said. */
  try(token: string, client: string): 'right' | 'wrong' | 'limited' {
    const now = this.now()
    let failures = this.#failures.get(client)
    if (failures && failures.untilMs <= now) {
      this.#failures.delete(client)
      failures = undefined
    }
    if (failures && failures.count >= ADMIN_FAILURES_MAX) return 'limited'
    if (isSame(token, this.token)) return 'right'
    if (!failures) this.#remember(client, now)
    else if (++failures.count === ADMIN_FAILURES_MAX) this.shutOut(client)
    return 'wrong'
  }

  #remember(client: string, now: number) {
    this.#failures.set(client, { count: 1, untilMs: now + ADMIN_FAILURES_MS })
    if (this.#failures.size > ADMIN_FAILURE_CLIENTS_MAX) this.#failures.delete(this.#failures.keys().next().value!)
  }

  // ---- what stands for it in a browser ----

  session(): string {
    const until = String(this.now() + ADMIN_SESSION_MS_MAX)
    return `${until}.${this.#sign(until)}`
  }

  isSession(text: string): boolean {
    const [until = '', signature = ''] = text.split('.')
    return isSame(signature, this.#sign(until)) && Number(until) > this.now()
  }

  #sign(until: string): string {
    return createHmac('sha256', this.token).update(`sluice session until ${until}`).digest('base64url')
  }
}
