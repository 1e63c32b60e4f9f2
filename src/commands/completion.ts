// sluice completion: the script of a shell, and the answers to it; names come from the gateway that runs, where one answers at once.
import type { Command } from 'commander'
import { complete, type Candidate, type Completion, type Kind } from './completion/candidates.ts'
import { FILES, scriptFor, SHELLS, type Shell } from './completion/scripts.ts'
import { fail } from './client.ts'
import { ask } from './gateway.ts'
import { printable, shorten } from './format.ts'

/** Somebody waits with a finger on the key. */
const ASK_MS_MAX = 500
/** More than this nobody reads; the shell would ask before it lists them. */
const NAMES_MAX = 500
const DESCRIPTION_MAX = 60

export function completion(shell: string): number {
  if (!SHELLS.includes(shell as Shell)) {
    fail(`no completion for ${shell}: there is one for ${SHELLS.join(', ')}`)
    return 2
  }
  process.stdout.write(scriptFor(shell as Shell))
  return 0
}

/** What a script asked: a line for each candidate, its description after a tab. */
export async function answerCompletion(program: Command, words: readonly string[]): Promise<void> {
  const found = complete(program, words)
  const current = words.at(-1) ?? ''
  const names = (await Promise.all(found.ask.map((kind) => namesOf(kind, found)))).flat()
  const lines = [...found.candidates, ...names]
    .map(({ value, description }) => ({ value: found.prefix + value, description }))
    .filter(({ value }) => value.startsWith(current))
    .map(lineOf)
  const text = [...lines, ...(found.files ? [FILES] : [])].map((line) => `${line}\n`).join('')
  await new Promise<void>((written) => process.stdout.write(text, () => written()))
}

const lineOf = ({ value, description }: Candidate) =>
  description ? `${value}\t${shorten(printable(description), DESCRIPTION_MAX)}` : value

/** None where no gateway answers in time: completing must never be in the way. */
async function namesOf(kind: Kind, { options }: Completion): Promise<Candidate[]> {
  const late = Bun.sleep(ASK_MS_MAX).then(() => [])
  const names = listed(kind, options).catch(() => [])
  return (await Promise.race([names, late])).slice(0, NAMES_MAX)
}

interface Listed {
  name?: string
  id?: string
  client?: string
  target?: string
  configured?: string
  route?: string
  reason?: string
}

async function listed(kind: Kind, options: Completion['options']): Promise<Candidate[]> {
  const answer = await ask('GET', `/v1/${kind}`, options, undefined, AbortSignal.timeout(ASK_MS_MAX))
  if (typeof answer === 'string' || !answer.ok) return []
  const items = ((await answer.json()) as Record<Kind, Listed[] | undefined>)[kind] ?? []
  const candidates = items.map((item) => candidateOf(kind, item))
  const seen = new Set<string>()
  // A name with a space or a control character would become several words, or worse.
  return candidates.filter(({ value }) => /^[\x21-\x7e]+$/.test(value) && !seen.has(value) && seen.add(value))
}

function candidateOf(kind: Kind, item: Listed): Candidate {
  switch (kind) {
    case 'connections':
      return { value: item.id ?? '', description: `${item.route} ${item.client}` }
    case 'clients':
      return { value: item.client ?? '', description: '' }
    case 'targets':
      return { value: item.configured ?? item.target ?? '', description: item.route ?? '' }
    default:
      return { value: item.name ?? '', description: item.reason ?? '' }
  }
}
