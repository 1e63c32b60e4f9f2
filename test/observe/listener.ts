// Listens to server-sent events, as a dashboard would.

export interface Told {
  event: string
  [field: string]: unknown
}

/** All that came, and what the heartbeats were. */
export class EventListener {
  readonly told: Told[] = []
  heartbeats = 0
  over = false
  readonly done: Promise<void>
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>
  #text = ''

  constructor(response: Response) {
    this.#reader = response.body!.getReader() as ReadableStreamDefaultReader<Uint8Array>
    this.done = this.#read()
  }

  async #read() {
    const decoder = new TextDecoder()
    for (;;) {
      const { done, value } = await this.#reader.read()
      if (done) break
      this.#text += decoder.decode(value, { stream: true })
      const parts = this.#text.split('\n\n')
      this.#text = parts.pop()!
      for (const part of parts) this.#hear(part)
    }
    this.over = true
  }

  #hear(part: string) {
    if (part.startsWith(':')) return void this.heartbeats++
    const [event, data] = part.split('\n')
    const told = JSON.parse(data!.replace('data: ', '')) as Told
    if (event !== `event: ${told.event}`) throw new Error(`${event} says ${told.event}`)
    this.told.push(told)
  }

  of(event: string): Told[] {
    return this.told.filter((told) => told.event === event)
  }

  leave(): Promise<void> {
    return this.#reader.cancel()
  }
}
