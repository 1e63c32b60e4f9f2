// The Prometheus text format, read strictly: a line that is no comment and no sample is an error, and so is a series twice.

export interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y

export function parseMetrics(text: string): Sample[] {
  if (!text.endsWith('\n')) throw new Error('the last line has no end')
  const seen = new Set<string>()
  return text.split('\n').flatMap((line) => {
    if (line === '' || /^# (HELP|TYPE) \S+ .+$/.test(line)) return []
    const found = SAMPLE.exec(line)
    if (!found) throw new Error(`no sample: ${line}`)
    const labels = parseLabels(found[2] ?? '')
    const value = found[3] === '+Inf' ? Infinity : Number(found[3])
    if (Number.isNaN(value)) throw new Error(`no number: ${line}`)
    const key = JSON.stringify([found[1], Object.entries(labels).toSorted()])
    if (seen.has(key)) throw new Error(`twice: ${line}`)
    seen.add(key)
    return [{ name: found[1]!, labels, value }]
  })
}

function parseLabels(text: string): Record<string, string> {
  const labels: Record<string, string> = {}
  LABEL.lastIndex = 0
  while (LABEL.lastIndex < text.length) {
    const at = LABEL.lastIndex
    const found = LABEL.exec(text)
    if (!found) throw new Error(`no label at ${at} of ${text}`)
    labels[found[1]!] = found[2]!.replace(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped))
  }
  return labels
}

/** "label=value,…" (sorted) → value, of one name. */
export const series = (samples: Sample[], name: string): Record<string, number> =>
  Object.fromEntries(
    samples
      .filter((sample) => sample.name === name)
      .map(({ labels, value }) => [
        Object.entries(labels)
          .toSorted(([a], [b]) => (a < b ? -1 : 1))
          .map(([label, text]) => `${label}=${text}`)
          .join(','),
        value,
      ]),
  )
