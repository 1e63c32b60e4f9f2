// What several commands share: reading a configuration with its problems printed, colours, tables.
import { findConfig, loadConfig } from '../config/load.ts'
import type { Problem } from '../config/check.ts'
import type { Config } from '../config/schema.ts'
import { paint, table as tableFor, type View } from './format.ts'

/** On a terminal only. */
export const colour = (code: number, text: string, stream: { isTTY?: boolean } = process.stdout) =>
  viewOf(stream).colours ? paint(code, text) : text

export async function readConfig(
  named: string | undefined,
): Promise<{ ok: true; path: string; config: Config } | { ok: false; exitCode: number }> {
  const path = await findConfig(named)
  if (path === undefined) {
    process.stderr.write('sluice: no configuration: name one with --config, or write one with "sluice init"\n')
    return { ok: false, exitCode: 2 }
  }
  const loaded = await loadConfig(path)
  if (loaded.ok) return { ok: true, path, config: loaded.config }
  process.stderr.write(
    `sluice: ${path} has ${loaded.problems.length === 1 ? 'a problem' : `${loaded.problems.length} problems`}\n`,
  )
  printProblems(loaded.problems)
  return { ok: false, exitCode: 2 }
}

export function printProblems(problems: Problem[]) {
  for (const { path, message, remedy } of problems)
    process.stderr.write(`  ${colour(1, path, process.stderr)}: ${message}\n    ${colour(2, remedy, process.stderr)}\n`)
}

/** As this terminal shows it; in full where standard output is none. */
export const table = (head: string[], rows: string[][]): string => tableFor(head, rows, viewOf(process.stdout))

/** NO_COLOR: https://no-color.org */
export const viewOf = (stream: { isTTY?: boolean; columns?: number }): View => ({
  width: (stream.isTTY && stream.columns) || Infinity,
  colours: Boolean(stream.isTTY && !process.env.NO_COLOR),
})
