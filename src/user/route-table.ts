// The routes of one listener as connections look for them: of thousands of names only those that can match are compared.
import type { Choice } from './select.ts'

interface Ordered<T> {
  route: T
  place: number
}

export class RouteTable<T extends Choice> {
  /** By each of their exact names; one with several names is in several places. */
  readonly #exact = new Map<string, Ordered<T>[]>()
  /** Those with a wildcard, or for any name. */
  readonly #rest: Ordered<T>[] = []
  readonly #unnamed: readonly T[]

  /** @param all in the plan's order. */
  constructor(readonly all: readonly T[]) {
    all.forEach((route, place) => {
      const names = route.domains.filter((pattern) => !pattern.includes('*'))
      if (names.length < route.domains.length || names.length === 0) this.#rest.push({ route, place })
      for (const name of new Set(names)) {
        const same = this.#exact.get(name)
        if (same) same.push({ route, place })
        else this.#exact.set(name, [{ route, place }])
      }
    })
    this.#unnamed = this.#rest.map(({ route }) => route)
  }

  /** Those that a name may lead to, in the plan's order. */
  of(name: string | undefined): readonly T[] {
    const exact = name === undefined ? undefined : this.#exact.get(name)
    if (!exact) return this.#unnamed
    if (this.#rest.length === 0) return exact.map(({ route }) => route)
    const places = new Map([...exact, ...this.#rest].map(({ route, place }) => [place, route]))
    return [...places].sort(([a], [b]) => a - b).map(([, route]) => route)
  }
}

export const NO_ROUTES = new RouteTable<never>([])
