// Long work in pieces, so that everything else has its turn of the event loop in between.

export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Acts on each item, `perTurn` at a time. */
export async function inTurns<T>(items: Iterable<T>, perTurn: number, act: (item: T) => void): Promise<void> {
  let acted = 0
  for (const item of items) {
    act(item)
    if (++acted % perTurn === 0) await turn()
  }
}
