// Numbers as a person reads them. Pure.

const THOUSANDS = ['', 'k', 'M', 'G', 'T', 'P']
const [MINUTE_S, HOUR_S, DAY_S] = [60, 3600, 86_400]

const whole = new Intl.NumberFormat('en')
export const count = (value: number) => whole.format(value)

/** Three digits at least: 999, 1.00 k, 12.3 M. */
function scaled(value: number, unit: string): string {
  let power = 0
  while (value >= 999.5 && power < THOUSANDS.length - 1) {
    value /= 1000
    power++
  }
  const digits = power === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0
  return `${value.toFixed(digits)} ${THOUSANDS[power]}${unit}`.trimEnd()
}

export const bytes = (value: number) => scaled(value, 'B')
export const byteRate = (value: number) => scaled(value, 'B/s')
/** Below ten with a digit: one connection in two seconds is not none. */
export function perSecond(value: number): string {
  if (value > 0 && value < 0.05) return '<0.1/s'
  return `${value === 0 || value >= 10 ? count(Math.round(value)) : value.toFixed(1)}/s`
}

/** The two largest parts: 45 s, 3 min 20 s, 5 h 2 min, 12 d 4 h. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds))
  const two = (size: number, unit: string, rest: number, restUnit: string) => {
    const left = Math.floor((s % size) / rest)
    return `${Math.floor(s / size)} ${unit}${left > 0 ? ` ${left} ${restUnit}` : ''}`
  }
  if (s >= DAY_S) return two(DAY_S, 'd', HOUR_S, 'h')
  if (s >= HOUR_S) return two(HOUR_S, 'h', MINUTE_S, 'min')
  if (s >= MINUTE_S) return two(MINUTE_S, 'min', 1, 's')
  return `${s} s`
}

export const percent = (share: number) => `${share > 0 && share < 0.01 ? '<1' : Math.round(share * 100)} %`

/** "*:443", "10.0.0.1:8000-8010/udp". */
export function listens(list: { address: string | null; from: number; to: number; protocol: string }[]): string {
  return list
    .map(({ address, from, to, protocol }) => {
      const host = address === null ? '*' : address.includes(':') ? `[${address}]` : address
      return `${host}:${from === to ? from : `${from}-${to}`}${protocol === 'udp' ? '/udp' : ''}`
    })
    .join(', ')
}
