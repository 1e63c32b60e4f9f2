// The program's own log: pino's JSON lines on standard error, as journald and log shippers expect; on a terminal one plain
// line each, for the person who watches.
import pino from 'pino'

export type Level = 'debug' | 'info' | 'warn' | 'error'
export type Log = (level: Level, message: string, fields?: Record<string, unknown>) => void

const COLOURS: Record<Level, string> = { debug: '\x1b[2m', info: '\x1b[32m', warn: '\x1b[33m', error: '\x1b[31m' }
const ORDER: Level[] = ['debug', 'info', 'warn', 'error']

export function makeLog(level: Level): Log {
  if (process.stderr.isTTY) return terminalLog(level)
  const logger = pino(
    {
      level,
      base: undefined,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ fd: 2, sync: false }),
  )
  return (at, message, fields) => logger[at](fields ?? {}, message)
}

function terminalLog(level: Level): Log {
  return (at, message, fields) => {
    if (ORDER.indexOf(at) < ORDER.indexOf(level)) return
    const extra = fields && Object.keys(fields).length ? ` \x1b[2m${JSON.stringify(fields)}\x1b[0m` : ''
    process.stderr.write(`${COLOURS[at]}${at.padEnd(5)}\x1b[0m ${message}${extra}\n`)
  }
}
