// Medians, and how one thing compares with another when both were measured in turn.

export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export interface Comparison {
  subject: number
  peer: number
  /** Subject by peer, run by run: a slow moment of the machine hits both halves of a pair. */
  ratio: number
  lowest: number
  highest: number
  /** The run whose ratio is nearest to `ratio`: what shows where the time goes. */
  typical: number
}

export function compare(subject: number[], peer: number[]): Comparison {
  const ratios = subject.map((value, run) => value / peer[run]!)
  const ratio = median(ratios)
  const distances = ratios.map((one) => Math.abs(one - ratio))
  return {
    subject: median(subject),
    peer: median(peer),
    ratio,
    lowest: Math.min(...ratios),
    highest: Math.max(...ratios),
    typical: distances.indexOf(Math.min(...distances)),
  }
}
