// Which file of the project imports which, read from the text: types count as imports too, and so does import() of a
// constant. For the architecture test, and for leaving out the tests that need what is not there.
import { dirname, join, normalize } from 'node:path'

export interface Import {
  /** A path from the top of the project for files of ours, else the name of the module. */
  to: string
  dynamic: boolean
}

// Statements start in the first column: the formatter puts them there.
const STATEMENT = /^(?:import|export)\b(?:[^'"`;]*?\bfrom)?\s*['"]([^'"]+)['"]/gm
const DYNAMIC = /\bimport\(\s*['"]([^'"]+)['"]/g
const COMMENT_LINE = /^\s*(?:\/\/|\/\*|\*).*$/gm

export function importsOf(path: string, text: string): Import[] {
  const code = text.replace(COMMENT_LINE, '')
  const read = (pattern: RegExp, dynamic: boolean) =>
    [...code.matchAll(pattern)].map(([, name]) => ({
      to: name!.startsWith('.') ? normalize(join(dirname(path), name!)) : name!,
      dynamic,
    }))
  return [...read(STATEMENT, false), ...read(DYNAMIC, true)]
}

/** Every file that can be reached from `start` by imports, `start` included. `read` gives undefined for what is no file. */
export async function reachable(
  start: string,
  read: (path: string) => Promise<string | undefined>,
): Promise<Set<string>> {
  const seen = new Set([start])
  // A Set grows while it is walked, and each path is visited once.
  for (const path of seen) {
    const text = path.endsWith('.ts') ? await read(path) : undefined
    for (const { to } of text === undefined ? [] : importsOf(path, text)) seen.add(to)
  }
  return seen
}
