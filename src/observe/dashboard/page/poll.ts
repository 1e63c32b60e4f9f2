// Asks again and again, while it is looked at: not in a tab in the background, and not so often that asking is all the
// gateway does.

/** An answer that takes long is asked for less often: one part of the time at most is spent on it. */
const SHARE = 10

export interface Poll {
  /** Now, and not when it is due. */
  again(): void
}

/** @param wanted whether the answer is shown at all. @param failed null: it answers (again). */
export function poll(
  everyMs: number,
  wanted: () => boolean,
  work: () => Promise<void>,
  failed: (error: Error | null) => void,
): Poll {
  let timer: ReturnType<typeof setTimeout> | undefined
  let isAsking = false
  let isDue = false
  const ask = async () => {
    clearTimeout(timer)
    isDue = isAsking
    if (isAsking || document.hidden || !wanted()) return
    isAsking = true
    const began = performance.now()
    await work().then(
      () => failed(null),
      (error: Error) => failed(error),
    )
    isAsking = false
    const tookMs = performance.now() - began
    timer = setTimeout(again, isDue ? 0 : Math.max(everyMs, tookMs * SHARE))
  }
  const again = () => void ask()
  document.addEventListener('visibilitychange', again)
  return { again }
}
