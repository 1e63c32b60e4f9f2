// The program's own log on standard error: pino's JSON lines, as log shippers expect; with their priority before them where that
// is the journal, so that journalctl -p finds them; on a terminal one plain line each, for the person who watches.
import { stat } from 'node:fs/promises'
import pino from 'pino'

export type Level = 'debug' | 'info' | 'warn' | 'error'
export type Log = (level: Level, message: string, fields?: Record<string, unknown>) => void

const COLOURS: Record<Level, number> = { debug: 2, info: 32, warn: 33, error: 31 }
const ORDER: Level[] = ['debug', 'info', 'warn', 'error']
/** sd-daemon(3) */
const PRIORITIES: Record<Level, string> = { debug: '<7>', info: '<6>', warn: '<4>', error: '<3>' }

/** @param journal what is said of standard error by isJournal(). */
export function makeLog(level: Level, journal = false): Log {
  if (process.stderr.isTTY) return terminalLog(level)
  const options = {
    level,
    base: undefined,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const stderr = pino.destination({ fd: 2, sync: false })
  const logger = pino(options, journal ? prefixed(stderr) : stderr)
  return (at, message, fields) => logger[at](fields ?? {}, message)
}

/** systemd.exec(5): a process may have inherited the variable and write elsewhere, so it names the stream that it means. */
export async function isJournal(named = process.env.JOURNAL_STREAM): Promise<boolean> {
  if (!named) return false
  const found = await stat('/proc/self/fd/2').catch(() => null)
  return found !== null && named === `${found.dev}:${found.ino}`
}

/** pino says the level of each line to a stream that asks for it. */
const prefixed = (stderr: { write(line: string): unknown }) => ({
  [Symbol.for('pino.metadata')]: true,
  lastLevel: 0,
  write(line: string) {
    const label = pino.levels.labels[this.lastLevel] as Level | undefined
    stderr.write(`${PRIORITIES[label ?? 'error']}${line}`)
  },
})

function terminalLog(level: Level): Log {
  const paint = (code: number, text: string) => (process.env.NO_COLOR ? text : `\x1b[${code}m${text}\x1b[0m`)
  return (at, message, fields) => {
    if (ORDER.indexOf(at) < ORDER.indexOf(level)) return
    const extra = fields && Object.keys(fields).length ? ` ${paint(2, JSON.stringify(fields))}` : ''
    process.stderr.write(`${paint(COLOURS[at], at.padEnd(5))} ${message}${extra}\n`)
  }
}
