// What is kept under a name that a configuration gives: every object has a "constructor" without being given one.

/** undefined: nothing was put there. */
export const own = <T>(of: Readonly<Record<string, T>>, name: string): T | undefined =>
  Object.hasOwn(of, name) ? of[name] : undefined
