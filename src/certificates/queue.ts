// At most so many calls at once; the others wait for one that ends.

export function atOnce<Args extends unknown[], Result>(
  max: number,
  call: (...args: Args) => Promise<Result>,
): (...args: Args) => Promise<Result> {
  let running = 0
  const waiting: (() => void)[] = []
  return async (...args) => {
    if (running >= max) await new Promise<void>((resolve) => waiting.push(resolve))
    else running++
    try {
      return await call(...args)
    } finally {
      // Its place goes to the next one, and is never free in between.
      const next = waiting.shift()
      if (next) next()
      else running--
    }
  }
}
