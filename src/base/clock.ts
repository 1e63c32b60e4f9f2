// Time as text. Records of one burst share their second: its text is made once.

let second = NaN
let text = ''

/** Milliseconds since 1970 → ISO 8601 in UTC, as Date.toISOString() writes it, at a fifth of the cost. */
export function isoTime(ms: number): string {
  const whole = Math.floor(ms / 1000)
  if (whole !== second) {
    text = new Date(whole * 1000).toISOString().slice(0, 20)
    second = whole
  }
  const rest = Math.floor(ms) - whole * 1000
  return `${text}${rest < 10 ? '00' : rest < 100 ? '0' : ''}${rest}Z`
}
