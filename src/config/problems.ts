// What is wrong with a configuration, in the words that an operator gets: path, what is wrong, what would be right.
import type { z } from 'zod'

export interface Problem {
  /** "routes[2].action.targets[0].port" */
  path: string
  message: string
  remedy: string
}

const formatPath = (path: PropertyKey[]) =>
  path.reduce<string>(
    (text, part) => (typeof part === 'number' ? `${text}[${part}]` : text ? `${text}.${String(part)}` : String(part)),
    '',
  ) || '(the configuration)'

export function toProblems(issue: z.core.$ZodIssue, prefix: PropertyKey[]): Problem[] {
  const path = [...prefix, ...issue.path]
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({
        path: formatPath([...path, key]),
        message: 'unknown field',
        remedy: 'remove it, or check its spelling with "sluice schema"',
      }))
    case 'invalid_union': {
      if (issue.errors.length === 0) return [problem(path, issue, 'choose one of the kinds that the schema lists')]
      // Of the alternatives, the one that came furthest is the one that was meant.
      const best = issue.errors.toSorted((a, b) => depth(b) - depth(a) || a.length - b.length)[0]!
      return best.flatMap((inner) => toProblems(inner, path))
    }
    case 'invalid_type':
      return [
        issue.input === undefined
          ? { path: formatPath(path), message: 'is missing', remedy: `add it: ${issue.expected}` }
          : problem(path, issue, `write ${article(issue.expected)}`),
      ]
    case 'invalid_value':
      return [problem(path, issue, `one of ${issue.values.map((value) => JSON.stringify(value)).join(', ')}`)]
    case 'too_small':
      return [problem(path, issue, `at least ${issue.minimum}`)]
    case 'too_big':
      return [problem(path, issue, `at most ${issue.maximum}`)]
    default:
      return [problem(path, issue, remedyOf(issue))]
  }
}

const depth = (issues: z.core.$ZodIssue[]) =>
  Math.max(...issues.map((issue) => issue.path.length * 2 + (issue.code === 'invalid_type' ? 0 : 1)))
const article = (word: string) => (/^[aeio]/.test(word) ? `an ${word}` : `a ${word}`)
const problem = (path: PropertyKey[], issue: z.core.$ZodIssue, remedy: string): Problem => ({
  path: formatPath(path),
  message: shorten(issue.message),
  remedy,
})
const remedyOf = (issue: z.core.$ZodIssue) =>
  (issue as { params?: { remedy?: string } }).params?.remedy ?? 'see "sluice schema"'
// An error text goes to terminals and logs: what came from the file in it must not be able to write there.
const shorten = (text: string) => text.replace(/[\u0000-\u001f\u007f]/g, '?').slice(0, 300)
