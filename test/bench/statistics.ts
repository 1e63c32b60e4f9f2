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
}

export function compare(subject: number[], peer: number[]): Comparison {
  const ratios = subject.map((value, run) => value / peer[run]!)
  return {
    subject: median(subject),
    peer: median(peer),
    ratio: median(ratios),
    lowest: Math.min(...ratios),
    highest: Math.max(...ratios),
  }
}
