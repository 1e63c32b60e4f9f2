// What several commands share: reading a configuration with its problems printed, colours, tables.
import { findConfig, loadConfig } from '../config/load.ts'
import type { Problem } from '../config/check.ts'
import type { Config } from '../config/schema.ts'

/** On a terminal only. */
export const colour = (code: number, text: string, stream: { isTTY?: boolean } = process.stdout) =>
  stream.isTTY && !process.env.NO_COLOR ? `\x1b[${code}m${text}\x1b[0m` : text

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

/** Columns as wide as their widest cell; the last one is cut to the terminal. */
export function table(head: string[], rows: string[][]): string {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)))
  const width = process.stdout.columns || Infinity
  const line = (cells: string[]) => {
    const text = cells.map((cell, i) => (i === cells.length - 1 ? cell : cell.padEnd(widths[i]!))).join('  ')
    return text.length > width ? `${text.slice(0, Math.max(0, width - 1))}…` : text
  }
  return [colour(1, line(head)), ...rows.map(line)].join('\n') + '\n'
}
